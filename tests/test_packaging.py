# SPDX-License-Identifier: Apache-2.0
"""What is built, what it holds, and what the set-up says when it cannot go on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
INSTALL = ROOT / "tools" / "install" / "install.sh"
BUILT_FROM = (
    *("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md", "Makefile"),
    *(".clang-format", "d2defense", "csrc", "configs", "requirements", "tools", "docs", "tests"),
)


def run(command: list[object], **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, **options
    )


def build(kind: str, folder: Path, prelude: str = "") -> subprocess.CompletedProcess[str]:
    code = f"{prelude}\nfrom setuptools import build_meta\nbuild_meta.build_{kind}('dist')"
    return run([sys.executable, "-c", code], cwd=folder)


def files_below(folder: str) -> set[str]:
    """Source files, by their path from the project's folder."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in {".pyc", ".so", ".o"} and path.name[0] != "."
    }


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """A copy of what a build reads, beside the leavings of other builds."""
    folder = tmp_path_factory.mktemp("sources")
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.so")
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, folder)
    (folder / "d2defense" / "_C.cpython-00-other.so").write_bytes(b"another Python's extension")
    return folder


@pytest.fixture(scope="module")
def without_extension():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("D2DEFENSE_NO_EXTENSION", "1")
        yield


@pytest.fixture(scope="module")
def sdist(sources, without_extension) -> set[str]:
    """Paths in the source distribution, without its leading folder."""
    result = build("sdist", sources)
    assert result.returncode == 0, result.stderr
    (archive,) = (sources / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as content:
        return {name.partition("/")[2] for name in content.getnames()}


@pytest.fixture(scope="module")
def wheel(sources, without_extension) -> zipfile.ZipFile:
    result = build("wheel", sources)
    assert result.returncode == 0, result.stderr
    (archive,) = (sources / "dist").glob("*.whl")
    with zipfile.ZipFile(archive) as content:
        yield content


@pytest.fixture(scope="module")
def requirements(wheel) -> list[Requirement]:
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    message = Parser().parsestr(wheel.read(metadata).decode())
    return [Requirement(line) for line in message.get_all("Requires-Dist")]


@pytest.mark.parametrize("folder", ["csrc", "configs", "d2defense", "requirements"])
def test_sdist_contains_every_source_file(sdist, folder):
    assert files_below(folder) <= sdist


def test_sdist_contains_what_builds_it_and_its_license(sdist):
    assert {"setup.py", "pyproject.toml", "LICENSE", "Makefile", "PKG-INFO"} <= sdist
    assert "tools/install/install.sh" in sdist


def test_sdist_leaves_out_what_was_built(sdist):
    assert not [name for name in sdist if name.endswith((".so", ".o", ".pyc"))]


def test_wheel_ships_the_configs_inside_the_package(wheel):
    assert {f"d2defense/{name}" for name in files_below("configs")} <= set(wheel.namelist())


def test_wheel_ships_assets_and_modules(wheel):
    assert files_below("d2defense") <= set(wheel.namelist())


def test_wheel_installs_nothing_beside_the_package(wheel):
    top_level = {name.split("/")[0] for name in wheel.namelist()}
    assert {name for name in top_level if not name.endswith(".dist-info")} == {"d2defense"}
    assert not [name for name in wheel.namelist() if name.endswith(".so")]


def test_wheel_installs_the_program(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "d2defense = d2defense.cli.main:main" in wheel.read(name).decode()


def test_constraints_pin_every_dependency_within_its_bounds(requirements):
    lines = (ROOT / "requirements" / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    assert len(requirements) > 20
    for requirement in requirements:
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_detectron2_is_pinned_by_hash():
    lines = (ROOT / "requirements" / "detectron2.txt").read_text().splitlines()
    (pin,) = (line for line in lines if not line.startswith("#"))
    assert re.fullmatch(r"sal-detectron2==0\.7\.2 --hash=sha256:[0-9a-f]{64}", pin)


@pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="no C++ sources in this copy")
def test_build_without_torch_says_so_in_one_line(sources, monkeypatch):
    monkeypatch.delenv("D2DEFENSE_NO_EXTENSION", raising=False)
    # None in sys.modules makes an import fail as if the package were missing.
    result = build("wheel", sources, prelude="import sys; sys.modules['torch'] = None")
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert "torch is not installed" in last
    assert "--no-build-isolation" in last
    assert "Traceback" not in result.stderr


def test_make_help_lists_every_target():
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE).group(1).split()
    listed = run(["make", "help"], cwd=ROOT).stdout
    assert {"demo", "test", "test-slow", "install", "lint", "format", "clean"} <= set(phony)
    for target in phony:
        assert re.search(rf"^  make {target} +\S", listed, re.MULTILINE), target
    assert run(["make"], cwd=ROOT).stdout == listed


class Machine:
    """A PATH that holds only a shell's basics and the programs that a test adds."""

    def __init__(self, folder: Path):
        self.bin = folder / "bin"
        self.bin.mkdir()
        for name in ("sh", "dirname", "head"):
            (self.bin / name).symlink_to(shutil.which(name))

    def add(self, name: str, script: str) -> Path:
        program = self.bin / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        return program

    def add_python(self, name: str, version: str, probe_status: int) -> Path:
        """A Python that gives its version and ends the set-up's probe with the status."""
        return self.add(
            name, f'[ "$1" = --version ] && echo "Python {version}" && exit\nexit {probe_status}'
        )

    def install(self, *arguments: object, **environment: object):
        variables = {
            **{k: v for k, v in os.environ.items() if k not in ("CXX", "PYTHON", "VENV")},
            **{"PATH": str(self.bin), "VENV": str(self.bin / "no-environment")},
            **{key: str(value) for key, value in environment.items()},
        }
        return run([self.bin / "sh", INSTALL, *arguments], env=variables, cwd=ROOT)


@pytest.fixture
def machine(tmp_path) -> Machine:
    return Machine(tmp_path)


def only_line(result: subprocess.CompletedProcess[str]) -> str:
    """The one line that a failing set-up prints."""
    assert result.returncode not in (0, None)
    (line,) = (result.stdout + result.stderr).splitlines()
    return line


def test_missing_compiler_gets_one_line(machine):
    line = only_line(machine.install("--check", PYTHON=sys.executable))
    assert line.startswith("d2defense: no C++ compiler found")
    assert "g++" in line


def test_missing_compiler_named_by_the_user_gets_one_line(machine):
    line = only_line(machine.install("--check", PYTHON=sys.executable, CXX="nonesuch-c++ -O1"))
    assert "nonesuch-c++" in line


def test_compiler_without_cpp20_gets_one_line(machine):
    machine.add("c++", "exit 1")
    line = only_line(machine.install("--check", PYTHON=sys.executable))
    assert "C++20" in line


def test_unsupported_python_gets_one_line(machine):
    python = machine.add_python("python3.9", "3.9.18", probe_status=2)
    line = only_line(machine.install(PYTHON=python))
    assert "Python 3.9.18" in line
    assert "CPython 3.11, 3.12 or 3.13" in line


def test_python_that_does_not_exist_gets_one_line(machine):
    assert "nonesuch" in only_line(machine.install(PYTHON="nonesuch"))


def test_machine_with_an_old_python_alone_gets_one_line(machine):
    machine.add_python("python3", "3.8.10", probe_status=2)
    line = only_line(machine.install())
    assert "Python 3.8.10" in line
    assert "CPython 3.11, 3.12 or 3.13" in line


def test_machine_without_python_gets_one_line(machine):
    assert "python3 is missing" in only_line(machine.install())


def test_python_without_venv_gets_one_line(machine):
    machine.add_python("python3", "3.11.2", probe_status=3)
    assert "no venv module" in only_line(machine.install())


def test_first_supported_python_is_taken(machine):
    machine.add_python("python3", "3.8.10", probe_status=2)
    machine.add("python3.12", f'exec "{sys.executable}" "$@"')
    machine.add("c++", "exit 0")
    result = machine.install("--check")
    assert result.returncode == 0, result.stderr
    assert "C++ compiler c++" in result.stdout


def test_folder_that_is_no_environment_is_kept(machine, tmp_path):
    notes = tmp_path / "mine" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("precious")
    result = machine.install(PYTHON=sys.executable, VENV=notes.parent, D2DEFENSE_NO_EXTENSION=1)
    assert str(notes.parent) in only_line(result)
    assert notes.read_text() == "precious"
