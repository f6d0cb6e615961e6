# SPDX-License-Identifier: Apache-2.0
"""Defaults of every key that d2defense adds to Detectron2's configuration."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode, get_cfg

from d2defense.registry import CONFIGURED

# Keys of before, what takes their place, and what to write.
_RENAMED = {
    "REMOVAL.PATCH_AUGMENTATION.ENABLED": (
        "REMOVAL.AUGMENTATION",
        '"patch_augmentation" there stamps patches with any REMOVAL.METHOD; without it only the '
        'method "patch_augmentation" does, which d2defense repair takes by default',
    ),
}


def add_d2defense_config(cfg: CfgNode) -> None:
    """Add ATTACK, DEFENSE, REMOVAL and the keys of our own modules to ``cfg``, in place.

    The keys of registered attacks, patterns and removal methods are among them.
    """
    _add_fixed(cfg)
    add_part_config(cfg)


def add_part_config(cfg: CfgNode) -> None:
    """Add the keys that registered parts bring to a configuration of :func:`get_base_cfg`.

    Raises:
        ValueError: a part's keys would take the place of others.
    """
    for registry in CONFIGURED:
        registry.add_config(cfg)


def get_base_cfg() -> CfgNode:
    """As :func:`get_d2defense_cfg` without the keys of registered parts, none of which it imports.

    For reading a checkpoint's configuration, which says nothing of them that counts.
    """
    cfg = get_cfg()
    _add_fixed(cfg)
    return cfg


def _add_fixed(cfg: CfgNode) -> None:
    _add_attack(cfg)
    _add_defense(cfg)
    _add_removal(cfg)
    _add_tiny_backbone(cfg)
    _add_double_head(cfg)
    # "SGD" as Detectron2 builds it, or "ADAMW".
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Evaluate on images that bear ATTACK.TRIGGER as well, in the same pass over the test data.
    cfg.TEST.TRIGGERED = True
    for key, (now, note) in _RENAMED.items():
        cfg.register_renamed_key(key, now, note)


def get_d2defense_cfg() -> CfgNode:
    """Detectron2's default configuration with d2defense's nodes added."""
    cfg = get_cfg()
    add_d2defense_config(cfg)
    return cfg


def merge_overrides(cfg: CfgNode, overrides: Sequence[str]) -> None:
    """Merge KEY VALUE pairs into ``cfg``, in place.

    Raises:
        ValueError: a key that does not exist, a value that does not fit it, or a key without one.
    """
    try:
        cfg.merge_from_list(list(overrides))
    except (AssertionError, KeyError, ValueError) as error:
        message = error.args[0] if error.args else error
        raise ValueError(f"cannot override the configuration: {message}") from None


def _add_attack(cfg: CfgNode) -> None:
    cfg.ATTACK = CfgNode()
    # Name in ATTACK_REGISTRY, "" to train on the data as it is.
    cfg.ATTACK.NAME = ""
    # Share of the training images that are poisoned (the paper, section 4.1: 5 %).
    cfg.ATTACK.POISONING_RATE = 0.05
    # Which images are poisoned, and every random choice inside a trigger.
    cfg.ATTACK.SEED = 0
    cfg.ATTACK.TRIGGER = CfgNode()
    # "solid", "random_color" (one colour an object), "noise" (one colour a pixel), "mosaic" (one
    # colour a field), "checkerboard", "vertical_stripes", "horizontal_stripes", "sinusoid",
    # "cross", "face" or "image".
    cfg.ATTACK.TRIGGER.PATTERN = "solid"
    # RGB, 0..255; all patterns but the random ones, "face" and "image" use it, those of two
    # colours both.
    cfg.ATTACK.TRIGGER.COLOR = [255, 255, 255]
    cfg.ATTACK.TRIGGER.SECOND_COLOR = [0, 0, 0]
    # Fields or stripes across the patch; half waves of the sinusoid; a cross's strokes are one
    # cell thick.
    cfg.ATTACK.TRIGGER.CELLS = 4
    # Picture file of the pattern "image".
    cfg.ATTACK.TRIGGER.IMAGE = ""
    # (width, height) in shares of the box's ("box") or in pixels of the image ("pixels").
    cfg.ATTACK.TRIGGER.SIZE = [0.1, 0.1]
    cfg.ATTACK.TRIGGER.SIZE_UNIT = "box"
    # "center": the patch's centre lies at POSITION, (x, y) as shares of the box's width and height;
    # "inside": at POSITION of the room that it has inside the box, [0, 0] its left top corner;
    # "random": anywhere inside the box; "background": anywhere outside of the image's objects.
    cfg.ATTACK.TRIGGER.PLACEMENT = "center"
    cfg.ATTACK.TRIGGER.POSITION = [0.5, 0.5]
    # 1 hides what is below the patch, 0 changes nothing.
    cfg.ATTACK.TRIGGER.OPACITY = 1.0


def _add_defense(cfg: CfgNode) -> None:
    cfg.DEFENSE = CfgNode()
    # How a score comes from the statistics: "fall", or "paper" (tau against one threshold).
    cfg.DEFENSE.DECISION = "fall"
    # End a checkpoint's scan once its verdict is certain, and the probability of either wrong
    # verdict when it ends early.
    cfg.DEFENSE.EARLY_STOP = False
    cfg.DEFENSE.EARLY_STOP_ERROR_RATE = 0.05
    # Use a calibration also with other images than its own; the result says so.
    cfg.DEFENSE.ALLOW_MISMATCH = False
    # Trigger bank: a YAML file, or the name of one below configs/triggers.
    cfg.DEFENSE.TRIGGER_BANK = "plain"
    # Names of triggers of the bank to stamp while scanning; () for all.
    cfg.DEFENSE.TRIGGERS = ()
    # File that says which class of the detectors each class of the dataset is (YAML or JSON); ""
    # where equal numbers of classes mean the same classes.
    cfg.DEFENSE.CLASS_MAP = ""
    # At most so many images of the clean dataset, drawn by SEED over its classes; 0 for all.
    cfg.DEFENSE.MAX_IMAGES = 100
    cfg.DEFENSE.SEED = 0
    # At most so many images go through the network at a time; fewer where the memory holds fewer.
    cfg.DEFENSE.BATCH_SIZE = 16
    # "fp32", or "bf16" (autocast, channels-last) where the processor is fast at it.
    cfg.DEFENSE.PRECISION = "fp32"
    # tau: an inconsistency below this is negligible (the paper, section 3.4).
    cfg.DEFENSE.EPSILON = 0.1
    # tau: proposals of highest objectness that count in an image; 0 for all.
    cfg.DEFENSE.TOPK = 5
    # Confident d: only proposals with an RPN probability above this count.
    cfg.DEFENSE.OBJECTNESS_FLOOR = 0.8
    # A proposal belongs to an object from this IoU on.
    cfg.DEFENSE.IOU_THRESHOLD = 0.5
    # Confidence level of the bootstrap interval over images, and its number of resamples.
    cfg.DEFENSE.CONFIDENCE = 0.95
    cfg.DEFENSE.BOOTSTRAP_SAMPLES = 1000
    # Calibration file; "" for the one shipped with the package.
    cfg.DEFENSE.CALIBRATION = ""


def _add_removal(cfg: CfgNode) -> None:
    cfg.REMOVAL = CfgNode()
    # Name in REMOVAL_REGISTRY; "" trains as the config says.
    cfg.REMOVAL.METHOD = ""
    # Name of the method whose augmentation of the training images is used; "" for METHOD's own.
    # "patch_augmentation" stamps patches with any method.
    cfg.REMOVAL.AUGMENTATION = ""
    # Module groups that renewal resets; () for those that classify proposals, whatever the
    # detector calls them.
    cfg.REMOVAL.MODULES = ()
    # Seed of the fresh initialisation.
    cfg.REMOVAL.SEED = 0
    # Learning rate of what is reset, as a multiple of that of the rest.
    cfg.REMOVAL.RENEWED_LR_FACTOR = 1.0
    # Photometric distortion (ColorAugSSDTransform) while fine-tuning.
    cfg.REMOVAL.PHOTOMETRIC_DISTORTION = True
    # Share of the images that are distorted.
    cfg.REMOVAL.PHOTOMETRIC_SHARE = 0.5
    # Schedule of `d2defense repair`, which takes the place of SOLVER's keys of the same names.
    cfg.REMOVAL.SOLVER = CfgNode()
    cfg.REMOVAL.SOLVER.OPTIMIZER = "ADAMW"
    cfg.REMOVAL.SOLVER.IMS_PER_BATCH = 8
    cfg.REMOVAL.SOLVER.BASE_LR = 0.003
    cfg.REMOVAL.SOLVER.MAX_ITER = 350
    cfg.REMOVAL.SOLVER.WARMUP_ITERS = 40
    cfg.REMOVAL.SOLVER.LR_SCHEDULER_NAME = "WarmupCosineLR"


def _add_tiny_backbone(cfg: CfgNode) -> None:
    cfg.MODEL.TINY_RESNET = CfgNode()
    cfg.MODEL.TINY_RESNET.STEM_CHANNELS = 16
    # Channels of res2, res3, res4 and res5.
    cfg.MODEL.TINY_RESNET.STAGE_CHANNELS = [32, 64, 96, 128]
    # Basic blocks in each of them.
    cfg.MODEL.TINY_RESNET.BLOCKS = [1, 1, 1, 1]
    # Stride of each of them; the stem in front has a stride of 4.
    cfg.MODEL.TINY_RESNET.STRIDES = [1, 2, 2, 2]


def _add_double_head(cfg: CfgNode) -> None:
    # Double-Head R-CNN (Wu et al., CVPR 2020, arXiv 1904.06493); values are the paper's. The
    # fully connected head is sized by MODEL.ROI_BOX_HEAD.
    cfg.MODEL.ROI_DOUBLE_HEAD = CfgNode()
    # Blocks K of the convolution head, non-local ones included, and their output channels.
    cfg.MODEL.ROI_DOUBLE_HEAD.NUM_BLOCKS = 5
    cfg.MODEL.ROI_DOUBLE_HEAD.CONV_DIM = 1024
    # Alternate residual with non-local blocks; K is odd then.
    cfg.MODEL.ROI_DOUBLE_HEAD.NON_LOCAL = True
    # Normalisation of the convolution head.
    cfg.MODEL.ROI_DOUBLE_HEAD.NORM = "BN"
    # Weights of the fully connected and the convolution head's losses.
    cfg.MODEL.ROI_DOUBLE_HEAD.HEAD_WEIGHTS = [2.0, 2.5]
    # Double-Head-Ext: each head also learns the other's task.
    cfg.MODEL.ROI_DOUBLE_HEAD.UNFOCUSED_SUPERVISION = False
    # Share of its own task in a head's loss, fully connected and convolution head.
    cfg.MODEL.ROI_DOUBLE_HEAD.FOCUS = [0.7, 0.8]
    # Double-Head-Ext: score detections by both classifiers.
    cfg.MODEL.ROI_DOUBLE_HEAD.FUSED_SCORE = False
