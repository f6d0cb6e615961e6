# SPDX-License-Identifier: Apache-2.0
"""Checkpoints as tasks of an existing Ray cluster."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from d2defense.isolation import IncompleteProtectionError, Limits, shared_server
from d2defense.user_modules import import_modules, imported_modules

from .checkpoint import Scanned, run_task
from .confined import preload, scan_confined
from .finished import Finished, TaskProgress, failed
from .options import NONE, RunOptions, UsageError
from .task import ScanTask

logger = logging.getLogger(__name__)

# How often Ray gives a checkpoint to another worker when the one that had it is lost.
MAX_RETRIES = 3


def scan_on_worker(
    task: ScanTask,
    limits: Limits,
    isolation: str,
    modules: Sequence[str] = (),
    require_isolation: bool = False,
) -> tuple[Scanned, dict[str, Any]]:
    """What a Ray worker does: scan one checkpoint as a local scan does.

    Args:
        task: what to scan; its files must have the same paths on every machine of the cluster.
        limits: of memory and time.
        isolation: "process" or "none".
        modules: of the user's own, imported first; files among them must lie on the worker's
            machine as well.
        require_isolation: do not begin where a protection is missing.

    Raises:
        IncompleteProtectionError: one is, and that was not allowed.
        UserModuleError: one of these cannot be imported.
        ServerLostError: the server ended; Ray tries again.
    """
    import_modules(modules)
    if isolation == NONE:
        return run_task(task), {"mode": NONE}
    return scan_confined(
        task, shared_server(preload()), limits, lambda share: None, complete=require_isolation
    )


def connect(address: str | None) -> tuple[Any, bool]:
    """Ray, connected to a cluster, and whether the connection is the caller's to end.

    Args:
        address: of the cluster.

    Raises:
        UsageError: Ray is not installed, or the cluster cannot be reached.
    """
    try:
        import ray
    except ImportError:
        raise UsageError("a Ray cluster needs Ray: pip install 'd2defense[ray]'") from None
    if ray.is_initialized():
        return ray, False
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # ConnectionError, ValueError, RuntimeError, ...
        reason = str(error).strip().split("\n", 1)[0]
        raise UsageError(f"no Ray cluster at {address}: {reason}") from None
    return ray, True


class RayExecutor:
    """Scans checkpoints on a Ray cluster, as many at once as it has room for.

    Args:
        options: of the scan.

    Raises:
        UsageError: Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(self, options: RunOptions) -> None:
        self._ray, self._is_ours = connect(options.ray_address)
        self._options = options

    def __call__(self, tasks: Iterable[ScanTask], progress: TaskProgress) -> Iterator[Finished]:
        """See :class:`Executor`; progress is not reported within a checkpoint.

        Raises:
            UsageError: a machine lacks a protection that is required.
        """
        ray, options = self._ray, self._options
        remote = ray.remote(scan_on_worker).options(
            max_retries=MAX_RETRIES, retry_exceptions=True, num_gpus=options.num_gpus or None
        )
        running: dict[Any, ScanTask] = {}
        remaining = iter(tasks)
        try:
            while True:
                while len(running) < self._room() and (task := next(remaining, None)) is not None:
                    reference = remote.remote(
                        task,
                        options.limits,
                        options.isolation,
                        imported_modules(),
                        options.require_isolation,
                    )
                    running[reference] = task
                if not running:
                    return
                (reference,), _ = ray.wait(list(running), num_returns=1)
                task = running.pop(reference)
                try:
                    scanned, isolation = ray.get(reference)
                except IncompleteProtectionError as error:
                    # Ray raises a class of its own that is also the task's, which it calls cause.
                    reason = getattr(error, "cause", error)
                    raise UsageError(f"a machine of the cluster: {reason}") from None
                except ray.exceptions.RayError as error:
                    reason = str(error).strip().split("\n", 1)[0]
                    yield failed(task, f"lost on the Ray cluster: {reason}")
                else:
                    yield Finished(task, scanned, isolation)
        finally:
            for reference in running:
                ray.cancel(reference, force=True)
            if self._is_ours:
                ray.shutdown()

    def _room(self) -> int:
        """Tasks to have in the cluster's queue: it may grow while the scan runs."""
        return max(2 * int(self._ray.cluster_resources().get("CPU", 1)), self._options.workers)
