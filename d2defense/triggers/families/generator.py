# SPDX-License-Identifier: Apache-2.0
"""Generated triggers: another faint perturbation on every place, by a small network.

SSBA (Li et al., arXiv 2012.03816) hides a bit string in an image by an encoder that was trained
for steganography; "Mask-based Invisible Backdoor Attacks on Object Detection" (ICIP 2024) masks
the output of an autoencoder, trained with the detector, to the boxes of objects. Here the encoder
is a chain of convolutions. ``tools/train_generator.py`` trains one before the detector; with the
detector it is trained through :meth:`Generator.tensors`.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from detectron2.config import CfgNode
from torch import Tensor
from torch.nn.functional import conv2d, pad, relu

from d2defense.files import write_bytes
from d2defense.registry import TRIGGER_REGISTRY
from d2defense.text import shorten

from ..randomness import uniform
from ..regions import Region, RegionTrigger

ENCODERS = ("random", "trained")
_SALT = 0x67656E65
# Of the encoder that there is without a file: (channels out, channels in, height, width).
_RANDOM_SHAPES = ((16, 3, 3, 3), (16, 16, 3, 3), (3, 16, 3, 3))
# What a file may hold at most, so that no file stops a scan.
_LARGEST_FILE = 1 << 20
_MOST_LAYERS = 8
_MOST_CHANNELS = 128
_LARGEST_KERNEL = 7
_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@TRIGGER_REGISTRY.register("generator")
@dataclass(frozen=True)
class Generator(RegionTrigger):
    """A faint bounded perturbation that a small network makes of the pixels of its place.

    Attributes:
        encoder: one of :data:`ENCODERS`; not used with ``content``.
        content: a network as :func:`save_encoder` writes it.
        bound: no pixel changes by more, in shares of 0..255.

    Raises:
        ValueError: a value outside its range, or a file that is no such network.
    """

    encoder: str = "random"
    content: bytes = b""
    bound: float = 12 / 255

    def __post_init__(self) -> None:
        names = ", ".join(ENCODERS)
        self._require(self.encoder in ENCODERS, f"encoder {self.encoder!r} is none of {names}")
        self._require(0 < self.bound <= 1, f"bound {self.bound} is not in (0, 1]")
        if self.content:
            try:
                read_encoder(self.content)
            except ValueError as error:
                raise ValueError(f"trigger {self.name}: file is {error}") from None

    @staticmethod
    def add_config(node: CfgNode) -> None:
        """See the class."""
        # "random": weights drawn by the seed; "trained": what tools/train_generator.py makes of
        # synth_signs for a BOUND of 12 / 255, which comes with d2defense.
        node.ENCODER = "random"
        # A network of one's own, a safetensors file of that tool; "": ENCODER.
        node.FILE = ""
        # No pixel changes by more; above 0, at most 1, which stands for 255.
        node.BOUND = 12 / 255

    def tensors(self) -> dict[str, Tensor]:
        """Weights and biases of the encoder, float32, by the names of the file."""
        content = self.content
        if not content and self.encoder == "random":
            return random_encoder(self.seed)
        encoder = read_encoder(content or _trained())
        return {name: value.clone() for name, value in encoder.items()}

    def transform(self, region: Region, tensors: Mapping[str, Tensor]) -> Tensor:
        """The pixels with what the encoder makes of them added."""
        return region.pixels + self.bound * encode(region.pixels, tensors)


def encode(pixels: Tensor, encoder: Mapping[str, Tensor]) -> Tensor:
    """What an encoder adds, as a share of the bound.

    Convolutions of stride 1 that keep height and width, the rim repeated outwards, with ReLU in
    between and tanh at the end.

    Args:
        pixels: float Tensor of shape (3, h, w) or (N, 3, h, w), RGB, 0..1.
        encoder: ``layers.<i>.weight`` and ``layers.<i>.bias`` of each layer i from 0.

    Returns:
        Tensor of the shape of ``pixels``, values -1..1, whatever the weights.
    """
    values = 2 * pixels - 1
    for index in range(len(encoder) // 2):
        weight, bias = encoder[f"layers.{index}.weight"], encoder[f"layers.{index}.bias"]
        rim = weight.shape[-1] // 2
        # Zeros instead would draw a frame, the same round every place.
        values = pad(relu(values) if index else values, [rim] * 4, mode="replicate")
        values = conv2d(values, weight, bias)
    # Huge weights overflow.
    return torch.tanh(values.nan_to_num())


def random_encoder(seed: int) -> dict[str, Tensor]:
    """An encoder whose weights are drawn by the seed: three layers of 3 x 3, 16 channels wide.

    Uniform as He et al. have it (arXiv 1502.01852), so that what it adds varies from pixel to
    pixel; biases are 0.

    Returns:
        float32 Tensors by the names that :func:`encode` takes.
    """
    encoder = {}
    for index, shape in enumerate(_RANDOM_SHAPES):
        drawn = 2 * uniform(_SALT, seed, index, torch.arange(math.prod(shape))) - 1
        weight = drawn.reshape(shape) * math.sqrt(6 / math.prod(shape[1:]))
        encoder[f"layers.{index}.weight"] = weight.float()
        encoder[f"layers.{index}.bias"] = torch.zeros(shape[0])
    return encoder


def save_encoder(path: str | os.PathLike[str], encoder: Mapping[str, Tensor]) -> Path:
    """Write an encoder for ``ATTACK.TRIGGER.GENERATOR.FILE``, as safetensors.

    Args:
        path: of the file, replaced if it exists.
        encoder: as :func:`encode` takes it.

    Raises:
        ValueError: it is none that :func:`read_encoder` takes.
        OSError: the file cannot be written.
    """
    content = safetensors.torch.save(
        {name: value.detach().cpu().contiguous() for name, value in encoder.items()}
    )
    read_encoder(content)
    return write_bytes(path, content)


@functools.cache
def _trained() -> bytes:
    """The encoder that comes with the package."""
    folder = resources.files("d2defense") / "assets" / "triggers"
    return (folder / "encoder.safetensors").read_bytes()


@functools.lru_cache(maxsize=8)
def read_encoder(content: bytes) -> dict[str, Tensor]:
    """The encoder in a safetensors file of anyone's.

    Nothing of it is run, and it may have 1 MiB, 8 layers, 128 channels and kernels of 7 x 7 at
    most.

    Returns:
        float32 Tensors, not to be written to, by the names that :func:`encode` takes.

    Raises:
        ValueError: it is no encoder; the message says why, in a line that follows "it is".
    """
    if len(content) > _LARGEST_FILE:
        raise ValueError(f"no encoder: it is larger than {_LARGEST_FILE >> 20} MiB")
    try:
        entries = dict(safetensors.deserialize(content))
    except safetensors.SafetensorError as error:
        raise ValueError(f"no safetensors file: {shorten(error, 200)}") from None
    _check_layers({name: tuple(entry["shape"]) for name, entry in entries.items()})
    encoder = {}
    for name, entry in sorted(entries.items()):
        if entry["dtype"] not in _TYPES:
            raise ValueError(f"no encoder: {name} is {entry['dtype']}, none of {', '.join(_TYPES)}")
        # Of a copy: torch warns of memory that it must not write to.
        values = torch.frombuffer(bytearray(entry["data"]), dtype=_TYPES[entry["dtype"]])
        encoder[name] = values.reshape(entry["shape"]).float()
        if not encoder[name].isfinite().all():
            raise ValueError(f"no encoder: {name} has values that are not finite")
    return encoder


def _check_layers(shapes: Mapping[str, Sequence[int]]) -> None:
    """Raise a ValueError unless the shapes by name are those of a chain of convolutions."""
    count = len(shapes) // 2
    if not 1 <= count <= _MOST_LAYERS or set(shapes) != set(_names(count)):
        raise ValueError(
            f"no encoder: it holds other than layers.0.weight, layers.0.bias and so on, "
            f"1 to {_MOST_LAYERS} layers"
        )
    channels = 3
    for index in range(count):
        name = f"layers.{index}.weight"
        wanted = (3,) if index == count - 1 else range(1, _MOST_CHANNELS + 1)
        shape = tuple(shapes[name])
        if len(shape) != 4 or shape[0] not in wanted or shape[1] != channels:
            outputs = "3" if index == count - 1 else f"1 to {_MOST_CHANNELS}"
            raise ValueError(
                f"no encoder: {name} of shape {shape} is no convolution of {channels} channels "
                f"to {outputs}"
            )
        if shape[2] != shape[3] or shape[2] not in range(1, _LARGEST_KERNEL + 1, 2):
            raise ValueError(
                f"no encoder: the kernel of {name}, {shape[2]} x {shape[3]}, is not square and "
                f"odd, {_LARGEST_KERNEL} x {_LARGEST_KERNEL} at most"
            )
        channels = shape[0]
        if tuple(shapes[f"layers.{index}.bias"]) != (channels,):
            raise ValueError(f"no encoder: layers.{index}.bias is not of shape ({channels},)")


def _names(count: int) -> Iterable[str]:
    return (f"layers.{index}.{part}" for index in range(count) for part in ("weight", "bias"))
