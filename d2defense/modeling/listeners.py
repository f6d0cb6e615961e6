# SPDX-License-Identifier: Apache-2.0
"""What modules return while stock code runs them, whatever other threads do with the same model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

# torch numbers its hooks by a counter that two threads could read at once.
_LOCK = threading.Lock()


@contextmanager
def listening(
    modules: Iterable[nn.Module], hear: Callable[[tuple[Any, ...], Any], None]
) -> Iterator[None]:
    """Hear of each forward pass of some modules that this thread makes.

    Args:
        modules: to listen to.
        hear: gets the positional arguments of a pass, and what it returned.
    """
    owner = threading.get_ident()

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if threading.get_ident() == owner:
            hear(inputs, output)

    with _LOCK:
        hooks = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        with _LOCK:
            for each in hooks:
                each.remove()
