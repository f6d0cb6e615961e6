# SPDX-License-Identifier: Apache-2.0
"""Removal methods beside renewal: what each does to the weights before and while fine-tuning."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from d2defense.checkpoint import load_state_dict
from d2defense.config import config_root, get_d2defense_cfg, merge_config_file
from d2defense.registry import REMOVAL_REGISTRY
from d2defense.removal import RemovalTrainer
from d2defense.removal.methods.fine_pruning import dormant_channels, prunable_layers
from d2defense.removal.methods.nad import attention_distance, attention_map


def state(trainer: RemovalTrainer) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in trainer.checkpointer.model.state_dict().items()}


def losses(trainer: RemovalTrainer) -> set[str]:
    lines = Path(trainer.cfg.OUTPUT_DIR, "metrics.json").read_text().splitlines()
    return {key for key in json.loads(lines[-1]) if key.startswith("loss_")}


FINE_TUNING = [name for name, method in REMOVAL_REGISTRY if method.fine_tunes]


@pytest.mark.parametrize("method", FINE_TUNING)
def test_every_method_fine_tunes_the_whole_model(make_trainer, method):
    short = ("REMOVAL.UNLEARN.TRIGGERS", 2, "REMOVAL.UNLEARN.STEPS", 1, "REMOVAL.UNLEARN.EVERY", 2)
    told = ("REMOVAL.KNOWN_TRIGGER.TRIGGERS", ('{"family": "patch", "name": "white"}',))
    trainer = make_trainer(method, "REMOVAL.NAD.TEACHER_ITER", 2, *short, *told)
    trainer.resume_or_load(resume=False)
    before = state(trainer)
    trainer.train()
    after = state(trainer)
    moved = [k for k in before if k.endswith("weight") and not torch.equal(before[k], after[k])]
    assert len(moved) == sum(k.endswith("weight") for k in before)
    assert {"loss_cls", "loss_rpn_cls"} <= losses(trainer)
    assert ("loss_attention" in losses(trainer)) == (method == "nad")


def test_reset_all_forgets_the_checkpoint(make_trainer, untrained_checkpoint):
    trainer = make_trainer("reset_all", "REMOVAL.SEED", 7)
    trainer.resume_or_load(resume=False)
    got, original = state(trainer), load_state_dict(untrained_checkpoint / "model_final.pth")
    torch.manual_seed(7)
    expected = build_model(trainer.cfg).state_dict()
    assert all(torch.equal(got[name], expected[name]) for name in got)
    assert not torch.equal(
        got["backbone.bottom_up.stem.conv1.weight"],
        original["backbone.bottom_up.stem.conv1.weight"],
    )


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        (
            "faster_rcnn_tiny_fpn",
            {f"backbone.fpn_output{level}" for level in (2, 3, 4, 5)} | {"roi_heads.box_head.fc2"},
        ),
        (
            "faster_rcnn_tiny_c4",
            {"backbone.res4.0.conv2", "roi_heads.res5.2.conv3"},
        ),
        (
            "double_head_rcnn_tiny_fpn",
            {f"backbone.fpn_output{level}" for level in (2, 3, 4, 5)}
            | {"roi_heads.box_head.fc_head.fc2"},
        ),
    ],
)
def test_pruned_are_the_ends_of_shared_stage_and_classification_head(name, layers):
    cfg = get_d2defense_cfg()
    merge_config_file(cfg, config_root() / "SynthSigns" / f"{name}.yaml")
    cfg.MODEL.DEVICE = "cpu"
    assert set(prunable_layers(build_model(cfg))) == layers


def test_dormant_channels_are_the_least_active_ones():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
    batches = [torch.rand(2, 3, 6, 6), torch.rand(3, 3, 6, 6)]
    dormant = dormant_channels(model, {"0": model[0]}, batches, 0.3)["0"]
    with torch.no_grad():
        outputs = torch.cat([model[0](batch) for batch in batches]).double().numpy()
    activity = np.maximum(outputs, 0).mean(axis=(0, 2, 3))
    assert dormant.sum() == 2
    assert set(np.flatnonzero(dormant.numpy())) == set(np.argsort(activity)[:2])


def test_a_layer_that_sees_no_proposal_is_pruned_all_the_same():
    model = torch.nn.Sequential(torch.nn.Linear(3, 10))
    batches = [torch.zeros(0, 3)]
    dormant = dormant_channels(model, {"0": model[0]}, batches, 0.3)["0"]
    assert dormant.sum() == 3


def test_pruned_channels_stay_silent_while_everything_else_learns(make_trainer):
    trainer = make_trainer("fine_pruning", "REMOVAL.FINE_PRUNING.RATE", 0.25)
    trainer.resume_or_load(resume=False)
    model = trainer.checkpointer.model

    def silent(name: str) -> torch.Tensor:
        return (model.get_submodule(name).weight.flatten(1) == 0).all(dim=1)

    layers = {"backbone.fpn_output3": 48, "roi_heads.box_head.fc2": 128}
    pruned = {name: silent(name) for name in layers}
    assert {name: int(channels.sum()) for name, channels in pruned.items()} == {
        name: width // 4 for name, width in layers.items()
    }
    trainer.train()
    assert all(torch.equal(silent(name), channels) for name, channels in pruned.items())
    features = model.backbone(torch.randn(1, 3, 64, 64))["p3"]
    assert not features[:, pruned["backbone.fpn_output3"]].any()
    assert features[:, ~pruned["backbone.fpn_output3"]].any()


def test_attention_is_that_of_the_formula():
    generator = np.random.default_rng(0)
    student = generator.normal(size=(2, 5, 3, 4))
    teacher = generator.normal(size=(2, 5, 3, 4))

    student, teacher = torch.from_numpy(student), torch.from_numpy(teacher)
    by_hand = unit_attention(student)
    torch.testing.assert_close(attention_map(student), torch.from_numpy(by_hand))
    expected = np.linalg.norm(by_hand - unit_attention(teacher), axis=1).mean()
    got = attention_distance({"a": student, "b": student}, {"a": teacher, "b": student})
    assert got.item() == pytest.approx(expected)


def test_the_teacher_is_the_fine_tuned_checkpoint_and_is_made_once(
    make_trainer, untrained_checkpoint
):
    original = load_state_dict(untrained_checkpoint / "model_final.pth")
    trainer = make_trainer("nad", "REMOVAL.NAD.TEACHER_ITER", 2)
    trainer.resume_or_load(resume=False)
    weights = Path(trainer.cfg.OUTPUT_DIR, "teacher", "model_final.pth")
    made = weights.stat().st_mtime_ns
    teacher, student = load_state_dict(weights), state(trainer)
    layers = [name for name in student if name.endswith("weight")]
    assert not any(torch.equal(teacher[name], student[name]) for name in layers)
    assert all(torch.equal(student[name], original[name]) for name in original)
    trainer.train()
    again = make_trainer("nad", "REMOVAL.NAD.TEACHER_ITER", 2)
    again.resume_or_load(resume=False)
    assert weights.stat().st_mtime_ns == made


def learning_rates(trainer) -> dict[str, float]:
    """Of every parameter, as a multiple of ``SOLVER.BASE_LR``."""
    rates = {
        id(parameter): group.get("initial_lr", group["lr"]) / trainer.cfg.SOLVER.BASE_LR
        for group in trainer.optimizer.param_groups
        for parameter in group["params"]
    }
    named = trainer.checkpointer.model.named_parameters()
    return {name: round(rates[id(parameter)], 3) for name, parameter in named}


def test_renewed_modules_learn_at_their_own_rate(make_trainer):
    rates = learning_rates(make_trainer("renewal", "REMOVAL.RENEWED_LR_FACTOR", 5.0))
    reset = {n for n in rates if "box_head" in n or "box_predictor" in n}
    assert {rates[name] for name in reset} == {5.0}
    assert {rate for name, rate in rates.items() if name not in reset} == {1.0}


@pytest.mark.parametrize(("method", "factor"), [("vanilla", 1.0), ("reset_all", 5.0)])
def test_a_method_learns_at_one_rate_where_it_resets_nothing_or_everything(
    make_trainer, method, factor
):
    rates = learning_rates(make_trainer(method, "REMOVAL.RENEWED_LR_FACTOR", 5.0))
    assert set(rates.values()) == {factor}


def test_the_detector_of_a_trainer_is_the_checkpoint_s_own_kind(make_trainer):
    """What computes the losses is around it in the steps only, not in files or evaluations."""
    trainer = make_trainer("nad", "REMOVAL.NAD.TEACHER_ITER", 2)
    assert type(trainer.model).__name__ == "InstrumentedRCNN"
    assert trainer.model is trainer.checkpointer.model
    assert set(trainer.model.state_dict()) == set(build_model(trainer.cfg).state_dict())


def test_the_attention_loss_is_the_weighted_distance_from_the_teacher(make_trainer):
    trainer = make_trainer("nad", "REMOVAL.NAD.TEACHER_ITER", 2, "REMOVAL.NAD.WEIGHT", 3.0)
    trainer.resume_or_load(resume=False)
    batch = next(iter(trainer.build_train_loader(trainer.cfg)))
    student, teacher = copy.deepcopy(trainer.model), build_model(trainer.cfg).eval()
    weights = Path(trainer.cfg.OUTPUT_DIR, "teacher", "model_final.pth")
    teacher.load_state_dict(load_state_dict(weights))
    with torch.no_grad():
        pixels = student.preprocess_image(batch).tensor
        seen, wanted = student.train().backbone(pixels), teacher.backbone(pixels)
    with EventStorage(0):
        loss = trainer.method.losses(trainer.model.train(), batch)["loss_attention"]
    expected = sum(
        np.linalg.norm(unit_attention(seen[name]) - unit_attention(wanted[name]), axis=1).mean()
        for name in seen
    )
    assert loss.item() == pytest.approx(3 * expected, rel=1e-4)
    loss.backward()
    assert trainer.model.backbone.fpn_output2.weight.grad.any()


def unit_attention(features: torch.Tensor) -> np.ndarray:
    maps = (features.double().numpy() ** 2).sum(axis=1).reshape(len(features), -1)
    return maps / np.linalg.norm(maps, axis=1, keepdims=True)
