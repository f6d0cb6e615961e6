// SPDX-License-Identifier: Apache-2.0
// Which instruction sets the CPU kernels are compiled for, and which one this process uses.
#pragma once

namespace d2defense {

enum class InstructionSet { kBaseline, kAvx2, kAvx512 };

// The widest that the processor has, or a narrower one that D2DEFENSE_CPU_CAPABILITY names.
InstructionSet instruction_set();

#if defined(__x86_64__)
#define D2DEFENSE_AVX2 __attribute__((target("avx2,fma")))
#if defined(__clang__)
#define D2DEFENSE_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#else
#define D2DEFENSE_AVX512 \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")))
#endif
#endif

// One function an instruction set: Work::run<bytes of a register>, which must be inlined, is
// compiled for each.
template <typename Work, typename Signature>
struct Versions;

template <typename Work, typename Result, typename... Argument>
struct Versions<Work, Result(Argument...)> {
  static Result baseline(Argument... argument) {
    return Work::template run<16>(argument...);
  }

#if defined(__x86_64__)
  D2DEFENSE_AVX2 static Result avx2(Argument... argument) {
    return Work::template run<32>(argument...);
  }

  D2DEFENSE_AVX512 static Result avx512(Argument... argument) {
    return Work::template run<64>(argument...);
  }
#endif

  static auto chosen() -> Result (*)(Argument...) {
#if defined(__x86_64__)
    switch (instruction_set()) {
      case InstructionSet::kAvx512:
        return &avx512;
      case InstructionSet::kAvx2:
        return &avx2;
      case InstructionSet::kBaseline:
        break;
    }
#endif
    return &baseline;
  }
};

}  // namespace d2defense
