# SPDX-License-Identifier: Apache-2.0
"""Steps as tasks of an existing Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Self

from d2defense.user_modules import import_modules, imported_modules
from d2defense.workflows.scan.on_ray import connect


class RayPool:
    """Takes the place of a pool of processes: :meth:`submit` gives a future.

    Args:
        address: of the cluster.
        num_gpus: that each call uses; without any, Ray hides those of the machine.

    Raises:
        UsageError: Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(self, address: str, num_gpus: int = 0) -> None:
        self._num_gpus = num_gpus
        self._ray, self._is_ours = connect(address)

    @property
    def cpus(self) -> int:
        """How many the cluster has now, one at least."""
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future:
        """Have a worker of the cluster call a function; it runs again if the worker is lost."""
        remote = self._ray.remote(_call).options(num_cpus=1, num_gpus=self._num_gpus or None)
        return remote.remote(imported_modules(), function, arguments).future()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._is_ours:
            self._ray.shutdown()


def _call(modules: Sequence[str], function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    """What a Ray worker does."""
    import torch

    import_modules(modules)
    torch.set_num_threads(1)
    return function(*arguments)
