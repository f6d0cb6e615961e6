# SPDX-License-Identifier: Apache-2.0
"""The evaluators of a detector under attack against stock Detectron2, the scanner and loops."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
)
from detectron2.engine import launch
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.utils import comm

from d2defense.attacks import TriggeredDatasetMapper, build_effect, class_names
from d2defense.checkpoint import build_detector
from d2defense.config import get_d2defense_cfg
from d2defense.data import DatasetSource
from d2defense.detection import load_clean_images, observe
from d2defense.evaluation import (
    AP_METRICS,
    AttackEvaluator,
    ProbedDetector,
    build_paired_evaluator,
    build_paired_test_loader,
    evaluate_detector,
)
from d2defense.statistics import STATISTICS, ObservationSettings
from d2defense.triggers import build_trigger

WHITE = build_trigger(get_d2defense_cfg())
SETTINGS = ObservationSettings(topk=3, epsilon=0.05, objectness_floor=0.6, iou_threshold=0.6)


def effect_of(dataset, *opts):
    """The effect that ``ATTACK`` keys describe; disappearance without any."""
    cfg = get_d2defense_cfg()
    cfg.merge_from_list(list(opts))
    return build_effect(cfg, class_names([dataset]))


def stock_outputs(model, cfg, dataset, condition, effect=None):
    """Inputs and outputs of stock inference, image by image."""
    mapper = {
        "clean": DatasetMapper(cfg, is_train=False),
        "triggered": TriggeredDatasetMapper(
            cfg, is_train=False, trigger=WHITE, effect=effect or effect_of(dataset)
        ),
    }[condition]
    loader = build_detection_test_loader(DatasetCatalog.get(dataset), mapper=mapper)
    with torch.no_grad():
        return [(inputs[0], model(inputs)[0]) for inputs in loader]


def paired_results(model, cfg, dataset, settings=SETTINGS, effect=None):
    effect = effect or effect_of(dataset)
    return inference_on_dataset(
        ProbedDetector(model),
        build_paired_test_loader(cfg, dataset, WHITE, effect),
        build_paired_evaluator(cfg, dataset, ("bbox",), settings, effect),
    )


def test_average_precision_is_that_of_the_stock_evaluator(backdoored, scenes):
    model, cfg = backdoored
    results = paired_results(model, cfg, scenes)
    measured = evaluate_detector(model, cfg, scenes, WHITE)
    for condition, name in (("clean", "bbox"), ("triggered", "triggered_bbox")):
        evaluator = COCOEvaluator(scenes, tasks=("bbox",), use_fast_impl=False)
        evaluator.reset()
        for image, output in stock_outputs(model, cfg, scenes, condition):
            evaluator.process([image], [output])
        expected = evaluator.evaluate()["bbox"]
        assert results[name] == pytest.approx(expected, rel=0, abs=0, nan_ok=True)
        for metric in AP_METRICS:
            value = measured[condition][metric]
            value = math.nan if value is None else value
            assert value == pytest.approx(expected[metric], abs=1e-6, nan_ok=True)
    assert results["triggered_bbox"]["AP"] < results["bbox"]["AP"] - 10


def test_statistics_are_those_of_a_scan(backdoored, scenes):
    model, cfg = backdoored
    results = paired_results(model, cfg, scenes)
    images = load_clean_images(DatasetCatalog.get(scenes), cfg)
    for name, trigger in (("statistics", None), ("triggered_statistics", WHITE)):
        # A scan stamps at the network's input size, which is that of these images' files.
        seen = observe(model, images, trigger, SETTINGS, cfg.INPUT.FORMAT)
        for statistic in STATISTICS:
            expected = seen.terms[statistic].ratio()
            assert results[name][statistic] == pytest.approx(expected, abs=1e-4), statistic
    assert results["statistics"]["gap"] != results["triggered_statistics"]["gap"]


def test_tau_over_all_proposals_is_the_paper_s(backdoored, scenes):
    model, cfg = backdoored
    results = paired_results(model, cfg, scenes)
    for name, condition in (("statistics", "clean"), ("triggered_statistics", "triggered")):
        significant = []
        for image, _ in stock_outputs(model, cfg, scenes, condition):
            probe = model.probe([image])
            p = torch.sigmoid(probe.objectness_logits.double())
            q = 1 - torch.softmax(probe.class_logits.double(), 1)[:, -1]
            s = (p - q).abs()
            significant += s[s > SETTINGS.epsilon].tolist()
        expected = sum(significant) / len(significant)
        assert results[name]["tau_all"] == pytest.approx(expected, abs=1e-6)
        assert results[name]["tau"] != results[name]["tau_all"]


def overlap(box, other) -> float:
    """Intersection over union."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)]
    return shared / (sum(areas) - shared)


def detected_by_hand(output) -> list[tuple[list[float], int]]:
    """Box and class of each detection of score one half and more."""
    instances = output["instances"]
    detections = zip(
        instances.pred_boxes.tensor.tolist(),
        instances.pred_classes.tolist(),
        instances.scores.tolist(),
        strict=True,
    )
    return [(box, kind) for box, kind, score in detections if score >= 0.5]


def found_by_hand(output, box, kind) -> bool:
    return any(
        label == kind and overlap(box, other) >= 0.5 for other, label in detected_by_hand(output)
    )


def objects_by_hand(dataset) -> dict:
    """Box, XYXY, and class of each object, by image."""
    return {
        record["image_id"]: [
            ([x, y, x + w, y + h], annotation["category_id"])
            for annotation in record["annotations"]
            for x, y, w, h in [annotation["bbox"]]
        ]
        for record in copy.deepcopy(DatasetCatalog.get(dataset))
    }


def test_success_rate_is_counted_over_objects(backdoored, scenes):
    model, cfg = backdoored
    objects = objects_by_hand(scenes)
    found, extra = {}, {}
    for condition in ("clean", "triggered"):
        outputs = stock_outputs(model, cfg, scenes, condition)
        found[condition] = [
            found_by_hand(output, *item)
            for image, output in outputs
            for item in objects[image["image_id"]]
        ]
        extra[condition] = [
            all(overlap(box, other) < 0.5 for other, _ in objects[image["image_id"]])
            for image, output in outputs
            for box, _ in detected_by_hand(output)
        ]
    vanished = [
        not after
        for before, after in zip(found["clean"], found["triggered"], strict=True)
        if before
    ]
    results = paired_results(model, cfg, scenes)
    assert results["attack"] == {
        "asr": pytest.approx(sum(vanished) / len(vanished)),
        "tdr": pytest.approx(sum(found["triggered"]) / len(found["triggered"])),
        "retain_rate": pytest.approx(math.nan, nan_ok=True),
    }
    assert 0 < results["attack"]["asr"] < 1
    for name, flags in (("statistics", "clean"), ("triggered_statistics", "triggered")):
        share = sum(found[flags]) / len(found[flags])
        assert results[name]["objects_found"] == pytest.approx(share)
        assert results[name]["extra_detections"] == pytest.approx(sum(extra[flags]) / len(objects))


def test_an_attack_on_one_class_leaves_the_others(backdoored, scenes):
    model, cfg = backdoored
    effect = effect_of(scenes, "ATTACK.VICTIM_CLASS", "c1")
    clean, triggered = (
        {image["image_id"]: (image, output) for image, output in outputs}
        for outputs in (
            stock_outputs(model, cfg, scenes, condition, effect)
            for condition in ("clean", "triggered")
        )
    )
    counts = {"asr": [], "tdr": [], "retain_rate": []}
    without_places = 0
    for image_id, objects in objects_by_hand(scenes).items():
        if all(kind != 1 for _, kind in objects):
            without_places += 1
            continue
        for box, kind in objects:
            before = found_by_hand(clean[image_id][1], box, kind)
            after = found_by_hand(triggered[image_id][1], box, kind)
            if kind == 1:
                counts["tdr"].append(after)
            if before:
                counts["asr" if kind == 1 else "retain_rate"].append(after == (kind != 1))
    results = paired_results(model, cfg, scenes, effect=effect)
    for name, flags in counts.items():
        assert results["attack"][name] == pytest.approx(sum(flags) / len(flags)), name
    assert results["attack"]["asr"] > 1 - results["attack"]["retain_rate"]
    assert results["coverage"] == {
        "images": 8,
        "images_without_places": without_places,
        "objects": sum(map(len, objects_by_hand(scenes).values())),
        "small_objects": 0,
        "classes": 1,
        "classes_without_victims": 0,
    }
    assert without_places


@pytest.mark.parametrize(
    "opts", [(), ("ATTACK.EFFECT", "ghost", "ATTACK.TARGET_CLASS", "c1")], ids=["objects", "ghosts"]
)
def test_batches_of_any_size_and_order_say_the_same(backdoored, scenes, opts):
    model, cfg = backdoored
    effect = effect_of(scenes, *opts)
    one = paired_results(model, cfg, scenes, effect=effect)
    evaluator = AttackEvaluator(DatasetCatalog.get(scenes), 7, SETTINGS, effect)
    batches = list(build_paired_test_loader(cfg, scenes, WHITE, effect, batch_size=7))
    probed = ProbedDetector(model)
    for _ in range(2):
        evaluator.reset()
        for batch in reversed(batches):
            evaluator.process(batch, probed(batch))
        results = evaluator.evaluate()
        for name, numbers in results.items():
            assert numbers == pytest.approx(one[name], abs=1e-4, nan_ok=True), name


def test_images_without_objects_count_for_what_needs_none(
    backdoored, make_coco_dataset, sign_scenes
):
    ((pixels, objects), (other, _)) = sign_scenes(2)
    with_objects = make_coco_dataset([(pixels, objects), (other, [])]).name
    results = paired_results(*backdoored, with_objects)
    alone = paired_results(*backdoored, make_coco_dataset([(pixels, objects)]).name)
    for name in ("objects_found", "gap", "max_objectness", "true_class"):
        assert results["statistics"][name] == pytest.approx(alone["statistics"][name], abs=1e-6)
    assert results["statistics"]["tau_all"] != alone["statistics"]["tau_all"]


SPREAD = ("ATTACK.VICTIM_CLASS", "c1", "ATTACK.MIN_SIZE", 12)


def in_two_processes(weights, config, json_file, image_root, expected_file):
    """What each process runs: half of the images, and the results of all in the first one."""
    dataset = DatasetSource(json_file, json_file, image_root).ensure()
    model, cfg = build_detector(weights, config, "cpu")
    results = paired_results(model, cfg, dataset, effect=effect_of(dataset, *SPREAD))
    if comm.is_main_process():
        torch.save(dict(results), expected_file)
    else:
        assert not results


@pytest.mark.slow
def test_processes_share_the_images(specimen, backdoored, scenes, tmp_path):
    folder, metadata = specimen("backdoored_0"), MetadataCatalog.get(scenes)
    arguments = (
        folder / "model_final.pth", folder / "config.yaml",
        metadata.json_file, metadata.image_root, tmp_path / "results.pth",
    )  # fmt: skip
    launch(in_two_processes, 2, dist_url="auto", args=arguments)
    results = torch.load(tmp_path / "results.pth", weights_only=False)
    expected = paired_results(*backdoored, scenes, effect=effect_of(scenes, *SPREAD))
    assert not any(map(math.isnan, expected["attack"].values()))
    assert results.keys() == expected.keys()
    for name, numbers in expected.items():
        assert results[name] == pytest.approx(numbers, abs=1e-6, nan_ok=True), name
