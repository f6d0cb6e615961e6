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
    assert "d2defense = d2defense.cli.program:main" in wheel.read(name).decode()


def pins(name: str) -> dict[str, tuple[str, int]]:
    """Version and number of hashes of each package in a requirements file, marked or not."""
    text = (ROOT / "requirements" / name).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    found = {}
    for line in lines:
        pin = re.fullmatch(
            r"([\w.-]+)(?:\[[\w, ]+\])?==(\S+)(?: ; [^#]*?)?((?:\s+--hash=sha256:[0-9a-f]{64})+)",
            line,
        )
        assert pin, line
        found[canonicalize_name(pin[1])] = (pin[2], pin[3].count("--hash"))
    return found


def test_lock_pins_every_dependency_within_its_bounds(requirements):
    locked = pins("lock.txt")
    assert len(requirements) > 20
    for requirement in requirements:
        version, _ = locked[canonicalize_name(requirement.name)]
        assert version in requirement.specifier, requirement


def test_no_requirements_file_names_where_packages_come_from():
    for path in (ROOT / "requirements").iterdir():
        assert not re.search(r"://|--(extra-)?index|--find-links| @ ", path.read_text()), path


def test_detectron2_is_pinned_by_hash():
    assert pins("detectron2.txt") == {"sal-detectron2": ("0.7.2", 1)}


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


# The interpreter of a user's own environment: its pip writes down what it is asked for.
FAKE_PYTHON = """#!{python}
import os, re, sys
from pathlib import Path

site, asked, arguments = {site!r}, {asked!r}, sys.argv[1:]
if arguments[:2] == ["-m", "pip"]:
    text = " ".join(arguments[arguments.index("install") + 1 :])
    for name in re.findall(r"-r ([^ ]+)", text):
        text += chr(10) + Path(name).read_text()
    with open(asked, "a") as stream:
        print(text + chr(10) + "--", file=stream)
    if os.environ.get("KILL_AT", "never") in text:
        os.kill(os.getppid(), 9)
    elif "--target" in arguments:
        for name in ("detectron2", "tools"):
            Path(arguments[-1], name).mkdir(parents=True)
            Path(arguments[-1], name, "__init__.py").touch()
elif arguments[:2] == ["-P", "-c"]:
    import pip
    if "pip._vendor" in arguments[2]:
        import pip._vendor.packaging.requirements
    sys.path = [path for path in sys.path if "site-packages" not in path] + [site]
    sys.argv = arguments[1:2] + arguments[3:]
    code = arguments[2].replace("sysconfig.get_path('purelib')", "site")
    exec(code)
else:
    os.execv(sys.executable, [sys.executable, *arguments])
"""


class FakeEnvironment:
    """A user's own environment, and what its pip was asked for."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.site = folder / "site-packages"
        self.asked = folder / "asked.txt"
        self.site.mkdir(parents=True)
        python = folder / "bin" / "python"
        python.parent.mkdir()
        python.write_text(
            FAKE_PYTHON.format(python=sys.executable, site=str(self.site), asked=str(self.asked))
        )
        python.chmod(0o755)

    def add(self, name: str, version: str) -> None:
        """Have a package, as far as its metadata go."""
        metadata = self.site / f"{name}-{version}.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

    def install(self, **environment: str) -> subprocess.CompletedProcess[str]:
        variables = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "PYTHONPATH")}
        variables |= {"VENV": str(self.folder), "D2DEFENSE_NO_EXTENSION": "1", **environment}
        return run(["sh", INSTALL], env=variables, cwd=ROOT)

    def requests(self) -> list[str]:
        """What pip was asked for since the last call, requirements files included."""
        requests = self.asked.read_text().split("\n--\n")[:-1] if self.asked.exists() else []
        self.asked.unlink(missing_ok=True)
        return requests


@pytest.fixture
def environment(tmp_path) -> FakeEnvironment:
    return FakeEnvironment(tmp_path / "environment")


def packages_in(request: str) -> set[str]:
    """The packages of a requirements file that pip was given."""
    return set(re.findall(r"^([\w.-]+)(?:\[.*?\])?==", request, re.MULTILINE))


def test_everything_is_installed_by_hash_and_once(environment):
    assert environment.install().returncode == 0
    build_tool, packages, own, detectron2 = environment.requests()
    for request in (build_tool, packages, detectron2):
        assert "--require-hashes" in request
    assert packages_in(build_tool) == {"setuptools"}
    assert packages_in(packages) == set(pins("lock.txt"))
    assert own.endswith("--no-deps --editable .")
    assert "sal-detectron2" in detectron2
    assert (environment.site / "detectron2" / "__init__.py").is_file()
    again = environment.install()
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert environment.requests() == []


@pytest.mark.parametrize(("killed_at", "repeated"), [("torchvision==", 4), ("sal-detectron2", 1)])
def test_killed_run_goes_on_at_the_step_where_it_was(environment, killed_at, repeated):
    assert environment.install(KILL_AT=killed_at).returncode == -9
    assert killed_at in environment.requests()[-1]
    assert not (environment.site / "detectron2").exists()
    assert environment.install().returncode == 0
    assert len(environment.requests()) == repeated
    assert (environment.site / "detectron2").is_dir()
    environment.install()
    assert environment.requests() == []


def test_detectron2_that_is_there_is_kept(environment):
    mine = environment.site / "detectron2" / "__init__.py"
    mine.parent.mkdir()
    mine.write_text("mine = True")
    result = environment.install()
    assert "keeping the Detectron2 that is there" in result.stdout
    assert not [request for request in environment.requests() if "sal-detectron2" in request]
    assert mine.read_text() == "mine = True"


def test_packages_of_a_users_environment_are_kept_if_they_will_do(environment):
    environment.add("torch", "2.9.1")
    environment.add("torchvision", "0.24.1")
    environment.add("Pillow", "9.0")
    environment.add("filelock", "3.0")
    assert environment.install().returncode == 0
    packages = environment.requests()[1]
    wanted = packages_in(packages)
    assert not wanted & {"torch", "torchvision", "filelock"}
    # Only torch of the lock file needs these.
    assert not [name for name in wanted if name.startswith("nvidia")] and "triton" not in wanted
    # Too old for d2defense; needed by others than torch.
    assert {"pillow", "numpy", "jinja2"} <= wanted


def test_broken_environment_of_a_user_is_named_and_not_touched(environment):
    environment.install()
    environment.requests()
    (environment.folder / "bin" / "python").unlink()
    line = only_line(environment.install(PYTHON=sys.executable))
    assert "no working environment" in line
    assert environment.site.is_dir()
