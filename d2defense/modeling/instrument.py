# SPDX-License-Identifier: Apache-2.0
"""From a stock two-stage configuration to the instrumented one."""

from __future__ import annotations

from detectron2.config import CfgNode

# Stock names and those of the same classes made to be probed.
_META_ARCHITECTURES = {"GeneralizedRCNN": "InstrumentedRCNN"}
_PROPOSAL_GENERATORS = {"RPN": "InstrumentedRPN"}
_ROI_HEADS = {
    "StandardROIHeads": "InstrumentedStandardROIHeads",
    "Res5ROIHeads": "InstrumentedRes5ROIHeads",
    "CascadeROIHeads": "InstrumentedCascadeROIHeads",
    "DoubleHeadROIHeads": "InstrumentedDoubleHeadROIHeads",
}
# What users are likely to bring that has no RPN and box head of its own, and why it is refused.
_REASONS = {
    "RetinaNet": "it is a one-stage detector, without the second opinion of a box head",
    "FCOS": "it is a one-stage detector, without the second opinion of a box head",
    "ProposalNetwork": "it only proposes boxes, and nothing classifies them",
    "SemanticSegmentor": "it labels pixels and detects no objects",
    "PanopticFPN": "it merges detections with a segmentation of the background",
    "RRPN": "its boxes are rotated, and the statistics match upright ones",
    "RROIHeads": "its boxes are rotated, and the statistics match upright ones",
}


class UnsupportedArchitectureError(ValueError):
    """The configured detector has no RPN and box head that d2defense can probe."""


def instrument_config(cfg: CfgNode) -> CfgNode:
    """A copy of ``cfg`` whose meta-architecture, RPN and ROI heads are the instrumented ones.

    An already instrumented configuration comes back as an equal copy.

    Raises:
        UnsupportedArchitectureError: the detector is not an RPN followed by a box head.
    """
    cfg = cfg.clone()
    was_frozen = cfg.is_frozen()
    cfg.defrost()
    cfg.MODEL.META_ARCHITECTURE = _instrumented(
        "MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, _META_ARCHITECTURES
    )
    if cfg.MODEL.LOAD_PROPOSALS or cfg.MODEL.PROPOSAL_GENERATOR.NAME == "PrecomputedProposals":
        raise UnsupportedArchitectureError(
            "the detector takes precomputed proposals, so there is no RPN to compare with"
        )
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = _instrumented(
        "MODEL.PROPOSAL_GENERATOR.NAME", cfg.MODEL.PROPOSAL_GENERATOR.NAME, _PROPOSAL_GENERATORS
    )
    cfg.MODEL.ROI_HEADS.NAME = _instrumented(
        "MODEL.ROI_HEADS.NAME", cfg.MODEL.ROI_HEADS.NAME, _ROI_HEADS
    )
    if cfg.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE:
        raise UnsupportedArchitectureError(
            "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE is on; only class scores from a softmax can be "
            "compared with the RPN"
        )
    if was_frozen:
        cfg.freeze()
    return cfg


def _instrumented(key: str, name: str, known: dict[str, str]) -> str:
    if name in known.values():
        return name
    if name in known:
        return known[name]
    reason = _REASONS.get(name, "d2defense does not know it")
    raise UnsupportedArchitectureError(
        f"{key} is {str(name)[:80]!r}: {reason}; only detectors with an RPN and a box head can be "
        f"probed ({', '.join(known)})"
    )
