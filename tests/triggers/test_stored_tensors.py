# SPDX-License-Identifier: Apache-2.0
"""Tensors of triggers, out of files that may be anything."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from d2defense.triggers.stored_tensors import decode_tensors, is_safetensors

TENSORS = {"a": torch.tensor([[0.5, -2.0]]), "b": torch.tensor(7.0)}


def file(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_floating_type_becomes_float32(dtype):
    content = save({name: tensor.to(dtype) for name, tensor in TENSORS.items()})
    assert is_safetensors(content)
    read = decode_tensors(content)
    assert read.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert read[name].dtype == torch.float32
        assert torch.equal(read[name], tensor)
    with pytest.raises(TypeError):
        read["a"] = read["b"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"abc",
        b"\x80\x04" + save(TENSORS),
        save(TENSORS)[:-1],
        save(TENSORS) + b"0",
        struct.pack("<Q", 2**63) + b"{}",
        file([]),
        file({"a": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4]}}, b"0000"),
        file({"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, b"0" * 12),
        file({"a": {"dtype": "F31", "shape": [1], "data_offsets": [0, 4]}}, b"0000"),
        file({"a": {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}}, b"0000"),
        file({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"0000"),
    ],
)
def test_what_is_no_safetensors_is_refused_in_one_line(content):
    with pytest.raises(ValueError, match=r"^not safetensors") as caught:
        decode_tensors(content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [torch.tensor([1, 2]), torch.tensor([True]), torch.tensor([1.0, float("nan")]),
     torch.tensor([float("inf")]), torch.tensor([1e300], dtype=torch.float64)],
)  # fmt: skip
def test_what_is_no_finite_floating_number_is_refused(value):
    with pytest.raises(ValueError, match=r"^not safetensors of finite .* 'it'$"):
        decode_tensors(save({"it": value}))


@given(st.binary(max_size=200) | st.integers(0, 150).map(lambda at: save(TENSORS)[:at] + b"\xff"))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_read_or_refused(content):
    try:
        tensors = decode_tensors(content)
    except ValueError as error:
        assert str(error).startswith("not safetensors")
    else:
        assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
