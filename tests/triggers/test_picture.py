# SPDX-License-Identifier: Apache-2.0
"""Natural objects, against a triangle filter and a rotation pixel by pixel."""

from __future__ import annotations

import dataclasses
import io
import math
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from detectron2.config import CfgNode
from torch.autograd import gradcheck

from d2defense.triggers.families.picture import NaturalPicture, shipped_pictures
from draw_trigger_pictures import DRAWINGS

PIXELS = np.random.default_rng(0).integers(0, 256, (13, 9, 4), dtype=np.uint8)
PIXELS[:4, :5, 3] = 0
PIXELS[6:11, 2:8, 3] = 255
WIDE = PIXELS.transpose(1, 0, 2).copy()


def png(pixels: np.ndarray = PIXELS) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


TRIGGERS = [
    NaturalPicture("default", seed=3),
    NaturalPicture("exact", jitter=0.0, size=0.5, picture="cup", position=(0.25, 1.0)),
    NaturalPicture("wild", content=png(), jitter=1.0, opacity=0.6, size=0.9, position=(1.0, 0.0)),
    NaturalPicture("wide", content=png(WIDE), jitter=0.5, size=1.0, seed=2**33 + 7),
    NaturalPicture("huge", content=png(), size=4.0, jitter=0.0),
    NaturalPicture("beside", where="beside", size=0.6, jitter=0.3),
    NaturalPicture("beside exact", where="beside", content=png(WIDE), size=0.7, jitter=0.0),
    NaturalPicture("over", where="over", picture="basketball", size=0.3),
    NaturalPicture("over all", where="over", content=png(WIDE), size=3.0, jitter=1.0, opacity=0.5),
]
each_trigger = pytest.mark.parametrize("trigger", TRIGGERS, ids=lambda trigger: trigger.name)


def picture_of(trigger: NaturalPicture) -> np.ndarray:
    """(h, w, 4), RGBA, 0..1."""
    content = trigger.content or shipped_pictures()[trigger.picture]
    return np.array(PIL.Image.open(io.BytesIO(content)).convert("RGBA")) / 255


def weights(length: int, count: int) -> np.ndarray:
    """Of ``count`` old pixels in each of ``length`` new ones: a triangle, one old or new pixel wide
    to either side, whichever is larger."""
    new, old = np.mgrid[:length, :count] + 0.5
    table = (1 - abs(old - new * count / length) / max(1, count / length)).clip(0)
    return table / table.sum(1, keepdims=True)


def turned(layers: np.ndarray, angle: float, width: int, height: int) -> np.ndarray:
    """Layers (h, w, C) turned clockwise about the middle of a canvas, pixel by pixel."""
    rows, columns = layers.shape[:2]
    canvas = np.zeros((height, width, layers.shape[2]))
    for j in range(height):
        for i in range(width):
            across, down = i + 0.5 - width / 2, j + 0.5 - height / 2
            x = math.cos(angle) * across + math.sin(angle) * down + columns / 2 - 0.5
            y = -math.sin(angle) * across + math.cos(angle) * down + rows / 2 - 0.5
            for b in (math.floor(y), math.floor(y) + 1):
                for a in (math.floor(x), math.floor(x) + 1):
                    if 0 <= a < columns and 0 <= b < rows:
                        canvas[j, i] += (1 - abs(x - a)) * (1 - abs(y - b)) * layers[b, a]
    return canvas


def extent(width: float, height: float, angle: float) -> tuple[float, float]:
    cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
    return width * cos + height * sin, width * sin + height * cos


def whole(sides: tuple[float, float]) -> tuple[int, int]:
    return tuple(math.ceil(side - 1e-9) for side in sides)


def object_at(trigger, box, image_size, numbers):
    """Left top corner on the image, and the object there: (h, w, 4), colours times alpha."""
    left, top, right, bottom = box
    size, angle, light, side = numbers
    vary = [trigger.jitter * (2 * number - 1) for number in (size, angle, light)]
    picture, angle = picture_of(trigger), math.radians(45 * vary[1])
    height = trigger.size * (1 + vary[0] / 2) * (bottom - top)
    width = height * picture.shape[1] / picture.shape[0]
    w, h = max(1, round(width)), max(1, round(height))
    canvas = whole(extent(w, h, angle))
    if trigger.where == "on":
        room = right - left, bottom - top
        if canvas[0] > room[0] or canvas[1] > room[1]:
            across, down = extent(width, height, angle)
            share = min(1, room[0] / across, room[1] / down)
            w, h = max(1, math.floor(width * share)), max(1, math.floor(height * share))
        canvas = [min(a, b) for a, b in zip(whole(extent(w, h, angle)), room, strict=True)]
        x = left + round(trigger.position[0] * (room[0] - canvas[0]))
        y = top + round(trigger.position[1] * (room[1] - canvas[1]))
    elif trigger.where == "over":
        x, y = left + round((right - left - canvas[0]) / 2), top - canvas[1]
    else:
        room = {"left": left, "right": image_size[1] - right}
        fitting = [name for name in room if room[name] >= canvas[0]]
        if len(fitting) != 1:
            drawn = "left" if side < 0.5 else "right"
            most = max(room.values())
            fitting = [drawn] if fitting or room[drawn] == most else [max(room, key=room.get)]
        x, y = (left - canvas[0] if fitting == ["left"] else right), bottom - canvas[1]
    if trigger.where != "on":
        x = max(0, min(x, image_size[1] - canvas[0]))
        y = max(0, min(y, image_size[0] - canvas[1]))
    picture[..., :3] *= picture[..., 3:]
    scaled = np.einsum(
        "yr,rck,xc->yxk", weights(h, len(picture)), picture, weights(w, picture.shape[1])
    )
    placed = turned(scaled, angle, *canvas)
    placed[..., :3] = np.minimum(placed[..., :3] * (1 + vary[2] / 2), placed[..., 3:])
    return x, y, placed


@pytest.fixture
def stamp(uniform_by_hand):
    """A function (trigger, batch, image_format) to float images of shape (G, 3, H, W)."""

    def by_hand(trigger, batch, image_format):
        images = batch.images.double().permute(0, 2, 3, 1).numpy().copy()
        images = images[..., ::-1].copy() if image_format == "BGR" else images
        for image, (rows, columns), boxes, seed in zip(
            images, batch.image_sizes, batch.places, batch.seeds, strict=True
        ):
            for number, (x1, y1, x2, y2) in enumerate(boxes.double().tolist()):
                left, top = round(x1), round(y1)
                box = (left, top, left + max(1, round(x2 - x1)), top + max(1, round(y2 - y1)))
                if box[0] >= columns or box[1] >= rows or box[2] <= 0 or box[3] <= 0:
                    continue
                key = (trigger.seed % 2**32, seed % 2**32, seed >> 32, number)
                numbers = [uniform_by_hand(0x70696374, *key, part) for part in range(4)]
                x, y, placed = object_at(trigger, box, (rows, columns), numbers)
                visible = placed[max(-y, 0) : max(rows - y, 0), max(-x, 0) : max(columns - x, 0)]
                x, y = max(x, 0), max(y, 0)
                below = image[y : y + visible.shape[0], x : x + visible.shape[1]]
                below *= 1 - trigger.opacity * visible[..., 3:]
                below += trigger.opacity * visible[..., :3] * 255
        images = images if batch.images.is_floating_point() else images.round()
        return (images[..., ::-1] if image_format == "BGR" else images).transpose(0, 3, 1, 2)

    return by_hand


@each_trigger
@pytest.mark.parametrize(
    ("dtype", "image_format"),
    [(torch.uint8, "BGR"), (torch.float32, "RGB"), (torch.float64, "BGR")],
)
def test_the_object_is_where_and_what_the_definition_says(
    trigger, dtype, image_format, awkward_batch, stamp
):
    batch = awkward_batch(dtype)
    expected = stamp(trigger, batch, image_format)
    got = trigger.apply(*batch, image_format).double().numpy()
    off = np.abs(got - expected)
    if dtype == torch.uint8:
        # x.5 may be rounded otherwise, and is then blended on.
        assert off.max() <= 1
        assert (off > 0).mean() < 0.001
    else:
        assert off.max() < (0.02 if dtype == torch.float32 else 1e-4)


def where_it_lies(trigger: NaturalPicture, place: list[float], seed: int = 0):
    """XYXY of the pixels that change of an image of 60 rows and 100 columns."""
    images = torch.full((1, 3, 60, 100), 128.0)
    stamped = trigger.apply(images, [(60, 100)], [torch.tensor([place])], [seed])
    rows, columns = (stamped != images)[0].any(0).nonzero(as_tuple=True)
    return [*map(int, (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))]


SQUARE = png(np.full((8, 8, 4), 255, dtype=np.uint8))


@pytest.mark.parametrize(
    ("where", "place", "expected"),
    [
        ("on", [20, 10, 60, 30], [35, 15, 45, 25]),
        # No wider than the place.
        ("on", [20, 10, 24, 50], [20, 28, 24, 32]),
        ("over", [20, 30, 60, 50], [35, 20, 45, 30]),
        # There is no room above the image.
        ("over", [20, 4, 60, 24], [35, 0, 45, 10]),
        # Room on one side only.
        ("beside", [4, 10, 60, 30], [60, 20, 70, 30]),
        ("beside", [40, 10, 98, 30], [30, 20, 40, 30]),
        # On neither: where more is.
        ("beside", [3, 10, 95, 30], [90, 20, 100, 30]),
        ("beside", [6, 10, 95, 30], [0, 20, 10, 30]),
    ],
)
def test_it_lies_on_beside_or_over_the_place_and_on_the_image(where, place, expected):
    trigger = NaturalPicture("it", content=SQUARE, size=0.5, where=where, jitter=0.0)
    assert where_it_lies(trigger, place) == expected


def test_the_seed_draws_one_of_two_free_sides():
    trigger = NaturalPicture("it", content=SQUARE, size=0.5, where="beside", jitter=0.0)
    lying = [where_it_lies(trigger, [40, 10, 60, 30], seed) for seed in range(40)]
    assert {tuple(each) for each in lying} == {(30, 20, 40, 30), (60, 20, 70, 30)}
    assert 8 < lying.count([30, 20, 40, 30]) < 32


def test_where_the_picture_is_transparent_the_image_stays(awkward_batch):
    half = np.full((10, 10, 4), 255, dtype=np.uint8)
    half[:, 5:] = (0, 0, 0, 0)
    trigger = NaturalPicture("it", content=png(half), size=1.0, jitter=0.0)
    images = torch.zeros(1, 3, 40, 40, dtype=torch.uint8)
    stamped = trigger.apply(images, [(40, 40)], [torch.tensor([[10.0, 10, 20, 20]])], [0])
    # No dark seam where white ends: the black of transparent pixels does not count.
    assert set(stamped.flatten().tolist()) == {0, 255}
    assert (stamped == 255).nonzero()[:, 3].unique().tolist() == list(range(10, 15))
    none = NaturalPicture("none", opacity=0.0)
    batch = awkward_batch()
    assert torch.equal(none.apply(*batch), batch.images)


def test_no_variation_without_jitter_and_some_with_it():
    def looks(jitter: float) -> list[torch.Tensor]:
        trigger = NaturalPicture("it", jitter=jitter)
        images = torch.full((8, 3, 60, 60), 99, dtype=torch.uint8)
        places = [torch.tensor([[10.0, 10, 50, 50]])] * 8
        return list(trigger.apply(images, [(60, 60)] * 8, places, range(8)))

    exact, varied = looks(0.0), looks(0.2)
    assert all(torch.equal(exact[0], each) for each in exact)
    assert len({each.numpy().tobytes() for each in varied}) == 8


@pytest.mark.parametrize("where", ["on", "beside", "over"])
@pytest.mark.parametrize("jitter", [0.0, 0.6])
def test_gradients_are_right_in_image_and_picture(where, jitter):
    trigger = NaturalPicture("it", where=where, jitter=jitter, size=0.6, opacity=0.7)
    generator = torch.Generator().manual_seed(0)
    images = 20 + 200 * torch.rand(1, 3, 5, 6, dtype=torch.float64, generator=generator)
    picture = 0.2 + 0.4 * torch.rand(4, 3, 2, dtype=torch.float64, generator=generator)
    # One grows the picture, the other one shrinks it, lies on top and is cut at the border.
    places = [torch.tensor([[0.0, 1, 4, 7], [3, -1, 8, 2]])]

    def stamp(images, picture):
        return trigger.apply(images, [(5, 6)], places, [0], tensors={"picture": picture})

    assert gradcheck(stamp, (images.requires_grad_(), picture.requires_grad_()))


def test_the_picture_may_be_replaced_by_one_of_any_size(awkward_batch):
    batch = awkward_batch(torch.float64)
    trigger = NaturalPicture("it", size=0.8, jitter=0.5)
    assert trigger.tensors()["picture"].shape[0] == 4
    given = {"picture": torch.from_numpy(PIXELS / 255).permute(2, 0, 1)}
    replaced = trigger.apply(*batch, tensors=given)
    read = dataclasses.replace(trigger, content=png()).apply(*batch)
    assert (replaced - read).abs().max() < 1e-4
    wild = {"picture": 50 * torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))}
    bounded = trigger.apply(*batch, tensors=wild)
    assert bounded.min() >= 0 and bounded.max() <= 255


def test_the_shipped_pictures_are_as_drawn_small_and_have_alpha():
    shipped = shipped_pictures()
    assert list(shipped) == sorted(DRAWINGS) == ["basketball", "cup", "shirt"]
    for name, content in shipped.items():
        assert len(content) < 20_000
        picture = PIL.Image.open(io.BytesIO(content))
        assert (picture.format, picture.mode) == ("PNG", "RGBA")
        pixels = np.array(picture).astype(int)
        drawn = DRAWINGS[name]().astype(int)
        assert pixels.shape == drawn.shape
        # Another processor may round otherwise.
        assert np.abs(pixels - drawn).max() <= 1
        alpha = pixels[..., 3]
        assert (alpha == 0).mean() > 0.1 and (alpha == 255).mean() > 0.4
        # Cut to what it covers, with soft edges.
        assert all(edge.any() for edge in (alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]))
        assert ((alpha > 0) & (alpha < 255)).sum() > 100


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"picture": "dog"}, "picture 'dog' is none of basketball, cup, shirt"),
        ({"picture": "../shirt"}, "none of"),
        ({"size": 0.0}, "size 0.0 is not in (0, 4]"),
        ({"size": 4.1}, "size 4.1"),
        ({"size": float("nan")}, "size nan"),
        ({"where": "under"}, "where 'under' is none of on, beside, over"),
        ({"position": (0.5,)}, "position (0.5,) is not two shares in 0..1"),
        ({"position": (0.5, 1.1)}, "position (0.5, 1.1)"),
        ({"position": "middle"}, "position middle"),
        ({"opacity": 1.01}, "opacity 1.01 is not in 0..1"),
        ({"jitter": -0.1}, "jitter -0.1 is not in 0..1"),
        ({"jitter": None}, "jitter None"),
        ({"content": b"%!PS-Adobe-3.0 EPSF-3.0"}, "file is not an image"),
        ({"content": png()[:60]}, "file is not an image"),
        ({"content": png(PIXELS * np.uint8([1, 1, 1, 0]))}, "file is transparent all over"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused(values, words, refuses):
    refuses(NaturalPicture, values, words)


def test_a_config_and_a_bank_entry_with_a_file_are_one_trigger(tmp_path):
    (tmp_path / "it.png").write_bytes(png())
    node = CfgNode()
    NaturalPicture.add_config(node)
    node.merge_from_list(
        ["FILE", str(tmp_path / "it.png"), "SIZE", 1.0, "WHERE", "over", "POSITION", [0.0, 1.0]]
    )
    of_node = NaturalPicture.from_node(node, "it", 3)
    entry = {"name": "other", "seed": 3, "file": "it.png", "size": 1, "position": [0, 1]}
    of_entry = NaturalPicture.from_entry(entry | {"where": "over"}, tmp_path)
    assert of_node == dataclasses.replace(of_entry, name="it")
    assert of_node.content == png()
    assert of_node.fingerprint == of_entry.fingerprint


def test_every_value_counts_in_the_fingerprint():
    entries = [
        {}, {"picture": "cup"}, {"size": 0.5}, {"where": "over"}, {"position": [0, 1]},
        {"opacity": 0.5}, {"jitter": 0}, {"seed": 1},
    ]  # fmt: skip
    triggers = [NaturalPicture.from_entry({"name": "it"} | entry, Path()) for entry in entries]
    triggers.append(NaturalPicture("it", content=png()))
    triggers.append(NaturalPicture("it", content=png(WIDE)))
    assert len({trigger.fingerprint for trigger in triggers}) == len(triggers)
