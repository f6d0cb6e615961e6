# SPDX-License-Identifier: Apache-2.0
"""Modules of one's own that register parts (``--import``), here and in every process to come."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

# What was imported in this process, by the name that other processes can import it by.
_imported: dict[str, ModuleType] = {}


class UserModuleError(ValueError):
    """A module cannot be imported; the message is one line, with the file and line at fault."""


def import_modules(names: Iterable[str]) -> None:
    """Import modules of one's own; those that this process has imported already are left as is.

    Args:
        names: each a dotted name, as Python's ``import`` takes it, or the path of a file that ends
            in ".py". Processes that this one starts for scans, trainings and studies import them
            as well.

    Raises:
        UserModuleError: one cannot be found, or ends with an exception.
    """
    for name in names:
        key = str(Path(name).resolve()) if _is_path(name) else name
        if key not in _imported:
            _imported[key] = import_module(key)


def import_module(name: str) -> ModuleType:
    """Import one module by its dotted name, or by the path of its file.

    Raises:
        UserModuleError: it cannot be found, or ends with an exception.
    """
    try:
        return _import_file(Path(name)) if _is_path(name) else importlib.import_module(name)
    except UserModuleError:
        raise
    except Exception as error:  # whatever a module may do
        last = traceback.extract_tb(error.__traceback__)[-1]
        own = not last.filename.startswith("<frozen ")
        where = f" ({last.filename}, line {last.lineno})" if own else ""
        words = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserModuleError(f"module {name}: {words}{where}") from error


def imported_modules() -> tuple[str, ...]:
    """What this process has imported by :func:`import_modules`, in order, for another to do so."""
    return tuple(_imported)


def source_digests() -> dict[str, str]:
    """SHA-256 of the source of each imported module: of its file, or of all files of a package.

    What such a module itself imports from elsewhere is not looked at.
    """
    return {name: _digest(module) for name, module in _imported.items()}


def _is_path(name: str) -> bool:
    return name.endswith(".py")


def _import_file(path: Path) -> ModuleType:
    path = path.resolve()
    known = sys.modules.get(path.stem)
    if known is not None:
        if getattr(known, "__file__", None) != str(path):
            raise UserModuleError(f"module {path}: there is another module called {path.stem}")
        return known
    if not path.is_file():
        raise UserModuleError(f"module {path}: no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    # Under its name, so that what it defines can be pickled.
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
    return module


def _digest(module: ModuleType) -> str:
    folders = [Path(folder) for folder in getattr(module, "__path__", ())]
    files = sorted(file for folder in folders for file in folder.rglob("*.py"))
    if not files and getattr(module, "__file__", None):
        files = [Path(module.__file__)]
    digest = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()
