# SPDX-License-Identifier: Apache-2.0
"""From a stock configuration to the instrumented one."""

from __future__ import annotations

from detectron2.config import CfgNode

from .adapter import ADAPTERS, adapter_of, replaced_name

# What users are likely to bring that detects nothing, and why it is refused.
_REASONS = {
    "ProposalNetwork": "it only proposes boxes, and nothing classifies them",
    "SemanticSegmentor": "it labels pixels and detects no objects",
}


def instrument_config(cfg: CfgNode) -> CfgNode:
    """A copy of ``cfg`` whose detector is the instrumented one.

    An already instrumented configuration comes back as an equal copy.

    Raises:
        UnsupportedArchitectureError: the detector is none that d2defense can probe.
    """
    cfg = cfg.clone()
    was_frozen = cfg.is_frozen()
    cfg.defrost()
    adapter = adapter_of(cfg)
    if adapter is None:
        known = {stock: each.__name__ for stock, each in ADAPTERS.items()}
        replaced_name("MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, known, _REASONS)
    else:
        adapter.instrument(cfg)
    if was_frozen:
        cfg.freeze()
    return cfg
