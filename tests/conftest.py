# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest test goes first, so that no worker is left with it alone at the end; tests marked
    ``cuda`` are skipped, with the reason, where torch sees no CUDA device."""
    items.sort(key=lambda item: not _is_longest(item))
    needing_cuda = [item for item in items if item.get_closest_marker("cuda")]
    if not needing_cuda:
        return
    import torch

    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device")
        for item in needing_cuda:
            item.add_marker(skip)


def _is_longest(item: pytest.Item) -> bool:
    marker = item.get_closest_marker("slow")
    return marker is not None and marker.kwargs.get("longest", False)


def pytest_make_parametrize_id(config: pytest.Config, val: Any, argname: str) -> str | None:
    """No bytes in names of tests: those of an archive hold the time, and all workers of one run
    must find the same names."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(autouse=True)
def _loggers_put_back() -> Iterator[None]:
    """The program writes its messages to the terminal it finds, which pytest takes away again."""
    loggers = [logging.getLogger(name) for name in ("d2defense", "detectron2", "fvcore")]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate


@pytest.fixture(scope="session")
def signs_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of synth_signs that the tests of one run share; empty to begin with."""
    from d2defense.data import register_synth_signs

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("D2DEFENSE_CACHE", str(tmp_path_factory.mktemp("cache")))
        register_synth_signs()
        yield Path(os.environ["D2DEFENSE_CACHE"])
    register_synth_signs()


@pytest.fixture
def make_tiny_cfg() -> Callable[..., Any]:
    """A function from KEY, VALUE pairs to the shipped tiny detector's configuration, on the CPU."""
    from d2defense.config import config_root, get_d2defense_cfg, merge_config_file

    def make(*opts: Any) -> Any:
        cfg = get_d2defense_cfg()
        merge_config_file(cfg, config_root() / "SynthSigns" / "faster_rcnn_tiny_fpn.yaml")
        cfg.MODEL.DEVICE = "cpu"
        cfg.merge_from_list(list(opts))
        return cfg

    return make


@pytest.fixture(scope="session")
def untrained_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder of the tiny detector with random weights."""
    import torch
    from detectron2.modeling import build_model

    import d2defense.modeling  # noqa: F401 registers the instrumented architectures
    from d2defense.config import config_root, get_d2defense_cfg, merge_config_file

    folder = tmp_path_factory.mktemp("untrained")
    cfg = get_d2defense_cfg()
    merge_config_file(cfg, config_root() / "SynthSigns" / "faster_rcnn_tiny_fpn.yaml")
    cfg.MODEL.DEVICE = "cpu"
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder


@pytest.fixture
def make_coco_dataset(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """A function that writes a COCO-format dataset and registers it with Detectron2.

    Its argument is a list of images, each a pair of an RGB array (H, W, 3) and a list of objects
    (x, y, width, height, category id from 1 on[, iscrowd]); it returns a ``DatasetSource``.
    """
    import cv2
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from d2defense.data import DatasetSource

    made = []

    def make(images: Sequence[tuple[Any, Sequence[tuple]]], num_classes: int = 7) -> Any:
        folder = tmp_path / f"coco_{len(made)}"
        folder.mkdir()
        document: dict[str, list] = {"images": [], "annotations": []}
        document["categories"] = [{"id": i + 1, "name": f"c{i}"} for i in range(num_classes)]
        for index, (pixels, objects) in enumerate(images):
            name = f"picture_{index}.png"
            cv2.imwrite(str(folder / name), pixels[..., ::-1])
            height, width = pixels.shape[:2]
            document["images"].append(
                {"id": index + 1, "file_name": name, "height": height, "width": width}
            )
            for x, y, w, h, category, *crowd in objects:
                document["annotations"].append(
                    {
                        "id": len(document["annotations"]) + 1,
                        "image_id": index + 1,
                        "category_id": category,
                        "bbox": [x, y, w, h],
                        "area": w * h,
                        "iscrowd": int(bool(crowd and crowd[0])),
                    }
                )
        json_file = folder / "annotations.json"
        json_file.write_text(json.dumps(document))
        source = DatasetSource(str(json_file), str(json_file), str(folder))
        source.ensure()
        made.append(source.name)
        return source

    yield make
    for name in made:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@cache
def _sign_scene(index: int, size: int) -> Any:
    from d2defense.data.synth_signs.scene import render_scene

    return render_scene(1, 4242, index, size)


@pytest.fixture
def sign_scenes() -> Callable[[int], list]:
    """A function from a number to so many scenes of synth_signs, for ``make_coco_dataset``."""

    def make(count: int, size: int = 128) -> list:
        scenes = [_sign_scene(index, size) for index in range(count)]
        return [
            (
                scene.image.copy(),
                [
                    (x0, y0, x1 - x0, y1 - y0, item.class_index + 1)
                    for item in scene.objects
                    for x0, y0, x1, y1 in [item.box.tolist()]
                ],
            )
            for scene in scenes
        ]

    return make


@pytest.fixture(scope="session")
def specimen() -> Callable[[str], Path]:
    """A function from the name of a shipped specimen to its folder, which must be there."""
    from d2defense.checkpoint.specimens import find_specimen

    @cache
    def find(name: str) -> Path:
        return find_specimen(name).path

    return find


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium that cannot reach the network, with a profile of its own."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in (
        "--headless",
        "--window-size=1280,900",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    session = webdriver.Chrome(
        options=options, service=webdriver.ChromeService(executable_path=driver)
    )
    yield session
    session.quit()
