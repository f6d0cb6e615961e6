# SPDX-License-Identifier: Apache-2.0
"""A detector that is trained answers questions without being changed by them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from d2defense.removal.standstill import kept_statistics, standing_still


@pytest.fixture
def network():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
    network[1].running_mean.fill_(0.3)
    return network.train()


def test_statistics_serve_as_they_are_and_are_not_learnt(network):
    images = torch.rand(2, 3, 8, 8)
    learnt = {name: each.clone() for name, each in network[1].named_buffers()}
    with kept_statistics(network):
        said = network[:2](images)
        assert network[2].training
    assert all(torch.equal(each, learnt[name]) for name, each in network[1].named_buffers())
    assert network[1].training
    torch.testing.assert_close(said, network.eval()[:2](images))


def test_gradients_reach_what_lies_below_statistics_that_are_kept(network):
    with kept_statistics(network):
        network(torch.rand(2, 3, 8, 8)).sum().backward()
    assert network[0].weight.grad.abs().max() > 0


def test_frozen_statistics_stay_frozen_afterwards(network):
    network[1].eval()
    with kept_statistics(network):
        pass
    assert not network[1].training and network.training


def test_what_stands_still_learns_again_afterwards(network):
    network[0].bias.requires_grad_(False)
    network[2].eval()
    with standing_still(network):
        assert not any(each.training for each in network.modules())
        assert not any(each.requires_grad for each in network.parameters())
    assert network[0].weight.requires_grad and not network[0].bias.requires_grad
    assert network[1].training and not network[2].training
