# SPDX-License-Identifier: Apache-2.0
"""What a step reads, counted from modules with the names of the engines' parameters."""

from dataclasses import replace

import torch
from torch import nn

from microspec_kernels.integrations.hooks.costs import step_costs
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
    weight = torch.zeros(V, D, dtype=torch.bfloat16)
    options = {"weight": weight, "scale": None, "num_rows": V, "num_drafts": 3, "max_requests": 4}
    return step_costs(target, model(), fields, **options)  # type: ignore[arg-type]


def test_every_part() -> None:
    want = StepCosts(2 * (3 * D * D + V * D), 2 * 3 * D * D, 2 * D, V, 3, 4)
    assert costs(model()) == want
    assert costs(model(tied=True)) == want  # the embedding is the head then
    experts = costs(model(experts=4), num_experts=4, num_experts_per_tok=1)
    share = 1 - 0.75**16  # four requests verify four tokens each
    assert experts == replace(want, target_bytes=2 * (D * D + share * 2 * D * D + V * D))


def test_a_ranks_own_rows_and_scales() -> None:
    """A rank holds half of the rows, each with a scale; many requests are few at first."""
    weight, scale = torch.zeros(V // 2, D, dtype=torch.int8), torch.zeros(V // 2)
    options = {"num_rows": V, "num_drafts": 1, "max_requests": 100}
    got = step_costs(model(), model(), {}, weight=weight, scale=scale, **options)  # type: ignore
    assert (got.row_bytes, got.num_rows, got.num_requests) == ((D + 4) / 2, V, 8)
