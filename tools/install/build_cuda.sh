#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Compiles and links the extension with its CUDA kernels, and imports it. No GPU is needed.
#
#   build_cuda.sh PYTHON
#
#   TORCH_CUDA_ARCH_LIST  the GPU architectures (default 8.0;9.0)
#   BUILD                 the build folder (default build/cuda); the usual extension stays as it is
set -eu
python=$1
build=${BUILD:-build/cuda}
command -v nvcc >/dev/null || {
    echo "d2defense: no nvcc on PATH: install a CUDA toolkit" >&2
    exit 1
}
export FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-8.0;9.0}"
echo "building the CUDA kernels for $TORCH_CUDA_ARCH_LIST with $(nvcc --version | grep release)"

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
