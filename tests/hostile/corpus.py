# SPDX-License-Identifier: Apache-2.0
"""Checkpoints made by an attacker, each in one way.

A case writes one checkpoint into a folder of its own and returns what a user would name on the
command line (the folder, if it returns nothing). Whatever could run creates the file ``canary``.
"""

from __future__ import annotations

import collections
import io
import json
import os
import pickle
import pickletools
import shutil
import socket
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import save_file


@dataclass(frozen=True)
class CaseFolder:
    """Where a case writes.

    Attributes:
        folder: empty, for the checkpoint.
        canary: what must never come to be.
        good: an honest output folder to start from.
    """

    folder: Path
    canary: Path
    good: Path

    def honest(self, *without: str) -> Path:
        """Copy the honest checkpoint here, less some of its files."""
        for name in {"config.yaml", "model_final.pth"} - set(without):
            shutil.copyfile(self.good / name, self.folder / name)
        return self.folder

    def state(self) -> dict[str, torch.Tensor]:
        """The honest weights."""
        return torch.load(self.good / "model_final.pth", weights_only=True)["model"]

    def weights(self, content: bytes, name: str = "model_final.pth") -> None:
        """An honest config with these bytes as weights."""
        self.honest("model_final.pth")
        (self.folder / name).write_bytes(content)

    def config(self, text: str | bytes) -> None:
        """Honest weights with this config."""
        self.honest("config.yaml")
        content = text.encode() if isinstance(text, str) else text
        (self.folder / "config.yaml").write_bytes(content)

    def changed(self, change: Callable[[dict], object]) -> None:
        """The honest checkpoint with another config."""
        content = yaml.safe_load((self.good / "config.yaml").read_text())
        change(content)
        self.config(yaml.safe_dump(content))


Case = Callable[[CaseFolder], Path | None]
CASES: dict[str, Case] = {}


def case(make: Case) -> Case:
    """Add a case to the corpus."""
    name = make.__name__.strip("_")
    assert name not in CASES
    CASES[name] = make
    return make


def add(name: str, make: Case) -> None:
    """Add a case of a family."""
    assert name not in CASES
    CASES[name] = make


# Pickles ------------------------------------------------------------------------------------------


# LONG1: a number of a terabyte's size.
LONG = b"\x8a\x06\x00\x00\x00\x00\x00\x01"


def unicode_(text: object) -> bytes:
    """BINUNICODE."""
    data = str(text).encode()
    return b"X" + struct.pack("<I", len(data)) + data


def short(text: str) -> bytes:
    """SHORT_BINUNICODE."""
    return b"\x8c" + bytes([len(text)]) + text.encode()


def call(module: str, name: str, *arguments: object) -> bytes:
    """GLOBAL, arguments, REDUCE."""
    return (
        b"c%s\n%s\n(" % (module.encode(), name.encode())
        + b"".join(map(unicode_, arguments))
        + b"tR"
    )


def opcode_families(canary: Path) -> dict[str, bytes]:
    """One pickle for each way in which the pickle language reaches a callable."""
    arguments = b"(" + unicode_(canary) + unicode_("w")
    inner = b"\x80\x02" + call("builtins", "open", canary, "w") + b"."
    ordered = b"\x80\x02ccollections\nOrderedDict\n"
    system = b"\x80\x02cbuiltins\ngetattr\n" + call("builtins", "__import__", "os")
    identity = b"\x80\x02(" + unicode_("storage") + b"cio\nFileIO\n" + unicode_(canary)
    return {
        "global_reduce": inner,
        "stack_global": b"\x80\x04" + short("builtins") + short("open") + b"\x93"
        + arguments + b"tR.",
        "inst": arguments + b"ibuiltins\nopen\n.",
        "inst_of_an_admitted_name": b"(icollections\nOrderedDict\n.",
        "obj": b"(cio\nFileIO\n" + arguments[1:] + b"o.",
        "obj_of_an_admitted_name": b"(ccollections\nOrderedDict\no.",
        "newobj": b"\x80\x02cio\nFileIO\n" + arguments + b"t\x81.",
        "newobj_of_an_admitted_name": ordered + b")\x81.",
        "newobj_ex": b"\x80\x04cio\nFileIO\n" + arguments + b"t}\x92.",
        "newobj_ex_of_an_admitted_name": ordered + b")}\x92.",
        "build": ordered + b")RN}" + unicode_("get") + b"cos\nsystem\ns\x86b.",
        "build_of_an_admitted_name": ordered + b")RN}" + unicode_("get") + b"K\x01s\x86b.",
        "build_on_a_name": ordered + b"}" + unicode_("a") + b"K\x01sb.",
        "reduce_of_a_text": b"\x80\x02" + unicode_("os.system") + arguments + b"tR.",
        "ext1": b"\x80\x02\x82\x01.",
        "ext2": b"\x80\x02\x83\x01\x00.",
        "ext4": b"\x80\x02\x84\x01\x00\x00\x00.",
        "persid": b"Pevil\n.",
        "binpersid": identity + b"K\x01K\x01tQ.",
        "binpersid_of_a_text": b"\x80\x02" + unicode_(canary) + b"Q.",
        "getattr_chain": system + unicode_("system") + b"\x86R"
        + unicode_(f"touch {canary}") + b"\x85R.",
        "nested_pickle": b"\x80\x03ctorch.storage\n_load_from_bytes\n(C"
        + bytes([len(inner)]) + inner + b"tR.",
        "dotted_name": b"\x80\x04" + short("collections") + short("OrderedDict.fromkeys")
        + b"\x93" + arguments + b"tR.",
        "newline_in_name": b"\x80\x04" + short("builtins") + short("open\n") + b"\x93"
        + arguments + b"tR.",
        "bytearray_of_a_terabyte": b"\x80\x02cbuiltins\nbytearray\n" + LONG + b"\x85R.",
        "storage_of_a_terabyte": b"\x80\x02ctorch\nFloatStorage\n" + LONG + b"\x85R.",
    }  # fmt: skip


def damage() -> dict[str, bytes]:
    """Pickles that are to exhaust their reader."""
    return {
        "memo_of_four_billion": b"\x80\x02Nr\xff\xff\xff\xff.",
        "bytes_of_an_exabyte": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"x.",
        "text_of_an_exabyte": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"x.",
        "number_of_two_gigabytes": b"\x80\x02\x8b" + struct.pack("<i", 0x7FFFFFFF) + b"x.",
        "frame_of_an_exabyte": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"N.",
        "nested_lists": b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b".",
        "marks": b"\x80\x02" + b"(" * 1_000_000 + b".",
        "key_that_takes_for_ever_to_hash": b"\x80\x02}" + slow_to_hash() + b"K\x01s.",
        "list_of_itself": b"\x80\x02]q\x00h\x00a.",
        "underflow": b"\x80\x02R.",
        "endless": b"\x80\x02" + b"N" * 2_500_000,
    }


def slow_to_hash() -> bytes:
    """A tuple of a tuple of a tuple ... each of which holds the next one twice."""
    return b"(K\x01t" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(64))


# PyTorch's own reader would put these into a set or a counter, which never ends.
SLOW_TO_HASH = {
    "set": b"c__builtin__\nset\n]" + slow_to_hash() + b"a\x85R",
    "counter": b"ccollections\nCounter\n]" + slow_to_hash() + b"a\x85R",
    "item_of_a_counter": b"ccollections\nCounter\n)R" + slow_to_hash() + b"K\x01s",
    "pair_of_a_dictionary": b"ccollections\nOrderedDict\n]" + slow_to_hash() + b"K\x01\x86a\x85R",
}


def in_archive(pickled: bytes, **members: bytes) -> bytes:
    """A PyTorch archive with this pickle and these other members."""
    return archive({"archive/data.pkl": pickled, "archive/version": b"3\n"} | members)


def archive(members: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return stream.getvalue()


def legacy(pickled: bytes) -> bytes:
    """PyTorch's container before 1.6 around this pickle."""
    head = [
        pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    ]
    return b"".join([*head, pickled, b"\x80\x02]."])


PLACEHOLDER = Path("/canary")
for family in opcode_families(PLACEHOLDER):
    add(
        f"pkl_{family}",
        lambda w, f=family: w.weights(opcode_families(w.canary)[f], "model_final.pkl"),
    )
    add(f"zip_{family}", lambda w, f=family: w.weights(in_archive(opcode_families(w.canary)[f])))
for family in damage():
    add(f"pkl_{family}", lambda w, f=family: w.weights(damage()[f], "model_final.pkl"))
    add(f"pth_{family}", lambda w, f=family: w.weights(in_archive(damage()[f])))


for family in SLOW_TO_HASH:
    add(f"pth_slow_{family}", lambda w, f=family: w.weights(in_archive(beside_a_tensor(f))))


def beside_a_tensor(family: str) -> bytes:
    """A pickle that makes one of ``SLOW_TO_HASH``."""
    return b"\x80\x02}" + unicode_("x") + SLOW_TO_HASH[family] + b"s."


@case
def bare_pickle_as_pth(w: CaseFolder) -> None:
    w.weights(opcode_families(w.canary)["global_reduce"])


class Payload:
    """Calls ``open`` when unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return open, (str(self.canary), "w")


@case
def payload_beside_honest_weights(w: CaseFolder) -> None:
    w.honest("model_final.pth")
    torch.save({"model": w.state(), "hooks": Payload(w.canary)}, w.folder / "model_final.pth")


@case
def payload_beside_honest_weights_in_a_zoo_pickle(w: CaseFolder) -> None:
    arrays = {name: tensor.numpy() for name, tensor in w.state().items()}
    content = {"model": arrays, "__author__": "Detectron2", "x": Payload(w.canary)}
    w.weights(pickle.dumps(content), "model_final.pkl")


@case
def legacy_container_with_a_payload(w: CaseFolder) -> None:
    w.weights(legacy(opcode_families(w.canary)["global_reduce"]))


@case
def writes_the_source_of_a_class(w: CaseFolder) -> None:
    # torch.load itself writes a patch file for such a persistent id.
    identity = b"(" + unicode_("module") + b"ctorch.nn\nModule\n" + unicode_("a.py") + unicode_("b")
    w.weights(legacy(b"\x80\x02" + identity + b"tQ."))


# Archives -----------------------------------------------------------------------------------------


def saved(w: CaseFolder, content: object = None) -> bytes:
    """What ``torch.save`` writes."""
    stream = io.BytesIO()
    torch.save({"model": w.state()} if content is None else content, stream)
    return stream.getvalue()


def members_of(content: bytes) -> dict[str, bytes]:
    """Members of a zip archive."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        return {name: file.read(name) for name in file.namelist()}


EVIL_MEMBERS = {
    "extra_pickle": "archive/evil.pkl",
    "pickle_named_as_a_storage": "archive/data/evil",
    "parent_folder": "archive/../../evil.pkl",
    "absolute_name": "/etc/evil.pkl",
    "second_folder": "other/data.pkl",
    "case_of_the_pickle": "archive/DATA.PKL",
    "backslashes": "archive/..\\evil.pkl",
    "python_file": "archive/code/evil.py",
}
for kind, member in EVIL_MEMBERS.items():
    add(
        f"zip_member_{kind}",
        lambda w, m=member: w.weights(
            archive(members_of(saved(w)) | {m: opcode_families(w.canary)["global_reduce"]})
        ),
    )


@case
def zip_with_two_pickles_of_one_name(w: CaseFolder) -> None:
    stream = io.BytesIO(saved(w))
    with zipfile.ZipFile(stream, "a") as file:
        file.writestr("archive/data.pkl", opcode_families(w.canary)["global_reduce"])
    w.weights(stream.getvalue())


@case
def zip_bomb(w: CaseFolder) -> None:
    members = members_of(saved(w)) | {"archive/data/999": bytes(64 << 20)}
    content = archive(members, zipfile.ZIP_DEFLATED)
    assert len(content) < 4 << 20
    w.weights(content)


@case
def zip_with_lying_sizes(w: CaseFolder) -> None:
    content = bytearray(saved(w))
    position = content.rfind(b"PK\x01\x02")
    content[position + 20 : position + 28] = struct.pack("<II", 0xFFFFFFF0, 0xFFFFFFF0)
    w.weights(bytes(content))


@case
def zip_encrypted(w: CaseFolder) -> None:
    content = bytearray(saved(w))
    position = content.find(b"PK\x01\x02")
    content[position + 8] |= 1
    w.weights(bytes(content))


@case
def zip_overlapping(w: CaseFolder) -> None:
    content = bytearray(saved(w))
    first = content.find(b"PK\x01\x02")
    second = content.find(b"PK\x01\x02", first + 1)
    content[second + 42 : second + 46] = content[first + 42 : first + 46]
    w.weights(bytes(content))


@case
def zip_with_another_name_in_a_header(w: CaseFolder) -> None:
    content = saved(w)
    position = content.find(b"/data.pkl")
    w.weights(content[:position] + b"/date.pkl" + content[position + 9 :])


@case
def zip_without_a_pickle(w: CaseFolder) -> None:
    w.weights(archive({"archive/readme.txt": b"hello"}))


@case
def zip_that_is_empty(w: CaseFolder) -> None:
    w.weights(archive({}))


@case
def polyglot_of_zip_and_text_behind(w: CaseFolder) -> None:
    w.weights(saved(w) + b"\n#!/bin/sh\ntouch canary\n")


@case
def polyglot_of_html_and_zip(w: CaseFolder) -> None:
    w.weights(b"<script>alert(1)</script>" + saved(w))


@case
def polyglot_of_pickle_and_zip(w: CaseFolder) -> None:
    w.weights(opcode_families(w.canary)["global_reduce"] + saved(w))


@case
def polyglot_of_zoo_pickle_and_zip(w: CaseFolder) -> None:
    w.weights(opcode_families(w.canary)["global_reduce"] + saved(w), "model_final.pkl")


@case
def tar_archive(w: CaseFolder) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as file:
        for name in ("storages", "tensors", "pickle", "../evil"):
            data = opcode_families(w.canary)["global_reduce"]
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            file.addfile(entry, io.BytesIO(data))
    w.weights(stream.getvalue())


for share in (0, 1, 50, 99):
    add(
        f"truncated_to_{share}_percent",
        lambda w, s=share: w.weights((c := saved(w))[: len(c) * s // 100]),
    )
    add(
        f"zoo_pickle_truncated_to_{share}_percent",
        lambda w, s=share: w.weights((c := zoo(w.state()))[: len(c) * s // 100], "model_final.pkl"),
    )


@case
def bit_flipped_in_the_pickle(w: CaseFolder) -> None:
    content = bytearray(saved(w))
    content[content.find(b"_rebuild_tensor_v2") + 3] ^= 0x10
    w.weights(bytes(content))


@case
def bit_flipped_in_the_directory(w: CaseFolder) -> None:
    content = bytearray(saved(w))
    content[content.find(b"PK\x01\x02") + 46] ^= 0x80
    w.weights(bytes(content))


@case
def bit_flipped_in_the_end(w: CaseFolder) -> None:
    content = bytearray(saved(w))
    content[-22] ^= 0x01
    w.weights(bytes(content))


class Scripted(torch.nn.Module):
    """A module that TorchScript can compile."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


def torchscript() -> bytes:
    """A TorchScript archive."""
    stream = io.BytesIO()
    torch.jit.save(torch.jit.trace(Scripted(), torch.zeros(1)), stream)
    return stream.getvalue()


@case
def torchscript_as_pth(w: CaseFolder) -> None:
    w.weights(torchscript())


@case
def torchscript_by_name(w: CaseFolder) -> Path:
    (w.folder / "model.ts").write_bytes(torchscript())
    return w.folder / "model.ts"


@case
def whole_module_pickled(w: CaseFolder) -> None:
    w.honest("model_final.pth")
    torch.save(torch.nn.Linear(1, 1), w.folder / "model_final.pth")


# Tensors ------------------------------------------------------------------------------------------

KEY = "roi_heads.box_head.fc1.bias"


def tensor_pickle(
    offset: int, size: tuple, stride: tuple, numel: int, kind: str = "Float"
) -> bytes:
    """``{"model": {"w": tensor}}`` whose tensor says of itself what the arguments say."""

    def integers(values: tuple) -> bytes:
        return (
            b"("
            + b"".join(b"\x8a\x09" + v.to_bytes(9, "little", signed=True) for v in values)
            + b"t"
        )

    storage = (
        b"(" + unicode_("storage") + f"ctorch\n{kind}Storage\n".encode() + unicode_("0")
        + unicode_("cpu") + integers((numel,))[1:-1] + b"tQ"
    )  # fmt: skip
    return (
        b"\x80\x02}" + unicode_("model") + b"}" + unicode_("w")
        + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + integers((offset,))[1:-1]
        + integers(size) + integers(stride) + b"\x89ccollections\nOrderedDict\n)RtRss."
    )  # fmt: skip


TENSOR_LIES = {
    "shape_beyond_its_storage": (0, (1000, 1000), (1000, 1), 4),
    "offset_beyond_its_storage": (4, (4,), (1,), 4),
    "negative_offset": (-4, (4,), (1,), 4),
    "negative_stride": (3, (4,), (-1,), 4),
    "stride_beyond_its_storage": (0, (2, 2), (1 << 40, 1), 4),
    "stride_zero_of_a_terabyte": (0, (1 << 38,), (0,), 4),
    "negative_size": (0, (-1,), (1,), 4),
    "product_that_overflows": (0, (1 << 33, 1 << 33), (0, 0), 4),
    "storage_of_a_terabyte": (0, (4,), (1,), 1 << 38),
    "many_dimensions": (0, (1,) * 100, (1,) * 100, 4),
}
for kind, (offset, size, stride, numel) in TENSOR_LIES.items():
    add(
        f"tensor_{kind}",
        lambda w, a=(offset, size, stride, numel): w.weights(
            in_archive(tensor_pickle(*a), **{"archive/data/0": bytes(16)})
        ),
    )
for kind in ("ComplexFloat", "QInt8", "Untyped", "NoSuch"):
    add(
        f"tensor_of_{kind.lower()}",
        lambda w, k=kind: w.weights(
            in_archive(tensor_pickle(0, (2,), (1,), 2, k), **{"archive/data/0": bytes(16)})
        ),
    )


@case
def sparse_tensor(w: CaseFolder) -> None:
    state = w.state()
    w.weights(saved(w, {"model": state | {KEY: state[KEY].to_sparse()}}))


@case
def quantized_tensor(w: CaseFolder) -> None:
    quantized = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    w.weights(saved(w, {"model": w.state() | {KEY: quantized}}))


@case
def tensor_without_values(w: CaseFolder) -> None:
    state = w.state()
    w.weights(saved(w, {"model": state | {KEY: torch.empty_like(state[KEY], device="meta")}}))


@case
def shapes_of_another_model(w: CaseFolder) -> None:
    w.weights(saved(w, {"model": w.state() | {KEY: torch.zeros(5)}}))


@case
def a_tensor_too_many(w: CaseFolder) -> None:
    w.weights(saved(w, {"model": w.state() | {"backdoor\x1b[31m\n<b>": torch.zeros(5)}}))


@case
def a_name_of_a_megabyte(w: CaseFolder) -> None:
    w.weights(saved(w, {"model": w.state() | {"x" * (1 << 20): torch.zeros(5)}}))


@case
def no_tensors(w: CaseFolder) -> None:
    w.weights(saved(w, {"model": collections.OrderedDict()}))


# Archives that readers understand in two ways -----------------------------------------------------


def first_tensor(more: bytes = b"", kind: bytes = b"FloatStorage", **parts: bytes) -> bytes:
    """A pickle of one tensor of four numbers, some parts of it as given.

    Args:
        more: further arguments of the function that rebuilds it.
        kind: the type of its storage.
        parts: ``name``, ``key``, ``place`` and ``view`` of the storage; ``grad`` and ``hooks``.
    """
    part = {
        "name": unicode_("storage"), "key": unicode_("0"), "place": unicode_("cpu"), "view": b"",
        "grad": b"\x89", "hooks": b"ccollections\nOrderedDict\n)R",
    } | parts  # fmt: skip
    storage = (
        b"(" + part["name"] + b"ctorch\n" + kind + b"\n" + part["key"] + part["place"] + b"K\x04"
        + part["view"] + b"tQ"
    )  # fmt: skip
    return (
        b"\x80\x02}" + unicode_("model") + b"}" + unicode_("w")
        + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00K\x04\x85K\x01\x85"
        + part["grad"] + part["hooks"] + more + b"tRss."
    )  # fmt: skip


def with_first_tensor(**parts: bytes) -> bytes:
    """An archive of :func:`first_tensor`, whose numbers are 0, 1, 2, 3."""
    data = np.arange(4, dtype="f4").tobytes()
    return in_archive(first_tensor(**parts), **{"archive/data/0": data})


def dressed(attributes: bytes) -> bytes:
    """An archive whose state dict is an ordered dictionary with these attributes."""
    tensor = first_tensor()[2 + 1 + len(unicode_("model")) :][:-2]
    pickled = (
        b"\x80\x02}" + unicode_("model") + b"ccollections\nOrderedDict\n)R"
        + tensor[1:] + attributes + b"bs."
    )  # fmt: skip
    data = np.arange(4, dtype="f4").tobytes()
    return in_archive(pickled, **{"archive/data/0": data})


def small_archive(**tensors: torch.Tensor) -> bytearray:
    """What ``torch.save`` writes for a state dict."""
    stream = io.BytesIO()
    torch.save({"model": tensors or {"w": torch.arange(4.0)}}, stream)
    return bytearray(stream.getvalue())


def with_record(name: str, content: bytes) -> bytes:
    """A small archive, written by Python, with another record."""
    members = members_of(bytes(small_archive()))
    computed = ("archive/.format_version", "archive/.storage_alignment")
    members = {k: v for k, v in members.items() if k not in computed}
    return archive(members | {f"archive/{name}": content})


def with_folder(name: str) -> bytes:
    """A small archive whose folder has another name."""
    members = {
        name + member.removeprefix("archive"): content
        for member, content in members_of(with_record("byteorder", b"little")).items()
    }
    return archive(members)


def as_a_folder() -> bytes:
    """An archive whose numbers PyTorch does not read, since their member says it is a folder."""
    content = small_archive()
    content[content.find(b"archive/data/0", content.find(b"PK\x01\x02")) - 8] |= 0x10
    return bytes(content)


def with_null_in_a_name() -> bytes:
    """An archive whose storage has a name that Python cuts off, and PyTorch does not."""
    content = archive(members_of(with_record("byteorder", b"little")) | {"archive/data/0x": b""})
    return content.replace(b"archive/data/0x", b"archive/data/0\0")


def with_swapped_storages() -> bytes:
    """An archive whose storages PyTorch finds in another order if it computes where they are."""
    content = bytes(small_archive(a=torch.zeros(4), b=torch.ones(4)))
    for one, other in ((b"data/0", b"data/x"), (b"data/1", b"data/0"), (b"data/x", b"data/1")):
        content = content.replace(one, other)
    return content


def with_a_gap() -> bytes:
    """An archive with bytes between the last member and the directory."""
    content = small_archive()
    start = content.find(b"PK\x01\x02")
    content = content[:start] + b"x" * 8 + content[start:]
    for place, layout in ((-42 - 56 + 48, "<Q"), (-42 + 8, "<Q"), (-6, "<I")):
        old = struct.unpack_from(layout, content, len(content) + place)[0]
        struct.pack_into(layout, content, len(content) + place, old + 8)
    return bytes(content)


def with_end_elsewhere() -> bytes:
    """An archive whose locator leads to another end than the one beside it."""
    content = small_archive()
    struct.pack_into("<Q", content, len(content) - 42 + 8, 0)
    return bytes(content)


def with_other_descriptor() -> bytes:
    """An archive that says one size of a member in its directory, and another one behind it."""
    content = small_archive()
    content[content.find(b"PK\x07\x08") + 8] ^= 1
    return bytes(content)


def archives_read_in_two_ways() -> dict[str, tuple[bytes, str]]:
    """PyTorch archives that are one thing to some readers, and another to others.

    Each comes with words of its refusal.
    """
    versions = b"}" + unicode_("_metadata") + b"}" + unicode_("") + b"}"
    assign = unicode_("assign_to_params_buffers") + b"\x88s"
    heuristics = pickle.dumps({"model": {}, "matching_heuristics": 1}, 2)
    unknown = "holds .*, which PyTorch does not write"
    return {
        "negated_tensor": (
            with_first_tensor(more=b"}" + unicode_("neg") + b"\x88s"), "to be negated"
        ),
        "tensor_with_hooks": (
            with_first_tensor(hooks=b"ccollections\nOrderedDict\n)RK\x00Ns"), "with hooks"
        ),
        "tensor_with_a_list_of_hooks": (with_first_tensor(hooks=b"]"), "with hooks"),
        "tensor_with_a_gradient_of_one": (with_first_tensor(grad=b"K\x01"), "with hooks"),
        "storage_without_numbers": (with_first_tensor(place=unicode_("meta")), "name or place"),
        "storage_numbered": (with_first_tensor(key=b"K\x00"), "name or place"),
        "storage_in_part": (with_first_tensor(view=b"N"), "no storage"),
        "storage_that_is_a_type": (with_first_tensor(kind=b"float32"), "type float32"),
        "text_of_python_2": (with_first_tensor(name=b"U\x07storage"), "opcode SHORT_BINSTRING"),
        "dictionary_with_a_method": (
            dressed(b"}" + unicode_("pop") + b"ccollections\nOrderedDict\ns"), "sets attributes"
        ),
        "dictionary_with_a_method_beside_metadata": (
            dressed(versions + b"ss" + unicode_("get") + b"Ns"), "sets attributes"
        ),
        "dictionary_with_two_states": (
            dressed(versions + b"ssb" + versions + b"ss"), "OrderedDictionary twice"
        ),
        "metadata_that_say_more": (dressed(versions + assign + b"ss"), "more than the modules"),
        "metadata_that_are_a_list": (
            dressed(b"}" + unicode_("_metadata") + b"]s"), "are no dictionary"
        ),
        "protocol_4": (in_archive(pickle.dumps({}, 4)), "a pickle of protocol 4"),
        "data_behind_the_pickle": (in_archive(first_tensor() + b"N."), "bytes follow"),
        "heuristics_that_are_no_truth": (in_archive(heuristics), "neither true nor false"),
        "big_endian": (with_record("byteorder", b"big"), "byteorder says 'big'"),
        "format_of_the_future": (with_record("version", b"11\n"), "version says"),
        "second_version": (with_record(".data/version", b"3\n"), unknown),
        "debug_pickle": (with_record("data/0.debug_pkl", b"N."), unknown),
        "storage_of_nothing": (with_record("data/7", bytes(4)), "storages that no tensor has"),
        "folder_without_a_name": (with_folder(""), "folder in its zip archive has no name"),
        "folder_with_a_newline": (with_folder("a\nb"), "folder in its zip archive has no name"),
        "member_that_is_a_folder": (as_a_folder(), "calls a member a folder"),
        "null_in_a_name": (with_null_in_a_name(), unknown),
        "swapped_storages": (with_swapped_storages(), "not where PyTorch puts them"),
        "gap": (with_a_gap(), "lists other members than it holds"),
        "comment": (bytes(small_archive()[:-2]) + b"\x01\x00x", "data behind its end"),
        "end_elsewhere": (with_end_elsewhere(), "two ends of its zip archive"),
        "other_descriptor": (with_other_descriptor(), "contradicts the directory"),
    }  # fmt: skip


for kind in archives_read_in_two_ways():
    add(
        f"zip_read_in_two_ways_{kind}",
        lambda w, k=kind: w.weights(archives_read_in_two_ways()[k][0]),
    )


# Zoo pickles --------------------------------------------------------------------------------------


def zoo(arrays: Mapping[str, object], protocol: int = 4) -> bytes:
    """A zoo pickle of these arrays."""
    arrays = {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in arrays.items()}
    return pickle.dumps({"model": arrays, "__author__": "someone"}, protocol)


class Matrix(np.ndarray):
    """A subclass of an array."""


ARRAYS = {
    "of_objects": np.array([{}, []], dtype=object),
    "of_records": np.zeros(2, [("a", "f4"), ("b", "O")]),
    "of_void": np.zeros(2, "V8"),
    "of_text": np.array(["x" * 1000]),
    "of_dates": np.array(["2020-01-01"], "M8[D]"),
    "of_complex_numbers": np.zeros(2, "c8"),
    "of_long_doubles": np.zeros(2, "f16"),
    "of_a_subclass": np.zeros(2).view(Matrix),
}
for kind, array in ARRAYS.items():
    add(
        f"zoo_array_{kind}",
        lambda w, a=array: w.weights(zoo({"w": a}), "model_final.pkl"),
    )


def array_pickle(code: str, shape: bytes, data: bytes) -> bytes:
    """An array that says of itself what the arguments say."""
    dtype = b"cnumpy\ndtype\n(" + unicode_(code) + b"K\x00K\x01tR(K\x03" + unicode_("<")
    dtype += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR"
    array += b"(K\x01" + shape + dtype + b"\x89" + data + b"tb"
    return (
        b"\x80\x03}(" + unicode_("model") + b"}" + unicode_("w") + array + b"s"
        + unicode_("__author__") + unicode_("x") + b"u."
    )  # fmt: skip


ARRAY_LIES = {
    "shape_of_a_terabyte": ("f4", LONG + b"\x85", b"C\x04abcd"),
    "negative_shape": ("f4", b"J\xff\xff\xff\xff\x85", b"C\x04abcd"),
    "product_that_overflows": ("f4", LONG + LONG + LONG + b"\x87", b"C\x04abcd"),
    "too_few_bytes": ("f4", b"K\x09\x85", b"C\x04abcd"),
    "items_of_a_gigabyte": ("V1000000000", b"K\x01\x85", b"C\x04abcd"),
    "list_of_values": ("f4", b"K\x01\x85", b"]"),
    "name_of_a_type": ("cos\nsystem", b"K\x01\x85", b"C\x04abcd"),
}
for kind, (code, shape, data) in ARRAY_LIES.items():
    add(
        f"zoo_array_{kind}",
        lambda w, a=(code, shape, data): w.weights(array_pickle(*a), "model_final.pkl"),
    )


@case
def zoo_bytes_encoded_again_and_again(w: CaseFolder) -> None:
    # Each GET and REDUCE makes another megabyte of what the file holds once.
    text = unicode_("x" * (1 << 20)) + b"q\x00"
    again = b"c_codecs\nencode\n(h\x00" + unicode_("latin1") + b"tR"
    w.weights(
        b"\x80\x02" + text.replace(b"q\x000", b"q\x00") + again * 5000 + b".", "model_final.pkl"
    )


@case
def zoo_state_of_an_array_type(w: CaseFolder) -> None:
    content = array_pickle("f4", b"K\x01\x85", b"C\x04abcd").replace(b"NNNJ", b"}NNJ", 1)
    w.weights(content, "model_final.pkl")


@case
def zoo_names_that_no_pattern_fits(w: CaseFolder) -> None:
    arrays = {"fpn_inner_x": np.zeros(1, "f4"), "fpn_res": np.zeros(1, "f4")}
    w.weights(pickle.dumps({"blobs": arrays}), "model_final.pkl")


# Zoo pickles that readers understand in two ways --------------------------------------------------


def honest_zoo(protocol: int = 4) -> bytes:
    """A zoo pickle with one array."""
    return zoo({"w": np.arange(6, dtype="f4")}, protocol)


def frame(content: bytes) -> bytes:
    """FRAME around this content."""
    return b"\x95" + struct.pack("<Q", len(content)) + content


def without_frames(content: bytes) -> bytes:
    """The opcodes of a pickle as one sees them who ignores frames."""
    positions = [p for opcode, _, p in pickletools.genops(content) if opcode.name == "FRAME"]
    for position in reversed(positions):
        content = content[:position] + content[position + 9 :]
    return content


def frame_that_cuts_a_text(canary: Path) -> bytes:
    """A zoo pickle that runs code in the C unpickler, and none in one that ignores frames.

    The C unpickler forgets the five bytes of the text that are left in the frame, reads as many
    too much behind it, and so goes on five bytes later: inside of what others take for bytes.
    """
    padding = unicode_("p" * 20_000) + b"N"  # short frames are not read apart
    code = short("builtins") + short("open") + b"\x93" + short(str(canary)) + short("w")
    # Behind the code, the bytes are an honest pickle to its end.
    body = honest_zoo()[2 + 9 + 3 : -1]
    content = (code + b"\x86RN" + body + b".").ljust(0x441, b".")
    return (
        b"\x80\x04" + frame(b"}\x94(" + padding + short("x") + b"X\x10\x00\x00\x00" + b"A" * 5)
        + b"A" * 11 + b"B" + struct.pack("<I", len(content)) + content + b"N" + body + b"."
    )  # fmt: skip


def changed_once(content: bytes, old: bytes, new: bytes) -> bytes:
    """``content`` with the only ``old`` in it replaced."""
    assert content.count(old) == 1
    return content.replace(old, new)


def two_readings(canary: Path) -> dict[str, tuple[bytes, str]]:
    """Zoo pickles that are honest weights to some readers, and something else to others.

    Each comes with words of its refusal.
    """
    framed = honest_zoo()
    inner = framed[11:]  # without PROTO and FRAME
    honest, python3 = framed[:2] + inner, honest_zoo(3)
    code = opcode_families(canary)["global_reduce"]
    type_, state = b"\x89\x88\x87", b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t"

    def with_type(changed: bytes) -> bytes:
        return changed_once(honest, type_, changed)

    def with_state(changed: bytes) -> bytes:
        return changed_once(honest, state, changed)

    def with_order(order: str) -> bytes:
        return changed_once(honest, short("<"), short(order))

    plain = "no plain number"
    return {
        "frame_that_cuts_a_text": (frame_that_cuts_a_text(canary), "a frame .* ends inside"),
        "frame_that_cuts_an_opcode": (framed[:2] + frame(inner[:6]) + inner[6:], "ends inside"),
        "frames_that_nest": (framed[:2] + frame(frame(inner)), "frames of its pickle nest"),
        "frame_of_nothing": (framed[:2] + frame(b"") + inner, "frames of its pickle nest"),
        "frame_beyond_the_end": (
            framed[:3] + struct.pack("<Q", len(inner) + 1) + inner, "reach beyond its end"
        ),
        "frame_with_more": (framed[:2] + frame(inner + b"N"), "1 bytes follow the end"),
        "code_behind_the_end": (framed + code, "bytes follow the end"),
        "weights_behind_the_end": (framed + framed, "bytes follow the end"),
        "no_protocol": (inner, "not a pickle of protocol"),
        "protocol_in_the_middle": (python3[:-1] + b"\x80\x02.", "opcode PROTO"),
        "protocol_of_the_future": (b"\x80\x06" + honest[2:], "a pickle of protocol 6"),
        "opcode_of_a_newer_protocol": (b"\x80\x03" + inner, "none of its protocol 3"),
        "opcode_of_an_older_protocol": (b"\x80\x04" + python3[2:], "none of its protocol 4"),
        "memo_numbered_twice": (python3.replace(b"q\x02", b"q\x01", 1), "in no order"),
        "memo_numbered_from_seven": (b"\x80\x03]q\x07" + python3[2:], "in no order"),
        "memo_of_a_million": (b"\x80\x03Nr\x40\x42\x0f\x00" + python3[2:], "in no order"),
        "text_with_escapes": (b"\x80\x02S'a\\x00'\n.", "opcode STRING"),
        "number_as_text": (b"\x80\x02I01\n.", "opcode INT"),
        "float_as_text": (b"\x80\x02F1_0.0\n.", "opcode FLOAT"),
        "number_with_a_long_length": (b"\x80\x02\x8b\x01\x00\x00\x00\x05.", "opcode LONG4"),
        "buffer_from_elsewhere": (b"\x80\x05\x97.", "opcode NEXT_BUFFER"),
        "popped_value": (b"\x80\x04N0" + honest[2:], "opcode POP"),
        "value_taken_twice": (b"\x80\x042" + honest[2:], "opcode DUP"),
        "array_type_with_flags": (with_state(state.replace(b"K\x00", b"K\x3f")), plain),
        "array_type_with_a_size": (
            with_state(state.replace(b"J\xff\xff\xff\xff", b"J\x08\x00\x00\x00", 1)), plain
        ),
        "array_type_with_fields": (with_state(state.replace(b"NNN", b"NN}")), plain),
        "array_type_with_metadata": (with_state(state[:-1] + b"}t"), plain),
        "array_type_of_numpy_itself": (with_type(b"\x89\x89\x87"), plain),
        "array_type_aligned": (with_type(b"\x88\x88\x87"), plain),
        "array_type_without_an_order": (with_order("|"), plain),
        "array_type_in_native_order": (with_order("="), plain),
        "array_type_without_a_state": (
            honest.replace(b"(K\x03" + short("<") + b"\x94" + state + b"\x94b", b""),
            "without byte order",
        ),
        "array_type_with_two_states": (
            changed_once(honest, state + b"\x94b", state + b"\x94bh\x15b"), "twice"
        ),
        "array_of_a_shape_before_its_state": (
            changed_once(honest, b"K\x00\x85", b"K\x09\x85"), "a shape of its own"
        ),
        "array_state_of_another_version": (
            changed_once(honest, b"(K\x01K\x06", b"(K\x02K\x06"), "without shape, type or bytes"
        ),
        "array_without_a_state": (
            honest[: honest.index(b"(K\x01K\x06")] + honest[honest.rindex(b"t\x94b") + 3 :],
            "a type that no detector has",
        ),
        "name_cut_elsewhere": (
            changed_once(
                changed_once(honest, short("numpy._core.multiarray"), short("numpy._core")),
                short("_reconstruct"), short("multiarray._reconstruct"),
            ), "asks for more than tensors",
        ),
        "heuristics_that_are_no_truth": (
            pickle.dumps(
                {"model": {"w": np.ones(1)}, "__author__": "x", "matching_heuristics": "False"}
            ), "neither true nor false",
        ),
    }  # fmt: skip


for kind in two_readings(PLACEHOLDER):
    add(
        f"zoo_read_in_two_ways_{kind}",
        lambda w, k=kind: w.weights(two_readings(w.canary)[k][0], "model_final.pkl"),
    )


# safetensors --------------------------------------------------------------------------------------


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: str = "F32", shape: tuple = (1,), offsets: tuple = (0, 4)) -> dict:
    """A tensor in the header of a safetensors file."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


SAFETENSORS = {
    "empty": b"",
    "header_of_an_exabyte": safetensors({}, length=1 << 60),
    "header_beyond_the_file": safetensors({"w": entry()}, bytes(4), length=5000),
    "header_that_is_no_json": safetensors(b"{" * 5000),
    "header_nested_deep": safetensors(b'{"w":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "no_tensors": safetensors({}),
    "shape_lies": safetensors({"w": entry(shape=(1 << 40,))}, bytes(4)),
    "product_that_overflows": safetensors({"w": entry(shape=(1 << 40, 1 << 40))}, bytes(4)),
    "offsets_beyond_the_file": safetensors({"w": entry(offsets=(0, 4000))}, bytes(4)),
    "offsets_that_overlap": safetensors({"a": entry(), "b": entry()}, bytes(4)),
    "offsets_with_a_gap": safetensors({"a": entry(), "b": entry(offsets=(8, 12))}, bytes(12)),
    "negative_offsets": safetensors({"a": entry(offsets=(-4, 0))}, bytes(4)),
    "name_twice": safetensors(
        json.dumps({"a": entry()})[:-1].encode() + b", " + json.dumps({"a": entry()})[1:].encode(),
        bytes(4),
    ),
    "type_unknown": safetensors({"a": entry("PICKLE")}, bytes(4)),
    "type_of_no_detector": safetensors({"a": entry("F8_E4M3", (4,))}, bytes(4)),
    "data_behind_the_end": safetensors({"a": entry()}, bytes(4000)),
    "pickle_inside": b"\x80\x02N.",
}
for kind, content in SAFETENSORS.items():
    add(
        f"safetensors_{kind}",
        lambda w, c=content: w.weights(c, "model_final.safetensors"),
    )


@case
def safetensors_truncated(w: CaseFolder) -> None:
    w.honest("model_final.pth")
    path = w.folder / "model_final.safetensors"
    save_file(w.state(), path)
    path.write_bytes(path.read_bytes()[:-100])


# Configs ------------------------------------------------------------------------------------------

_RCNN = "detectron2.modeling.GeneralizedRCNN"
_PIXELS = "pixel_mean: [0, 0, 0], pixel_std: [1, 1, 1], proposal_generator: null, roi_heads: null"
YAML = {
    "apply": "!!python/object/apply:os.system ['touch {canary}']",
    "apply_open": "MODEL: !!python/object/apply:builtins.open ['{canary}', 'w']",
    "new": "MODEL: {{W: !!python/object/new:subprocess.Popen [['touch', '{canary}']]}}",
    "object": "MODEL: !!python/object:subprocess.Popen {{args: touch}}",
    "name": "VERSION: !!python/name:os.system",
    "module": "VERSION: !!python/module:antigravity",
    "eval": 'MODEL: {{X: !!python/object/apply:eval [\'open("{canary}", "w")\']}}',
    "tag_directive": "%TAG ! tag:yaml.org,2002:python/\n---\nX: !object/apply:os.system [ls]",
    "literal": "MODEL: {{RPN: {{NMS_THRESH: \"__import__('os').system('touch {canary}')\"}}}}",
    "billion_laughs": "\n".join(
        ["a0: &a0 [1,1,1,1,1,1,1,1,1]"]
        + [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 20)]
    ),
    "billion_merges": "\n".join(
        ["a0: &a0 {{x0: 1}}"]
        + [
            f"a{i}: &a{i} {{{{<<: [{','.join([f'*a{i - 1}'] * 9)}], x{i}: 1}}}}"
            for i in range(1, 20)
        ]
    ),
    "contains_itself": "MODEL: &m {{RPN: *m}}",
    "nested_deep": "a: " + "[" * 20_000,
    "sexagesimal": "VERSION: " + "1:" * 100_000 + "1",
    "huge_number": "MODEL: {{ROI_HEADS: {{NUM_CLASSES: " + "9" * 5000 + "}}}}",
    "huge_hexadecimal": "MODEL: {{ROI_HEADS: {{NUM_CLASSES: 0x" + "f" * 900 + "}}}}",
    "two_megabytes": "a: " + "x" * (2 << 20),
    "lazy_config": "model: {{_target_: os.system, command: 'touch {canary}'}}",
    **{
        f"lazy_part_{kind}": f"model: {{{{_target_: {_RCNN}, backbone: {part}, {_PIXELS}}}}}"
        for kind, part in {
            "system": "{{_target_: os.system, command: 'touch {canary}'}}",
            "eval": "{{_target_: builtins.eval, source: \"open('{canary}', 'w')\"}}",
            "load": "{{_target_: torch.load, f: model_final.pth, weights_only: false}}",
            "hub": "{{_target_: torch.hub.load, repo_or_dir: '/tmp', model: m, source: local}}",
            "import_through_a_module": (
                "{{_target_: detectron2.modeling.meta_arch.rcnn.np.fromfile, file: '{canary}'}}"
            ),
            "dunder": "{{_target_: detectron2.layers.ShapeSpec.__init__.__globals__}}",
            "instantiate": (
                "{{_target_: detectron2.config.instantiate, cfg: {{_target_: os.getpid}}}}"
            ),
            "partial": (
                "{{_target_: functools.partial, _args_: [os.system, 'touch {canary}'], "
                "_partial_: 1}}"
            ),
            "target_is_a_target": "{{_target_: {{_target_: os.system}}, command: x}}",
            "target_is_a_list": "{{_target_: [os.system], command: x}}",
            "name": "{{_name_: os.system}}",
            "environment": "${{oc.env:HOME}}",
            "itself": "${{model.backbone}}",
            "far_above": "${{....................x}}",
            "python_name": "!!python/name:os.system ''",
            "python_object": "!!python/object:os.PathLike {{a: 1}}",
            "python_apply": "!!python/object/apply:os.system ['touch {canary}']",
            "a_million_blocks": (
                "{{_target_: detectron2.modeling.ResNet.make_default_stages, depth: 1000000}}"
            ),
        }.items()
    },
    # A list of ten references to a list of ten references, and so on: 10 to the 18th values.
    "lazy_references_that_grow": "\n".join(
        [
            "model: {{_target_: detectron2.modeling.RetinaNet, a: '${{x0}}'}}",
            *(f"x{i}: [" + ", ".join(["'${{" + f"x{i + 1}" + "}}'"] * 10) + "]" for i in range(18)),
            "x18: 1",
        ]
    ),
    "lazy_without_a_model": "train: {{_target_: os.system, command: 'touch {canary}'}}",
    "lazy_in_a_plain_config": 'MODEL: {{DESCRIPTION: \'{{"_target_": "os.system"}}\'}}',
    "base_passwd": "_BASE_: /etc/passwd",
    "base_parents": "_BASE_: ../../../../../../../../etc/passwd",
    "base_home": "_BASE_: ~/.ssh/id_rsa",
    "base_url": "_BASE_: http://localhost:9/Base.yaml",
    "base_itself": "_BASE_: config.yaml",
    "base_python": "_BASE_: evil.py",
    "base_of_the_zoo": "_BASE_: ../Base-RCNN-FPN.yaml",
    "base_of_the_zoo_elsewhere": "_BASE_: /srv/detectron2/configs/Base-RCNN-FPN.yaml",
    "base_of_mappings": "_BASE_: {{a: b}}",
    "null_byte": '_BASE_: "a\\0b"',
    "not_a_mapping": "[1, 2]",
    "unknown_keys": 'MODEL: {{"\\e[31m<script>": 1}}',
    "other_types": "MODEL: {{ROI_HEADS: [1]}}",
}
for kind, text in YAML.items():
    add(f"yaml_{kind}", lambda w, t=text: w.config(t.format(canary=w.canary)))
add("yaml_utf16", lambda w: w.config("MODEL: {}".encode("utf-16")))
add("yaml_binary", lambda w: w.config(bytes(range(256))))
add("yaml_empty", lambda w: w.config(""))
add("yaml_archive", lambda w: w.config(torchscript()))


@case
def base_through_a_link(w: CaseFolder) -> None:
    w.config("_BASE_: base.yaml")
    (w.folder / "base.yaml").symlink_to("/etc/passwd")


@case
def base_through_a_linked_folder(w: CaseFolder) -> None:
    w.config("_BASE_: there/passwd")
    (w.folder / "there").symlink_to("/etc")


@case
def base_is_a_pipe(w: CaseFolder) -> None:
    w.config("_BASE_: base.yaml")
    os.mkfifo(w.folder / "base.yaml")


@case
def bases_in_a_circle(w: CaseFolder) -> None:
    w.config("_BASE_: a.yaml")
    (w.folder / "a.yaml").write_text("_BASE_: [b.yaml, b.yaml]")
    (w.folder / "b.yaml").write_text("_BASE_: [a.yaml, a.yaml]")


SIZES = {
    "a_billion_classes": lambda m: m["MODEL"]["ROI_HEADS"].update(NUM_CLASSES=10**9),
    "more_than_the_weights": lambda m: m["MODEL"]["ROI_HEADS"].update(NUM_CLASSES=90_000),
    "a_billion_neurons": lambda m: m["MODEL"]["ROI_BOX_HEAD"].update(FC_DIM=10**9),
    "a_million_layers": lambda m: m["MODEL"]["ROI_BOX_HEAD"].update(NUM_CONV=10**6),
    "wide_layers": lambda m: m["MODEL"]["ROI_BOX_HEAD"].update(FC_DIM=65_536, NUM_FC=30),
    "a_million_blocks": lambda m: m["MODEL"]["TINY_RESNET"].update(BLOCKS=[10**6, 1, 1, 1]),
    "a_million_pixels": lambda m: m["INPUT"].update(MIN_SIZE_TEST=10**6, MAX_SIZE_TEST=10**6),
    "a_billion_proposals": lambda m: m["MODEL"]["RPN"].update(POST_NMS_TOPK_TEST=10**9),
    "a_million_anchors": lambda m: m["MODEL"]["ANCHOR_GENERATOR"].update(SIZES=[[8] * 1000] * 1000),
    "a_large_pooler": lambda m: m["MODEL"]["ROI_BOX_HEAD"].update(POOLER_RESOLUTION=10**5),
    "infinite_threshold": lambda m: m["MODEL"]["RPN"].update(NMS_THRESH=float("inf")),
    "negative_channels": lambda m: m["MODEL"]["FPN"].update(OUT_CHANNELS=-5),
}  # fmt: skip
for kind, change in SIZES.items():
    add(f"config_asks_for_{kind}", lambda w, c=change: w.changed(c))

NAMES = {
    "meta_architecture": lambda m: m.update(META_ARCHITECTURE="os.system"),
    "backbone": lambda m: m["BACKBONE"].update(NAME="__import__"),
    "anchor_generator": lambda m: m["ANCHOR_GENERATOR"].update(NAME="RotatedAnchorGenerator\n"),
    "rpn_head": lambda m: m["RPN"].update(HEAD_NAME="eval"),
    "box_head": lambda m: m["ROI_BOX_HEAD"].update(NAME="exec"),
    "norm": lambda m: m["FPN"].update(NORM="__class__"),
    "pooler": lambda m: m["ROI_BOX_HEAD"].update(POOLER_TYPE="open"),
    "device": lambda m: m.update(DEVICE="lazy:0"),
}
for kind, change in NAMES.items():
    add(f"config_names_a_strange_{kind}", lambda w, c=change: w.changed(lambda m: c(m["MODEL"])))


@case
def python_config(w: CaseFolder) -> None:
    w.honest("config.yaml")
    (w.folder / "config.py").write_text(f"open({str(w.canary)!r}, 'w')")


@case
def python_file_by_name(w: CaseFolder) -> Path:
    path = w.folder / "model.py"
    path.write_text(f"open({str(w.canary)!r}, 'w')")
    return path


# Places -------------------------------------------------------------------------------------------


@case
def weights_are_a_pipe(w: CaseFolder) -> None:
    w.honest("model_final.pth")
    os.mkfifo(w.folder / "model_final.pth")


@case
def config_is_a_pipe(w: CaseFolder) -> None:
    w.honest("config.yaml")
    os.mkfifo(w.folder / "config.yaml")


@case
def weights_are_a_folder(w: CaseFolder) -> None:
    w.honest("model_final.pth")
    (w.folder / "model_final.pth").mkdir()


@case
def weights_are_a_socket(w: CaseFolder) -> None:
    w.honest("model_final.pth")
    before = os.getcwd()
    os.chdir(w.folder)  # the whole path would be too long for a socket
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("model_final.pth")
    finally:
        os.chdir(before)


@case
def weights_are_an_endless_device(w: CaseFolder) -> None:
    w.honest("model_final.pth")
    (w.folder / "model_final.pth").symlink_to("/dev/zero")


@case
def config_is_an_endless_device(w: CaseFolder) -> None:
    w.honest("config.yaml")
    (w.folder / "config.yaml").symlink_to("/dev/zero")


@case
def config_is_a_secret_elsewhere(w: CaseFolder) -> None:
    w.honest("config.yaml")
    (w.folder / "config.yaml").symlink_to("/etc/passwd")


@case
def weights_link_to_themselves(w: CaseFolder) -> None:
    w.honest("model_final.pth")
    (w.folder / "model_final.pth").symlink_to("model_final.pth")


@case
def folders_link_in_a_circle(w: CaseFolder) -> None:
    (w.folder / "a").mkdir()
    (w.folder / "a" / "b").symlink_to(w.folder)
    (w.folder / "a" / "c").symlink_to("c")


@case
def last_checkpoint_leads_away(w: CaseFolder) -> None:
    w.honest("model_final.pth")
    (w.folder / "last_checkpoint").write_text("../../../../../../etc/passwd")


@case
def last_checkpoint_is_noise(w: CaseFolder) -> None:
    w.honest("model_final.pth")
    (w.folder / "last_checkpoint").write_bytes(bytes(range(256)) * 1000)


@case
def last_checkpoint_is_a_secret_elsewhere(w: CaseFolder) -> None:
    w.honest("model_final.pth")
    (w.folder / "last_checkpoint").symlink_to("/etc/passwd")


@case
def last_checkpoint_of_a_terabyte(w: CaseFolder) -> None:
    w.honest("model_final.pth")
    with open(w.folder / "last_checkpoint", "wb") as stream:
        stream.truncate(1 << 40)


@case
def link_to_nothing(w: CaseFolder) -> None:
    (w.folder / "notes").symlink_to("gone")


@case
def link_whose_target_is_too_long(w: CaseFolder) -> None:
    (w.folder / "notes").symlink_to("n" * 300)


@case
def weights_of_100_gigabytes_that_are_not_there(w: CaseFolder) -> None:
    w.honest("model_final.pth")
    with open(w.folder / "model_final.pth", "wb") as stream:
        stream.truncate(100 << 30)


NAMES_OF_WEIGHTS = {
    "query": "model_final.pth?dl=1",
    "tar": "model_best.pth.tar",
    "bin": "pytorch_model.bin",
    "ckpt": "epoch=3.ckpt",
    "capitals": "MODEL.PTH",
    "picture": "photo.jpg",
    "nothing": "weights",
}
for kind, name in NAMES_OF_WEIGHTS.items():
    add(
        f"weights_named_with_{kind}_without_a_config",
        lambda w, n=name: shutil.copyfile(w.good / "model_final.pth", w.folder / n) and None,
    )


@case
def weights_in_an_archive(w: CaseFolder) -> None:
    w.honest("model_final.pth")
    (w.folder / "download.zip").write_bytes(archive({"run/model_final.pth": b"..."}))


@case
def weights_in_a_tar_archive(w: CaseFolder) -> None:
    w.honest("model_final.pth")
    with tarfile.open(w.folder / "download.tar", "w") as file:
        file.add(w.good / "model_final.pth", "run/model_final.pth")


@case
def weights_in_a_compressed_archive(w: CaseFolder) -> None:
    w.honest("model_final.pth")
    with tarfile.open(w.folder / "download.tar.gz", "w:gz") as file:
        file.add(w.good / "model_final.pth", "run/model_final.pth")


@case
def weights_named_as_a_config(w: CaseFolder) -> None:
    shutil.copyfile(w.good / "model_final.pth", w.folder / "config.yaml")


@case
def weights_named_as_a_marker(w: CaseFolder) -> None:
    shutil.copyfile(w.good / "model_final.pth", w.folder / "last_checkpoint")


@case
def onnx_beside_a_config(w: CaseFolder) -> None:
    w.honest("model_final.pth")
    (w.folder / "model.onnx").write_bytes(b"\x08\x07\x12\x07pytorch")


PLACES = {
    "html": "<img src=x onerror=alert(1)>&quot;",
    "terminal": "\x1b[31mred\x1b]0;title\x07",
    "newline": "two\nlines\r\n",
    "no_utf8": os.fsdecode(b"caf\xe9\xff"),
    "direction": "\u202egpj.evil",
    "long": "n" * 250,
    "shell": "$(touch canary);`id`|&",
    "formula": "=HYPERLINK(1)",
    "dots": "...",
    "spaces": "   ",
}
for kind, name in PLACES.items():

    def place(w: CaseFolder, name: str = name) -> Path:
        folder = w.folder / name
        folder.mkdir()
        shutil.copyfile(w.good / "config.yaml", folder / "config.yaml")
        (folder / "model_final.pth").write_bytes(b"broken")
        return folder

    add(f"place_named_with_{kind}", place)


@case
def place_that_does_not_exist(w: CaseFolder) -> Path:
    return w.folder / "nowhere"
