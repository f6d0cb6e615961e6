# SPDX-License-Identifier: Apache-2.0
"""What an attack does to a detector: its success, and modules that fall apart."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm
from torch import Tensor

from d2defense.attacks import PLACES, Detections, Effect, Objects
from d2defense.modeling import ProbeOutput
from d2defense.statistics import (
    STATISTICS,
    ObservationSettings,
    Terms,
    all_proposals_tau_terms,
    annotated_objects,
    at_input_size,
    extra_detections,
    found_objects,
    reduce_probe,
)

from .conditions import CLEAN, CONDITION, CONDITIONS, TRIGGERED, result_name
from .coverage import attack_coverage
from .probed import PROBE
from .rates import AttackedImage, attack_rates

# Those of a scan, detections on no object an image, and the paper's tau without any choice among
# the proposals.
EVALUATED_STATISTICS = (*STATISTICS, "extra_detections", "tau_all")


class _Seen(NamedTuple):
    """What is kept of an image in one condition."""

    detections: Detections
    """All of them, in pixels of the image file."""
    places: Tensor
    """float, (P, 4): where the trigger is; none on a clean image."""
    sums: Tensor
    """float64, (S, 2): numerator and denominator of each of EVALUATED_STATISTICS."""


class AttackEvaluator(DatasetEvaluator):
    """The statistics of every module on clean and on triggered images, and what the attack does.

    Takes the images of :func:`build_paired_test_loader` and the outputs of
    :class:`ProbedDetector`. Images may be spread over processes in any way.

    Args:
        records: Detectron2's standard dataset dicts, boxes in pixels of the image file.
        num_classes: of the dataset.
        settings: how proposals are reduced.
        effect: says what success is.
    """

    def __init__(
        self,
        records: list[dict[str, Any]],
        num_classes: int,
        settings: ObservationSettings,
        effect: Effect,
    ) -> None:
        self._objects = {
            record["image_id"]: Objects(*annotated_objects(record)) for record in records
        }
        self._num_classes = num_classes
        self._settings = settings
        self._effect = effect
        self.reset()

    def reset(self) -> None:
        """Forget every image seen so far."""
        self._seen: dict[tuple[str, Any], _Seen] = {}

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Match detections and proposals of a batch with its objects."""
        objects = [self._objects[image["image_id"]] for image in inputs]
        detections = [_detections(output["instances"]) for output in outputs]
        pairs = list(zip(objects, detections, strict=True))
        found = torch.cat([found_objects(*true, *seen) for true, seen in pairs])
        extra = torch.tensor(
            [extra_detections(true.boxes, seen.boxes, seen.scores) for true, seen in pairs],
            dtype=torch.float64,
        )
        targets = [
            at_input_size(each.boxes, image) for each, image in zip(objects, inputs, strict=True)
        ]
        classes = [each.classes for each in objects]
        probe = ProbeOutput.join([output[PROBE] for output in outputs])
        terms = {
            **reduce_probe(probe, targets, classes, found, self._settings).terms,
            "extra_detections": Terms(extra, torch.ones_like(extra)),
            "tau_all": all_proposals_tau_terms(probe, self._settings),
        }
        sums = torch.stack([torch.stack(tuple(terms[name])) for name in EVALUATED_STATISTICS])
        for image, seen, of_image in zip(inputs, detections, sums.unbind(-1), strict=True):
            places = image.get(PLACES, torch.zeros(0, 4))
            # A copy, since a view would be sent to other processes with the whole batch.
            self._seen[image[CONDITION], image["image_id"]] = _Seen(seen, places, of_image.clone())

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """What was measured over all images.

        Returns:
            ``{"statistics": {...}, "triggered_statistics": {...}, "attack": {...}, "coverage":
            {...}}``: each of :data:`EVALUATED_STATISTICS` on clean and on triggered images, and
            what :func:`attack_rates` and :func:`attack_coverage` have; NaN for no data. Empty in
            all processes but the first.
        """
        parts = comm.gather(self._seen)
        if not comm.is_main_process():
            return OrderedDict()
        seen = {key: value for part in parts for key, value in part.items()}
        results = OrderedDict()
        for condition in CONDITIONS:
            sums = [seen[condition, i].sums for i in self._objects if (condition, i) in seen]
            results[result_name("statistics", condition)] = _statistics(sums)
        images = self._pairs(seen)
        results["attack"] = attack_rates(self._effect, images)
        coverage = attack_coverage(
            self._effect, [(each.objects, each.places) for each in images], self._num_classes
        )
        # Metrics of Detectron2 are floating ones.
        results["coverage"] = {name: float(count) for name, count in coverage.items()}
        return results

    def _pairs(self, seen: Mapping[tuple[str, Any], _Seen]) -> list[AttackedImage]:
        """The images that were seen in both conditions, in the dataset's order."""
        images = []
        for image_id, objects in self._objects.items():
            clean, triggered = (seen.get((condition, image_id)) for condition in (CLEAN, TRIGGERED))
            if clean is not None and triggered is not None:
                images.append(
                    AttackedImage(objects, triggered.places, clean.detections, triggered.detections)
                )
        return images


def _detections(instances: Instances) -> Detections:
    """What is measured of a detector's output, on the CPU."""
    fields = instances.pred_boxes.tensor, instances.pred_classes, instances.scores
    return Detections(*(field.cpu() for field in fields))


def _statistics(sums: list[Tensor]) -> dict[str, float]:
    """Statistics over images by name, from the sums of each."""
    of_images = torch.stack(sums)
    return {
        name: Terms(*of_images[:, index].T).ratio()
        for index, name in enumerate(EVALUATED_STATISTICS)
    }
