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
    "test_inconsistency_backward.py",
    "test_inconsistency_errors.py",
    "test_inconsistency_hypothesis.py",
    "test_reference.py",
]
# Its memory would be several times as much.
HUGE = "test_more_than_two_to_the_31_logits"


def build(folder: Path) -> None:
    """Compile the extension to ``folder/_C.so``; the process may end here.

    torch loads what it has built, and the sanitizers' runtime, which must come before any other
    library, then ends the process.
    """
    sources = [path for path in ROOT.glob("csrc/**/*.cpp") if path.parent.name != "cuda"]
    openmp = ["-fopenmp"] if "backend: OpenMP" in torch.__config__.parallel_info() else []
    cpp_extension.load(
        name="_C",
        sources=sorted(str(source) for source in sources),
        extra_include_paths=[str(ROOT / "csrc")],
        extra_cflags=["-O1", "-g", "-fno-omit-frame-pointer", *SANITIZE, *openmp],
        extra_ldflags=[*SANITIZE, *openmp],
        build_directory=str(folder),
        is_python_module=False,
        with_cuda=False,
    )


def build_apart(folder: Path) -> Path:
    """:func:`build` in a process of its own; return the library.

    Raises:
        SystemExit: the compiler failed.
    """
    folder.mkdir()
    library = folder / "_C.so"
    command = [sys.executable, __file__, "--build", str(folder)]
    output = subprocess.run(command, capture_output=True, text=True, check=False)
    if not library.is_file():
        raise SystemExit(output.stdout + output.stderr)
    return library


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
        package_beside(build_apart(folder / "build"), folder)
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
            [*python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", f"not {HUGE}", *tests],
            env=environment,
            cwd=ROOT,
            check=False,
        ).returncode


if __name__ == "__main__":
    if sys.argv[1:2] == ["--build"]:
        build(Path(sys.argv[2]))
    else:
        sys.exit(main())
