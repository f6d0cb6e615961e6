# SPDX-License-Identifier: Apache-2.0
"""Images of like shape go through a network together, as many as the memory holds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from d2defense.modeling import BatchSize, alike, batches


class Network(nn.Module):
    """One layer whose output has four times the bytes of its input."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 4, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images)


def test_images_of_one_padded_size_go_together_in_their_order():
    shapes = [(100, 60), (60, 100), (97, 64), (128, 64), (64, 97)]
    assert alike(shapes, 32) == [[0, 2, 3], [1, 4]]
    assert alike(shapes, 1) == [[0], [1], [2], [3], [4]]


def test_the_first_image_goes_alone_and_says_how_many_fit(monkeypatch):
    model, sizes = Network(), []
    # One image of 10 by 10 makes 4 * 100 * 4 bytes of outputs; room for three and a half.
    monkeypatch.setattr(batches, "available_bytes", lambda device: 3.5 * 1600 / 0.8)

    def work(part):
        model(torch.zeros(len(part), 1, 10, 10))
        sizes.append(len(part))
        return list(part)

    batch_size = BatchSize(model, 16)
    done = list(batch_size.run(range(8), (10, 10), work))
    assert sizes[0] == 1
    assert max(sizes) == batch_size.used == 3
    assert [index for part in done for index in part] == list(range(8))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
    ],
    ids=["cpu", "cuda", "python"],
)
def test_a_batch_that_does_not_fit_is_halved(error):
    done = []

    def work(part):
        if len(part) > 3:
            raise error
        done.extend(part)

    batch_size = BatchSize(Network(), 16)
    for _ in batch_size.run(range(20), (10, 10), work):
        pass
    assert done == list(range(20))
    assert batch_size.used <= 3


def test_a_model_without_parameters_is_measured_too():
    batch_size = BatchSize(nn.Identity(), 16)
    assert list(batch_size.run(range(4), (10, 10), list)) == [[0], [1, 2, 3]]


def test_an_image_that_does_not_fit_alone_is_an_error():
    def work(part):
        raise RuntimeError("can't allocate memory")

    with pytest.raises(RuntimeError, match="allocate"):
        list(BatchSize(Network(), 16).run(range(4), (10, 10), work))


def test_another_error_is_not_tried_again():
    calls = []

    def work(part):
        calls.append(part)
        if len(part) > 1:
            raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="differ"):
        list(BatchSize(Network(), 16).run(range(40), (10, 10), work))
    assert len(calls) == 2
