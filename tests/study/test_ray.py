# SPDX-License-Identifier: Apache-2.0
"""Steps on a Ray cluster: this machine as one."""

from __future__ import annotations

import pytest

from d2defense.study.runner import run_steps
from d2defense.study.steps import Step, StepResults
from d2defense.study.workplace import Workplace

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'd2defense[ray]'")

# Starting a cluster takes longer than a unit test may.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address():
    """Address of a cluster of one machine with one CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        context = ray.init(
            "local",  # not another test's, which may be running
            num_cpus=1,
            include_dashboard=False,
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
            object_store_memory=100 << 20,
        )
        yield context.address_info["gcs_address"]
        ray.shutdown()


def test_steps_are_done_and_failures_said(address, tmp_path):
    good = Step("use/clean_0", "use", {"specimen": "clean_0"})
    bad = Step("use/nothing", "use", {"specimen": "nothing"})
    failed = run_steps([good, bad], Workplace(tmp_path), ray_address=address)
    assert StepResults(tmp_path).get(good)["checkpoint"].endswith("clean_0")
    assert list(failed) == ["use/nothing"]
    assert "specimen nothing is missing" in failed["use/nothing"]


def test_an_action_of_another_module_is_found_by_its_name(tmp_path):
    step = Step("one", "d2defense.study.actions:use", {"specimen": "clean_1"})
    assert run_steps([step], Workplace(tmp_path)) == {}
    assert StepResults(tmp_path).get(step)["checkpoint"].endswith("clean_1")
