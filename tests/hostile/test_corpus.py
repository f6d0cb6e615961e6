# SPDX-License-Identifier: Apache-2.0
"""Every hostile checkpoint gets one clear error, and nothing happens."""

from __future__ import annotations

import pickle
import socket
import time

import numpy as np
import pytest
import torch

from d2defense.checkpoint import (
    CheckpointError,
    build_detector,
    find_checkpoints,
    format_sources,
    load_state_dict,
)

pytestmark = [
    # TorchScript and quantized tensors are on their way out of PyTorch; attackers still have them.
    pytest.mark.filterwarnings("ignore:.torch.jit.:FutureWarning"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning"),
]


@pytest.fixture
def no_network(monkeypatch):
    """Make every attempt to open a connection fail the test."""

    def refuse(*arguments, **keywords):
        raise AssertionError("something tried to reach the network")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def errors_of(sources) -> list[CheckpointError]:
    errors = []
    for source in sources:
        if source.error is not None:
            errors.append(source.error)
            continue
        try:
            build_detector(source.weights, source.config, member=source.member)
        except CheckpointError as error:
            errors.append(error)
    return errors


def test_the_corpus_is_large(corpus):
    assert len(corpus.CASES) >= 60


@pytest.mark.parametrize(
    "family",
    ["global_reduce", "stack_global", "inst", "obj", "getattr_chain"],
)
def test_the_payloads_work_where_nobody_takes_care(corpus, canary, family):
    pickle.loads(corpus.opcode_families(canary)[family])
    assert canary.exists()


def test_what_the_c_unpickler_reads_behind_a_cut_frame_is_code(corpus, canary, tmp_path):
    path = tmp_path / "model_final.pkl"
    path.write_bytes(corpus.two_readings(canary)["frame_that_cuts_a_text"][0])
    with path.open("rb") as stream:
        content = pickle.load(stream, encoding="latin1")  # as Detectron2 does
    assert canary.exists()
    assert content["model"]["w"].tolist() == [0, 1, 2, 3, 4, 5]
    canary.unlink()
    # Who ignores frames sees weights alone.
    unframed = corpus.without_frames(path.read_bytes())
    assert pickle.loads(unframed)["model"]["w"].tolist() == [0, 1, 2, 3, 4, 5]
    assert not canary.exists()


def test_what_readers_understand_in_two_ways_is_refused_for_that(corpus, canary, tmp_path):
    for name, cases in {
        "model_final.pkl": corpus.two_readings(canary),
        "model_final.pth": corpus.archives_read_in_two_ways(),
    }.items():
        for kind, (content, reason) in cases.items():
            (tmp_path / name).write_bytes(content)
            with pytest.raises(CheckpointError, match=reason):
                print(kind, load_state_dict(tmp_path / name))
    assert not canary.exists()


def test_archives_are_refused_that_pytorch_reads_with_other_numbers(corpus, tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(corpus.with_first_tensor())
    assert load_state_dict(path)["w"].tolist() == [0, 1, 2, 3]
    for kind, numbers in {
        "negated_tensor": [0, -1, -2, -3],
        "big_endian": np.arange(4, dtype=">f4").view("<f4").tolist(),
    }.items():
        path.write_bytes(corpus.archives_read_in_two_ways()[kind][0])
        assert torch.load(path, weights_only=True)["model"]["w"].tolist() == numbers
        with pytest.raises(CheckpointError):
            load_state_dict(path)


def test_one_clear_error_and_no_side_effect(
    hostile_case, corpus, specimen, canary, tmp_path, monkeypatch, no_network
):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    path = hostile_case(corpus.CaseFolder(folder, canary, specimen("clean_0"))) or folder
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    before = sorted(tmp_path.rglob("*"))
    start = time.process_time()
    sources = find_checkpoints([path])
    errors = errors_of(sources)
    assert time.process_time() - start < 20
    assert not canary.exists()
    assert sorted(tmp_path.rglob("*")) == before
    (error,) = errors
    message = str(error)
    assert message.isprintable()
    assert 20 < len(message) < 900
    assert error.reason
    assert "Traceback" not in message
    assert "root:" not in message  # of /etc/passwd
    assert format_sources(sources).replace("\n", "").isprintable()


@pytest.mark.slow
def test_the_listing_shows_all_of_it(corpus, specimen, canary, tmp_path):
    paths = []
    for name, make in corpus.CASES.items():
        folder = tmp_path / name
        folder.mkdir()
        paths.append(make(corpus.CaseFolder(folder, canary, specimen("clean_0"))) or folder)
    text = format_sources(find_checkpoints(paths))
    assert len(text.splitlines()) >= len(paths)
    assert text.replace("\n", "").isprintable()
    assert not canary.exists()


def test_honest_checkpoints_of_every_kind_are_built(corpus, specimen, canary, tmp_path):
    honest = corpus.CaseFolder(tmp_path, canary, specimen("clean_0"))
    honest.honest("model_final.pth")
    config = tmp_path / "config.yaml"
    for name, content in {
        "zip.pth": corpus.saved(honest),
        "bare.pt": corpus.saved(honest, honest.state()),
        "zoo.pkl": corpus.zoo(honest.state()),
        "zoo2.pkl": corpus.zoo(honest.state(), protocol=2),
        "zoo5.pkl": corpus.zoo(honest.state(), protocol=5),
    }.items():
        (tmp_path / name).write_bytes(content)
        model, _ = build_detector(tmp_path / name, config, "cpu")
        assert (model.state_dict()[corpus.KEY] == honest.state()[corpus.KEY]).all()
