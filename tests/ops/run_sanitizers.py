# SPDX-License-Identifier: Apache-2.0
"""Build the CPU operator with the address and undefined-behaviour sanitizers and test it.

Run ``python tests/ops/run_sanitizers.py``; the exit status is that of the tests. The instrumented
extension lies in a temporary folder beside links to the package, so the installed one stays as
it is.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[2]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
TESTS = [
    "test_inconsistency.py",
    "test_inconsistency_errors.py",
    "test_inconsistency_hypothesis.py",
    "test_reference.py",
]


def build(folder: Path) -> Path:
    """Compile the extension into ``folder`` and return the library."""
    sources = [*ROOT.glob("csrc/*.cpp"), *ROOT.glob("csrc/cpu/*.cpp")]
    openmp = ["-fopenmp"] if "backend: OpenMP" in torch.__config__.parallel_info() else []
    cpp_extension.load(
        name="_C",
        sources=sorted(str(source) for source in sources),
        extra_include_paths=[str(ROOT / "csrc")],
        extra_cflags=["-O1", "-g", "-fno-omit-frame-pointer", *SANITIZE, *openmp],
        extra_ldflags=[*SANITIZE, *openmp],
        build_directory=str(folder),
        # Loading it here would need the sanitizers' runtime in this process.
        is_python_module=False,
        is_standalone=False,
        with_cuda=False,
    )
    return folder / "_C.so"


def package_beside(library: Path, folder: Path) -> None:
    """Make ``folder/d2defense``: the package by links, with ``library`` as its extension."""
    package = folder / "d2defense"
    package.mkdir()
    for path in (ROOT / "d2defense").iterdir():
        if path.suffix != ".so":
            (package / path.name).symlink_to(path)
    (package / "_C.so").symlink_to(library)


def runtime(name: str) -> str:
    """Where the compiler keeps a sanitizer's runtime library."""
    compiler = cpp_extension.get_cxx_compiler()
    command = [compiler, f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main() -> int:
    """Build, check that the instrumented extension is the one imported, run the tests."""
    with tempfile.TemporaryDirectory(prefix="d2defense-sanitizers-") as temporary:
        folder = Path(temporary)
        (folder / "build").mkdir()
        try:
            build(folder / "build")
        except (ImportError, OSError) as error:
            # torch loads what it has built, which fails without the runtime; the file is there.
            if not (folder / "build" / "_C.so").is_file():
                raise SystemExit(f"the instrumented extension was not built: {error}") from error
        package_beside(folder / "build" / "_C.so", folder)
        environment = {
            **os.environ,
            "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libubsan.so')}",
            # Python and torch keep memory until the process ends.
            "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",
            "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
            "PYTHONPATH": str(folder),
        }
        python = [sys.executable, "-P"]
        check = (
            "import d2defense._C as extension, sys; "
            "sys.exit(not extension.__file__.startswith(sys.argv[1]))"
        )
        # torch first: the extension needs its libraries.
        command = [*python, "-c", f"import torch; {check}", temporary]
        subprocess.run(command, env=environment, cwd=ROOT, check=True)
        tests = [str(ROOT / "tests" / "ops" / name) for name in TESTS]
        return subprocess.run(
            [*python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *tests],
            env=environment,
            cwd=ROOT,
            check=False,
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
