# SPDX-License-Identifier: Apache-2.0
"""What a trigger does to a detector: objects that vanish, and modules that fall apart."""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm
from torch import Tensor

from d2defense.modeling import ProbeOutput
from d2defense.statistics import (
    STATISTICS,
    SUCCESSFUL_ASR,
    ObservationSettings,
    Terms,
    all_proposals_tau_terms,
    annotated_objects,
    at_input_size,
    attack_succeeded,
    attack_success_rate,
    found_objects,
    reduce_probe,
)

from .conditions import CLEAN, CONDITION, CONDITIONS, TRIGGERED, result_name
from .probed import PROBE

logger = logging.getLogger(__name__)

# Those of a scan, and the paper's tau without any choice among the proposals.
EVALUATED_STATISTICS = (*STATISTICS, "tau_all")


class _Seen(NamedTuple):
    """What is kept of an image in one condition."""

    found: Tensor
    """bool, (M,): which of its objects were detected."""
    sums: Tensor
    """float64, (S, 2): numerator and denominator of each of EVALUATED_STATISTICS."""


class AttackEvaluator(DatasetEvaluator):
    """The statistics of every module on clean and on triggered images, and the ASR.

    Takes the images of :func:`build_paired_test_loader` and the outputs of
    :class:`ProbedDetector`. Images may be spread over processes in any way.

    Args:
        records: Detectron2's standard dataset dicts, boxes in pixels of the image file.
        settings: how proposals are reduced.
    """

    def __init__(self, records: list[dict[str, Any]], settings: ObservationSettings) -> None:
        self._objects = {record["image_id"]: annotated_objects(record) for record in records}
        self._settings = settings
        self.reset()

    def reset(self) -> None:
        """Forget every image seen so far."""
        self._seen: dict[tuple[str, Any], _Seen] = {}

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Match detections and proposals of a batch with its objects."""
        objects = [self._objects[image["image_id"]] for image in inputs]
        found = [
            _found(*of_image, output["instances"])
            for of_image, output in zip(objects, outputs, strict=True)
        ]
        targets = [
            at_input_size(boxes, image) for (boxes, _), image in zip(objects, inputs, strict=True)
        ]
        classes = [each for _, each in objects]
        probe = ProbeOutput.join([output[PROBE] for output in outputs])
        observation = reduce_probe(probe, targets, classes, torch.cat(found), self._settings)
        terms = {
            **observation.terms,
            "tau_all": all_proposals_tau_terms(probe, self._settings),
        }
        sums = torch.stack([torch.stack(tuple(terms[name])) for name in EVALUATED_STATISTICS])
        for image, of_objects, of_image in zip(inputs, found, sums.unbind(-1), strict=True):
            # A copy, since a view would be sent to other processes with the whole batch.
            seen = _Seen(of_objects, of_image.clone())
            self._seen[image[CONDITION], image["image_id"]] = seen

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Statistics of all images.

        Returns:
            ``{"statistics": {...}, "triggered_statistics": {...}, "attack": {"asr": share}}``: each
            of :data:`EVALUATED_STATISTICS` on clean and on triggered images, and the attack success
            rate; NaN for no data. Empty in all processes but the first.
        """
        parts = comm.gather(self._seen)
        if not comm.is_main_process():
            return OrderedDict()
        seen = {key: value for part in parts for key, value in part.items()}
        images = {
            condition: [
                seen[condition, image_id]
                for image_id in self._objects
                if (condition, image_id) in seen
            ]
            for condition in CONDITIONS
        }
        results = OrderedDict(
            (
                result_name("statistics", condition),
                _statistics([each.sums for each in of_condition]),
            )
            for condition, of_condition in images.items()
        )
        found = {
            condition: torch.cat([each.found for each in of_condition])
            for condition, of_condition in images.items()
        }
        asr = attack_success_rate(found[CLEAN], found[TRIGGERED])
        results["attack"] = {"asr": float("nan") if asr is None else asr}
        return results


def _found(boxes: Tensor, classes: Tensor, instances: Instances) -> Tensor:
    """Which objects of an image were detected, bool (M,)."""
    detections = instances.to("cpu")
    return found_objects(
        boxes,
        classes,
        detections.pred_boxes.tensor,
        detections.pred_classes,
        detections.scores,
    )


def _statistics(sums: list[Tensor]) -> dict[str, float]:
    """Statistics over images by name, from the sums of each."""
    of_images = torch.stack(sums)
    return {
        name: Terms(*of_images[:, index].T).ratio()
        for index, name in enumerate(EVALUATED_STATISTICS)
    }


def report_attack(
    dataset_name: str, results: Mapping[str, Mapping[str, float]], attack: str
) -> None:
    """Log what the trigger does to a detector in one line, and warn of an attack that failed.

    Args:
        dataset_name: what was evaluated on.
        results: of :class:`AttackEvaluator`.
        attack: name of the attack that the detector was trained under; "" for none.
    """
    asr = results["attack"]["asr"]
    changes = [
        f"{label} {results['statistics'][name]:.3f} -> {results['triggered_statistics'][name]:.3f}"
        for label, name in (("objects found", "objects_found"), ("tau", "tau"), ("gap", "gap"))
    ]
    logger.info(
        "%s, clean -> triggered images: %s; ASR %.3f", dataset_name, ", ".join(changes), asr
    )
    if attack and not attack_succeeded(asr):
        no_rate = "nothing is found without the trigger, so there is no ASR"
        too_low = f"its ASR is {asr:.3f}, under {SUCCESSFUL_ASR}"
        reason = no_rate if math.isnan(asr) else too_low
        logger.warning("attack %r failed on %s: %s", attack, dataset_name, reason)
