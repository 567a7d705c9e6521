# SPDX-License-Identifier: Apache-2.0
"""What a step reads, counted from modules with the names of the engines' parameters."""

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from microspec_kernels.engine import Settings
from microspec_kernels.integrations.hooks import can_win, step_costs
from microspec_kernels.policy import StepCosts

V, D = 100, 8


def model(tied: bool = False, experts: int = 0) -> nn.Module:
    """Return a layer of 3 D^2 elements, 2 of them in experts if there are some, and a head."""
    layer: dict[str, nn.Module] = {"attention": nn.Linear(D, D, bias=False)}
    if experts:
        halves = [nn.Linear(D, 2 * D // experts, bias=False) for _ in range(experts)]
        layer["mlp"] = nn.ModuleDict({"experts": nn.ModuleList(halves)})
    else:
        layer["mlp"] = nn.Linear(D, 2 * D, bias=False)
    body = nn.ModuleDict({"embed_tokens": nn.Embedding(V, D), "layers": nn.ModuleDict(layer)})
    parts = {"model": body} if tied else {"model": body, "lm_head": nn.Linear(D, V, bias=False)}
    return nn.ModuleDict(parts).to(torch.bfloat16)


def costs(target: nn.Module, **fields: int) -> StepCosts:
    options = {"row_bytes": 2 * D, "num_rows": V, "num_drafts": 3, "max_requests": 4}
    return step_costs(target, model(), fields, **options)


def test_every_part() -> None:
    want = StepCosts(2 * (3 * D * D + V * D), 2 * 3 * D * D, 2 * D, V, 3, 4)
    assert costs(model()) == want
    assert costs(model(tied=True)) == want  # the embedding is the head then
    experts = costs(model(experts=4), num_experts=4, num_experts_per_tok=1)
    share = 1 - 0.75**16  # four requests verify four tokens each
    assert experts == replace(want, target_bytes=2 * (D * D + share * 2 * D * D + V * D))


def test_many_requests_are_few_at_first() -> None:
    options = {"row_bytes": 2 * D, "num_rows": V, "num_drafts": 1}
    assert step_costs(model(), model(), {}, **options, max_requests=100).num_requests == 8
    assert step_costs(model(), model(), {}, **options, max_requests=3).num_requests == 3


def test_what_cannot_win_stays_off_unless_forced(caplog: pytest.LogCaptureFixture) -> None:
    """The log says why in either case, with the rows of a slab in the slab's dtype."""
    caplog.set_level(logging.INFO)
    gains, weight = StepCosts(15e9, 0.5e9, 8192, 128256), torch.zeros(2, 2, dtype=torch.bfloat16)

    def told(costs: StepCosts, **settings: Any) -> tuple[bool, str]:
        caplog.clear()
        wins = can_win(Settings(**settings), costs, weight, logging.getLogger(__name__))
        return wins, "".join(caplog.messages)

    wins, said = told(gains)
    assert wins and said.startswith("MicroSpec: K = 16384 of 128256 rows: ") and "18.17 GB" in said
    wins, said = told(gains, mode="packed", slab_dtype="int4")
    assert wins and said.startswith("MicroSpec: K = 32768 of 128256 rows: ")
    small = replace(gains, num_rows=32000)
    wins, said = told(small)
    assert not wins and said.startswith("MicroSpec stays off: all 32000 rows: no smaller K")
    assert told(small, capacity=3072) == (True, "")
    many = replace(gains, num_requests=64)  # a vocabulary for each reads more rows than the head
    assert told(many)[0] and not told(many, vocabulary="request")[0]
