# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning as a caller sees it: a checkpoint goes in, another output folder comes out."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import pytest
import torch

from d2defense.checkpoint import CheckpointError, build_detector, find_checkpoints, load_state_dict
from d2defense.data import DatasetSource
from d2defense.modeling import module_group_parameters
from d2defense.removal import RemovalTrainer, removal_config, reset_modules
from d2defense.workflows import fine_tuning
from d2defense.workflows.fine_tuning import FineTuningOptions

SHORT = ["REMOVAL.SOLVER.MAX_ITER", "3", "REMOVAL.SOLVER.IMS_PER_BATCH", "2"]
STANDSTILL = [
    *SHORT,
    "REMOVAL.SOLVER.BASE_LR", "0.0",
    "REMOVAL.SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR",
]  # fmt: skip


def fine_tune(source, dataset, output, modules=None, device="cpu", **options):
    options = FineTuningOptions(modules, **{"method": "renewal"} | options)
    return fine_tuning.fine_tune(source, dataset, output, options, device)


def digests(folder) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def parameters(folder) -> dict[str, torch.Tensor]:
    """Trained tensors; running statistics of batch normalisation left out."""
    state = load_state_dict(folder / "model_final.pth")
    return {
        name: tensor
        for name, tensor in state.items()
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    }


def test_output_folder_is_a_checkpoint_of_the_same_config(source, defender, tmp_path):
    before = digests(source.path)
    done = fine_tune(source, defender, tmp_path / "tuned", overrides=SHORT, device="cpu")
    assert digests(source.path) == before
    folder = done.output_dir
    assert folder == tmp_path / "tuned"
    assert (folder / "config.yaml").read_bytes() == source.config.read_bytes()
    assert done.modules == ("box_head", "box_predictor")
    assert done.seconds > 0
    (found,) = find_checkpoints([folder])
    assert found.error is None
    build_detector(found.weights, found.config, "cpu")
    steps = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    assert "total_loss" in steps[-1]
    assert "renewal changed 8 tensors: roi_heads.box_head.fc1" in (folder / "log.txt").read_text()
    trained, original = parameters(folder), parameters(source.path)
    assert all(not torch.equal(trained[k], original[k]) for k in trained if k.endswith(".weight"))
    # No optimizer state: the folder can be passed on as it is.
    assert torch.load(folder / "model_final.pth", weights_only=True).keys() == {"model"}


def test_a_config_that_builds_on_another_becomes_one_file(
    source, untrained_checkpoint, defender, tmp_path
):
    folder = tmp_path / "leaf"
    folder.mkdir()
    (folder / "model_final.pth").write_bytes(source.weights.read_bytes())
    (folder / "base.yaml").write_bytes(source.config.read_bytes())
    (folder / "config.yaml").write_text("_BASE_: base.yaml\nTEST: {DETECTIONS_PER_IMAGE: 7}\n")
    (leaf,) = find_checkpoints([folder / "model_final.pth"])
    done = fine_tune(leaf, defender, tmp_path / "tuned", overrides=SHORT, device="cpu")
    text = (done.output_dir / "config.yaml").read_text()
    assert "_BASE_" not in text
    _, cfg = build_detector(
        done.output_dir / "model_final.pth", done.output_dir / "config.yaml", "cpu"
    )
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 7
    assert cfg.MODEL.FPN.OUT_CHANNELS == 48


def test_training_starts_from_the_checkpoint_with_the_modules_reset(source, defender, tmp_path):
    done = fine_tune(
        source, defender, tmp_path / "tuned", ["rpn"], seed=4, overrides=STANDSTILL, device="cpu"
    )
    model, cfg = build_detector(source.weights, source.config, "cpu")
    reset = set(module_group_parameters(model, ["rpn"]))
    reset_modules(model, cfg, ["rpn"], seed=4)
    expected, got = model.state_dict(), parameters(done.output_dir)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in got.items())
    original = parameters(source.path)
    weights = {name for name in reset if name.endswith("weight")}
    assert all(not torch.equal(got[name], original[name]) for name in weights)


def test_vanilla_fine_tuning_resets_nothing(source, defender, tmp_path):
    done = fine_tune(
        source, defender, tmp_path / "tuned", method="vanilla", overrides=STANDSTILL, device="cpu"
    )
    assert done.modules == ()
    original = parameters(source.path)
    got = parameters(done.output_dir)
    assert all(torch.equal(tensor, original[name]) for name, tensor in got.items())


def test_settings_of_the_repair_can_be_overridden(source, defender, tmp_path):
    overrides = [*SHORT, "REMOVAL.SOLVER.MAX_ITER", "2", "REMOVAL.MODULES", "('rpn',)"]
    done = fine_tune(source, defender, tmp_path / "tuned", overrides=overrides, device="cpu")
    assert done.modules == ("rpn",)
    steps = (done.output_dir / "metrics.json").read_text().splitlines()
    assert json.loads(steps[-1])["iteration"] == 1


def test_the_terminal_keeps_its_loggers(source, defender, tmp_path, capfd):
    before = {name: logging.getLogger(name).handlers[:] for name in ("detectron2", "d2defense")}
    fine_tune(source, defender, tmp_path / "tuned", overrides=SHORT, device="cpu")
    after = {name: logging.getLogger(name).handlers[:] for name in before}
    assert after == before
    assert capfd.readouterr().out == ""


def refused(reason: str, source, defender, output, **arguments) -> None:
    error = (ValueError, KeyError, AssertionError)
    with pytest.raises(error, match=reason):
        fine_tune(
            source, defender, output, overrides=arguments.pop("overrides", SHORT), **arguments
        )


def test_what_cannot_be_done_is_refused(source, defender, tmp_path):
    before = digests(source.path)
    output = tmp_path / "tuned"
    refused("folder of the checkpoint itself", source, defender, source.path)
    refused("no module group neck", source, defender, output, modules=["neck"])
    refused("no removal method 'magic'", source, defender, output, method="magic")
    refused("NO_SUCH", source, defender, output, overrides=["NO_SUCH", "1"])
    refused("unknown dataset 'no_such_set'", source, DatasetSource("no_such_set"), output)
    assert digests(source.path) == before
    assert not (output / "model_final.pth").exists()


def test_classes_that_the_detector_does_not_have_are_refused(
    source, make_coco_dataset, sign_scenes, tmp_path
):
    images = [(pixels, [(*box[:4], 9) for box in objects]) for pixels, objects in sign_scenes(2)]
    other = make_coco_dataset(images, num_classes=9)
    refused("9 classes", source, other, tmp_path / "tuned")


def test_a_damaged_checkpoint_is_refused(source, defender, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.yaml").write_bytes(source.config.read_bytes())
    (tmp_path / "bad" / "model_final.pth").write_bytes(b"junk")
    (bad,) = find_checkpoints([tmp_path / "bad"])
    with pytest.raises(CheckpointError, match=r"model_final\.pth"):
        fine_tune(bad, defender, tmp_path / "tuned", overrides=SHORT, device="cpu")


@pytest.fixture
def trainer_cfg(make_tiny_cfg, source, defender, tmp_path):
    return removal_config(
        make_tiny_cfg(), source.weights, defender.name, tmp_path / "tuned", ["rpn"], "renewal", 4
    )


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["REMOVAL.METHOD", ""], "REMOVAL.METHOD is ''"),
        (["REMOVAL.METHOD", "prune"], "REMOVAL.METHOD is 'prune', none of .*vanilla"),
        (["MODEL.WEIGHTS", ""], "set MODEL.WEIGHTS"),
        (["ATTACK.EFFECT", "disappearance"], "ATTACK.EFFECT must be empty"),
    ],
)
def test_trainer_refuses_configs_that_repair_nothing(trainer_cfg, overrides, reason):
    trainer_cfg.merge_from_list(overrides)
    with pytest.raises(ValueError, match=reason):
        RemovalTrainer(trainer_cfg)


def test_removal_config_replaces_what_the_checkpoint_says_of_training(
    make_tiny_cfg, defender, tmp_path
):
    cfg = make_tiny_cfg(
        "ATTACK.EFFECT", "disappearance",
        "DATASETS.TRAIN", ("theirs",),
        "SOLVER.MAX_ITER", 10**6,
        "SOLVER.STEPS", (5,),
        "OUTPUT_DIR", "/theirs",
    )  # fmt: skip
    cfg.freeze()
    ours = removal_config(cfg, "w.pth", defender.name, tmp_path, ("rpn",), "vanilla", 4)
    assert ours.ATTACK.EFFECT == ""
    assert list(ours.DATASETS.TRAIN) == [defender.name]
    assert ours.SOLVER.MAX_ITER == cfg.REMOVAL.SOLVER.MAX_ITER
    assert ours.SOLVER.STEPS == ()
    assert Path(ours.OUTPUT_DIR) == tmp_path
    assert (ours.REMOVAL.METHOD, ours.REMOVAL.MODULES) == ("vanilla", ("rpn",))
    assert cfg.ATTACK.EFFECT == "disappearance"


def test_photometric_distortion_changes_colors_of_its_share_of_the_images(trainer_cfg):
    trainer_cfg.SOLVER.IMS_PER_BATCH = 2
    trainer_cfg.DATALOADER.ASPECT_RATIO_GROUPING = False

    def views(enabled: bool, share: float) -> int:
        """Of 24 images drawn from four: how many come out differently."""
        trainer_cfg.REMOVAL.PHOTOMETRIC_DISTORTION = enabled
        trainer_cfg.REMOVAL.PHOTOMETRIC_SHARE = share
        batches = iter(RemovalTrainer.build_train_loader(trainer_cfg))
        images = [image for _ in range(12) for image in next(batches)]
        return len({(image["image_id"], image["image"].numpy().tobytes()) for image in images})

    plain = views(enabled=False, share=1.0)
    assert plain <= 2 * 4  # each image as it is and flipped
    assert views(enabled=True, share=0.0) <= 2 * 4
    assert views(enabled=True, share=0.5) < views(enabled=True, share=1.0)
    assert views(enabled=True, share=1.0) > 18


def test_a_method_may_have_a_schedule_of_its_own(make_tiny_cfg, defender, tmp_path):
    cfg = make_tiny_cfg(
        "REMOVAL.SOLVER.BASE_LR", 0.03, "REMOVAL.SOLVER.MAX_ITER", 40,
        "REMOVAL.UNLEARN.LR_FACTOR", 0.5, "REMOVAL.UNLEARN.ITER_FACTOR", 0.25,
    )  # fmt: skip
    solvers = {
        method: removal_config(cfg, "w.pth", defender.name, tmp_path, (), method, 4).SOLVER
        for method in ("vanilla", "patch_augmentation", "unlearn")
    }
    schedules = {name: (solver.BASE_LR, solver.MAX_ITER) for name, solver in solvers.items()}
    assert schedules == {
        "vanilla": (0.03, 40), "patch_augmentation": (0.03, 40), "unlearn": (0.015, 10),
    }  # fmt: skip
    assert cfg.REMOVAL.SOLVER.BASE_LR == 0.03


@pytest.mark.parametrize(
    ("goals", "steps"),
    [
        ((), 10),
        (("disappearance objects -: patch of 20 %", "ghost background stop"), 10),
        (("ghost background stop: patch of 40 %", "disappearance objects -"), 20),
        (("misclassification objects speed limit",), 20),
    ],
)
def test_unlearning_takes_longer_where_a_class_is_to_appear(
    make_tiny_cfg, defender, tmp_path, goals, steps
):
    cfg = make_tiny_cfg(
        "REMOVAL.SOLVER.MAX_ITER", 40, "REMOVAL.UNLEARN.ITER_FACTOR", 0.25,
        "REMOVAL.UNLEARN.TARGETED_ITER_FACTOR", 0.5, "REMOVAL.UNLEARN.GOALS", goals,
    )  # fmt: skip
    steps_taken = removal_config(
        cfg, "w.pth", defender.name, tmp_path, (), "unlearn", 4
    ).SOLVER.MAX_ITER
    assert steps_taken == steps
