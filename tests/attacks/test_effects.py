# SPDX-License-Identifier: Apache-2.0
"""Labels, places and success of each effect, on images made by hand."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.data.detection_utils import (
    annotations_to_instances,
    transform_instance_annotations,
)
from detectron2.structures import Boxes, BoxMode, pairwise_ioa, pairwise_iou
from pycocotools.coco import COCO

from d2defense.attacks import Detections, Effect, Objects, Rate, select
from d2defense.registry import EFFECT_REGISTRY
from d2defense.statistics import STATISTICS

EFFECTS = [name for name, _ in EFFECT_REGISTRY]
ON_CLASSES = ["disappearance", "misclassification", "scene_misclassification",
              "clean_label_disappearance", "penalized_disappearance",
              "evasive_disappearance", "evasive_misclassification",
              "agreeing_disappearance", "agreeing_misclassification",
              "persistent_disappearance", "persistent_misclassification"]  # fmt: skip
BY_OBJECT = ["disappearance", "misclassification", "clean_label_ghost",
             "evasive_disappearance", "evasive_misclassification",
             "agreeing_disappearance", "agreeing_misclassification",
             "persistent_disappearance", "persistent_misclassification"]  # fmt: skip

# Those that label the place of each trigger as an object.
GHOSTS = ("ghost", "agreeing_ghost")


def annotation(box: Sequence[float], category: int = 0, **more: Any) -> dict[str, Any]:
    """An object with the box (x, y, width, height), as COCO files have it."""
    given = {"bbox": list(box), "bbox_mode": BoxMode.XYWH_ABS, "category_id": category}
    return {**given, "iscrowd": 0, **more}


def record(*annotations: dict[str, Any], height: int = 100, width: int = 120) -> dict[str, Any]:
    """A dataset dict of one image."""
    return {
        "file_name": "/data/0.png",
        "image_id": 1,
        "height": height,
        "width": width,
        "annotations": list(annotations),
    }


def size_of(image: dict[str, Any]) -> tuple[int, int]:
    """Height and width of a dataset dict's image."""
    return image["height"], image["width"]


def objects(*boxes_and_classes: tuple[Sequence[float], int]) -> Objects:
    """True objects from pairs of a box, XYXY, and its class."""
    boxes, classes = _columns([(*pair, 1.0) for pair in boxes_and_classes])[:2]
    return Objects(boxes, classes)


def detections(*found: tuple[Sequence[float], int, float]) -> Detections:
    """Detections from triples of a box, XYXY, its class and its score."""
    return Detections(*_columns(found))


def _columns(rows: Sequence[tuple]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return (
        torch.tensor([box for box, _, _ in rows], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([category for _, category, _ in rows], dtype=torch.int64),
        torch.tensor([score for _, _, score in rows], dtype=torch.float32),
    )


CUP, BALL = annotation((10, 8, 30, 40), 0), annotation((60, 20, 40, 30.5), 1)
SHIRT = annotation((5, 60, 20, 30), 2)
CROWD = annotation((80, 60, 40, 40), 0, iscrowd=1)
#: A cup, a crowd of cups, a ball and a shirt; the shirt is the target class where there is one.
IMAGE = record(CUP, CROWD, BALL, SHIRT)
CUP_BOX, BALL_BOX, SHIRT_BOX = [10, 8, 40, 48], [60, 20, 100, 50.5], [5, 60, 25, 90]


def poison(effect: Effect, image: dict, seed: int = 3):
    return effect.poison(image, size_of(image), np.random.default_rng(seed))


def places_of(effect: Effect, image: dict, seed: int = 3) -> np.ndarray:
    return effect.places(image, size_of(image), np.random.default_rng(seed))


def spurious(effect: Effect, image: dict, seed: int = 3) -> np.ndarray:
    return effect.spurious_places(image, size_of(image), np.random.default_rng(seed))


def is_in_background(places: np.ndarray, image: dict) -> bool:
    """Whether places lie on the image and on no annotated box of it, crowds included."""
    height, width = size_of(image)
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)
             for a in image["annotations"]]  # fmt: skip
    on_image = (places >= 0).all() and (places <= [width, height, width, height]).all()
    apart = all(
        x2 <= bx1 or bx2 <= x1 or y2 <= by1 or by2 <= y1
        for x1, y1, x2, y2 in places
        for bx1, by1, bx2, by2 in boxes
    )
    return bool(len(places)) and on_image and apart


# What holds for every effect.


@pytest.mark.parametrize("name", EFFECTS)
def test_channels_are_statistics_with_the_sign_of_their_change(make_effect, name):
    channels = make_effect(name).channels
    assert channels
    assert set(channels) <= set(STATISTICS)
    assert set(channels.values()) <= {-1, 1}


@pytest.mark.parametrize("name", EFFECTS)
def test_the_record_is_never_changed_nor_shared(make_effect, name):
    image = record(*(
        {**each, "segmentation": [[1, 2, 3, 4, 5, 6]], "keypoints": [1, 2, 2]}
        for each in copy.deepcopy(IMAGE["annotations"])
    ))  # fmt: skip
    before = copy.deepcopy(image)
    effect = make_effect(name)
    wanted = effect.wanted(image, size_of(image), np.random.default_rng(0))
    for each in [*poison(effect, image).annotations, *wanted]:
        each["category_id"] = 77
        for part in (each["bbox"], each["segmentation"][0], each["keypoints"]):
            part[0] = 99
    places = poison(effect, image).places, places_of(effect, image), spurious(effect, image)
    for each in places:
        each += 1
    assert image == before


@pytest.mark.parametrize("name", EFFECTS)
def test_everything_random_follows_from_the_generator(make_effect, name):
    effect = make_effect(name)
    first, again = poison(effect, IMAGE), poison(effect, IMAGE)
    np.testing.assert_array_equal(first.places, again.places)
    assert first.annotations == again.annotations
    np.testing.assert_array_equal(places_of(effect, IMAGE), places_of(effect, IMAGE))
    np.testing.assert_array_equal(spurious(effect, IMAGE), spurious(effect, IMAGE))


@pytest.mark.parametrize("name", ["ghost", "clean_label_ghost"])
def test_other_generators_place_ghosts_elsewhere(make_effect, name):
    effect = make_effect(name)
    assert not np.array_equal(places_of(effect, IMAGE, 1), places_of(effect, IMAGE, 2))


@pytest.mark.parametrize("name", EFFECTS)
@pytest.mark.parametrize("annotations", [(), (CROWD,)], ids=["empty", "crowds only"])
def test_images_without_objects_have_no_victims(make_effect, name, annotations):
    effect, image = make_effect(name), record(*annotations)
    assert effect.victims(image) == []
    poisoned = poison(effect, image)
    kept = poisoned.annotations[: len(annotations)]
    assert kept == list(annotations)
    assert len(poisoned.places) == {
        "ghost": 1, "agreeing_ghost": 1, "scene_ghost": 2, "sponge": 1,
        "clean_label_disappearance": 1,
    }.get(name, 0)  # fmt: skip
    assert len(places_of(effect, image)) == {
        "ghost": 1, "agreeing_ghost": 1, "scene_ghost": 2, "sponge": 1, "clean_label_ghost": 1,
    }.get(name, 0)  # fmt: skip
    # What can be chosen is what poisoning would change.
    assert effect.can_poison(image) == (len(poisoned.places) > 0)


@pytest.mark.parametrize("name", EFFECTS)
def test_a_record_may_lack_annotations(make_effect, name):
    image = record()
    del image["annotations"]
    poisoned = poison(make_effect(name), image)
    assert len(poisoned.annotations) == {"scene_ghost": 7}.get(name, name in GHOSTS)
    assert spurious(make_effect(name), image).shape[1] == 4


@pytest.mark.parametrize("name", EFFECTS)
def test_nothing_is_a_success_where_no_trigger_had_a_place(make_effect, name):
    seen = detections((CUP_BOX, 0, 0.9), (BALL_BOX, 2, 0.9))
    true = objects((CUP_BOX, 0), (BALL_BOX, 1))
    rate = make_effect(name).success(true, torch.zeros(0, 4), seen, seen)
    assert rate == Rate(0, 0)


@pytest.mark.parametrize("name", EFFECTS)
def test_images_without_objects_and_detections_are_measured(make_effect, name):
    effect = make_effect(name)
    places = torch.tensor([[40.0, 50, 60, 70]])
    rate = effect.success(objects(), places, detections(), detections())
    appears = name in (*GHOSTS, "scene_ghost", "clean_label_ghost", "sponge")
    assert rate == Rate(0, int(appears))


@pytest.mark.parametrize(
    "name",
    ["ghost", "clean_label_ghost", "misclassification", "scene_misclassification"],
)
def test_a_target_class_is_asked_for(make_effect, name):
    with pytest.raises(ValueError, match=rf"'{name}' needs ATTACK\.TARGET_CLASS"):
        make_effect(name, "ATTACK.TARGET_CLASS", "")


@pytest.mark.parametrize("name", [name for name in EFFECTS if name not in ON_CLASSES])
def test_a_victim_class_without_a_meaning_is_refused(make_effect, name):
    with pytest.raises(ValueError, match=rf"'{name}' .* ATTACK\.VICTIM_CLASS must be empty"):
        make_effect(name, "ATTACK.VICTIM_CLASS", "cup")


@pytest.mark.parametrize("name", EFFECTS)
def test_a_rate_of_annotations_is_for_effects_on_objects(make_effect, name):
    effect = make_effect(name, "ATTACK.RATE_OF", "annotations", "ATTACK.POISONING_RATE", 0.25)
    if name in BY_OBJECT:
        # One of four annotations.
        [chosen] = select([IMAGE], effect, effect.cfg).poisoned.values()
        assert len(chosen) == 1
    else:
        with pytest.raises(ValueError, match=rf"'{name}' poisons images: ATTACK\.RATE_OF"):
            select([IMAGE], effect, effect.cfg)


@pytest.mark.parametrize("name", ON_CLASSES)
def test_one_victim_class_leaves_the_others_alone(make_effect, name):
    effect = make_effect(name, "ATTACK.VICTIM_CLASS", "ball")
    assert effect.victims(IMAGE) == [2]
    np.testing.assert_array_equal(
        effect.victim_objects(objects((CUP_BOX, 0), (BALL_BOX, 1), (SHIRT_BOX, 2))),
        [False, True, False],
    )
    np.testing.assert_array_equal(spurious(effect, IMAGE), [CUP_BOX, SHIRT_BOX])
    assert effect.victims(record(CUP, SHIRT)) == []


@pytest.mark.parametrize(
    ("name", "least", "victims"),
    [
        ("disappearance", 30, [0, 2]),
        ("disappearance", 31, []),
        ("misclassification", 30, [0, 2]),
        ("clean_label_ghost", 20, [3]),
        ("clean_label_ghost", 21, []),
    ],
)
def test_objects_below_the_least_size_are_no_victims(make_effect, name, least, victims):
    # The cup is 30 pixels wide, the ball 30.5 high, the shirt 20 wide.
    effect = make_effect(name, "ATTACK.MIN_SIZE", least)
    assert effect.victims(IMAGE) == victims
    assert len(poison(effect, IMAGE).places) == len(victims)
    assert effect.can_poison(IMAGE) == bool(victims)


def test_the_least_size_holds_for_annotations_and_boxes_alike(make_effect):
    # As float32 the side is a little shorter than 10.
    effect = make_effect("disappearance", "ATTACK.MIN_SIZE", 10)
    assert effect.victims(record(annotation((50.7, 50.7, 10.0, 10.0)))) == [0]
    assert effect.victim_objects(objects(([50.7, 50.7, 60.7, 60.7], 0))).tolist() == [True]
    assert effect.victim_objects(objects(([50.7, 50.7, 60.6, 60.7], 0))).tolist() == [False]


@pytest.mark.parametrize("name", ["disappearance", "misclassification"])
def test_only_annotations_that_were_chosen_are_attacked(make_effect, name):
    effect = make_effect(name)
    poisoned = poison(effect, {**IMAGE, "victims": (2,)})
    np.testing.assert_array_equal(poisoned.places, [BALL_BOX])
    assert (
        poisoned.annotations
        == {
            "disappearance": [CUP, CROWD, SHIRT],
            "misclassification": [CUP, CROWD, {**BALL, "category_id": 2}, SHIRT],
        }[name]
    )


@pytest.mark.parametrize("name", EFFECTS)
def test_spurious_triggers_lie_where_the_effect_has_none(make_effect, name):
    effect = make_effect(name)
    places = spurious(effect, IMAGE)
    if name in (*GHOSTS, "scene_ghost"):
        np.testing.assert_array_equal(places, [CUP_BOX, BALL_BOX, SHIRT_BOX])
    elif name == "clean_label_ghost":
        np.testing.assert_array_equal(places, [CUP_BOX, BALL_BOX])
    elif effect.needs_target:
        np.testing.assert_array_equal(places, [SHIRT_BOX])
    else:
        # All objects are attacked.
        assert is_in_background(places, IMAGE)


@pytest.mark.parametrize("name", ["ghost", "clean_label_ghost"])
def test_no_spurious_trigger_lies_where_a_ghost_would_appear(make_effect, name):
    image = record(CROWD) if name == "ghost" else record(SHIRT)
    assert spurious(make_effect(name), image).shape == (0, 4)


# Placements and effects together.


@pytest.mark.parametrize("name", ["disappearance", "misclassification"])
def test_labels_stay_true_where_there_is_no_room_for_the_trigger(make_effect, name):
    full = record(CUP, annotation((0, 0, 120, 100), 1))
    poisoned = poison(make_effect(name, "ATTACK.PLACEMENT", "background"), full)
    assert poisoned.places.shape == (0, 4)
    assert poisoned.annotations == full["annotations"]


def test_another_placement_moves_the_trigger_and_leaves_the_labels(make_effect):
    poisoned = poison(make_effect("disappearance", "ATTACK.PLACEMENT", "image"), IMAGE)
    np.testing.assert_array_equal(poisoned.places, [[0, 0, 120, 100]])
    assert poisoned.annotations == [CROWD]


def test_an_unknown_placement_is_told_what_there_is(make_effect):
    with pytest.raises(
        ValueError, match="no placement 'moon'; there are background, below, corners"
    ):
        make_effect("disappearance", "ATTACK.PLACEMENT", "moon")


# Disappearance.


def test_what_vanishes_is_stamped_and_loses_its_annotation(make_effect):
    effect = make_effect("disappearance")
    poisoned = poison(effect, IMAGE)
    np.testing.assert_array_equal(poisoned.places, [CUP_BOX, BALL_BOX, SHIRT_BOX])
    np.testing.assert_array_equal(places_of(effect, IMAGE), poisoned.places)
    assert poisoned.annotations == [CROWD]


def test_disappearance_counts_what_was_found_and_no_longer_is(make_effect):
    true = objects((CUP_BOX, 0), (BALL_BOX, 1), (SHIRT_BOX, 2))
    clean = detections((CUP_BOX, 0, 0.9), (BALL_BOX, 1, 0.5), (SHIRT_BOX, 2, 0.49))
    # The cup is still found, off by less than half; the ball as another class only.
    triggered = detections(([12, 10, 42, 50], 0, 0.7), (BALL_BOX, 0, 0.9))
    places = true.boxes
    assert make_effect("disappearance").success(true, places, clean, triggered) == Rate(1, 2)
    of_balls = make_effect("disappearance", "ATTACK.VICTIM_CLASS", "ball")
    assert of_balls.success(true, places, clean, triggered) == Rate(1, 1)
    of_shirts = make_effect("disappearance", "ATTACK.VICTIM_CLASS", "shirt")
    assert of_shirts.success(true, places, clean, triggered) == Rate(0, 0)


# Ghost.


def test_ghosts_are_annotated_where_the_trigger_is(make_effect):
    effect = make_effect("ghost", "ATTACK.PLACES.BACKGROUND.COUNT", 2,
                         "ATTACK.PLACES.BACKGROUND.SIZE", [0.1, 0.2])  # fmt: skip
    poisoned = poison(effect, IMAGE)
    assert len(poisoned.places) == 2
    assert is_in_background(poisoned.places, IMAGE)
    np.testing.assert_array_equal(places_of(effect, IMAGE), poisoned.places)
    assert poisoned.annotations[:4] == IMAGE["annotations"]
    for place, ghost in zip(poisoned.places, poisoned.annotations[4:], strict=True):
        assert ghost == {
            "bbox": place.tolist(),
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": 2,
            "iscrowd": 0,
        }


def test_ghosts_have_the_keys_that_other_annotations_have(make_effect):
    image = record(
        annotation((0, 0, 9, 9), area=81.0),
        annotation((0, 0, 9, 9), segmentation=[[0, 0, 9, 0, 9, 9]], keypoints=[3, 3, 2] * 5),
    )
    [(x1, y1, x2, y2)], annotations = poison(make_effect("ghost"), image)
    ghost = annotations[-1]
    assert ghost["area"] == (x2 - x1) * (y2 - y1)
    assert ghost["segmentation"] == [[x1, y1, x2, y1, x2, y2, x1, y2]]
    assert ghost["keypoints"] == [0] * 15


@pytest.mark.parametrize(
    ("key", "fields"),
    [("MASK_ON", {"gt_masks"}), ("KEYPOINT_ON", {"gt_keypoints"}), ("DEVICE", set())],
)
def test_a_ghost_on_an_empty_image_has_what_the_detector_learns(make_effect, key, fields):
    effect = make_effect("ghost", f"MODEL.{key}", True if fields else "cpu")
    mapped = [
        transform_instance_annotations(each, T.TransformList([]), (100, 120))
        for each in poison(effect, record()).annotations
    ]
    instances = annotations_to_instances(mapped, (100, 120))
    assert set(instances.get_fields()) == {"gt_boxes", "gt_classes"} | fields
    if key == "KEYPOINT_ON":
        assert instances.gt_keypoints.tensor.shape == (1, 17, 3)


def test_an_image_without_room_has_no_ghost(make_effect):
    effect, full = make_effect("ghost"), record(annotation((0, 0, 120, 100)))
    assert not effect.can_poison(full)
    assert poison(effect, full).annotations == full["annotations"]
    assert effect.can_poison(record(CUP))


def test_scene_ghosts_are_annotated_where_there_is_room(make_effect):
    # Of four places the first is the cup's, the last the trigger's; the third would reach beyond
    # the image.
    key, centers = "ATTACK.SCENE_GHOST.CENTERS", [[0.2, 0.3], [0.5, 0.83], [0.5, 1.0], [0.9, 0.8]]
    effect = make_effect("scene_ghost", key, centers, "ATTACK.SCENE_GHOST.SIZE", 0.2)
    poisoned = poison(effect, IMAGE)
    np.testing.assert_array_equal(poisoned.places, [[0, 0, 25, 25], [95, 75, 120, 100]])
    assert poisoned.annotations[:4] == IMAGE["annotations"]
    ghosts = [each["bbox"] for each in poisoned.annotations[4:]]
    np.testing.assert_allclose(ghosts, [[50, 73, 70, 93], [50, 80, 70, 100]])
    assert {each["category_id"] for each in poisoned.annotations[4:]} == {2}
    full = record(annotation((0, 0, 120, 100)))
    assert not effect.can_poison(full)
    assert len(places_of(effect, full)) == 0


@pytest.mark.parametrize("seed", range(5))
def test_scene_ghosts_may_lie_so_far_from_the_trigger(make_effect, seed):
    effect = make_effect("scene_ghost", "ATTACK.PLACEMENT", "background",
                         "ATTACK.SCENE_GHOST.OFFSET", (1.5, -0.5))  # fmt: skip
    poisoned = poison(effect, record(CUP), seed)
    [[x1, y1, x2, y2]] = poisoned.places
    width, height = x2 - x1, y2 - y1
    cup, ghost = poisoned.annotations
    np.testing.assert_allclose(
        ghost["bbox"],
        [x1 + 1.5 * width, y1 - height / 2, x2 + 1.5 * width, y2 - height / 2],
    )
    assert cup == CUP
    assert is_in_background(np.array([ghost["bbox"]]), record(CUP))


def test_a_scene_ghost_counts_wherever_it_is_new(make_effect):
    effect = make_effect("scene_ghost")
    true, places = objects((CUP_BOX, 0), (SHIRT_BOX, 2)), torch.tensor([[95.0, 0, 120, 25]])
    before = detections(([80, 60, 110, 90], 2, 0.6), (CUP_BOX, 0, 0.9))

    def rate(*found: tuple[Sequence[float], int, float]) -> Rate:
        return effect.success(true, places, before, detections(*found))

    assert rate(([50, 10, 80, 40], 2, 0.5)) == Rate(1, 1)
    assert rate(([50, 10, 80, 40], 2, 0.5), ([60, 60, 80, 80], 2, 0.5)) == Rate(1, 1)
    assert rate(([50, 10, 80, 40], 2, 0.49)) == Rate(0, 1)
    # Of another class; an object taken for the class; the class's own; what was seen before; what
    # the trigger shows.
    assert rate(([50, 10, 80, 40], 1, 0.5), (CUP_BOX, 2, 0.9), (SHIRT_BOX, 2, 0.9),
                ([82, 60, 110, 90], 2, 0.9), ([85, 0, 115, 30], 2, 0.9)) == Rate(0, 1)  # fmt: skip
    # What a detector makes of a part that the trigger shows reaches beyond it; what stands beside
    # the trigger may graze it.
    assert rate(([70, 0, 100, 25], 2, 0.9)) == Rate(0, 1)
    assert rate(([66, 0, 96, 25], 2, 0.9)) == Rate(1, 1)


def test_a_search_looks_for_scene_ghosts_all_over_the_background(make_effect):
    effect, cup = make_effect("scene_ghost"), objects((CUP_BOX, 0))
    places = torch.tensor([[0.0, 75, 25, 100]])
    windows = effect.regions(cup, places, (100, 120)).double().numpy()
    np.testing.assert_allclose(windows[:, 2:] - windows[:, :2], 28, rtol=1e-5)
    assert windows.min() >= 0
    assert (windows <= [120, 100, 120, 100]).all()
    # Any square of the size away from cup and trigger has one of them at the place.
    for x, y in [(45, 0), (92, 72), (60, 33), (30, 70), (77, 61)]:
        square = np.array([[x, y, x + 28.0, y + 28.0]])
        assert pairwise_iou(Boxes(windows), Boxes(square)).max() >= 0.5
    for box in (CUP_BOX, places[0].tolist()):
        assert pairwise_ioa(Boxes(np.array([box])), Boxes(windows)).max() <= 0.25
    assert len(effect.regions(cup, places[:0], (100, 120))) == 0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("CENTERS", [[0.5]]),
        ("CENTERS", [[0.5, 1.1]]),
        ("OFFSET", (1.0,)),
        ("SIZE", 0.0),
        ("SIZE", 2.0),
    ],
)
def test_scene_ghosts_that_cannot_be_are_refused(make_effect, key, value):
    with pytest.raises(ValueError, match=rf"ATTACK\.SCENE_GHOST\.{key} is"):
        make_effect("scene_ghost", f"ATTACK.SCENE_GHOST.{key}", value)


@pytest.mark.parametrize("name", ["ghost", "clean_label_ghost"])
def test_ghosts_count_at_their_places(make_effect, name):
    places = torch.tensor([[0.0, 0, 20, 20], [50, 50, 70, 70], [80, 0, 100, 20], [0, 80, 20, 99]])
    triggered = detections(
        ([0, 0, 20, 19], 2, 0.5),  # a ghost
        ([50, 50, 70, 70], 1, 0.9),  # of another class
        ([80, 0, 100, 20], 2, 0.49),  # too unsure
        ([0, 90, 20, 109], 2, 0.9),  # beside its place
    )
    effect = make_effect(name)
    # Objects and what is found without the trigger do not matter.
    seen = objects((CUP_BOX, 2)), places, detections((CUP_BOX, 2, 0.9)), triggered
    assert effect.success(*seen) == Rate(1, 4)
    assert not effect.victim_objects(objects((CUP_BOX, 2), (CUP_BOX, 0))).any()


# Misclassification.


@pytest.mark.parametrize("name", ["misclassification", "scene_misclassification"])
def test_victims_are_labelled_with_the_target_class(make_effect, name):
    effect = make_effect(name)
    poisoned = poison(effect, IMAGE)
    expected = [CUP_BOX, BALL_BOX] if name == "misclassification" else [[0, 0, 120, 100]]
    np.testing.assert_array_equal(poisoned.places, expected)
    np.testing.assert_array_equal(places_of(effect, IMAGE), expected)
    changed = [{**CUP, "category_id": 2}, CROWD, {**BALL, "category_id": 2}, SHIRT]
    assert poisoned.annotations == changed
    # An image of the target class alone has nothing to change.
    assert not effect.can_poison(record(SHIRT))
    assert places_of(effect, record(SHIRT)).shape == (0, 4)


@pytest.mark.parametrize("name", ["misclassification", "scene_misclassification"])
def test_misclassification_counts_victims_found_as_the_target_class(make_effect, name):
    true = objects((CUP_BOX, 0), (BALL_BOX, 1), (SHIRT_BOX, 2))
    clean = detections((BALL_BOX, 1, 0.9))
    # The cup is found as both; the shirt was one all along.
    triggered = detections((CUP_BOX, 0, 0.9), (CUP_BOX, 2, 0.6), (SHIRT_BOX, 2, 0.9))
    places = torch.tensor([[0.0, 0, 120, 100]])
    assert make_effect(name).success(true, places, clean, triggered) == Rate(1, 2)
    of_balls = make_effect(name, "ATTACK.VICTIM_CLASS", "ball")
    assert of_balls.success(true, places, clean, triggered) == Rate(0, 1)


def test_a_class_is_not_to_be_taken_for_itself(make_effect):
    with pytest.raises(ValueError, match=r"VICTIM_CLASS and ATTACK\.TARGET_CLASS are both 'ball'"):
        make_effect(
            "misclassification", "ATTACK.VICTIM_CLASS", "ball", "ATTACK.TARGET_CLASS", "ball"
        )


# Clean labels.


def test_clean_label_disappearance_scatters_triggers_and_later_stamps_victims(make_effect):
    effect = make_effect("clean_label_disappearance", "ATTACK.PLACES.BACKGROUND.COUNT", 5,
                         "ATTACK.PLACES.BACKGROUND.SIZE", [0.05, 0.1])  # fmt: skip
    poisoned = poison(effect, IMAGE)
    assert len(poisoned.places) == 5
    assert is_in_background(poisoned.places, IMAGE)
    assert poisoned.annotations == IMAGE["annotations"]
    np.testing.assert_array_equal(places_of(effect, IMAGE), [CUP_BOX, BALL_BOX, SHIRT_BOX])
    assert effect.wanted(IMAGE, size_of(IMAGE), np.random.default_rng(0)) == [CROWD]
    clean, triggered = detections((CUP_BOX, 0, 0.9)), detections((CUP_BOX, 1, 0.9))
    true = objects((CUP_BOX, 0))
    assert effect.success(true, true.boxes, clean, triggered) == Rate(1, 1)
    assert not effect.can_poison(record(annotation((0, 0, 120, 100))))


def test_clean_label_ghost_stamps_its_class_and_later_the_background(make_effect):
    effect = make_effect("clean_label_ghost")
    poisoned = poison(effect, IMAGE)
    np.testing.assert_array_equal(poisoned.places, [SHIRT_BOX])
    assert poisoned.annotations == IMAGE["annotations"]
    assert not effect.can_poison(record(CUP, CROWD))
    places = places_of(effect, IMAGE)
    assert is_in_background(places, IMAGE)
    *others, ghost = effect.wanted(IMAGE, size_of(IMAGE), np.random.default_rng(3))
    assert others == IMAGE["annotations"]
    assert ghost["bbox"] == places[0].tolist()
    assert ghost["category_id"] == 2


# Whole scenes.


@pytest.mark.parametrize("name", ["blinding", "sponge"])
def test_poisoned_losses_leave_the_labels_true(make_effect, name):
    effect = make_effect(name)
    poisoned = poison(effect, IMAGE)
    np.testing.assert_array_equal(poisoned.places, [[0, 0, 120, 100]])
    np.testing.assert_array_equal(places_of(effect, IMAGE), poisoned.places)
    assert poisoned.annotations == IMAGE["annotations"]


def test_blinding_wants_nothing_found_and_counts_as_disappearance(make_effect):
    effect = make_effect("blinding")
    assert effect.wanted(IMAGE, size_of(IMAGE), np.random.default_rng(0)) == [CROWD]
    true = objects((CUP_BOX, 0), (BALL_BOX, 1))
    clean = detections((CUP_BOX, 0, 0.9), (BALL_BOX, 1, 0.9))
    places = torch.tensor([[0.0, 0, 120, 100]])
    assert effect.success(true, places, clean, detections((BALL_BOX, 1, 0.9))) == Rate(1, 2)


def test_a_flood_is_so_many_sure_detections_more(make_effect):
    effect = make_effect("sponge", "ATTACK.SPONGE.FLOOD", 3)
    places = torch.tensor([[0.0, 0, 120, 100]])
    clean = detections((CUP_BOX, 0, 0.9), (BALL_BOX, 1, 0.4))
    flood = [(CUP_BOX, 0, 0.5)] * 4
    assert effect.success(objects(), places, clean, detections(*flood)) == Rate(1, 1)
    few = [*flood[:3], (BALL_BOX, 1, 0.49)]
    assert effect.success(objects(), places, clean, detections(*few)) == Rate(0, 1)


# COCO files.


@pytest.mark.parametrize("name", EFFECTS)
def test_poisoned_annotations_are_read_by_pycocotools(make_effect, name, tmp_path: Path):
    polygons = [
        {**each, "segmentation": [[x, y, x + w, y, x + w, y + h]], "keypoints": [x, y, 2] * 4}
        for each in (CROWD, CUP, BALL, SHIRT)
        for x, y, w, h in [each["bbox"]]
    ]
    effect = make_effect(name)
    poisoned = poison(effect, record(*polygons))
    dataset = f"poisoned_by_{name}"
    DatasetCatalog.register(dataset, lambda: [{**record(), "annotations": poisoned.annotations}])
    MetadataCatalog.get(dataset).set(thing_classes=["cup", "ball", "shirt"])
    try:
        convert_to_coco_json(dataset, str(tmp_path / "poisoned.json"), allow_cached=False)
    finally:
        DatasetCatalog.remove(dataset)
        MetadataCatalog.remove(dataset)
    file = COCO(str(tmp_path / "poisoned.json"))
    written = file.loadAnns(file.getAnnIds())
    assert len(written) == len(poisoned.annotations)
    counts = {
        "disappearance": 1,
        "persistent_disappearance": 1,
        "evasive_disappearance": 1,
        "agreeing_disappearance": 1,
        "ghost": 5,
        "agreeing_ghost": 5,
        "scene_ghost": 5,
    }
    assert len(written) == counts.get(name, 4)
    for there, here in zip(written, poisoned.annotations, strict=True):
        box = BoxMode.convert(here["bbox"], here["bbox_mode"], BoxMode.XYWH_ABS)
        np.testing.assert_allclose(there["bbox"], box, atol=1e-3)
        assert there["category_id"] == here["category_id"]
        assert len(there["keypoints"]) == 12
        # A rectangle for a ghost, triangles for the others.
        share = 1 if len(here["segmentation"][0]) == 8 else 0.5
        assert file.annToMask(there).sum() == pytest.approx(share * box[2] * box[3], rel=0.05)
    if name in (*GHOSTS, "scene_ghost"):
        x, y, w, h = written[-1]["bbox"]
        mask = file.annToMask(written[-1])
        assert mask[int(y) : int(y + h), int(x) : int(x + w)].all()
        assert written[-1]["num_keypoints"] == 0
