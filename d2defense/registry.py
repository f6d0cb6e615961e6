# SPDX-License-Identifier: Apache-2.0
"""Parts by name: what configs and options choose from, and what a module of one's own adds to."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any, TypeVar

from fvcore.common.registry import Registry as FvcoreRegistry

Part = TypeVar("Part")
_NAME = re.compile("[a-z][a-z0-9_]*")


class Registry(FvcoreRegistry):
    """Parts of one kind, by the names that configs and options give them.

    A part is a class. The first line of its docstring is its line of ``--help``. A static method
    ``add_config(node)`` of it may put keys with defaults into an empty node of the configuration.

    Args:
        kind: what a part is called in messages, such as "removal method".
        package: holds one module for each part that comes with d2defense. All of them are imported
            when the registry is first asked, so that a part needs no other mention.
        node: of the configuration, such as "REMOVAL": the part "nad" has its keys below
            ``REMOVAL.NAD``. "" where parts have none.
    """

    def __init__(self, kind: str, package: str, node: str = "") -> None:
        super().__init__(kind)
        self.kind = kind
        self.node = node
        self._package = package
        self._is_complete = False

    def register(self, name: str) -> Callable[[Part], Part]:
        """Decorator that registers a part under ``name``: lower-case letters, digits and "_".

        Raises:
            ValueError: another name, or one that is taken.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"{self.kind} {name!r}: a name is of the characters a-z 0-9 _")

        def add(part: Part) -> Part:
            if super(Registry, self).__contains__(name):
                taken = super(Registry, self).get(name).part
                raise ValueError(f"the {self.kind} {name!r} is there already: {taken}")
            super(Registry, self).register(_Entry(name, part))
            return part

        return add

    def get(self, name: str) -> Any:
        """The part of a name.

        Raises:
            ValueError: there is none; the message lists what there is.
        """
        if name not in self:
            raise ValueError(f"no {self.kind} {name!r}; there are {', '.join(self.choices())}")
        return super().get(name).part

    def name_of(self, part: Any) -> str:
        """The name of a registered part.

        Raises:
            ValueError: it is not registered.
        """
        for name, other in self:
            if other is part:
                return name
        raise ValueError(f"{part} is no registered {self.kind}")

    def choices(self) -> dict[str, str]:
        """For each name the part's line of ``--help``, in alphabetical order."""
        return {name: (inspect.getdoc(part) or "").partition("\n")[0] for name, part in self}

    def add_config(self, cfg: Any) -> None:
        """Add the keys that the parts bring to a configuration, in place.

        Args:
            cfg: a CfgNode; :attr:`node` is added to it if a part has keys.

        Raises:
            ValueError: a part's own node would take the place of another one.
        """
        for name, part in self:
            own = type(cfg)()
            getattr(part, "add_config", lambda node: None)(own)
            if not own:
                continue
            keys = self.node.split(".")
            parent = reduce(lambda node, key: node.setdefault(key, type(cfg)()), keys, cfg)
            if name.upper() in parent:
                raise ValueError(f"{self.kind} {name!r}: {self.node}.{name.upper()} is taken")
            parent[name.upper()] = own

    def __contains__(self, name: object) -> bool:
        self._complete()
        return super().__contains__(name)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        self._complete()
        return ((name, entry.part) for name, entry in sorted(super().__iter__()))

    def _complete(self) -> None:
        """Import the parts that come with d2defense."""
        if self._is_complete:
            return
        # Before the imports: one of them may ask, and then sees what is there so far.
        self._is_complete = True
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self._package}.{module.name}")


class _Entry:
    """A part as fvcore's registry takes it, which reads the name off ``__name__``."""

    def __init__(self, name: str, part: Any) -> None:
        self.__name__ = name
        self.part = part

    def __repr__(self) -> str:
        return repr(self.part)


TRIGGER_REGISTRY = Registry("trigger family", "d2defense.triggers.families", "ATTACK.TRIGGER")
PATTERN_REGISTRY = Registry(
    "pattern", "d2defense.triggers.patterns", "ATTACK.TRIGGER.PATCH.SETTINGS"
)
EFFECT_REGISTRY = Registry("effect", "d2defense.attacks.effects", "ATTACK")
PLACEMENT_REGISTRY = Registry("placement", "d2defense.attacks.placements", "ATTACK.PLACES")
REMOVAL_REGISTRY = Registry("removal method", "d2defense.removal.methods", "REMOVAL")
SCREENING_REGISTRY = Registry("screening method", "d2defense.screening.methods", "SCREENING")
EXPERIMENT_REGISTRY = Registry("experiment", "d2defense.study.experiments")
DETECTION_REGISTRY = Registry("detection method", "d2defense.benchmark.methods.detect")
TASK_REGISTRY = Registry("task of the benchmark", "d2defense.benchmark.tasks")
DECISION_REGISTRY = Registry("decision", "d2defense.detection.decisions")

#: Those whose parts bring keys of the configuration.
CONFIGURED = (
    TRIGGER_REGISTRY,
    PATTERN_REGISTRY,
    EFFECT_REGISTRY,
    PLACEMENT_REGISTRY,
    REMOVAL_REGISTRY,
    SCREENING_REGISTRY,
)
