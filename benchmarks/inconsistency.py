# SPDX-License-Identifier: Apache-2.0
"""Time the inconsistency operator against eager PyTorch, ``torch.compile`` and a plain read.

The gradient is timed against autograd of eager PyTorch and of the float64 reference.
All contenders run in turn, repetition by repetition, so that whatever else the machine does
falls on all of them alike. Reported are medians and, for machines that are never quiet, the best.

    python benchmarks/inconsistency.py [--device cpu|cuda] [--clock wall|thread] [--json FILE]
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from d2defense.files import write_json
from d2defense.ops import (
    build_info,
    extension_available,
    inconsistency,
    inconsistency_reference,
)

EPSILON = 0.1
OBJECTNESS_FLOOR = 0.8
IOU_THRESHOLD = 0.5
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Tensors = tuple[torch.Tensor, ...]


def make_problem(
    proposals: int, classes: int, groups: int, targets: int, dtype: torch.dtype, device: str
) -> Tensors:
    """Random arguments: images of 1000 x 1000 pixels, half of the proposals around targets.

    Large N repeats a part of 100,000 proposals: the time depends on the numbers of proposals and
    matches, not on what the logits are.
    """
    generator = torch.Generator().manual_seed(0)
    part = min(proposals, 100_000)
    corner = torch.rand(groups * targets, 2, generator=generator) * 800
    size = torch.rand(groups * targets, 2, generator=generator) * 150 + 20
    target_boxes = torch.cat([corner, corner + size], 1)
    offsets = torch.arange(groups + 1) * proposals // groups
    counts = offsets[1:] - offsets[:-1]
    group = torch.repeat_interleave(torch.arange(groups), counts)
    boxes = target_boxes[
        group * targets + torch.randint(0, targets, (proposals,), generator=generator)
    ]
    boxes += torch.randn(proposals, 4, generator=generator) * 15
    far = torch.rand(proposals, 2, generator=generator) * 800
    far = torch.cat([far, far + torch.rand(proposals, 2, generator=generator) * 200], 1)
    boxes = torch.where(torch.rand(proposals, 1, generator=generator) < 0.5, boxes, far)
    logits = torch.randn(part, classes + 1, generator=generator) * 2
    logits[:, -1] += torch.randn(part, generator=generator) * 3 + 3
    class_logits = logits.to(dtype).repeat(-(-proposals // part), 1)[:proposals]
    objectness_logits = (torch.randn(proposals, generator=generator) * 3).to(dtype)
    true_classes = torch.randint(-1, classes, (groups * targets,), generator=generator)
    tensors = (
        objectness_logits,
        class_logits.contiguous(),
        boxes,
        offsets,
        target_boxes,
        torch.arange(groups + 1) * targets,
        true_classes,
    )
    # Offsets and classes stay on the CPU, where the operator takes them.
    return tuple(t.to(device) if t.is_floating_point() else t for t in tensors)


def eager(
    objectness_logits: torch.Tensor,
    class_logits: torch.Tensor,
    boxes: torch.Tensor,
    offsets: torch.Tensor,
    target_boxes: torch.Tensor,
    target_offsets: torch.Tensor,
    target_classes: torch.Tensor,
    most_targets: int,
) -> Tensors:
    """Compute the operator's statistics as a careful user of PyTorch would write them."""
    proposals, groups = len(objectness_logits), len(offsets) - 1
    counts = offsets[1:] - offsets[:-1]
    group = torch.repeat_interleave(
        torch.arange(groups, device=offsets.device), counts, output_size=proposals
    )
    o, z = objectness_logits.float(), class_logits.float()
    finite = o.isfinite() & z.isfinite().all(1) & boxes.isfinite().all(1)
    log_sum = torch.logsumexp(z, 1)
    p = torch.where(finite, torch.sigmoid(o), 0.0)
    q = torch.where(finite, 1 - torch.exp(z[:, -1] - log_sum), 0.0)
    d = p - q
    s = d.abs()

    def per_group(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(groups, dtype=dtype, device=o.device).index_add_(
            0, group, values.to(dtype)
        )

    significant = finite & (s > EPSILON)
    confident = finite & (p > OBJECTNESS_FLOOR)
    score_max = torch.zeros(groups, device=o.device).scatter_reduce_(0, group, s, "amax")

    slots = torch.arange(most_targets, device=o.device)
    target = target_offsets[group][:, None] + slots
    present = target < target_offsets[group + 1][:, None]
    target = torch.where(present, target, 0)
    other = target_boxes[target]
    width = torch.minimum(boxes[:, None, 2], other[..., 2]) - torch.maximum(
        boxes[:, None, 0], other[..., 0]
    )
    height = torch.minimum(boxes[:, None, 3], other[..., 3]) - torch.maximum(
        boxes[:, None, 1], other[..., 1]
    )
    intersection = width.clamp(min=0) * height.clamp(min=0)
    area = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)
    target_area = (other[..., 2:] - other[..., :2]).clamp(min=0).prod(-1)
    union = area[:, None] + target_area - intersection
    overlap = torch.where(present & (union > 0), intersection / union, 0.0)
    matched = finite[:, None] & (overlap >= IOU_THRESHOLD)
    true_class = target_classes[target]
    probability = torch.exp(z.gather(1, true_class.clamp(min=0)) - log_sum[:, None])

    def per_target(values: torch.Tensor) -> torch.Tensor:
        values = torch.where(matched, values, 0.0).flatten()
        return torch.zeros(len(target_boxes), device=o.device).scatter_reduce_(
            0, target.flatten(), values, "amax"
        )

    matches = torch.zeros(len(target_boxes), dtype=torch.int32, device=o.device)
    alone = finite & (q > 0.5) & (overlap < 0.1).all(1)
    return (
        per_group(torch.where(significant, s, 0.0), torch.float64),
        per_group(significant, torch.int64),
        per_group(torch.where(confident, d, 0.0), torch.float64),
        per_group(confident, torch.int64),
        score_max,
        per_group(~finite, torch.int64),
        per_target(p[:, None].expand(-1, most_targets)),
        per_target(q[:, None].expand(-1, most_targets)),
        torch.where(target_classes < 0, float("nan"), per_target(probability)),
        matches.index_add_(0, target.flatten(), matched.flatten().int()),
        per_group(alone, torch.int64),
    )


def plain_read(tensors: Tensors) -> Callable[[], Any]:
    """Read every byte of the proposals' tensors once, as float32 whatever they hold."""
    flat = []
    for tensor in tensors[:3]:
        values = tensor.flatten()
        whole = len(values) * values.element_size() // 4 * 4 // values.element_size()
        flat.append(values[:whole].view(torch.float32))
    return lambda: [values.sum() for values in flat]


def check(tensors: Tensors, device: str, targets: int) -> None:
    """Refuse to time two things that do not compute the same.

    Raises:
        SystemExit: the operator and the eager statistics differ.
    """
    result = inconsistency(*tensors)
    other = eager(*(tensor.to(device) for tensor in tensors), targets)
    pairs = zip([*result[:6], *result[7:]], other, strict=True)
    for index, (first, second) in enumerate(pairs):
        if not torch.allclose(first.double(), second.double(), rtol=1e-4, atol=2.0, equal_nan=True):
            raise SystemExit(f"the operator and eager PyTorch differ in statistic {index}")


def measure(
    contenders: dict[str, Callable[[], Any]], arguments: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Run all contenders in turn; median and best seconds of each."""
    device = arguments.device
    clock = time.thread_time if arguments.clock == "thread" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for repetition in range(arguments.repetitions + 2):
        for name, function in contenders.items():
            if device == "cuda":
                torch.cuda.synchronize()
            start = clock()
            function()
            if device == "cuda":
                torch.cuda.synchronize()
            if repetition >= 2:
                seconds[name].append(clock() - start)
    return {
        name: {"median": statistics.median(values), "best": min(values)}
        for name, values in seconds.items()
    }


def with_threads(function: Callable[[], Any], threads: int) -> Callable[[], Any]:
    """Let a contender run with its own number of threads."""

    def run() -> Any:
        torch.set_num_threads(threads)
        try:
            return function()
        finally:
            torch.set_num_threads(1)

    return run


def processor() -> str:
    """The processor's model, as the operating system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def machine(device: str) -> dict[str, Any]:
    """What the figures depend on, without the machine's name."""
    description = {"cpu": processor(), "cores": os.cpu_count(), "torch": torch.__version__}
    description.update(build_info())
    if device == "cuda":
        description["gpu"] = torch.cuda.get_device_name()
    return description


def compare(arguments: argparse.Namespace, classes: int, dtype: str) -> dict[str, Any]:
    """Time all contenders on one problem."""
    device = arguments.device
    proposals = arguments.proposals if classes < 1000 else arguments.proposals // 10
    groups = max(1, proposals // 1000)
    tensors = make_problem(proposals, classes, groups, arguments.targets, TYPES[dtype], device)
    check(tensors, device, arguments.targets)
    on_device = tuple(tensor.to(device) for tensor in tensors)
    contenders = {
        "op": lambda: inconsistency(*tensors),
        "eager": lambda: eager(*on_device, arguments.targets),
        "read": plain_read(tensors),
    }
    if not arguments.no_compile:
        compiled = torch.compile(eager, dynamic=False)
        contenders["compiled"] = lambda: compiled(*on_device, arguments.targets)
    if device == "cpu" and arguments.clock == "wall" and (os.cpu_count() or 1) > 1:
        contenders["op, 2 threads"] = with_threads(contenders["op"], 2)
    if device == "cuda":
        target = torch.empty_like(tensors[1])
        contenders["copy"] = lambda: target.copy_(tensors[1])
    times = measure(contenders, arguments)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors[:3])
    row = {"N": proposals, "K": classes, "type": dtype, "bytes": size, "seconds": times}
    print(f"\nN = {proposals:,}, K = {classes}, {dtype}, {groups} groups, {size / 1e6:.0f} MB")
    for name, value in times.items():
        print(
            f"  {name:14} {value['median'] * 1e3:9.3f} ms (best {value['best'] * 1e3:.3f})"
            f"  {value['median'] / times['op']['median']:6.2f} x op"
        )
    if device == "cuda":
        copied = 2 * tensors[1].numel() * tensors[1].element_size()
        share = (size / times["op"]["median"]) / (copied / times["copy"]["median"])
        row["share_of_copy_bandwidth"] = share
        print(f"  {share:.0%} of the copy bandwidth")
    return row


def total(
    tau_sum: torch.Tensor, confident_sum: torch.Tensor, maxima: Sequence[torch.Tensor]
) -> torch.Tensor:
    """A loss that every result with a gradient takes part in; targets of unknown class do not."""
    known = [torch.where(values.isnan(), 0.0, values).double().sum() for values in maxima]
    return tau_sum.sum() - confident_sum.sum() + sum(known)


def compare_gradients(arguments: argparse.Namespace, classes: int, dtype: str) -> dict[str, Any]:
    """Time the backward pass alone, of graphs that are kept, and a forward pass for it."""
    device = arguments.device
    proposals = arguments.proposals if classes < 1000 else arguments.proposals // 10
    groups = max(1, proposals // 1000)
    tensors = make_problem(proposals, classes, groups, arguments.targets, TYPES[dtype], device)
    logits = [tensor.requires_grad_() for tensor in tensors[:2]]
    with torch.enable_grad():
        result = inconsistency(*tensors)
        reference = inconsistency_reference(*tensors)
        other = eager(*(tensor.to(device) for tensor in tensors), arguments.targets)
        losses = {
            "op": total(result.tau_sum, result.confident_sum, result[7:10]),
            "op, maxima alone": total(result.tau_sum[:0], result.confident_sum[:0], result[7:10]),
            "eager": total(other[0], other[2], other[6:9]),
            "reference": total(reference.tau_sum, reference.confident_sum, reference[7:10]),
        }

    def backward(loss: torch.Tensor) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(loss, logits, retain_graph=True)

    contenders = {name: backward(loss) for name, loss in losses.items()}
    for mine, exact in zip(contenders["op"](), contenders["reference"](), strict=True):
        scale = float(exact.abs().max())
        if not torch.allclose(mine.double(), exact.double(), rtol=0.02, atol=0.02 * scale):
            raise SystemExit("the gradients of the operator and of the reference differ")

    def forward() -> Any:
        with torch.enable_grad():
            return inconsistency(*tensors)

    contenders["op, forward"] = lambda: inconsistency(*tensors)
    contenders["op, forward kept"] = forward
    times = measure(contenders, arguments)
    print(f"\nGradient: N = {proposals:,}, K = {classes}, {dtype}")
    for name, value in times.items():
        print(
            f"  {name:18} {value['median'] * 1e3:9.3f} ms (best {value['best'] * 1e3:.3f})"
            f"  {value['median'] / times['op']['median']:6.2f} x op"
        )
    return {"N": proposals, "K": classes, "type": dtype, "seconds": times}


def growth(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Time the operator alone from N = 1e4 to ``--largest``, K = 80, float32."""
    rows = []
    print("\nK = 80, float32, 1,000 proposals a group\n         N   ms (median)   ns a proposal")
    for proposals in (10**4, 10**5, 10**6, 10**7):
        if proposals > arguments.largest:
            break
        groups = proposals // 1000
        tensors = make_problem(
            proposals, 80, groups, arguments.targets, torch.float32, arguments.device
        )

        def call(tensors: Tensors = tensors) -> Any:
            return inconsistency(*tensors)

        times = measure({"op": call}, arguments)["op"]
        rows.append({"N": proposals, "seconds": times})
        print(
            f"{proposals:10,} {times['median'] * 1e3:13.3f} "
            f"{times['median'] / proposals * 1e9:15.2f}"
        )
    return rows


def main() -> None:
    """Parse the arguments, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument(
        "--proposals", type=int, metavar="N", help="default 200,000; cuda 1,000,000"
    )
    parser.add_argument("--targets", type=int, default=5, help="targets a group (default 5)")
    parser.add_argument("--repetitions", type=int, default=20, help="of each (default 20)")
    parser.add_argument("--largest", type=int, default=10**7, help="largest N of the growth table")
    parser.add_argument(
        "--clock",
        choices=["wall", "thread"],
        default="wall",
        help="thread: processor time of the calling thread, for a machine that others use too; "
        "it says nothing about two threads or a GPU",
    )
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    arguments = parser.parse_args()
    if not extension_available():
        raise SystemExit("d2defense._C is not built: there is nothing to measure")
    if arguments.device == "cuda" and arguments.clock == "thread":
        raise SystemExit("the thread clock does not see what a GPU does")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device is visible")
    if arguments.proposals is None:
        arguments.proposals = 200_000 if arguments.device == "cpu" else 1_000_000
    torch.set_num_threads(1)
    description = {**machine(arguments.device), "clock": arguments.clock}
    print(", ".join(f"{key}: {value}" for key, value in description.items()))
    with torch.no_grad():
        rows = [compare(arguments, k, dtype) for k in (80, 1203) for dtype in TYPES]
        gradients = [compare_gradients(arguments, k, dtype) for k in (80, 1203) for dtype in TYPES]
        table = growth(arguments)
    if arguments.json is not None:
        figures = {"compare": rows, "gradients": gradients, "growth": table}
        write_json(arguments.json, {"machine": description, **figures})


if __name__ == "__main__":
    main()
