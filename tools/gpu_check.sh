#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Everything that only a GPU can tell, in 25 minutes and without a network.
#
#   tools/gpu_check.sh [--output DIR] [--minutes N] [--dry-run] [STAGE ...]
#
# Stages, in their order: environment build tests sanitizer scan search repair amp operator-bench
# search-bench. All of them by default. The folder (runs/gpu_check) gets a log a stage, what the
# stages write, and summary.txt: passed, FAILED or left out, with the reason. The exit status is 1
# if a stage failed. --dry-run carries out on the CPU what can be, with little of everything.
#
#   PYTHON  the interpreter (default .venv/bin/python, else python3)
set -uo pipefail
cd "$(dirname "$0")/.."
output=runs/gpu_check minutes=25 dry=
while [[ ${1:-} == --* ]]; do
    case $1 in
    --output) output=$2 && shift 2 ;;
    --minutes) minutes=$2 && shift 2 ;;
    --dry-run) dry=1 && shift ;;
    *) echo "unknown option $1" >&2 && exit 4 ;;
    esac
done
wanted=" $* "
deadline=$((SECONDS + 60 * minutes))
python=${PYTHON:-.venv/bin/python}
command -v "$python" >/dev/null || python=python3
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
export specimens=d2defense/assets/specimens data="--dataset synth_signs_defender"
mkdir -p "$output"
summary=$output/summary.txt
: >"$summary"
failures=0

tell() { printf '%-15s %s\n' "$1" "$2" | tee -a "$summary"; }

# stage NAME SECONDS COMMAND...: run it for at most so long, and say how it ended.
stage() {
    local name=$1 limit=$2 left=$((deadline - SECONDS)) began=$SECONDS code
    shift 2
    # A GPU's limits say nothing about a CPU.
    [[ -z $dry ]] || limit=$((60 * minutes))
    [[ $wanted == "  " || $wanted == *" $name "* ]] || return 0
    ((left > 20)) || { tell "$name" "left out: the $minutes minutes are over" && return; }
    timeout -k 10 $((limit < left ? limit : left)) "$@" >"$output/$name.log" 2>&1
    code=$?
    if ((code == 0)); then
        tell "$name" "passed in $((SECONDS - began)) s: $(tail -n 1 "$output/$name.log")"
    elif ((code == 124 || code == 137)); then
        failures=$((failures + 1)) && tell "$name" "FAILED: not done after $((SECONDS - began)) s"
    else
        failures=$((failures + 1)) && tell "$name" "FAILED with $code, see $output/$name.log"
    fi
}

leave_out() { [[ $wanted == "  " || $wanted == *" $1 "* ]] && tell "$1" "left out: $2"; }

# What stages are made of; "timeout" starts them in a shell of their own.
d2defense() { "$python" -W ignore -m d2defense.cli.program "$@"; }

build() {
    FORCE_CUDA=1 "$python" setup.py --quiet build_ext --inplace --build-temp build/gpu_check
    "$python" -c 'import torch, d2defense.ops as ops; i = ops.build_info(); assert i["cuda"], i; print(i)'
}

# Both scans, confined, on the device and on the CPU: the same verdicts, nearly the same scores.
scan() {
    local where
    for where in "$device" cpu; do
        d2defense scan "$specimens/backdoored_0" "$specimens/clean_0" $data --force --search off \
            --device "$where" --output "$output/scan-$where" --opts $few || (($? == 1)) || return 1
    done
    "$python" - "$output/scan-$device" "$output/scan-cpu" <<'CHECK'
import sys
from d2defense.report.results import load_results
here, there = ({r["name"]: r for r in load_results(folder)} for folder in sys.argv[1:])
assert {n: r["verdict"] for n, r in here.items()} == {"backdoored_0": "backdoored", "clean_0": "clean"}, here
for name, result in here.items():
    print(name, result["score"], there[name]["score"], result["environment"])
    assert abs(result["score"] - there[name]["score"]) < 0.02
print("scores on both devices:", {n: (round(r["score"], 4), round(there[n]["score"], 4)) for n, r in here.items()})
CHECK
}

search() {
    d2defense scan "$specimens/misclassification_0" $data --force --device "$device" \
        --search fast --search-always --reference "$specimens/clean_1" \
        --output "$output/search" --opts $few || (($? == 1)) || return 1
    "$python" - "$output/search" <<'CHECK'
import sys
from d2defense.report.results import load_results
(result,) = load_results(sys.argv[1])
searched = result["search"] or {}
assert searched.get("arms"), searched.get("obstacle") or result["error"] or result["reason"]
print(result["verdict"], "-", result["reason"], f"({result['timing']['seconds']:.0f} s)")
CHECK
}

repair() {
    d2defense repair "$specimens/backdoored_0" $data --device "$device" \
        --test-dataset synth_signs_val --search off --output "$output/repaired" \
        --opts $few $steps || (($? == 1)) || return 1
    # Whether it is repaired is not the question here: the default may cost more AP than it may.
    "$python" -c 'import json, sys; r = json.load(open(sys.argv[1])); print(r["obstacles"], r["after"]["asr"])' \
        "$output/repaired/report.json"
}

amp() {
    d2defense train --config-file configs/SynthSigns/faster_rcnn_tiny_fpn.yaml \
        SOLVER.AMP.ENABLED True SOLVER.MAX_ITER 60 TEST.EVAL_PERIOD 0 DATALOADER.NUM_WORKERS 0 \
        MODEL.DEVICE "$device" OUTPUT_DIR "$output/amp" || return 2
    d2defense scan "$specimens/backdoored_0" $data --force --device "$device" --search off \
        --precision bf16 --output "$output/scan-bf16" --opts $few || (($? == 1))
}

if "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    device=cuda gpu=1
elif [[ -n $dry ]]; then
    device=cpu gpu=
else
    echo "torch sees no GPU; --dry-run does what the CPU can" >&2
    exit 4
fi
few="DEFENSE.BOOTSTRAP_SAMPLES 1000" steps=
[[ -z $dry ]] || few="DEFENSE.BOOTSTRAP_SAMPLES 50 DEFENSE.MAX_IMAGES 24"
[[ -z $dry ]] || steps="REMOVAL.SOLVER.MAX_ITER 4 REMOVAL.SOLVER.WARMUP_ITERS 1"
export output device python few steps
export -f d2defense build scan search repair amp

stage environment 120 bash -c 'd2defense env'
if [[ -z $gpu ]]; then
    leave_out build "no GPU; make cuda-build compiles the kernels without one"
elif ! command -v nvcc >/dev/null; then
    leave_out build "no nvcc on PATH: the operator stays as it is"
else
    stage build 400 bash -c build
fi
# Those marked slow too: compute-sanitizer is one of them. Without a GPU each is skipped.
stage tests 420 "$python" -m pytest -q -m cuda -p no:cacheprovider tests --junitxml "$output/tests.xml"
if [[ -z $gpu ]]; then
    leave_out sanitizer "no GPU"
elif ! command -v compute-sanitizer >/dev/null; then
    leave_out sanitizer "no compute-sanitizer on PATH"
else
    stage sanitizer 240 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --error-exitcode=9 \
        "$python" -m pytest -q -p no:cacheprovider tests/ops/test_inconsistency_cuda.py \
        -k "agree or empty or strided or equal_proposals"
fi
stage scan 240 bash -c scan
stage search 240 bash -c search
stage repair 300 bash -c repair
if [[ -n $gpu ]]; then
    stage amp 180 bash -c amp
else
    leave_out amp "no GPU: Detectron2's mixed precision needs one"
fi
sizes=()
[[ -z $dry ]] || sizes=(--proposals 2000 --repetitions 2 --largest 10000 --no-compile)
stage operator-bench 300 "$python" benchmarks/inconsistency.py --device "$device" \
    --json "$output/operator.json" "${sizes[@]}"
if [[ -n $gpu ]]; then
    stage search-bench 300 "$python" -W ignore benchmarks/search.py "$specimens/backdoored_0" \
        --reference "$specimens/clean_1" $data --device "$device" --output "$output/search.md"
else
    leave_out search-bench "no GPU: the figures of the CPU are in docs/performance.md"
fi
echo "report: $summary"
((failures == 0))
