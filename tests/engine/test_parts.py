# SPDX-License-Identifier: Apache-2.0
"""A step whose batch does not fit into the memory goes through the network in parts."""

from __future__ import annotations

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from d2defense.engine.parts import PartwiseTrainer
from d2defense.modeling import batches

OUT_OF_MEMORY = "DefaultCPUAllocator: can't allocate memory"


class Network(torch.nn.Module):
    """Mean over images of a loss; no more than ``most`` images at a time."""

    def __init__(self, most: int = 100) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Conv2d(3, 4, 3)
        self.most, self.sizes = most, []

    def forward(self, images):
        self.sizes.append(len(images))
        if len(images) > self.most:
            raise RuntimeError(OUT_OF_MEMORY)
        output = self.layer(torch.stack([image["image"] for image in images]))
        return {"loss": output.square().sum(dim=(1, 2, 3)).mean()}


def images(count: int) -> list[dict]:
    generator = torch.Generator().manual_seed(1)
    return [{"image": torch.rand(3, 9, 7, generator=generator)} for _ in range(count)]


def step(trainer_class, model, batch):
    """The trainer after one step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    trainer = trainer_class(model, [batch], optimizer)
    with EventStorage(0) as storage:
        trainer.iter = 0
        trainer.run_step()
        trainer.loss = storage.latest()["total_loss"][0]
    return trainer


def test_parts_add_up_to_the_step_of_the_whole_batch():
    whole, parted = Network(), Network(most=3)
    expected = step(SimpleTrainer, whole, images(7))
    got = step(PartwiseTrainer, parted, images(7))
    # One to measure; all together fail; then halves, the last smaller.
    assert parted.sizes == [1, 7, 3, 3, 1]
    assert got.images_at_once == 3
    assert got.loss == pytest.approx(expected.loss, rel=1e-5)
    for one, other in zip(whole.parameters(), parted.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_the_size_of_parts_follows_from_the_memory(monkeypatch):
    model = Network()
    # The layer keeps its input and its output for the backward pass, and the loss keeps little.
    kept = 4 * (3 * 9 * 7 + 4 * 7 * 5)
    own = 2 * 4 * sum(parameter.numel() for parameter in model.parameters())
    monkeypatch.setattr(batches, "available_bytes", lambda device: own + 4.5 * kept / 0.8)
    assert step(PartwiseTrainer, model, images(10)).images_at_once == 4
    assert model.sizes == [1, 4, 4, 2]


def test_one_image_that_does_not_fit_is_the_end():
    with pytest.raises(RuntimeError, match="allocate memory"):
        step(PartwiseTrainer, Network(most=0), images(2))


def test_a_batch_that_fits_is_detectron2s_own_step(make_tiny_cfg):
    cfg = make_tiny_cfg()
    batch = []
    for image in images(4):
        pixels = torch.nn.functional.interpolate(255 * image["image"][None], size=(128, 96))[0]
        boxes = Boxes(torch.tensor([[10.0, 12.0, 60.0, 70.0]]))
        instances = Instances((128, 96), gt_boxes=boxes, gt_classes=torch.tensor([2]))
        batch.append({"image": pixels, "instances": instances})
    states = []
    for trainer_class in (SimpleTrainer, PartwiseTrainer):
        torch.manual_seed(3)
        model = build_model(cfg).train()
        torch.manual_seed(4)
        trainer = step(trainer_class, model, batch)
        states.append(model.state_dict() | {"loss": torch.tensor(trainer.loss)})
    assert trainer.images_at_once == 4
    assert all(torch.equal(states[0][name], tensor) for name, tensor in states[1].items())
