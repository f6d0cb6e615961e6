# SPDX-License-Identifier: Apache-2.0
"""What a pipeline relies on: clean output, resuming, one scan at a time, protection."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import portalocker
import pytest
import torch
from programs import Program

from d2defense.report.results import load_results, validate_result

QUICK = ["--triggers", "white", "--no-figures", "--opts", "DEFENSE.BOOTSTRAP_SAMPLES", "50"]
HERE = ["--isolation", "none"]
# Patience with machines that have other work to do.
PATIENCE = 300.0


@pytest.fixture
def zoo(specimen, tmp_path):
    """A folder of two checkpoints."""
    for name in ("backdoored_0", "clean_0"):
        shutil.copytree(specimen(name), tmp_path / "zoo" / name)
    return tmp_path / "zoo"


def files_below(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def timeless(result: dict) -> dict:
    """A result without what differs from one machine or moment to the next."""
    return {k: v for k, v in result.items() if k not in ("timing", "environment")}


class Scan(Program):
    """A scan in a process of its own."""

    def __init__(self, *arguments: object) -> None:
        super().__init__("scan", "--search", "off", *arguments)

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait for something that happens while the program runs."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end
            assert self.is_running(), self.end()
            time.sleep(0.005)

    def workers(self) -> list[int]:
        """Confined processes below it. Imports may start other programs there."""
        below = children(self.pid)
        for pid in below:
            below += children(pid)
        return [pid for pid in below if is_confined(pid)]


def children(pid: int) -> list[int]:
    try:
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except FileNotFoundError:
        return []


def is_confined(pid: int) -> bool:
    try:
        return "NoNewPrivs:\t1" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def cpu_seconds(pid: int) -> float:
    try:
        numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(map(int, numbers[11:13])) / os.sysconf("SC_CLK_TCK")


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}/cmdline").exists()]


def test_json_alone_on_standard_output(d2defense, zoo, own_data, tmp_path):
    output = tmp_path / "out"
    outcome = d2defense("scan", zoo, *own_data, "--output", output, "--json", "-", *HERE, *QUICK)
    assert outcome.code == 1
    assert json.loads(outcome.out) == json.loads((output / "summary.json").read_text())
    assert "BACKDOORED" in outcome.err
    assert not (output / "clean_0" / "examples.png").exists()
    again = tmp_path / "summary.json"
    outcome = d2defense(
        "scan", zoo, *own_data, "--output", output, "--json", again, "--quiet", *HERE, *QUICK
    )
    assert outcome.out == ""
    assert outcome.err == ""
    assert json.loads(again.read_text()) == json.loads((output / "summary.json").read_text())


def test_list_shows_what_would_be_scanned(d2defense, zoo, tmp_path):
    (tmp_path / "zoo" / "bad\x1b[31m").mkdir()
    content = (zoo / "clean_0" / "model_final.pth").read_bytes()
    (tmp_path / "zoo" / "bad\x1b[31m" / "x.pth").write_bytes(content + b"?")
    outcome = d2defense("scan", zoo, "--list")
    assert outcome.code == 0
    assert str(zoo / "clean_0" / "model_final.pth") in outcome.out
    assert "no config.yaml beside" in outcome.out
    assert "\x1b" not in outcome.out + outcome.err
    listed = json.loads(d2defense("scan", zoo, "--list", "--json", "-").out)["checkpoints"]
    assert [bool(one["error"]) for one in listed] == [False, True, False]
    assert listed[0]["format"] == "pth"
    config = zoo / "clean_0" / "config.yaml"
    listed = json.loads(
        d2defense("scan", zoo, "--list", "--json", "-", "--config-file", config).out
    )["checkpoints"]
    assert [one["error"] for one in listed] == [None] * 3


def test_all_weights_of_a_folder_are_scanned_and_what_cannot_be_is_an_error(
    d2defense, specimen, own_data, tmp_path
):
    folder = tmp_path / "zoo" / "model"
    shutil.copytree(specimen("clean_0"), folder)
    shutil.copy(specimen("backdoored_0") / "model_final.pth", folder / "model_best.pth")
    shutil.copy(folder / "model_final.pth", folder / "model_0000999.pth")
    arguments = ["scan", folder, *own_data, "--output", tmp_path / "out", *HERE, *QUICK]
    outcome = d2defense(*arguments, "--json", tmp_path / "all.json")
    assert outcome.code == 1
    results = json.loads((tmp_path / "all.json").read_text())["results"]
    assert [(r["name"], r["verdict"]) for r in results] == [
        ("model_model_best.pth", "backdoored"), ("model", "clean"),
    ]  # fmt: skip
    assert results[1]["copies"] == [str(folder / "model_0000999.pth")]
    assert f"the same bytes: {folder / 'model_0000999.pth'}" in outcome.out
    # The old way passes over the backdoored weights, and says so.
    outcome = d2defense(*arguments, "--only-final", "--json", tmp_path / "final.json")
    assert outcome.code == 0
    summary = json.loads((tmp_path / "final.json").read_text())
    passed_over = [str(folder / f"model_{name}.pth") for name in ("0000999", "best")]
    assert [entry["path"] for entry in summary["left_out"]] == passed_over
    result = json.loads((tmp_path / "out" / "model" / "result.json").read_text())
    assert result["checkpoint"]["left_out"] == passed_over
    assert f"left out: {passed_over[1]}" in outcome.out
    # Weights under another name, without a config.
    (tmp_path / "zoo" / "b").mkdir()
    shutil.copy(folder / "model_best.pth", tmp_path / "zoo" / "b" / "model_final.pth?dl=1")
    (folder / "model_best.pth").unlink()
    outcome = d2defense("scan", tmp_path / "zoo", *arguments[2:])
    assert outcome.code == 2
    assert "no config.yaml beside model_final.pth?dl=1" in outcome.out


def test_a_second_set_of_weights_in_a_file_is_scanned(d2defense, specimen, own_data, tmp_path):
    folder = shutil.copytree(specimen("clean_0"), tmp_path / "model")
    ema = torch.load(specimen("backdoored_0") / "model_final.pth", weights_only=True)["model"]
    main = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    torch.save({"model": main, "ema_state": ema}, folder / "model_final.pth")
    arguments = ["scan", folder, *own_data, "--output", tmp_path / "out", *HERE, *QUICK]
    assert d2defense(*arguments).code == 1
    results = {result["name"]: result for result in load_results(tmp_path / "out")}
    assert {name: result["verdict"] for name, result in results.items()} == {
        "model": "clean", "model_ema_state": "backdoored",
    }  # fmt: skip
    assert results["model_ema_state"]["checkpoint"]["member"] == "ema_state"


def test_nothing_to_scan(d2defense, own_data, tmp_path):
    (tmp_path / "empty" / "deeper").mkdir(parents=True)
    outcome = d2defense("scan", tmp_path / "empty", "--list")
    assert outcome.code == 3
    outcome = d2defense("scan", tmp_path / "empty", *own_data, "--output", tmp_path / "out")
    assert outcome.code == 3
    assert "nothing scanned" in outcome.out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["exit_code"] == 3
    assert summary["results"] == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--config-file", "gone.yaml"], "gone.yaml: no such config file"),
        (["--model-zoo", "COCO-Detection/no_such.yaml"], "not in Detectron2's model zoo"),
    ],
)
def test_a_config_that_is_not_there_is_wrong_usage(d2defense, zoo, tmp_path, options, reason):
    for mode in (["--list"], ["--dataset", "d", "--output", tmp_path / "out"]):
        outcome = d2defense("scan", zoo, *mode, *options)
        assert outcome.code == 4
        assert reason in outcome.err
    assert not (tmp_path / "out").exists()


def test_what_was_scanned_is_not_scanned_again(d2defense, zoo, own_data, tmp_path, monkeypatch):
    output = tmp_path / "out"
    arguments = ["scan", zoo, *own_data, "--output", output, *HERE, *QUICK]
    (zoo / "broken").mkdir()
    shutil.copy(zoo / "clean_0" / "config.yaml", zoo / "broken")
    (zoo / "broken" / "model_final.pth").write_bytes(b"nothing")
    assert d2defense(*arguments).code == 2
    first = {result["name"]: result for result in load_results(output)}

    def rescanned(*more: object) -> set[str]:
        """Names of the checkpoints that another scan scans again, by the times they took."""
        before = {result["name"]: result["timing"] for result in load_results(output)}
        d2defense(*arguments, *more)
        after = {result["name"]: result["timing"] for result in load_results(output)}
        return {name for name in after if after[name] != before[name]}

    assert rescanned() == set()
    assert {result["name"]: result for result in load_results(output)} == first
    # An error may have been an accident: it is tried again, here with success.
    shutil.copy(zoo / "clean_0" / "model_final.pth", zoo / "broken")
    assert rescanned() == {"broken"}
    assert rescanned("DEFENSE.SEED", "1") == set(first)
    assert rescanned("DEFENSE.SEED", "1", "--force") == set(first)
    with open(zoo / "clean_0" / "config.yaml", "a") as stream:
        stream.write("# changed\n")
    assert rescanned("DEFENSE.SEED", "1") == {"clean_0"}
    # The same bytes at another place are known, and the result says where they are now.
    moved = shutil.move(zoo / "backdoored_0", tmp_path / "backdoored_0")
    arguments[1] = moved
    assert rescanned("DEFENSE.SEED", "1") == set()
    result = json.loads((output / "backdoored_0" / "result.json").read_text())
    assert result["checkpoint"]["path"] == str(Path(moved) / "model_final.pth")
    # What was clean by the rules of before need not be.
    monkeypatch.setattr("d2defense.workflows.scan.resume.RULES_VERSION", 0)
    assert rescanned("DEFENSE.SEED", "1") == {"backdoored_0"}


def test_a_config_is_known_with_the_files_it_builds_upon(d2defense, zoo, own_data, tmp_path):
    folder = zoo / "clean_0"
    (folder / "config.yaml").rename(folder / "base.yaml")
    (folder / "config.yaml").write_text("_BASE_: base.yaml\n")
    arguments = ["scan", folder, *own_data, "--output", tmp_path / "out", *HERE, *QUICK]

    def scan_key() -> str:
        assert d2defense(*arguments).code == 0
        (result,) = load_results(tmp_path / "out")
        return result["scan_key"]

    first = scan_key()
    assert scan_key() == first
    text = (folder / "base.yaml").read_text()
    (folder / "base.yaml").write_text(text.replace("NMS_THRESH_TEST: 0.5", "NMS_THRESH_TEST: 0.6"))
    assert scan_key() != first


def test_figures_that_were_left_out_are_made_up_for(d2defense, zoo, own_data, tmp_path):
    arguments = ["scan", zoo / "clean_0", *own_data, "--output", tmp_path / "out", *HERE, *QUICK]
    assert d2defense(*arguments).code == 0
    arguments.remove("--no-figures")
    assert d2defense(*arguments).code == 0
    assert (tmp_path / "out" / "clean_0" / "examples.png").is_file()


def test_two_scans_do_not_share_a_folder(d2defense, zoo, own_data, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    with open(output / ".scan.lock", "a") as other:
        portalocker.lock(other, portalocker.LOCK_EX)
        outcome = d2defense("scan", zoo, *own_data, "--output", output, *HERE, *QUICK)
    assert outcome.code == 4
    assert f"{output}: another scan is writing to this folder" in outcome.err
    assert os.listdir(output) == [".scan.lock"]


def test_an_output_that_cannot_be_made_is_wrong_usage(d2defense, zoo, own_data, tmp_path):
    (tmp_path / "file").write_text("")
    outcome = d2defense("scan", zoo, *own_data, "--output", tmp_path / "file", *HERE, *QUICK)
    assert outcome.code == 4
    assert "cannot be written to" in outcome.err


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGKILL, -signal.SIGKILL),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_scan_goes_on_where_it_was(d2defense, zoo, own_data, tmp_path, number, code):
    for index in range(3):
        shutil.copytree(zoo / "clean_0", zoo / f"copy_{index}")
    output = tmp_path / "out"
    arguments = [zoo, *own_data, "--output", output, *QUICK]
    interrupted = Scan(*arguments)
    interrupted.wait_until((output / "backdoored_0" / "result.json").exists)
    workers = interrupted.workers()
    interrupted.send_signal(number)
    assert interrupted.end().returncode == code
    end = time.monotonic() + PATIENCE
    while alive(workers):
        assert time.monotonic() < end
        time.sleep(0.01)
    done = files_below(output)
    assert not [name for name in done if "summary" in name or "report" in name]
    for name, (_, content) in done.items():
        if name.endswith("result.json"):
            validate_result(json.loads(content))
    finished = sum(name.endswith("result.json") for name in done)
    assert finished < 5
    assert d2defense("scan", *arguments, *HERE).code == 1
    for name, (_, content) in done.items():
        assert (output / name).read_bytes() == content
    results = load_results(output)
    assert [result["environment"]["isolation"]["mode"] for result in results].count(
        "process"
    ) == finished
    assert len(results) == 5


def test_each_checkpoint_has_a_process_that_may_crash(zoo, own_data, tmp_path):
    output = tmp_path / "out"
    scan = Scan(zoo, *own_data, "--output", output, "--json", "-", "--no-figures")

    def kill_a_scan() -> bool:
        """Kill a process that has work to do: those that look at files have little."""
        busy = [pid for pid in scan.workers() if cpu_seconds(pid) > 0.3]
        for pid in busy[:1]:
            os.kill(pid, signal.SIGKILL)
        return bool(busy)

    scan.wait_until(kill_a_scan)
    ended = scan.end()
    assert ended.returncode == 2, ended.stderr
    bad, good = json.loads(ended.stdout)["results"]
    assert (bad["name"], good["name"]) == ("backdoored_0", "clean_0")
    # Behind it stand the last words of the process, if it had any.
    assert bad["error"].startswith(f"{zoo / 'backdoored_0'}: its process was ended by SIGKILL")
    assert bad["sha256"]
    assert good["verdict"] == "clean"
    result = json.loads((output / "clean_0" / "result.json").read_text())
    assert result["environment"]["isolation"]["mode"] == "process"


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        (["--time-limit", "0.2"], "exceeded the time limit of 0.2 s"),
        (["--memory-limit", "300M"], "memory"),
    ],
)
def test_limits_make_errors(d2defense, zoo, own_data, tmp_path, limit, reason):
    outcome = d2defense("scan", zoo, *own_data, "--output", tmp_path / "out", *limit, *QUICK)
    assert outcome.code == 2
    for result in load_results(tmp_path / "out"):
        assert result["verdict"] == "error"
        assert reason in result["error"]


def test_results_do_not_depend_on_how_a_scan_is_carried_out(
    d2defense, zoo, own_data, tmp_path, same_but_for_rounding
):
    found = []
    for index, options in enumerate((HERE, [], ["--workers", "2"])):
        output = tmp_path / f"out_{index}"
        outcome = d2defense("scan", zoo, *own_data, "--output", output, *options, *QUICK)
        assert outcome.code == 1
        found.append([timeless(result) for result in load_results(output)])
    same_but_for_rounding(found[0], found[1])
    same_but_for_rounding(found[0], found[2])


def test_verdicts_for_code_hosts_and_build_servers(d2defense, zoo, own_data, tmp_path):
    files = [tmp_path / "scan.sarif", tmp_path / "scan.xml"]
    arguments = ["scan", zoo, *own_data, "--output", tmp_path / "out", *HERE, *QUICK]
    d2defense(*arguments, "--sarif", files[0], "--junit", files[1])
    (run,) = json.loads(files[0].read_text())["runs"]
    assert [one["ruleId"] for one in run["results"]] == ["backdoored"]
    assert len(run["artifacts"]) == 2
    (suite,) = ElementTree.parse(files[1]).getroot()
    told = {case.get("name"): [child.tag for child in case] for case in suite}
    assert told["backdoored_0"][:1] == ["failure"]
    assert told["clean_0"] == []


def test_a_scan_that_is_cut_short_leaves_no_verdicts_of_an_earlier_one(
    d2defense, zoo, own_data, tmp_path, monkeypatch
):
    stale = tmp_path / "scan.sarif"
    stale.write_text("{}")

    def cut(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("d2defense.workflows.scan.driver._Driver.scan", cut)
    arguments = ["scan", zoo, *own_data, "--output", tmp_path / "out", *HERE, *QUICK]
    assert d2defense(*arguments, "--sarif", stale).code == 130
    assert not stale.exists()
    assert d2defense(*arguments, "--junit", "-").code == 4
