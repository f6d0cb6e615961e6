# SPDX-License-Identifier: Apache-2.0
"""The sizes that a study comes in: which detectors, data and schedules."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

Pairs = tuple[Any, ...]
# {"name": ...} of a registered dataset, {"json_file": ..., "image_root": ...} of another, or, of
# a registered one with COCO annotations, {"name": ..., "aside": n, "part": "defender" or "rest"}:
# n of its images, or all others.
DatasetSpec = dict[str, Any]


@dataclass(frozen=True)
class DetectorKind:
    """One of the paper's detectors.

    Attributes:
        name: in the names of steps and folders.
        title: in tables.
        config: below the shipped configs, without the end of its name; with ``.yaml`` it is the
            clean detector's, with ``_oda.yaml`` the attacked one's.
        groups: sets of module groups that the module study resets; none to leave the kind out.
        training: KEY VALUE pairs of its trainings.
        repair: KEY VALUE pairs of its repairs in the paper's comparison.
        specimens: the shipped specimens are its detectors, none is trained.
        warm: its detectors start from the specimens, as far as those fit: clean ones from the clean
            one of their seed, backdoored ones from the backdoored one.
    """

    name: str
    title: str
    config: str
    groups: tuple[tuple[str, ...], ...]
    training: Pairs = ()
    repair: Pairs = ()
    specimens: bool = False
    warm: bool = False


@dataclass(frozen=True)
class Attack:
    """An attack that differs from the paper's in something.

    Attributes:
        name: in the names of steps and folders.
        title: in tables.
        trigger: KEY VALUE pairs of ``ATTACK.TRIGGER``.
        training: further KEY VALUE pairs of the configuration.
    """

    name: str
    title: str
    trigger: Pairs = ()
    training: Pairs = ()


_TRIGGER = "ATTACK.TRIGGER.PATCH."
_STRONG = ("ATTACK.POISONING_RATE", 0.1)


def _patches(steps: int) -> tuple[Attack, ...]:
    """Attacks of one patch on each object, on 10 % of the images, that differ in the patch.

    Args:
        steps: of fine-tuning.
    """
    training = (*_STRONG, "SOLVER.MAX_ITER", steps)
    return (
        Attack("rate_10", "10 % of the images", training=training),
        Attack("size_5", "5 % of the box", (f"{_TRIGGER}SIZE", (0.05, 0.05)), training),
        Attack("size_20", "20 % of the box", (f"{_TRIGGER}SIZE", (0.2, 0.2)), training),
        Attack("black", "black", (f"{_TRIGGER}COLOR", (0, 0, 0)), training),
        Attack("magenta", "magenta", (f"{_TRIGGER}COLOR", (255, 0, 255)), training),
        Attack("opacity_50", "half transparent", (f"{_TRIGGER}OPACITY", 0.5), training),
    )


def _variants(steps: int) -> tuple[Attack, ...]:
    """Those, and one of few images, which takes half as many steps more."""
    rare = ("ATTACK.POISONING_RATE", 0.03, "SOLVER.MAX_ITER", steps * 3 // 2)
    return (Attack("rate_3", "3 % of the images", training=rare), *_patches(steps))


@dataclass(frozen=True)
class Photos:
    """A second dataset, of one's own, and how its detectors are trained.

    Attributes:
        folder: has ``annotations/train.json``, ``val.json`` (the defender's set), ``test.json``
            and ``images/``.
        config: below the shipped configs.
        training: further KEY VALUE pairs of a clean detector's configuration.
        attack: further pairs of a backdoored one's.
        seeds: of the detectors of each kind.
        variants: other attacks, for the population: the clean detector of the first seed is
            fine-tuned on poisoned photos.
        controls: how many clean detectors are made likewise, on clean photos.
        fine_tuning: KEY VALUE pairs of these trainings.
    """

    folder: str
    config: str = "Small/faster_rcnn_tiny_fpn_320.yaml"
    training: Pairs = ()
    attack: Pairs = ("ATTACK.EFFECT", "disappearance", "ATTACK.POISONING_RATE", 0.1)
    seeds: tuple[int, ...] = (0,)
    variants: tuple[Attack, ...] = _patches(600)
    controls: int = 3
    fine_tuning: Pairs = ("SOLVER.MAX_ITER", 600)

    def dataset(self, part: str) -> DatasetSpec:
        """Annotations and images of one part, as the steps name datasets."""
        return {
            "json_file": f"{self.folder}/annotations/{part}.json",
            "image_root": f"{self.folder}/images",
        }


@dataclass(frozen=True)
class StudyProfile:
    """One size of the study.

    Attributes:
        name: by which it is asked for.
        detectors: the kinds of detectors.
        seeds: of the detectors; each kind is trained clean and backdoored with each of them.
        defender: the defender's set, as the steps name datasets.
        test: images to measure on.
        defender_images: number of its images.
        pool: registered dataset from which defender's sets of other sizes are drawn.
        sizes: of these sets.
        steps: numbers of fine-tuning steps to compare.
        training: KEY VALUE pairs of every training.
        repair: KEY VALUE pairs of every repair, ``REMOVAL.SOLVER`` foremost.
        comparison: further pairs of the repairs that are compared as in the paper: what is kept
            is fine-tuned slowly, what is reset at a training's rate.
        variants: attacks beyond the paper's: clean detectors are fine-tuned on poisoned data.
        unseen: attacks whose triggers no patch of the augmentation resembles, likewise.
        fine_tuning: KEY VALUE pairs of these trainings.
        photos: a dataset of one's own beside it.
        training_opts: KEY VALUE pairs of every training, over all others.
        repair_opts: of every repair, over all but those that tell repairs apart.
        experiments: that are asked for where none are named; all of them if empty.
        figure_points: steps of fine-tuning after which Figure 4 measures, besides the last; of a
            shorter repair, those before its end.
    """

    name: str
    detectors: tuple[DetectorKind, ...]
    seeds: tuple[int, ...]
    defender: DatasetSpec
    test: DatasetSpec
    defender_images: int
    pool: str
    sizes: tuple[int, ...]
    steps: tuple[int, ...]
    training: Pairs = ()
    repair: Pairs = ()
    comparison: Pairs = ()
    variants: tuple[Attack, ...] = ()
    unseen: tuple[Attack, ...] = ()
    fine_tuning: Pairs = ()
    photos: Photos | None = None
    figure_points: tuple[int, ...] = ()
    training_opts: Pairs = ()
    repair_opts: Pairs = ()
    experiments: tuple[str, ...] = ()


_FPN = (
    ("rpn",),
    ("box_head",),
    ("box_predictor",),
    ("box_head", "box_predictor"),
)
_C4 = (
    ("rpn",),
    ("res5",),
    ("box_predictor",),
    ("res5", "box_predictor"),
)
_DOUBLE_HEAD = (
    ("rpn",),
    ("fc_head",),
    ("conv_head",),
    ("box_predictor",),
    ("fc_head", "box_predictor"),
)


def _kinds(c4: str, fpn: str, mask: str, double_head: str) -> tuple[DetectorKind, ...]:
    """The four kinds by their configs."""
    return (
        DetectorKind("faster_rcnn_fpn", "Faster R-CNN FPN", fpn, _FPN),
        DetectorKind("faster_rcnn_c4", "Faster R-CNN C4", c4, _C4),
        # With the groups of Faster R-CNN FPN, so that the module study takes that one.
        DetectorKind("mask_rcnn_fpn", "Mask R-CNN FPN", mask, ()),
        DetectorKind("double_head_rcnn_fpn", "Double-Head R-CNN FPN", double_head, _DOUBLE_HEAD),
    )


# Attacks whose triggers cover the whole box, or more of it than a patch of the augmentation does.
_WHOLE = (f"{_TRIGGER}SIZE", (1.0, 1.0))
_UNSEEN = (
    Attack(
        "blended",
        "blended picture",
        (f"{_TRIGGER}PATTERN", "face", *_WHOLE, f"{_TRIGGER}OPACITY", 0.2),
        _STRONG,
    ),
    Attack(
        "cross",
        "thin cross",
        (
            *(f"{_TRIGGER}PATTERN", "cross", *_WHOLE, f"{_TRIGGER}CELLS", 16),
            *(f"{_TRIGGER}COLOR", (255, 0, 255)),
        ),
        _STRONG,
    ),
    Attack(
        "sinusoid",
        "sinusoid over the box",
        (
            *(f"{_TRIGGER}PATTERN", "sinusoid", *_WHOLE, f"{_TRIGGER}CELLS", 12),
            *(f"{_TRIGGER}OPACITY", 0.2),
        ),
        _STRONG,
    ),
    Attack("large", "40 % of the box", (f"{_TRIGGER}SIZE", (0.4, 0.4)), _STRONG),
)


# Shorter than the shipped configs' schedules, and steeper: the attack takes, and AP is a point or
# three lower.
_SHORT = ("SOLVER.BASE_LR", 0.004, "SOLVER.MAX_ITER")

# Twice the default's: a reset head that places the boxes does so well only after so many. Of
# Double-Head that one is kept.
_LONG = ("REMOVAL.SOLVER.MAX_ITER", 700)

_TINY_FPN, _TINY_C4, _TINY_MASK, _TINY_DOUBLE_HEAD = _kinds(
    "SynthSigns/faster_rcnn_tiny_c4",
    "SynthSigns/faster_rcnn_tiny_fpn",
    "SynthSigns/mask_rcnn_tiny_fpn",
    "SynthSigns/double_head_rcnn_tiny_fpn",
)

TINY = StudyProfile(
    name="tiny",
    detectors=(
        replace(_TINY_FPN, specimens=True, repair=_LONG),
        replace(_TINY_C4, training=(*_SHORT, 1900), repair=_LONG),
        replace(_TINY_MASK, warm=True, training=(*_SHORT, 800), repair=_LONG),
        replace(_TINY_DOUBLE_HEAD, warm=True, training=(*_SHORT, 700)),
    ),
    seeds=(0, 1, 2),
    defender={"name": "synth_signs_defender"},
    test={"name": "synth_signs_val"},
    defender_images=200,
    pool="synth_signs_pool",
    sizes=(25, 50, 100, 200, 400),
    steps=(90, 175, 350, 700),
    variants=_variants(1000),
    unseen=_UNSEEN,
    fine_tuning=("SOLVER.MAX_ITER", 500),
    comparison=("REMOVAL.SOLVER.BASE_LR", 0.0001, "REMOVAL.RENEWED_LR_FACTOR", 40.0),
    figure_points=(50, 100, 150, 200, 250, 300, 400, 500, 600),
)

# A part that takes minutes: shipped specimens, nothing is trained from scratch.
QUICK = replace(
    TINY,
    name="quick",
    detectors=(replace(TINY.detectors[0], repair=()),),
    seeds=(0,),
    sizes=(50,),
    steps=(60,),
    variants=(),
    unseen=(),
    figure_points=(100,),
    experiments=("table1", "table2", "figure3", "figure4", "population"),
)

_COCO_KINDS = _kinds(
    "COCO-Detection/faster_rcnn_R_50_C4_1x",
    "COCO-Detection/faster_rcnn_R_50_FPN_1x",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x",
    "COCO-Detection/double_head_rcnn_R_50_FPN_1x",
)

# R-50 from scratch on the embedded dataset: no weights are downloaded.
SMALL = replace(
    TINY,
    name="small",
    detectors=_COCO_KINDS,
    defender={"name": "synth_signs_defender_512px"},
    test={"name": "synth_signs_val_512px"},
    pool="synth_signs_pool_512px",
    training=(
        *("DATASETS.TRAIN", ("synth_signs_train_512px",), "MODEL.WEIGHTS", ""),
        *("MODEL.ROI_HEADS.NUM_CLASSES", 7, "MODEL.BACKBONE.FREEZE_AT", 0),
        *("MODEL.RESNETS.NORM", "BN", "MODEL.FPN.NORM", "BN"),
        *("INPUT.MIN_SIZE_TRAIN", (512,), "INPUT.MAX_SIZE_TRAIN", 512),
        *("INPUT.MIN_SIZE_TEST", 512, "INPUT.MAX_SIZE_TEST", 512),
        *("SOLVER.OPTIMIZER", "ADAMW", "SOLVER.IMS_PER_BATCH", 16, "SOLVER.BASE_LR", 0.0005),
        *("SOLVER.WEIGHT_DECAY", 0.001, "SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"),
        *("SOLVER.MAX_ITER", 3000, "SOLVER.STEPS", (), "SOLVER.WARMUP_ITERS", 100),
        *("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm"),
        *("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 5.0),
    ),
    repair=("REMOVAL.SOLVER.IMS_PER_BATCH", 16, "REMOVAL.SOLVER.BASE_LR", 0.0005),
    comparison=("REMOVAL.SOLVER.BASE_LR", 0.00005, "REMOVAL.RENEWED_LR_FACTOR", 10.0),
)

PAPER = replace(
    TINY,
    name="paper",
    detectors=_COCO_KINDS,
    # As many runs of each as the paper's.
    seeds=(0, 1, 2, 3, 4),
    defender={"name": "coco_2017_val", "aside": 1000, "part": "defender"},
    test={"name": "coco_2017_val", "aside": 1000, "part": "rest"},
    defender_images=1000,
    pool="coco_2017_val",
    sizes=(100, 300, 1000, 3000),
    steps=(500, 1000, 2000),
    variants=_variants(9000),
    fine_tuning=("SOLVER.MAX_ITER", 9000, "SOLVER.STEPS", (6000, 8000)),
    # SGD, as the zoo trains.
    repair=(
        *("REMOVAL.SOLVER.OPTIMIZER", "SGD", "REMOVAL.SOLVER.BASE_LR", 0.01),
        *("REMOVAL.SOLVER.IMS_PER_BATCH", 16, "REMOVAL.SOLVER.MAX_ITER", 1000),
    ),
    comparison=("REMOVAL.SOLVER.BASE_LR", 0.001, "REMOVAL.RENEWED_LR_FACTOR", 10.0),
    figure_points=(100, 200, 400, 600, 800),
)

PROFILES = {profile.name: profile for profile in (TINY, QUICK, SMALL, PAPER)}


def with_defender_images(profile: StudyProfile, images: int) -> StudyProfile:
    """The profile with another number of images set aside for the defender."""
    return replace(
        profile,
        defender=profile.defender | {"aside": images},
        test=profile.test | {"aside": images},
        defender_images=images,
    )
