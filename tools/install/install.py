# SPDX-License-Identifier: Apache-2.0
"""Installs d2defense into a virtual environment; run by ``make install`` through ``install.sh``.

Standard library only. Each step is recorded, with a digest of what it depends on, only when it is
whole: an interrupted installation goes on where it stopped, an edited file repeats the steps that
read it, and an installation that is up to date does nothing.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS = ROOT / "requirements" / "constraints.txt"
DETECTRON2 = ROOT / "requirements" / "detectron2.txt"
# pip builds nothing in isolation here, so what the build needs is installed first.
BUILD_TOOLS = ("setuptools", "wheel", "ninja")
TORCH = ("torch", "torchvision")
HEARTBEAT_SECONDS = 20.0
STEPS = 5
# The lines of pip and ninja that tell what they are about to do.
PROGRESS = re.compile(r"Collecting|Downloading|Installing|Building|Preparing|\[\d+/\d+\]")


def fail(reason: str) -> NoReturn:
    """Ends the installation with one line."""
    print(f"d2defense: {reason}", file=sys.stderr)
    sys.exit(1)


def switched_on(variable: str) -> bool:
    """True when the environment variable holds something other than nothing, 0 or a "no"."""
    return os.environ.get(variable, "").lower() not in ("", "0", "no", "off", "false")


def digest(paths: Iterable[Path], *facts: object) -> str:
    """SHA-256 over the names and contents of files, and over further facts a step depends on."""
    state = hashlib.sha256(repr(facts).encode())
    for path in sorted(paths):
        state.update(f"\0{path.relative_to(ROOT)}\0".encode())
        state.update(path.read_bytes())
    return state.hexdigest()


def native_sources() -> list[Path]:
    """The files that the compiled extension is made of."""
    suffixes = {".cpp", ".h", ".cu", ".cuh"}
    return [path for path in (ROOT / "csrc").rglob("*") if path.suffix in suffixes]


def find_compiler() -> str:
    """The C++ compiler that the build will use, with any flags in ``CXX``; fails without one."""
    chosen = os.environ.get("CXX")
    candidates = [chosen] if chosen else ["c++", "g++", "clang++"]
    for candidate in candidates:
        if shutil.which(shlex.split(candidate)[0]):
            return candidate
    fail(
        f"no C++ compiler found ({', '.join(candidates)}): install one "
        "(on Debian and Ubuntu: the package g++), or name it with CXX=..."
    )


def check_compiler() -> str:
    """Finds the compiler and checks that it can build a Python extension as torch does."""
    compiler = find_compiler()
    headers = Path(sysconfig.get_paths()["include"])
    if not (headers / "Python.h").is_file():
        fail(
            f"{headers / 'Python.h'} is missing: install the headers of this Python "
            "(on Debian and Ubuntu: the package python3-dev)"
        )
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text("#include <concepts>\nstatic_assert(std::integral<int>);\n")
        command = [*shlex.split(compiler), "-std=c++20", "-fsyntax-only", str(source)]
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        fail(
            f"the C++ compiler {compiler} cannot build C++20, which torch needs: "
            "install GCC 11 or later, or name another compiler with CXX=..."
        )
    return compiler


class Step:
    """One numbered step on the terminal, with its time; commands' output goes to a log."""

    def __init__(self, number: int, title: str, log: Path):
        self.log = log
        self.began = time.monotonic()
        self.log_begin = log.stat().st_size if log.is_file() else 0
        print(f"[{number}/{STEPS}] {title}", flush=True)

    def run(self, command: Sequence[str | Path], environment: dict[str, str] | None = None) -> None:
        """Runs a command, tells from time to time that it still does, and fails with its end."""
        heard = time.monotonic()
        with self.log.open("a", encoding="utf-8", errors="replace") as output:
            output.write(f"\n$ {shlex.join(map(str, command))}\n")
            output.flush()
            process = subprocess.Popen(
                [str(part) for part in command],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                while process.poll() is None:
                    try:
                        process.wait(timeout=1.0)
                    except subprocess.TimeoutExpired:
                        if time.monotonic() - heard >= HEARTBEAT_SECONDS:
                            heard = time.monotonic()
                            print(f"      {self.elapsed()}: {self.last_line()}", flush=True)
            except BaseException:
                process.terminate()
                process.wait()
                raise
        if process.returncode != 0:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
            print("\n".join(f"      | {line}" for line in lines[-25:]), file=sys.stderr)
            fail(f"this step failed; the whole output is in {self.log}")

    def last_line(self) -> str:
        """What the running command began last, shortened."""
        lines = self.log.read_bytes()[self.log_begin :].decode(errors="replace").splitlines()
        began = [line.strip() for line in lines if PROGRESS.match(line.strip())]
        return began[-1][:90] if began else "still at work"

    def elapsed(self) -> str:
        """Seconds since the step began, for reading."""
        return f"{time.monotonic() - self.began:.0f} s"

    def done(self) -> None:
        """Says how long the step took."""
        print(f"      done in {self.elapsed()}", flush=True)


class Environment:
    """A virtual environment and the record of the steps that are whole in it.

    An environment that was made here is brought to the pinned versions. Any other one, and one
    that sees the interpreter's own packages, keeps every package it already has.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.python = folder / "bin" / "python"
        self.state_folder = folder / ".d2defense"
        self.log = self.state_folder / "install.log"
        self._state_file = self.state_folder / "steps.json"
        self.state: dict[str, str] = {}
        try:
            content = json.loads(self._state_file.read_text(encoding="utf-8"))
            self.state = content if isinstance(content, dict) else {}
        except (OSError, ValueError):
            pass

    def is_whole(self, step: str, value: str) -> bool:
        """True when the step was finished with the same digest."""
        return self.state.get(step) == value

    def record(self, **steps: str) -> None:
        """Records steps as whole, replacing the file in one go."""
        self.state.update(steps)
        self.state_folder.mkdir(parents=True, exist_ok=True)
        temporary = self._state_file.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.state, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, self._state_file)

    def ask(self, code: str) -> str | None:
        """Standard output of Python code run in the environment; None when it fails.

        The current folder is kept off the module path, so that only what is installed counts.
        """
        if not self.python.exists():
            return None
        command = [str(self.python), "-P", "-c", code]
        result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        return result.stdout.strip() if result.returncode == 0 else None

    def imports(self, module: str) -> bool:
        """True when the module can be imported in the environment."""
        return self.ask(f"import {module}") is not None

    def pip(self, *arguments: str | Path) -> list[str | Path]:
        """A pip command of the environment, which an interrupted one before it does not mislead.

        pip writes a package's RECORD last, and takes a package without one for installed.
        """
        for metadata in self.folder.glob("lib/python*/site-packages/*.dist-info/METADATA"):
            if self.state.get("kind") != "other" and not metadata.with_name("RECORD").exists():
                shutil.rmtree(metadata.parent)
        flags = ["--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
        return [self.python, "-m", "pip", "install", *flags, *arguments]

    def constraints(self) -> Path:
        """The constraints file for pip: all pins, or only those of packages not there yet."""
        if self.state.get("kind") == "own":
            return CONSTRAINTS
        listing = self.ask(
            "from importlib.metadata import distributions\n"
            "print(*{d.metadata['Name'] for d in distributions() if d.metadata['Name']})"
        )
        kept = {canonical(name) for name in (listing or "").split()} - {"setuptools"}
        pins = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
        path = self.state_folder / "constraints.txt"
        path.write_text(
            "\n".join(pin for pin in pins if canonical(pin.split("==")[0]) not in kept) + "\n",
            encoding="utf-8",
        )
        return path


def canonical(name: str) -> str:
    """A distribution's name as the package index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned(name: str) -> str:
    """The version of a package in the constraints file."""
    match = re.search(rf"^{name}==(\S+)$", CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE)
    if match is None:
        fail(f"{CONSTRAINTS.relative_to(ROOT)} names no version of {name}")
    return match.group(1)


def create(environment: Environment, chosen: bool, system_packages: bool) -> None:
    """Step 1: makes the environment, or takes the one that is there as it is.

    An environment made here is made anew when it no longer works, was moved, or ``PYTHON`` names
    another version than it has. The folder of any other environment is never removed.
    """
    folder = environment.folder
    running = ".".join(map(str, sys.version_info[:3]))
    kind = environment.state.get("kind")
    version = environment.ask("import pip, platform; print(platform.python_version())")
    if kind is None and folder.exists() and any(folder.iterdir()):
        if version is None:
            fail(
                f"{folder} exists but is no working Python environment with pip: "
                "remove it, or name another one with VENV=..."
            )
        environment.record(kind="other", folder=str(folder), environment="whole")
    if environment.state.get("environment") == "whole":
        moved = environment.state.get("folder") != str(folder)
        if version is not None and not moved and not (chosen and version != running):
            return
        if kind == "other":
            fail(
                f"{folder} is no working environment of Python {running}: "
                "name another one with VENV=..."
            )
    base = getattr(sys, "_base_executable", None) or sys.executable
    if folder.exists():
        print(f"{folder} was not finished, was moved or has another Python: making it anew")
        shutil.rmtree(folder)
    environment.state = {}
    # Recorded before the folder fills, so that one left half-made is known as ours.
    environment.record(kind="own, sees system" if system_packages else "own", folder=str(folder))
    step = Step(1, f"creating {folder} with Python {running}", environment.log)
    flags = ["--system-site-packages"] if system_packages else []
    step.run([base, "-m", "venv", *flags, folder])
    environment.record(environment="whole")
    step.done()


def install_torch(environment: Environment) -> None:
    """Step 2: torch, torchvision and what builds the extension."""
    has_torch = environment.state["kind"] != "own" and environment.imports("torch, torchvision")
    torch = () if has_torch else TORCH
    title = f"installing torch {pinned('torch')} (about 5 GB on disk, a few minutes)"
    step = Step(2, "keeping the torch that is there" if has_torch else title, environment.log)
    step.run(environment.pip("-c", environment.constraints(), *BUILD_TOOLS, *torch))
    step.done()


def install_detectron2(environment: Environment) -> None:
    """Step 3: Detectron2, only where none can be imported."""
    if environment.imports("detectron2"):
        print(f"[3/{STEPS}] keeping the Detectron2 that is there", flush=True)
        return
    site_packages = environment.ask("import sysconfig; print(sysconfig.get_path('purelib'))")
    if site_packages is None:
        fail(f"{environment.python} does not run")
    step = Step(3, "installing Detectron2", environment.log)
    # The wheel is tagged for CPython 3.10 because of one compiled module, which Detectron2 does
    # without. It goes to a folder beside first: a rename is never seen half done.
    staging = environment.state_folder / "detectron2"
    shutil.rmtree(staging, ignore_errors=True)
    wheel_only = ["--no-deps", "--only-binary=:all:", "--python-version", "3.10"]
    step.run(
        environment.pip(*wheel_only, "--require-hashes", "-r", DETECTRON2, "--target", staging)
    )
    # The package itself comes last, since its presence is what tells that the step is whole.
    for entry in sorted(staging.iterdir(), key=lambda path: path.name == "detectron2"):
        target = Path(site_packages) / entry.name
        if target.is_dir():
            shutil.rmtree(target)
        entry.rename(target)
    staging.rmdir()
    step.done()


def install_package(environment: Environment) -> None:
    """Step 4: d2defense itself, as an editable install, and its other dependencies."""
    step = Step(4, "installing d2defense and its other dependencies", environment.log)
    step.run(
        environment.pip("-c", environment.constraints(), "--no-build-isolation", "-e", ".[dev]"),
        # The next step builds the extension, and can do so piece by piece.
        {**os.environ, "D2DEFENSE_NO_EXTENSION": "1"},
    )
    step.done()


def extension_file() -> Path:
    """Where the compiled extension of this Python version lies in an editable install."""
    return ROOT / "d2defense" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"


def fingerprint(path: Path) -> str:
    """Tells whether a file is the one that was built here; empty where it is missing."""
    if not path.is_file():
        return ""
    status = path.stat()
    return f"{status.st_size}-{status.st_mtime_ns}"


def build_extension(environment: Environment, compiler: str, torch_version: str) -> None:
    """Step 5: compiles ``csrc``; only the sources that changed since the last build."""
    step = Step(5, f"building the extension with {compiler}", environment.log)
    variables = dict(os.environ)
    own_compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")[0]
    if shutil.which(own_compiler) is None:
        # This Python was built with a compiler that is not on this machine.
        variables = {"CC": compiler, "CXX": compiler, **variables}
    # setuptools takes a newer file for an up-to-date one, even one cut short.
    extension_file().unlink(missing_ok=True)
    objects = ROOT / "build" / f"extension-{sys.implementation.cache_tag}-torch-{torch_version}"
    command = ["setup.py", "build_ext", "--inplace", "--build-temp", objects]
    step.run([environment.python, *command], variables)
    step.done()


def install(environment: Environment, chosen: bool, system_packages: bool) -> None:
    """Brings the environment up to date, step by step."""
    began = time.monotonic()
    folder = environment.folder
    python = ".".join(map(str, sys.version_info[:3]))
    requirements = digest([CONSTRAINTS], python, str(folder))
    detectron2 = digest([DETECTRON2], requirements)
    described = [ROOT / "setup.py", ROOT / "pyproject.toml", ROOT / "d2defense" / "__init__.py"]
    package = digest(described, requirements, str(ROOT))
    switches = ("FORCE_CUDA", "TORCH_CUDA_ARCH_LIST", "CXX")
    flags = [os.environ.get(name, "") for name in switches]
    without_extension = switched_on("D2DEFENSE_NO_EXTENSION") or not native_sources()

    def extension() -> str:
        query = "from importlib.metadata import version; print(version('torch'))"
        version = environment.ask(query) or "missing"
        files = [*native_sources(), ROOT / "setup.py"]
        return digest(files, version, flags, str(ROOT), fingerprint(extension_file()))

    steps = {"torch": requirements, "detectron2": detectron2, "package": package}
    steps |= {"environment": "whole", "folder": str(folder)}
    if all(map(environment.is_whole, steps, steps.values())) and (
        without_extension or environment.is_whole("extension", extension())
    ):
        return
    compiler = "" if without_extension else check_compiler()

    create(environment, chosen, system_packages)
    if not environment.is_whole("torch", requirements):
        install_torch(environment)
        environment.record(torch=requirements)
    if not environment.is_whole("detectron2", detectron2):
        install_detectron2(environment)
        environment.record(detectron2=detectron2)
    if not environment.is_whole("package", package):
        install_package(environment)
        environment.record(package=package)
    if not without_extension and not environment.is_whole("extension", extension()):
        version = environment.ask("import torch; print(torch.__version__)")
        build_extension(environment, compiler, version or "unknown")
        environment.record(extension=extension())
    print(f"installed in {folder} in {time.monotonic() - began:.0f} s", flush=True)


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
        print(f"Python {sys.version.split()[0]}, C++ compiler {check_compiler()}")
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
