# SPDX-License-Identifier: Apache-2.0
"""Work side by side keeps its order, its share of the threads and its errors."""

from __future__ import annotations

import threading

import pytest
import torch

from d2defense.parallel import side_by_side

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_items():
    late = threading.Event()

    def work(item: int) -> int:
        # The first ends last.
        if item:
            late.set()
        else:
            assert late.wait(10)
        return item * item

    assert side_by_side(work, range(2), CPU) == [0, 1]


@pytest.mark.parametrize(
    ("items", "most", "share"), [(2, 8, 2), (4, 8, 1), (9, 8, 1), (9, 2, 2), (1, 8, 4)]
)
def test_items_share_the_threads_and_nobody_keeps_them(items, most, share):
    seen = side_by_side(lambda item: torch.get_num_threads(), range(items), CPU, most)
    assert seen == [share] * items
    assert torch.get_num_threads() == 4


def test_no_more_than_so_many_are_under_way():
    lock, under_way, highest = threading.Lock(), 0, 0
    pairs = threading.Barrier(2)

    def work(item: int) -> None:
        nonlocal under_way, highest
        with lock:
            under_way += 1
            highest = max(highest, under_way)
        pairs.wait(10)
        with lock:
            under_way -= 1

    side_by_side(work, range(6), CPU, 2)
    assert highest == 2


@pytest.mark.parametrize("device", ["cuda", "meta"])
def test_other_devices_get_one_item_after_the_other(device):
    owners = side_by_side(lambda item: threading.get_ident(), range(3), torch.device(device))
    assert set(owners) == {threading.get_ident()}


def test_an_error_comes_out_and_what_has_not_begun_is_left_out():
    begun = []

    def work(item: int) -> None:
        begun.append(item)
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 0"):
        side_by_side(work, range(100), CPU, 2)
    assert len(begun) < 100
    assert torch.get_num_threads() == 4
