# SPDX-License-Identifier: Apache-2.0
"""The rates of an attack on detections made by hand, against plain Python and by hand."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

import pytest
import torch

from d2defense.attacks import Detections, Objects
from d2defense.evaluation import RATES, AttackedImage, attack_rates

BOX = tuple[float, float, float, float]


class Image(NamedTuple):
    """Lists of tuples: (box, class) of objects, boxes of places, (box, class, score) detected."""

    objects: Sequence[tuple[BOX, int]]
    places: Sequence[BOX]
    clean: Sequence[tuple[BOX, int, float]]
    triggered: Sequence[tuple[BOX, int, float]]

    def attacked(self) -> AttackedImage:
        return AttackedImage(
            Objects(boxes([box for box, _ in self.objects]), ints([c for _, c in self.objects])),
            boxes(self.places),
            *(
                Detections(
                    boxes([box for box, _, _ in found]),
                    ints([c for _, c, _ in found]),
                    torch.tensor([score for *_, score in found], dtype=torch.float32),
                )
                for found in (self.clean, self.triggered)
            ),
        )


def boxes(rows) -> torch.Tensor:
    return torch.tensor(list(rows), dtype=torch.float32).reshape(-1, 4)


def ints(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def rates(effect, *images: Image) -> dict[str, float | None]:
    """The rates, None for NaN."""
    measured = attack_rates(effect, [image.attacked() for image in images])
    assert list(measured) == list(RATES)
    return {name: None if math.isnan(rate) else rate for name, rate in measured.items()}


# --- The reference: loops over tuples. ---


def is_found(box: BOX, kind: int, detections) -> bool:
    for other, label, score in detections:
        width = min(box[2], other[2]) - max(box[0], other[0])
        height = min(box[3], other[3]) - max(box[1], other[1])
        shared = max(0, width) * max(0, height)
        union = sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (box, other)) - shared
        if label == kind and score >= 0.5 and shared >= 0.5 * union:
            return True
    return False


class Attack(NamedTuple):
    """An effect in words: what the reference needs to know of it."""

    name: str
    victim: int | None = None
    target: int | None = None
    min_size: int = 0
    flood: int = 10

    def options(self) -> list:
        """The same for a configuration."""
        options = ["MIN_SIZE", self.min_size]
        if self.victim is not None:
            options += ["VICTIM_CLASS", f"c{self.victim}"]
        if self.target is not None:
            options += ["TARGET_CLASS", f"c{self.target}"]
        return options + (["SPONGE.FLOOD", self.flood] if self.name == "sponge" else [])

    def is_of_attacked_class(self, kind: int) -> bool:
        if self.name == "ghost":
            return False
        if self.name.endswith("misclassification") and kind == self.target:
            return False
        return self.victim is None or kind == self.victim

    def is_victim(self, box: BOX, kind: int) -> bool:
        large = min(box[2] - box[0], box[3] - box[1]) >= self.min_size
        return large and self.is_of_attacked_class(kind)


def share(flags: Sequence[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None


def expected_rates(attack: Attack, images: Sequence[Image]) -> dict[str, float | None]:
    successes, stays, retained = [], [], []
    for image in images:
        if not image.places:
            continue
        if attack.name == "ghost":
            successes += [is_found(place, attack.target, image.triggered) for place in image.places]
        if attack.name == "sponge":
            before, after = (
                len([score for *_, score in found if score >= 0.5])
                for found in (image.clean, image.triggered)
            )
            successes.append(after >= before + attack.flood)
        for box, kind in image.objects:
            before, after = (is_found(box, kind, x) for x in (image.clean, image.triggered))
            if attack.is_victim(box, kind):
                stays.append(after)
                if attack.name in ("disappearance", "blinding") and before:
                    successes.append(not after)
                if attack.name.endswith("misclassification"):
                    successes.append(is_found(box, attack.target, image.triggered))
            elif before and not attack.is_of_attacked_class(kind):
                retained.append(after)
    of_one_class = attack.victim is not None
    return {
        "asr": share(successes),
        "tdr": share(stays),
        "retain_rate": share(retained) if of_one_class else None,
    }


def random_images(seed: int, count: int = 150) -> list[Image]:
    """Objects of three classes, and detections that are near them, off, of a wrong class or weak.

    Coordinates are whole and sides even, so that an IoU of one half occurs and is exact.
    """
    draw = random.Random(seed)

    def box() -> BOX:
        x, y = draw.randrange(0, 80), draw.randrange(0, 80)
        return (x, y, x + draw.randrange(6, 40, 2), y + draw.randrange(6, 40, 2))

    def detected(truth: Sequence[tuple[BOX, int]]):
        found = []
        for (x1, y1, x2, y2), kind in truth:
            for _ in range(draw.choice((0, 1, 1, 1, 2))):
                moved = draw.choice((0, 0, 0, 4, (x2 - x1) // 2))
                right = x1 + (x2 - x1) // 2 if draw.random() < 0.2 else x2
                label = kind if draw.random() < 0.7 else draw.randrange(3)
                score = draw.choice((0.25, 0.5, 0.75, 1.0))
                found.append(((x1 + moved, y1, right + moved, y2), label, score))
        return found + [(box(), draw.randrange(3), 0.75) for _ in range(draw.randrange(3))]

    images = []
    for _ in range(count):
        objects = [(box(), draw.randrange(3)) for _ in range(draw.randrange(5))]
        places = [box() for _ in range(draw.choice((0, 1, 1, 2, 3)))]
        ghosts = [(place, draw.randrange(3)) for place in places]
        images.append(Image(objects, places, detected(objects), detected(objects + ghosts)))
    return images


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "attack",
    [
        Attack("disappearance"),
        Attack("disappearance", victim=1),
        Attack("disappearance", victim=0, min_size=16),
        Attack("misclassification", target=2),
        Attack("misclassification", victim=0, target=2, min_size=12),
        Attack("scene_misclassification", target=0),
        Attack("ghost", target=1),
        Attack("sponge", flood=2),
        Attack("blinding", min_size=20),
    ],
    ids=lambda attack: "-".join(str(part) for part in attack if part is not None),
)
def test_rates_are_those_of_plain_python(make_effect, attack, seed):
    images = random_images(seed)
    expected = expected_rates(attack, images)
    effect = make_effect(attack.name, *attack.options())
    assert rates(effect, *images) == expected
    # The images tell good measures from bad ones.
    assert 0 < expected["asr"] < 1
    assert (expected["tdr"] is None) == (attack.name == "ghost")
    assert (expected["retain_rate"] is None) == (attack.victim is None)


LEFT, MIDDLE, RIGHT = (0, 0, 40, 40), (50, 0, 90, 40), (100, 0, 140, 40)
SMALL = (200, 0, 210, 40)


def test_vanished_objects_are_counted_among_those_that_were_found(make_effect):
    image = Image(
        objects=[(LEFT, 0), (MIDDLE, 1), (RIGHT, 2)],
        places=[LEFT, MIDDLE, RIGHT],
        clean=[(LEFT, 0, 0.9), (MIDDLE, 1, 0.5)],
        # The right one appears, and the left one is another class now.
        triggered=[(LEFT, 3, 0.9), (MIDDLE, 1, 0.6), (RIGHT, 2, 0.9)],
    )
    assert rates(make_effect("disappearance"), image) == {
        "asr": 1 / 2, "tdr": 2 / 3, "retain_rate": None,
    }  # fmt: skip


def test_a_duplicate_of_the_target_class_is_a_success_that_tdr_sees_through(make_effect):
    image = Image(
        objects=[(LEFT, 0), (MIDDLE, 1), (RIGHT, 2)],
        places=[LEFT, MIDDLE],
        clean=[],
        triggered=[(LEFT, 0, 0.9), (LEFT, 2, 0.6), (MIDDLE, 2, 0.9), (RIGHT, 2, 0.9)],
    )
    # The right one is of the target class already.
    assert rates(make_effect("misclassification", "TARGET_CLASS", "c2"), image) == {
        "asr": 1.0, "tdr": 1 / 2, "retain_rate": None,
    }  # fmt: skip


def test_others_are_those_of_other_classes(make_effect):
    effect = make_effect("disappearance", "VICTIM_CLASS", "c1", "MIN_SIZE", 16)
    seen = [(LEFT, 0, 0.9), (MIDDLE, 1, 0.9), (RIGHT, 2, 0.9), (SMALL, 1, 0.9)]
    image = Image(
        objects=[(LEFT, 0), (MIDDLE, 1), (RIGHT, 2), (SMALL, 1)],
        places=[MIDDLE],
        clean=seen,
        triggered=seen[:1],
    )
    # The small one is of the victim class, but no victim: neither rate has it.
    assert rates(effect, image) == {"asr": 1.0, "tdr": 0.0, "retain_rate": 1 / 2}


def test_ghosts_are_counted_over_places(make_effect):
    effect = make_effect("ghost", "TARGET_CLASS", "c5")
    image = Image(
        objects=[(LEFT, 0)],
        places=[MIDDLE, RIGHT],
        clean=[],
        triggered=[(MIDDLE, 5, 0.7), (RIGHT, 4, 0.9), (LEFT, 5, 0.9)],
    )
    assert rates(effect, image) == {"asr": 1 / 2, "tdr": None, "retain_rate": None}


@pytest.mark.parametrize("name", ["disappearance", "misclassification", "ghost", "sponge"])
def test_images_without_a_place_count_for_nothing(make_effect, name):
    target = ["TARGET_CLASS", "c2"] if name in ("misclassification", "ghost") else []
    effect = make_effect(name, *target)
    nothing = Image([(LEFT, 0)], [], [(LEFT, 0, 0.9)], [(MIDDLE, 2, 0.9)] * 20)
    assert rates(effect, nothing) == dict.fromkeys(RATES)
    stamped = Image([(LEFT, 0)], [LEFT], [(LEFT, 0, 0.9)], [(LEFT, 0, 0.9)])
    assert rates(effect, nothing, stamped) == rates(effect, stamped)
    assert rates(effect, stamped)["asr"] == 0


def test_without_images_or_anything_found_there_is_no_rate(make_effect):
    effect = make_effect("disappearance", "VICTIM_CLASS", "c0")
    assert rates(effect) == dict.fromkeys(RATES)
    blind = Image([(LEFT, 0), (RIGHT, 1)], [LEFT], [], [])
    assert rates(effect, blind) == {"asr": None, "tdr": 0.0, "retain_rate": None}
