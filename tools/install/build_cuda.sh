#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Compiles and links the extension with its CUDA kernels, and imports it. No GPU is needed.
#
#   build_cuda.sh PYTHON
#
#   NVCC                  the compiler (default: nvcc on PATH)
#   TORCH_CUDA_ARCH_LIST  the GPU architectures (default 8.0;9.0)
#   BUILD                 the build folder (default build/cuda); the usual extension stays as it is
set -eu
python=$1
build=${BUILD:-build/cuda}
nvcc=$(command -v "${NVCC:-nvcc}") || {
    echo "d2defense: no nvcc on PATH: install a CUDA toolkit, or name it with NVCC=..." >&2
    exit 1
}

# nvcc on PATH may be a script that calls the real one, whose folder torch needs to know.
toolkit=$("$nvcc" --dryrun -x cu /dev/null 2>&1 | sed -n 's/^#\$ TOP=//p')
[ -d "$toolkit" ] || {
    echo "d2defense: $nvcc does not tell its toolkit's folder" >&2
    exit 1
}
CUDA_HOME=$(cd "$toolkit" && pwd -P)
export CUDA_HOME FORCE_CUDA=1
export TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-8.0;9.0}"
echo "building the CUDA kernels with $("$nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/CUDA \1/p') for $TORCH_CUDA_ARCH_LIST"

mkdir -p "$build"
"$python" setup.py --quiet build --build-base "$build" --build-lib "$build/lib"

PYTHONPATH="$build/lib" "$python" -P - "$build/lib" <<'CHECK'
import sys
from pathlib import Path

import torch
import d2defense._C as extension

built = Path(extension.__file__).resolve()
if Path(sys.argv[1]).resolve() not in built.parents:
    sys.exit(f"d2defense: imported {built}, not the build with CUDA")
if not extension.build_info().get("cuda"):
    sys.exit(f"d2defense: {built} was built without CUDA: {extension.build_info()}")
print(f"imported {built.name} with torch {torch.__version__}: {extension.build_info()}")
CHECK
