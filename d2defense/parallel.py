# SPDX-License-Identifier: Apache-2.0
"""Independent pieces of work side by side in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

_T = TypeVar("_T")
_R = TypeVar("_R")


def side_by_side(
    function: Callable[[_T], _R], items: Iterable[_T], device: torch.device, most: int = 8
) -> list[_R]:
    """What a function returns for each item, in order, on a CPU for several items at a time.

    They share torch's threads evenly: many small operations gain little from several threads each.
    As long as every item gets a single thread, results do not depend on how many there are. A GPU
    gets one item after the other.

    Args:
        function: must bear several threads, each with an item of its own.
        items: of the work.
        device: that the work is done on.
        most: items at a time.

    Raises:
        Exception: what the function raised first, in the order of the items; those that have not
            begun are left out.
    """
    items, threads = list(items), torch.get_num_threads()
    workers = min(threads, most, len(items))
    if workers < 2 or device.type != "cpu":
        return [function(item) for item in items]
    share = threads // workers
    try:
        with ThreadPoolExecutor(workers, "", torch.set_num_threads, (share,)) as pool:
            futures = [pool.submit(function, item) for item in items]
            try:
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        # Set in any thread, it is that of all threads to come.
        torch.set_num_threads(threads)
