# SPDX-License-Identifier: Apache-2.0
"""Random numbers that depend on where training stands, not on how it came there."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derived_seed(*entropy: int) -> int:
    """A seed of 32 bits for non-negative numbers such as (base seed, stream, step).

    Close numbers give unrelated seeds (``numpy.random.SeedSequence``).
    """
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, NumPy and PyTorch (every device) for what follows."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the CPU's generators for the body, then put them back where they were."""
    python, numpy, pytorch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(seed)
        np.random.seed(seed)
        # Not torch.manual_seed: the generators of GPUs belong to the training step.
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(pytorch)
