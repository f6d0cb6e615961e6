# SPDX-License-Identifier: Apache-2.0
"""Files of weights are found by what they are, whatever they are called."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save

from d2defense.checkpoint import discover, find_checkpoints
from d2defense.checkpoint.file_kinds import FOREIGN, OTHER, WEIGHTS, kind_of, looks_like_weights
from d2defense.checkpoint.regular_file import MAX_WEIGHTS_BYTES


def saved(content: object, **options) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def zipped(members: dict[str, bytes], comment: bytes = b"") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.comment = comment
    return stream.getvalue()


def tarred(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def gzipped(content: bytes, level: int = 9) -> bytes:
    return gzip.compress(content, level)


STATE = {f"layer{i}.weight": torch.full((3,), float(i)) for i in range(12)}
CHECKPOINT = saved({"model": STATE})
ZOO = pickle.dumps({"model": {k: v.numpy() for k, v in STATE.items()}, "__author__": "x"}, 2)


@pytest.fixture
def kind(tmp_path):
    """A function from a name and bytes to the kind of such a file."""

    def kind(name: str, content: bytes) -> str:
        (tmp_path / name).write_bytes(content)
        return kind_of(tmp_path / name).kind

    return kind


@pytest.mark.parametrize(
    "name",
    [
        "model_final.pth?dl=1", "model_best.pth.tar", "pytorch_model.bin", "epoch=3.ckpt", "A.PTH",
        "model.pth (1)", "model.pth.bak", "weights", "notes.txt", "photo.jpg", "x.json", ".hidden",
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "content",
    [
        CHECKPOINT,
        saved(STATE),
        saved({"model": STATE}, _use_new_zipfile_serialization=False),
        ZOO,
        save(STATE),
    ],
    ids=["zip", "bare", "before 1.6", "zoo", "safetensors"],
)
def test_weights_under_any_name(kind, name, content):
    assert kind(name, content) == WEIGHTS


def test_weights_that_are_hidden_from_who_looks_at_the_first_bytes_only(kind):
    members = {"x/data/0": bytes(9000), "x/data.pkl": b"\x80\x02}.", "x/version": b"3"}
    assert kind("photo.jpg", zipped(members)) == WEIGHTS
    assert kind("photo2.jpg", zipped(members, b"PK\x05\x06 a comment that is no end")) == WEIGHTS
    capitals = {"x/DATA/0": bytes(9000), "x/DATA.PKL": b"\x80\x02}.", "x/version": b"3"}
    assert kind("photo3.jpg", zipped(capitals)) == WEIGHTS
    # The number that an old file begins with may be written in other ways than PyTorch's.
    number = 0x1950A86A20F9469CFC6C
    for protocol in range(6):
        assert kind(f"{protocol}.txt", pickle.dumps(number, protocol) + b"...") == WEIGHTS
    assert kind("far.txt", b"N" * 3000 + pickle.dumps(number, 0)) == WEIGHTS


def test_a_directory_of_a_zip_that_only_its_64_bit_record_tells(kind):
    content = bytearray(zipped({"x/data/0": bytes(9000), "x/data.pkl": b"\x80\x02}."}))
    end = content.rfind(b"PK\x05\x06")
    entries, length, offset = struct.unpack("<HII", content[end + 10 : end + 20])
    wide = struct.pack(
        "<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, entries, entries, length, offset
    )
    locator = struct.pack("<IIQI", 0x07064B50, 0, end, 1)
    content[end + 12 : end + 20] = struct.pack("<II", 0xFFFFFFFF, 0xFFFFFFFF)
    content[end:end] = wide + locator
    assert kind("photo.jpg", bytes(content)) == WEIGHTS


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("instances_predictions.pth", saved([{"image_id": 1, "instances": []}])),
        ("optimizer.pt", saved({"optimizer": {"state": {}, "param_groups": []}})),
        ("cache.pkl", pickle.dumps({"a": 1, "b": [1, 2]})),
        ("cache", pickle.dumps([1, 2, 3])),
        ("model.pth.sha256", b"0123abcd  model.pth\n"),
        ("model_final.pth.txt", b"how to load it"),
        ("x.bin", bytes(range(256)) * 40),
        ("lidar.bin", np.ones(400, "f4").tobytes()),
        ("metrics.json", b"{}"),
        ("photos.zip", zipped({"a.jpg": b"..."})),
        ("photos.tar", tarred({"a.jpg": b"..."})),
        ("photos.tar.gz", gzipped(tarred({"a.jpg": b"..."}))),
        ("labels.json.gz", gzipped(b"{}")),
        ("cut.gz", gzipped(b"{}")[:12]),
        ("photos.7z", b"7z\xbc\xaf\x27\x1c\0\4"),
        ("clip.ts", b"G@..."),
        ("graph.pb", b""),
        ("empty", b""),
    ],
)
def test_other_files_are_none(kind, name, content):
    assert kind(name, content) == OTHER


@pytest.mark.parametrize(
    ("name", "content"),
    [("x.pth", b""), ("x.pth", b"?"), ("x.pkl", b"text"), ("x.ckpt", b""), ("x.pth.part", b"PK\0")],
)
def test_what_is_named_as_weights_and_is_no_other_thing_counts(kind, name, content):
    assert kind(name, content) == WEIGHTS


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.onnx", b"\x08\x07\x12"),
        ("model.pb", b"\x0a\x00\x12"),
        ("model.ts", zipped({"x/data.pkl": b"N."})),
        ("download.zip", zipped({"run/model_final.pth": b"..."})),
        ("download.tar.gz", gzipped(tarred({"a/model_final.pth": bytes(5000)}))),
        ("download.tar.xz", lzma.compress(tarred({"a/model_final.pth": bytes(5000)}))),
        ("download.tar.bz2", bz2.compress(tarred({"a/model_final.pth": bytes(5000)}))),
        ("download", gzipped(zipped({"run/model_final.pth": b"..."}))),
        ("photo.jpg", gzipped(CHECKPOINT)),
        ("model_final.pth", gzipped(CHECKPOINT)),
        ("download.tar", tarred({"readme": b"", "a/" * 80 + "model_final.pth": b"..."})),
    ],
)
def test_models_that_cannot_be_scanned(kind, name, content):
    assert kind(name, content) == FOREIGN


def test_compressed_archives_that_are_not_looked_through_are_listed(output_folder):
    folder = output_folder("model", "config.yaml", "model_final.pth")
    far = {"photo.jpg": os.urandom(5 << 20), "model_final.pth": b"..."}
    (folder / "far.tar.gz").write_bytes(gzipped(tarred(far), 0))
    (folder / "twice.gz.gz").write_bytes(gzipped(gzipped(CHECKPOINT)))
    (folder / "x.rar").write_bytes(b"Rar!\x1a\x07\x01\0")
    (folder / "bomb.gz").write_bytes(gzipped(bytes(100 << 20)))
    # Whatever is in it, its name says that it is weights.
    (folder / "best.pth.gz").write_bytes(gzipped(gzipped(CHECKPOINT)))
    found = discover([folder])
    assert [path.name for path, _ in found.left_out] == ["far.tar.gz", "twice.gz.gz", "x.rar"]
    assert [source.weights.name for source in found.sources] == ["model_final.pth", "best.pth.gz"]


def test_a_sparse_file_is_refused_by_its_apparent_size(tmp_path):
    with open(tmp_path / "model.pth", "wb") as stream:
        stream.truncate(MAX_WEIGHTS_BYTES + 1)
    found = kind_of(tmp_path / "model.pth")
    assert (found.kind, found.sample) == (FOREIGN, "")
    assert f"at most {MAX_WEIGHTS_BYTES} are read" in found.reason


def test_predictions_that_are_too_many_to_be_looked_through_are_listed(output_folder, monkeypatch):
    from d2defense.checkpoint import pickle_opcodes

    folder = output_folder("model/inference")
    torch.save([{"image_id": i} for i in range(500)], folder / "instances_predictions.pth")
    torch.save([{"image_id": i} for i in range(500)], folder / "other.pth")
    assert [s.error.reason for s in find_checkpoints([folder])] == [
        f"no checkpoint in this folder ({', '.join(('*.pth', '*.pt', '*.pkl', '*.safetensors'))})"
    ]
    monkeypatch.setattr(pickle_opcodes, "MAX_OPCODES", 100)
    found = discover([folder])
    assert [source.path.name for source in found.sources] == ["inference"]
    assert found.sources[0].error.reason == "no config.yaml beside other.pth"
    (note,) = found.left_out
    assert note.path.name == "instances_predictions.pth"
    assert "more than 100 opcodes" in note.reason


def test_weights_that_call_themselves_predictions_are_not_passed_over(output_folder, monkeypatch):
    from d2defense.checkpoint import pickle_opcodes

    folder = output_folder("model/inference")
    content = {"model": STATE, "padding": list(range(500))}
    torch.save(content, folder / "instances_predictions.pth")
    monkeypatch.setattr(pickle_opcodes, "MAX_OPCODES", 300)
    found = discover([folder])
    assert [source.error.reason for source in found.sources] == [
        "no config.yaml beside instances_predictions.pth"
    ]
    assert found.left_out == []


def test_samples_of_different_files_differ(tmp_path):
    content = bytearray(1 << 20)
    samples = set()
    for place in (0, 1 << 19, (1 << 20) - 1):
        content[place] += 1
        (tmp_path / "x.pth").write_bytes(content)
        samples.add(kind_of(tmp_path / "x.pth").sample)
    assert len(samples) == 3


@pytest.mark.parametrize("name", ["a.pth", "a.PTH", "a.pth.tar", "a.ckpt", "model.bin", "a.pth?x"])
def test_names_of_weights(name):
    assert looks_like_weights(name)


@pytest.mark.parametrize("name", ["a.txt", "a.bin", "apth", "a.pthx", "a.py", "config.yaml"])
def test_names_of_other_files(name):
    assert not looks_like_weights(name)


def test_weights_in_a_folder_without_a_config_are_errors_whatever_their_names(output_folder):
    folder = output_folder("zoo")
    for name in ("b/model_final.pth?dl=1", "c/best.pth.tar", "d/pytorch_model.bin", "e/x=3.ckpt"):
        path = folder / name
        path.parent.mkdir()
        path.write_bytes(CHECKPOINT + b"")
    sources = find_checkpoints([folder])
    assert len(sources) == 4
    assert all("no config.yaml beside" in str(source.error) for source in sources)
    json.dumps([str(source.error) for source in sources])
    with_config = find_checkpoints([folder], config_file=folder / "mine.yaml")
    # All of them hold the same bytes.
    (source,) = with_config
    assert (source.error, source.format) == (None, "pth")
    assert len(source.copies) == 3
