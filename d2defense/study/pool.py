# SPDX-License-Identifier: Apache-2.0
"""Processes of this machine, or of a Ray cluster, that work at a time."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, Protocol

from d2defense.user_modules import import_modules, imported_modules
from d2defense.workflows.own_log import redirect

from .workplace import Workplace, end_with

LOG_FILE = "log.txt"


class Pool(Protocol):
    """What calls functions elsewhere."""

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future:
        """Begin a call; what it needs is pickled, and so is what it returns."""


@contextlib.contextmanager
def open_pool(
    workplace: Workplace, workers: int, ray_address: str | None = None
) -> Iterator[tuple[Pool, int]]:
    """Workers that end with this process, however it ends; and how many calls they take at a time.

    Args:
        workplace: whose folder gets what processes of this machine print.
        workers: processes, each of the workplace's number of threads.
        ray_address: of a Ray cluster that works instead; its machines share what calls name.

    Raises:
        UsageError: Ray is not installed, or its cluster cannot be reached.
    """
    if ray_address is not None:
        from .on_ray import RayPool

        with RayPool(ray_address, workplace.num_gpus) as cluster:
            yield cluster, max(workers, cluster.cpus)
        return
    pool = ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("spawn"),
        _begin,
        (workplace, os.getpid(), imported_modules()),
    )
    try:
        yield pool, workers
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.kill()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def _begin(workplace: Workplace, parent: int, modules: Sequence[str]) -> None:
    """Called once in each worker."""
    end_with(parent)
    workplace.folder.mkdir(parents=True, exist_ok=True)
    # What libraries print would tear the progress bar; it is kept for whoever looks for a cause.
    redirect(workplace.folder / LOG_FILE, 1, 2)
    # Not earlier, for what they print when they are imported.
    import torch

    from d2defense.memory import keep_freed_memory

    import_modules(modules)
    torch.set_num_threads(workplace.threads)
    keep_freed_memory()
