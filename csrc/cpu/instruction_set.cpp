// SPDX-License-Identifier: Apache-2.0
#include "instruction_set.h"

#include <cstdlib>
#include <string>

#include "../inconsistency.h"

namespace d2defense {
namespace {

InstructionSet widest_instruction_set() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return InstructionSet::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return InstructionSet::kAvx2;
  }
#endif
  return InstructionSet::kBaseline;
}

const char* name_of(InstructionSet set) {
  switch (set) {
    case InstructionSet::kAvx512:
      return "avx512";
    case InstructionSet::kAvx2:
      return "avx2";
    case InstructionSet::kBaseline:
      break;
  }
  return "baseline";
}

InstructionSet choose_instruction_set() {
  const InstructionSet widest = widest_instruction_set();
  const char* wanted = std::getenv("D2DEFENSE_CPU_CAPABILITY");
  if (wanted != nullptr) {
    for (const InstructionSet set : {InstructionSet::kBaseline, InstructionSet::kAvx2}) {
      if (set < widest && std::string(wanted) == name_of(set)) {
        return set;
      }
    }
  }
  return widest;
}

}  // namespace

InstructionSet instruction_set() {
  static const InstructionSet chosen = choose_instruction_set();
  return chosen;
}

std::vector<std::string> compiled_instruction_sets() {
#if defined(__x86_64__)
  return {"baseline", "avx2", "avx512"};
#else
  return {"baseline"};
#endif
}

std::string chosen_instruction_set() {
  return name_of(instruction_set());
}

}  // namespace d2defense
