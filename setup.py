# SPDX-License-Identifier: Apache-2.0
"""Builds the compiled operator ``d2defense._C``; ``pyproject.toml`` says the rest.

Environment variables:
    D2DEFENSE_NO_EXTENSION=1  leave the compiled operator out; its PyTorch reference is used
    FORCE_CUDA=1              build the CUDA kernels although no GPU is visible (needs nvcc)
    TORCH_CUDA_ARCH_LIST      the GPU architectures to build for, for example "8.0;9.0"
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.dist_info import dist_info

ROOT = Path(__file__).resolve().parent
# setuptools wants every path of a source distribution relative to setup.py.
os.chdir(ROOT)


def switched_on(variable: str) -> bool:
    """True when the environment variable holds something other than nothing, 0 or a "no"."""
    return os.environ.get(variable, "").lower() not in ("", "0", "no", "off", "false")


class BuildPython(build_py):
    """Copies the package and ``configs/``, which an installed package holds as its own folder.

    An editable install reads the top-level folder instead, so nothing is copied there.
    """

    def _config_files(self) -> list[tuple[Path, Path]]:
        """(source, destination under the build folder) of every file in ``configs/``."""
        destination = Path(self.build_lib) / "d2defense" / "configs"
        files = sorted(path for path in Path("configs").rglob("*") if path.is_file())
        return [(path, destination / path.relative_to("configs")) for path in files]

    def run(self) -> None:
        """Build as setuptools does, then add the configs to a build that is not editable."""
        super().run()
        if getattr(self, "editable_mode", False):
            return
        for source, target in self._config_files():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Every file that :meth:`run` writes."""
        outputs = super().get_outputs(include_bytecode)
        if getattr(self, "editable_mode", False):
            return outputs
        return [*outputs, *(str(target) for _, target in self._config_files())]


def refuse_without_torch() -> None:
    """End the build with one line that says how to go on.

    Raises:
        SystemExit: always.
    """
    sys.exit(
        "d2defense: torch is not installed where the extension is built: install torch first, "
        "then pass --no-build-isolation to pip (or set D2DEFENSE_NO_EXTENSION=1)"
    )


class NoTorchBuildExtension(build_ext):
    """Stands in for torch's ``BuildExtension`` where torch is missing."""

    def run(self) -> None:
        """Refuse: see :func:`refuse_without_torch`."""
        refuse_without_torch()


class NoTorchDistInfo(dist_info):
    """Refuses at pip's first step, before it downloads gigabytes of dependencies for nothing."""

    def run(self) -> None:
        """Refuse: see :func:`refuse_without_torch`."""
        refuse_without_torch()


def relative(*patterns: str) -> list[str]:
    """Files matching the patterns, in a fixed order, relative to the project's folder."""
    return sorted(path.as_posix() for pattern in patterns for path in Path().glob(pattern))


def openmp_flags() -> list[str]:
    """Flags with which ``at::parallel_for``, a header-only template, uses torch's own threads."""
    import torch

    linux = sys.platform.startswith("linux")
    return ["-fopenmp"] if linux and "backend: OpenMP" in torch.__config__.parallel_info() else []


def find_cuda_toolkit() -> None:
    """Set ``CUDA_HOME`` from what nvcc says of itself, unless it is set already.

    torch takes the folder above nvcc's on PATH for the toolkit, but that nvcc may be a script that
    calls the real one.
    """
    nvcc = shutil.which("nvcc")
    if nvcc is None or os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        return
    command = [nvcc, "--dryrun", "-x", "cu", os.devnull]
    answer = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    top = re.search(r"^#\$ TOP=(.+)$", answer, re.MULTILINE)
    if top is not None and Path(top.group(1)).is_dir():
        os.environ["CUDA_HOME"] = str(Path(top.group(1)).resolve())


def cuda_toolkit_fits(cuda_home: str) -> bool:
    """Whether the toolkit has the major version of torch's CUDA, which torch insists on."""
    import torch

    command = [str(Path(cuda_home) / "bin" / "nvcc"), "--version"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return False
    release = re.search(r"release (\d+)\.", answer)
    built_with = (torch.version.cuda or "").partition(".")[0]
    return release is not None and release.group(1) == built_with


def extension() -> tuple[list[Extension], dict[str, type]]:
    """The extension module and the commands that build it; both empty when it is left out."""
    sources = relative("csrc/*.cpp", "csrc/autograd/*.cpp", "csrc/cpu/*.cpp")
    if switched_on("D2DEFENSE_NO_EXTENSION") or not sources:
        return [], {}
    find_cuda_toolkit()
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError:
        return [Extension("d2defense._C", sources)], {
            "build_ext": NoTorchBuildExtension,
            "dist_info": NoTorchDistInfo,
        }

    cuda_sources = relative("csrc/cuda/*.cu", "csrc/cuda/*.cpp")
    cuda_home = cpp_extension.CUDA_HOME
    with_cuda = switched_on("FORCE_CUDA") and bool(cuda_sources)
    if with_cuda and cuda_home is None:
        sys.exit("d2defense: FORCE_CUDA=1 needs a CUDA toolkit: set CUDA_HOME to its folder")
    if cuda_sources and not with_cuda and cuda_home is not None and torch.cuda.is_available():
        with_cuda = cuda_toolkit_fits(cuda_home)
        if not with_cuda:
            print(
                f"d2defense: built for the CPU alone: the CUDA toolkit in {cuda_home} does not "
                f"fit torch's CUDA {torch.version.cuda}",
                file=sys.stderr,
            )

    threads = openmp_flags()
    compile_flags = {"cxx": ["-O3", "-Wall", "-Wno-psabi", *threads]}
    if with_cuda:
        compile_flags["nvcc"] = ["-O3"]
    make = cpp_extension.CUDAExtension if with_cuda else cpp_extension.CppExtension
    module = make(
        "d2defense._C",
        sources + (cuda_sources if with_cuda else []),
        include_dirs=[str(ROOT / "csrc")],
        define_macros=[("WITH_CUDA", None)] if with_cuda else [],
        extra_compile_args=compile_flags,
        extra_link_args=threads,
        depends=relative("csrc/**/*.h", "csrc/**/*.cuh"),
    )
    return [module], {"build_ext": cpp_extension.BuildExtension}


ext_modules, extension_commands = extension()
setup(ext_modules=ext_modules, cmdclass={"build_py": BuildPython, **extension_commands})
