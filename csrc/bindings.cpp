// SPDX-License-Identifier: Apache-2.0
// The Python module d2defense._C: importing it registers the operator, and it tells how it was
// built.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/version.h>

#include <string>

#include "inconsistency.h"

namespace {

std::string compiler() {
#if defined(__clang__)
  return std::string("Clang ") + __clang_version__;
#elif defined(__GNUC__)
  return std::string("GCC ") + __VERSION__;
#else
  return "unknown";
#endif
}

pybind11::dict build_info() {
  pybind11::dict info;
  info["compiler"] = compiler();
  info["cpp_standard"] = static_cast<long>(__cplusplus);
  info["torch"] = TORCH_VERSION;
#ifdef WITH_CUDA
  info["cuda"] = d2defense::cuda_version();
  info["cuda_architectures"] = d2defense::cuda_architectures();
#else
  info["cuda"] = pybind11::none();
  info["cuda_architectures"] = pybind11::list();
#endif
  info["instruction_sets"] = d2defense::compiled_instruction_sets();
  info["instruction_set"] = d2defense::chosen_instruction_set();
  return info;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.doc() = "Compiled operators of d2defense.";
  module.def(
      "build_info",
      &build_info,
      "Compiler, C++ standard, torch, CUDA version and architectures, CPU instruction sets "
      "compiled in and the one chosen.");
}
