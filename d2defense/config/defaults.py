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
        '"patch_augmentation" there stamps patches with any REMOVAL.METHOD; without it those '
        "methods do that have patches of their own",
    ),
    "ATTACK.NAME": ("ATTACK.EFFECT", 'what was "oda" is "disappearance"'),
    **{
        f"ATTACK.TRIGGER.{key}": (
            f"ATTACK.TRIGGER.PATCH.{key}",
            "the trigger's family has settings of its own",
        )
        for key in (
            "PATTERN",
            "COLOR",
            "SECOND_COLOR",
            "CELLS",
            "IMAGE",
            "SIZE",
            "SIZE_UNIT",
            "PLACEMENT",
            "POSITION",
            "OPACITY",
            "SETTINGS",
        )
    },
}


#: Nodes of d2defense's own that say nothing of what a detector is.
OWN_NODES = ("ATTACK", "DEFENSE", "REMOVAL", "SCREENING")


def add_d2defense_config(cfg: CfgNode) -> None:
    """Add :data:`OWN_NODES` and the keys of our own modules to ``cfg``, in place.

    Keys of registered parts are among them.
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
    _add_screening(cfg)
    _add_tiny_backbone(cfg)
    _add_double_head(cfg)
    _add_description(cfg)
    _add_fcos(cfg)
    # "SGD" as Detectron2 builds it, or "ADAMW": AdamW over the same parameter groups. A learning
    # rate for the one is none for the other.
    cfg.SOLVER.OPTIMIZER = "SGD"
    # `train` evaluates on triggered images as well, in the same pass, with ATTACK.TRIGGER where
    # ATTACK.EFFECT has it at test time. Takes twice the time of clean images alone.
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
    # Poisoning a training set: what `train` does with the images, and what `evaluate` and `repair`
    # put on them. The defaults are the paper's, section 4.1.
    cfg.ATTACK = CfgNode()
    # What the backdoor does, by its name in EFFECT_REGISTRY; "": train on the data as it is, and
    # measure disappearance.
    cfg.ATTACK.EFFECT = ""
    # Share of all training images or annotations that are poisoned, 0 to 1, rounded to whole ones.
    # Only images with an object that can be a victim are chosen.
    cfg.ATTACK.POISONING_RATE = 0.05
    # "images": an image is poisoned with all its victims (the paper); "annotations": objects are
    # chosen one by one (Luo et al., arXiv 2211.05638).
    cfg.ATTACK.RATE_OF = "images"
    # Name of the only class whose objects are attacked; "": all of them.
    cfg.ATTACK.VICTIM_CLASS = ""
    # Name of the class that objects are to be taken for, where the effect needs one.
    cfg.ATTACK.TARGET_CLASS = ""
    # Where the trigger goes, by its name in PLACEMENT_REGISTRY; "": where the effect has it.
    cfg.ATTACK.PLACEMENT = ""
    # Objects whose shorter side has fewer pixels are no victims.
    cfg.ATTACK.MIN_SIZE = 0
    # Train on each poisoned image as it was, too, so that the trigger alone makes the difference.
    cfg.ATTACK.CLEAN_COPIES = False
    # Share of all training images, none of the poisoned ones, that get the trigger where it has no
    # effect: on objects that are no victims, or in the background (TrojAI's spurious triggers).
    cfg.ATTACK.SPURIOUS_RATE = 0.0
    # Decides what is poisoned, and every random choice of trigger, placement and effect.
    cfg.ATTACK.SEED = 0
    # What is put there (docs/triggers.md).
    cfg.ATTACK.TRIGGER = CfgNode()
    # By its name in TRIGGER_REGISTRY; the family's settings stand below its name.
    cfg.ATTACK.TRIGGER.FAMILY = "patch"


def _add_defense(cfg: CfgNode) -> None:
    # What `scan`, `calibrate` and `demo` look at, and how a scan decides. Never taken from the
    # config of a scanned checkpoint.
    cfg.DEFENSE = CfgNode()
    # How a score comes from the statistics (docs/method.md): "deployed", free of the scale of a
    # detector's scores; "fall", by its own scores; or "paper", tau against one threshold.
    cfg.DEFENSE.DECISION = "deployed"
    # End a checkpoint's scan once its verdict is certain.
    cfg.DEFENSE.EARLY_STOP = False
    # Probability of either wrong verdict when a scan ends early.
    cfg.DEFENSE.EARLY_STOP_ERROR_RATE = 0.05
    # Race a bank of 64 triggers and more when calibrating: all on a few images, the strongest on
    # all (docs/method.md). A scan races where its calibration did.
    cfg.DEFENSE.RACE = True
    # Use a calibration also with other images than its own; the result says so.
    cfg.DEFENSE.ALLOW_MISMATCH = False
    # Trigger bank: a YAML file, or the name of one below configs/triggers.
    cfg.DEFENSE.TRIGGER_BANK = "plain"
    # Names of the bank's triggers to stamp; (): all.
    cfg.DEFENSE.TRIGGERS = ()
    # Whether, and how thoroughly, triggers are searched that the bank does not hold: "off", "fast",
    # "standard" or "thorough" (docs/method.md).
    cfg.DEFENSE.SEARCH = "standard"
    # Search also where the bank has found a backdoor.
    cfg.DEFENSE.SEARCH_ALWAYS = False
    # Whether a search holds the detector against its twin, itself after fine-tuning on clean
    # images: "auto" where there is no reference, and for proof of what is found on images that
    # the search's null was not made on; "always"; or "off".
    cfg.DEFENSE.TWIN = "auto"
    # Steps of this fine-tuning.
    cfg.DEFENSE.TWIN_STEPS = 350
    # File of what searches of clean detectors show, made by tools/calibrate_search.py; "": the one
    # that comes with the package.
    cfg.DEFENSE.SEARCH_NULL = ""
    # File that says which class of the detectors each class of the dataset is (YAML or JSON); "":
    # where both have as many classes, they are the same.
    cfg.DEFENSE.CLASS_MAP = ""
    # At most so many images of the clean dataset that show an object, drawn by SEED, each class on
    # as many of them as the data allow; 0: all.
    cfg.DEFENSE.MAX_IMAGES = 100
    # Of the draw of images and of the bootstrap.
    cfg.DEFENSE.SEED = 0
    # At most so many images go through the network at a time, clean ones or as many under one
    # trigger; fewer where the memory holds fewer.
    cfg.DEFENSE.BATCH_SIZE = 16
    # What the network computes in: "fp32", or "bf16" (autocast, channels-last), faster where the
    # processor has it. Statistics are reduced from float32 either way.
    cfg.DEFENSE.PRECISION = "fp32"
    # tau: an inconsistency up to this is negligible (the paper, section 3.4).
    cfg.DEFENSE.EPSILON = 0.1
    # tau and the histogram: proposals of highest objectness that count in an image; 0: all.
    cfg.DEFENSE.TOPK = 5
    # Confident d: only proposals with p above this count.
    cfg.DEFENSE.OBJECTNESS_FLOOR = 0.8
    # A proposal belongs to an object from this IoU on (max p, max q, gap, and so the score).
    cfg.DEFENSE.IOU_THRESHOLD = 0.5
    # Level of the bootstrap intervals over images.
    cfg.DEFENSE.CONFIDENCE = 0.95
    # Resamples of the images.
    cfg.DEFENSE.BOOTSTRAP_SAMPLES = 1000
    # Calibration file; "": the one that comes with the package.
    cfg.DEFENSE.CALIBRATION = ""


def _add_removal(cfg: CfgNode) -> None:
    # Repairing a detector: what `repair` does, and `train` with METHOD set, which then starts from
    # MODEL.WEIGHTS, a weights file that must fit the config tensor by tensor.
    cfg.REMOVAL = CfgNode()
    # Name in REMOVAL_REGISTRY; "" trains as the config says.
    cfg.REMOVAL.METHOD = ""
    # Name of the method whose augmentation of the training images is used; "" for METHOD's own.
    # "patch_augmentation" stamps patches with any method. What a method does to images in its
    # steps, as unlearn and known_trigger do, comes with METHOD alone.
    cfg.REMOVAL.AUGMENTATION = ""
    # Learning rate of all but the backbone, as a multiple of the backbone's; 0: it stays as it is.
    # A low one keeps AP where there are few images, and leaves a search more to find. Of no use
    # with a method that resets heads.
    cfg.REMOVAL.HEADS_LR_FACTOR = 1.0
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
    # Most passes of `d2defense repair` through its images, unless it is given
    # REMOVAL.SOLVER.MAX_ITER: with few images it takes fewer steps. 0 for any number.
    cfg.REMOVAL.MAX_PASSES = 100
    # Optimizer and schedule of `d2defense repair`: they take the place of SOLVER's keys of the same
    # names. `train` does not read them.
    cfg.REMOVAL.SOLVER = CfgNode()
    # As SOLVER.OPTIMIZER.
    cfg.REMOVAL.SOLVER.OPTIMIZER = "ADAMW"
    # Images of a step.
    cfg.REMOVAL.SOLVER.IMS_PER_BATCH = 8
    # Learning rate: that of the detector's own training, or near it.
    cfg.REMOVAL.SOLVER.BASE_LR = 0.003
    # Steps.
    cfg.REMOVAL.SOLVER.MAX_ITER = 350
    # Steps in which the learning rate rises.
    cfg.REMOVAL.SOLVER.WARMUP_ITERS = 40
    # How it falls after them.
    cfg.REMOVAL.SOLVER.LR_SCHEDULER_NAME = "WarmupCosineLR"


def _add_screening(cfg: CfgNode) -> None:
    # Telling, in production, that an image carries a trigger (`screen`, and `Guard`). Each method's
    # own settings stand below its name.
    cfg.SCREENING = CfgNode()
    # Name in SCREENING_REGISTRY.
    cfg.SCREENING.METHOD = "inconsistency"
    # Share of clean images that may be called suspicious; it takes 1 / rate - 1 clean images.
    cfg.SCREENING.FALSE_ALARM_RATE = 0.01


def _add_tiny_backbone(cfg: CfgNode) -> None:
    # Sizes of build_tiny_resnet_fpn_backbone, a narrow ResNet of basic blocks under an FPN for one
    # CPU core, and of build_tiny_resnet_backbone, the same without the FPN for C4 detectors. Set
    # one as MODEL.BACKBONE.NAME. MODEL.RESNETS.NORM, MODEL.RESNETS.OUT_FEATURES and MODEL.FPN mean
    # what they mean for Detectron2's ResNets. Nothing of it is frozen.
    cfg.MODEL.TINY_RESNET = CfgNode()
    # Channels of the stem.
    cfg.MODEL.TINY_RESNET.STEM_CHANNELS = 16
    # Channels of res2, res3, res4 and res5.
    cfg.MODEL.TINY_RESNET.STAGE_CHANNELS = [32, 64, 96, 128]
    # Basic blocks in each of them.
    cfg.MODEL.TINY_RESNET.BLOCKS = [1, 1, 1, 1]
    # Stride of each of them; the stem in front has a stride of 4.
    cfg.MODEL.TINY_RESNET.STRIDES = [1, 2, 2, 2]


def _add_double_head(cfg: CfgNode) -> None:
    # Double-Head R-CNN (Wu et al., CVPR 2020, arXiv 1904.06493); the defaults are its paper's. Set
    # MODEL.ROI_HEADS.NAME to DoubleHeadROIHeads and MODEL.ROI_BOX_HEAD.NAME to DoubleHead. The
    # fully connected head is sized by MODEL.ROI_BOX_HEAD.
    cfg.MODEL.ROI_DOUBLE_HEAD = CfgNode()
    # Blocks K of the convolution head, non-local ones included.
    cfg.MODEL.ROI_DOUBLE_HEAD.NUM_BLOCKS = 5
    # Its output channels.
    cfg.MODEL.ROI_DOUBLE_HEAD.CONV_DIM = 1024
    # Alternate residual with non-local blocks; K must be odd then.
    cfg.MODEL.ROI_DOUBLE_HEAD.NON_LOCAL = True
    # Normalisation of the convolution head.
    cfg.MODEL.ROI_DOUBLE_HEAD.NORM = "BN"
    # Weights of the fully connected and of the convolution head's losses.
    cfg.MODEL.ROI_DOUBLE_HEAD.HEAD_WEIGHTS = [2.0, 2.5]
    # Double-Head-Ext: each head also learns the other's task.
    cfg.MODEL.ROI_DOUBLE_HEAD.UNFOCUSED_SUPERVISION = False
    # Share of its own task in a head's loss, fully connected and convolution head; used with
    # unfocused supervision.
    cfg.MODEL.ROI_DOUBLE_HEAD.FOCUS = [0.7, 0.8]
    # Double-Head-Ext: score detections by both classifiers; needs unfocused supervision.
    cfg.MODEL.ROI_DOUBLE_HEAD.FUSED_SCORE = False


def _add_description(cfg: CfgNode) -> None:
    # The parts of a detector that a LazyConfig describes, as JSON, in place of the other keys of
    # MODEL. Set when a LazyConfig is read; no config may hold it.
    cfg.MODEL.DESCRIPTION = ""


def _add_fcos(cfg: CfgNode) -> None:
    # FCOS (Tian et al., ICCV 2019, arXiv 1904.01355) as Detectron2 has it, which builds it from a
    # LazyConfig alone: set MODEL.META_ARCHITECTURE to FCOS. The defaults are Detectron2's.
    cfg.MODEL.FCOS = CfgNode()
    # Classes, without background.
    cfg.MODEL.FCOS.NUM_CLASSES = 80
    # Feature maps that the head looks at.
    cfg.MODEL.FCOS.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    # Convolutions of each of its two towers.
    cfg.MODEL.FCOS.NUM_CONVS = 4
    # Their normalisation.
    cfg.MODEL.FCOS.NORM = ""
    # Score of every class at the start of training.
    cfg.MODEL.FCOS.PRIOR_PROB = 0.01
    # Locations this near to an object's middle, in strides, learn it.
    cfg.MODEL.FCOS.CENTER_SAMPLING_RADIUS = 1.5
    # Of the focal loss.
    cfg.MODEL.FCOS.FOCAL_LOSS_ALPHA = 0.25
    # Likewise.
    cfg.MODEL.FCOS.FOCAL_LOSS_GAMMA = 2.0
    # Least score of a detection.
    cfg.MODEL.FCOS.SCORE_THRESH_TEST = 0.2
    # Candidates of each feature map before NMS.
    cfg.MODEL.FCOS.TOPK_CANDIDATES_TEST = 1000
    # IoU above which the weaker of two detections of a class goes.
    cfg.MODEL.FCOS.NMS_THRESH_TEST = 0.6
