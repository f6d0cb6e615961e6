# SPDX-License-Identifier: Apache-2.0
"""Installs d2defense into a virtual environment; run by ``make install`` through ``install.sh``.

pip installs what ``requirements/lock.txt`` pins. This file, of the standard library alone, does
what pip does not: it makes the environment, keeps what a user's own environment has, brings
Detectron2 where there is none, and builds the extension. A finished step is recorded with a digest
of what it depends on: the next run skips it, and goes on where one that was killed stopped.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "requirements" / "lock.txt"
DETECTRON2 = ROOT / "requirements" / "detectron2.txt"
PROJECT = ROOT / "pyproject.toml"
EXTENSION = ROOT / "d2defense" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
# Prints the installed packages that meet the requirements in the arguments, if one names them.
KEPT = """
import sys
from importlib.metadata import distributions
from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name
needs = [(canonicalize_name(r.name), r.specifier) for r in map(Requirement, sys.argv[1:])]
for found in distributions():
    if found.metadata["Name"]:
        name = canonicalize_name(found.metadata["Name"])
        if all(s.contains(found.version, prereleases=True) for n, s in needs if n == name):
            print(name)
"""


def fail(reason: str) -> NoReturn:
    """Ends the installation with one line."""
    sys.exit(f"d2defense: {reason}")


def switched_on(variable: str) -> bool:
    """True when the environment variable holds something other than nothing, 0 or a "no"."""
    return os.environ.get(variable, "").lower() not in ("", "0", "no", "off", "false")


def digest(paths: list[Path], *facts: object) -> str:
    """SHA-256 over the names and contents of files, and over further facts a step depends on."""
    files = [(path.name, path.read_bytes()) for path in sorted(paths)]
    return hashlib.sha256(repr((files, facts)).encode()).hexdigest()


def check_compiler() -> str:
    """The C++ compiler, with any flags in ``CXX``; fails if it cannot build what torch needs."""
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    compiler = next((one for one in candidates if shutil.which(shlex.split(one)[0])), None)
    if compiler is None:
        fail(
            f"no C++ compiler found ({', '.join(candidates)}): install one "
            "(on Debian and Ubuntu: the package g++), or name it with CXX=..."
        )
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.is_file():
        fail(
            f"{header} is missing: install the headers of this Python "
            "(on Debian and Ubuntu: the package python3-dev)"
        )
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text("#include <concepts>\nstatic_assert(std::integral<int>);\n")
        command = [*shlex.split(compiler), "-std=c++20", "-fsyntax-only", str(source)]
        if subprocess.run(command, capture_output=True).returncode != 0:
            fail(
                f"the C++ compiler {compiler} cannot build C++20, which torch needs: "
                "install GCC 11 or later, or name another compiler with CXX=..."
            )
    return compiler


class Environment:
    """A virtual environment and the record of the steps that are whole in it.

    ``kind`` is "own" for one that was made here, which is brought to the pinned versions, "own,
    sees system" for one that sees the interpreter's own packages, and "other" for any other. The
    last two keep every package that they have.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.python = folder / "bin" / "python"
        self.records = folder / ".d2defense"
        try:
            self.state = dict(json.loads((self.records / "steps.json").read_text()))
        except (OSError, ValueError, TypeError):
            self.state = {}

    def record(self, **steps: str) -> None:
        """Records steps as whole, replacing the file in one go."""
        self.state.update(steps)
        self.records.mkdir(parents=True, exist_ok=True)
        temporary = self.records / "steps.tmp"
        temporary.write_text(json.dumps(self.state, indent=2) + "\n")
        os.replace(temporary, self.records / "steps.json")

    def ask(self, code: str, *arguments: str) -> str | None:
        """Standard output of Python code run in the environment; None when it fails.

        The current folder is kept off the module path, so that only what is installed counts.
        """
        if not self.python.exists():
            return None
        command = [str(self.python), "-P", "-c", code, *arguments]
        result = subprocess.run(command, capture_output=True, text=True)
        return result.stdout.strip() if result.returncode == 0 else None

    def run(self, *command: str | Path, **variables: str) -> None:
        """Runs a command, which says itself how far it is; fails if it does."""
        result = subprocess.run(command, cwd=ROOT, env=os.environ | variables)
        if result.returncode != 0:
            fail(f"this step failed: {shlex.join(map(str, command))}")

    def pip(self, *arguments: str | Path, **variables: str) -> None:
        """Runs ``pip install``, which one that was killed before it does not mislead.

        pip writes a package's RECORD last, and takes a package without one for installed.
        """
        for metadata in self.folder.glob("lib/python*/site-packages/*.dist-info/METADATA"):
            if self.state["kind"] != "other" and not metadata.with_name("RECORD").exists():
                shutil.rmtree(metadata.parent)
        command = (self.python, "-m", "pip", "--disable-pip-version-check", "--no-input", "install")
        self.run(*command, *arguments, **variables)


def create(environment: Environment, chosen: bool, system_packages: bool) -> None:
    """Makes the environment, or takes the one that is there as it is.

    An environment made here is made anew when it no longer works, was moved, or ``PYTHON`` names
    another version than it has. The folder of any other environment is never removed.
    """
    folder = environment.folder
    running = platform.python_version()
    version = environment.ask("import pip, platform; print(platform.python_version())")
    usable = version is not None and not (chosen and version != running)
    kind = environment.state.get("kind")
    if kind == "other" or (kind is None and folder.exists() and any(folder.iterdir())):
        if not usable:
            fail(
                f"{folder} is no working environment of Python {running} with pip: "
                "remove it, or name another one with VENV=..."
            )
        environment.record(kind="other")
        return
    if usable and environment.state.get("folder") == str(folder):
        return
    if folder.exists():
        print(f"{folder} was not finished, was moved or has another Python: making it anew")
        shutil.rmtree(folder)
    environment.state = {}
    # Recorded before the folder fills, so that one left half-made is known as ours.
    environment.record(kind="own, sees system" if system_packages else "own")
    flags = ["--system-site-packages"] if system_packages else []
    base = getattr(sys, "_base_executable", None) or sys.executable
    environment.run(base, "-m", "venv", *flags, folder)
    environment.record(folder=str(folder))


def locked(kept: set[str]) -> dict[str, str]:
    """The entries of the lock file by package, without those kept and what only they need."""
    text = LOCK.read_text(encoding="utf-8")
    entries = {
        re.split(r"[=[]", entry)[0]: entry
        for entry in re.split(r"^(?=\w)", text, flags=re.MULTILINE)
        if not entry.startswith("#")
    }
    wanted_by = {
        name: set(
            entry.strip().rpartition("# via ")[2].replace(" (pyproject.toml)", "").split(", ")
        )
        for name, entry in entries.items()
    }
    while more := {name for name, by in wanted_by.items() if by <= kept} - kept:
        kept = kept | more
    return {name: entry for name, entry in entries.items() if name not in kept}


def install_packages(environment: Environment) -> None:
    """Installs what the lock file pins, and d2defense itself as editable."""
    kept: set[str] = set()
    if environment.state["kind"] != "own":
        project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))
        needs = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
        needs += project["project"]["optional-dependencies"]["dev"]
        kept = set((environment.ask(KEPT, *needs) or "").split())
    entries = locked(kept)
    # Some packages come as sources, which pip builds with this setuptools instead of another.
    for part in ({"setuptools"} & entries.keys(), entries.keys()):
        file = environment.records / "requirements.txt"
        file.write_text("".join(entries[name] for name in sorted(part)), encoding="utf-8")
        if part:
            environment.pip("--no-build-isolation", "--require-hashes", "-r", file)
    # The last step builds the extension, and can do so piece by piece.
    own = ("--no-build-isolation", "--no-deps", "--editable", ".")
    environment.pip(*own, D2DEFENSE_NO_EXTENSION="1")


def install_detectron2(environment: Environment) -> None:
    """Installs Detectron2, only where none can be imported."""
    if environment.ask("import detectron2") is not None:
        print("      keeping the Detectron2 that is there", flush=True)
        return
    site_packages = environment.ask("import sysconfig; print(sysconfig.get_path('purelib'))")
    # The wheel is tagged for CPython 3.10 because of one compiled module, which Detectron2 does
    # without. It goes to a folder beside first: a rename is never seen half done.
    staging = environment.records / "detectron2"
    shutil.rmtree(staging, ignore_errors=True)
    wheel_only = ["--no-deps", "--only-binary=:all:", "--python-version", "3.10"]
    environment.pip(*wheel_only, "--require-hashes", "-r", DETECTRON2, "--target", staging)
    # The package itself comes last, since its presence is what tells that the step is whole.
    for entry in sorted(staging.iterdir(), key=lambda path: path.name == "detectron2"):
        target = Path(site_packages or "") / entry.name
        if target.is_dir():
            shutil.rmtree(target)
        entry.rename(target)


def build_extension(environment: Environment, compiler: str) -> None:
    """Compiles ``csrc``; only the sources that changed since the last build."""
    variables = {}
    if shutil.which(shlex.split(sysconfig.get_config_var("CC") or "cc")[0]) is None:
        # This Python was built with a compiler that is not on this machine.
        variables = {name: os.environ.get(name, compiler) for name in ("CC", "CXX")}
    # setuptools takes a newer file for an up-to-date one, even one cut short.
    EXTENSION.unlink(missing_ok=True)
    objects = f"build/extension-{sys.implementation.cache_tag}-torch-{torch_version(environment)}"
    command = ["setup.py", "build_ext", "--inplace", "--build-temp", objects]
    environment.run(environment.python, *command, **variables)


def torch_version(environment: Environment) -> str | None:
    """The version of the environment's torch; None where there is none."""
    return environment.ask("import importlib.metadata as m; print(m.version('torch'))")


def install(environment: Environment, chosen: bool, system_packages: bool) -> None:
    """Brings the environment up to date, step by step."""
    began = time.monotonic()
    setup, version = ROOT / "setup.py", ROOT / "d2defense" / "__init__.py"
    native = [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]
    place = (platform.python_version(), str(environment.folder), str(ROOT))
    with_extension = not switched_on("D2DEFENSE_NO_EXTENSION") and bool(native)

    def extension() -> str:
        """Depends on the file that was built too: another one, or none, is built anew."""
        status = EXTENSION.stat() if EXTENSION.is_file() else None
        built = status and (status.st_size, status.st_mtime_ns)
        switches = [os.environ.get(name) for name in ("FORCE_CUDA", "TORCH_CUDA_ARCH_LIST", "CXX")]
        return digest([*native, setup], place, switches, torch_version(environment), built)

    steps: list[tuple[str, str, Callable[[], str], Callable[[], None]]] = [
        (
            "packages",
            "installing the pinned packages (about 6 GB on disk, a few minutes)",
            lambda: digest([LOCK, PROJECT, setup, version], place),
            lambda: install_packages(environment),
        ),
        (
            "detectron2",
            "installing Detectron2",
            lambda: digest([DETECTRON2], place),
            lambda: install_detectron2(environment),
        ),
        (
            "extension",
            "building the extension",
            extension,
            lambda: build_extension(environment, compiler),
        ),
    ][: 3 if with_extension else 2]

    whole = all(environment.state.get(name) == value() for name, _, value, _ in steps)
    if whole and environment.python.exists():
        return
    compiler = check_compiler() if with_extension else ""
    create(environment, chosen, system_packages)
    for number, (name, title, value, action) in enumerate(steps, 1):
        if environment.state.get(name) != value():
            print(f"[{number}/{len(steps)}] {title}", flush=True)
            step_began = time.monotonic()
            action()
            environment.record(**{name: value()})
            print(f"      done in {time.monotonic() - step_began:.0f} s", flush=True)
    print(f"installed in {environment.folder} in {time.monotonic() - began:.0f} s", flush=True)


def main() -> int:
    """Parses the command line and installs; returns the exit status."""
    parser = argparse.ArgumentParser(description="Install d2defense into a virtual environment.")
    parser.add_argument("--venv", type=Path, default=Path(".venv"), help="the environment's folder")
    parser.add_argument(
        "--chosen", action="store_true", help="make the environment anew if it has another Python"
    )
    parser.add_argument(
        "--check", action="store_true", help="only check that this machine can build the extension"
    )
    arguments = parser.parse_args()
    if arguments.check:
        print(f"Python {platform.python_version()}, C++ compiler {check_compiler()}")
        return 0
    # Two installations at once would write to the same environment and build folder.
    with Path(__file__).open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another installation in this folder to end", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        environment = Environment(arguments.venv.absolute())
        try:
            install(environment, arguments.chosen, switched_on("SYSTEM_SITE_PACKAGES"))
        except KeyboardInterrupt:
            print("\ninterrupted; the next run goes on from here", file=sys.stderr)
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
