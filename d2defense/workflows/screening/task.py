# SPDX-License-Identifier: Apache-2.0
"""One checkpoint and the images that it screens: what a confined process does with them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MapDataset
from detectron2.data import transforms as T
from torch import Tensor

from d2defense.checkpoint import build_detector
from d2defense.isolation.messages import Channel
from d2defense.screening import SUSPICION, Guard, Suspicion
from d2defense.screening.frame_sources import CleanArrays, Frame, frames
from d2defense.text import shorten

#: What takes a record and, of a suspicious image, a picture of it, a PNG file.
Send = Callable[[Mapping[str, Any], bytes], None]

SUSPICIOUS, UNSUSPICIOUS, ERROR = "suspicious", "unsuspicious", "error"
# Longest side of a picture for the page.
_PICTURE_SIDE = 480
_RED, _GREY = (40, 40, 220), (160, 160, 160)


@dataclass(frozen=True)
class ScreenTask:
    """What is screened.

    Attributes:
        weights: the weights file.
        config: the configuration beside it.
        images: folder, or video.
        clean: files of clean images.
        screening: ``SCREENING``, as YAML.
        device: of the model; the config's choice if None.
        trusted_config: whether the user vouches for the configuration file.
        member: which of the file's sets of weights; the one that Detectron2 loads if None.
        readable: further files that are read.
    """

    weights: Path
    config: Path
    images: Path
    clean: tuple[Path, ...]
    screening: str
    device: str | None = None
    trusted_config: bool = False
    member: str | None = None
    readable: tuple[Path, ...] = ()

    @property
    def files(self) -> list[Path]:
        """Every file and folder that the task reads."""
        return [self.weights, self.config, self.images, *self.clean, *self.readable]


def main(task: ScreenTask, channel: Channel) -> None:
    """In the confined process: screen, and send a record an image."""
    logging.getLogger("d2defense").handlers[:] = [logging.NullHandler()]
    run_task(task, channel.send)


def run_task(task: ScreenTask, send: Send) -> None:
    """Screen all images; what goes wrong with the whole is sent as ``{"fatal": reason}``.

    Args:
        task: of the screening.
        send: gets ``{"fitted": ...}`` first, then ``{"record": ...}`` an image.
    """
    try:
        guard, resize = _guard(task, send)
        for frame in frames(task.images):
            send(*_told(guard, resize, frame))
        send({"done": True}, b"")
    except OSError:
        raise  # nobody listens, or nothing can be written
    except Exception as error:  # an attacker's model can fail in any way
        send({"fatal": _reason(error)}, b"")


def _guard(task: ScreenTask, send: Send) -> tuple[Guard, Callable[[np.ndarray], dict[str, Any]]]:
    model, cfg = build_detector(
        task.weights,
        task.config,
        task.device,
        trusted_config=task.trusted_config,
        member=task.member,
    )
    node = CfgNode({"SCREENING": CfgNode.load_cfg(task.screening)})
    clean = CleanArrays(task.clean)
    resize = _Resize(cfg)
    start = time.perf_counter()
    settings = node.SCREENING
    inputs = MapDataset(clean, resize)
    guard = Guard(model, inputs, settings.METHOD, settings.FALSE_ALARM_RATE, node)
    fitted = {
        "method": settings.METHOD,
        "false_alarm_rate": settings.FALSE_ALARM_RATE,
        "clean_images": len(clean),
        "threshold": _finite(guard.screen.threshold),
        "seconds": time.perf_counter() - start,
        "left_out": [shorten(line, 400) for line in clean.left_out],
    }
    send({"fitted": fitted}, b"")
    return guard, resize


class _Resize:
    """From an image as read to the network's input, as ``DefaultPredictor`` does it."""

    def __init__(self, cfg: CfgNode) -> None:
        self._augmentation = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        self._is_rgb = cfg.INPUT.FORMAT == "RGB"

    def __call__(self, pixels: np.ndarray) -> dict[str, Any]:
        height, width = pixels.shape[:2]
        image = pixels[:, :, ::-1] if self._is_rgb else pixels
        image = self._augmentation.get_transform(image).apply_image(image)
        tensor = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return {"image": tensor, "height": height, "width": width}


def _told(guard: Guard, resize: _Resize, frame: Frame) -> tuple[dict[str, Any], bytes]:
    """What is sent about one image."""
    place = {"image": shorten(frame.name, 400), "frame": frame.number}
    reason = frame.reason
    if frame.pixels is not None:
        try:
            record, picture = _record(guard, resize, frame.pixels)
            return {"record": {**place, **record}}, picture
        except Exception as error:  # one image, an attacker's perhaps, must not hide the others
            reason = f"cannot be screened: {_reason(error)}"
    return {"record": {**place, "verdict": ERROR, "reason": reason}}, b""


def _reason(error: Exception) -> str:
    name = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return shorten(f"{name}{error}", 600)


def _record(guard: Guard, resize: _Resize, pixels: np.ndarray) -> tuple[dict[str, Any], bytes]:
    start = time.perf_counter()
    (output,) = guard([resize(pixels)])
    suspicion: Suspicion = output[SUSPICION]
    instances, look = output["instances"].to("cpu"), suspicion.look
    record = {
        "verdict": SUSPICIOUS if suspicion.is_suspicious else UNSUSPICIOUS,
        "score": _finite(look.score),
        "threshold": _finite(suspicion.threshold),
        "p_value": suspicion.p_value,
        "passes": look.passes,
        "seconds": time.perf_counter() - start,
        "places": [
            {"box": box, "score": _finite(score), "suspicious": is_suspicious}
            for box, score, is_suspicious in zip(
                _rounded(look.boxes),
                look.scores.tolist(),
                suspicion.suspicious_boxes.tolist(),
                strict=True,
            )
        ],
        "detections": [
            {"box": box, "class": label, "score": score}
            for box, label, score in zip(
                _rounded(instances.pred_boxes.tensor),
                instances.pred_classes.tolist(),
                instances.scores.tolist(),
                strict=True,
            )
        ],
    }
    return record, _picture(pixels, record["places"]) if suspicion.is_suspicious else b""


def _rounded(boxes: Tensor) -> list[list[float]]:
    return [[round(side, 2) for side in box] for box in boxes.tolist()]


def _finite(value: float) -> float:
    """A number that JSON has; of NaN, which is suspicious, a large one."""
    return float(np.clip(np.nan_to_num(value, nan=np.inf), -1e30, 1e30))


def _picture(pixels: np.ndarray, places: list[dict[str, Any]]) -> bytes:
    """The image with its places, those that are suspicious in red, as PNG."""
    import cv2

    scale = min(1.0, _PICTURE_SIDE / max(pixels.shape[:2]))
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    drawn = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    for place in sorted(places, key=lambda each: each["suspicious"]):
        left, top, right, bottom = (round(side * scale) for side in place["box"])
        color, line = (_RED, 2) if place["suspicious"] else (_GREY, 1)
        cv2.rectangle(drawn, (left, top), (right, bottom), color, line)
    return cv2.imencode(".png", drawn)[1].tobytes()
