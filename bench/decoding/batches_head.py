# SPDX-License-Identifier: Apache-2.0
"""What does the head of a batch take at a real model's sizes: one vocabulary for all, or one each?

    python -m bench.decoding.batches_head [--quick] [--device cpu|cuda] [--out DIR]

Each request has ten rows of hidden, a level of EAGLE-2's tree. Every call reads other rows, from
all over the weight. On a GPU these are calls from Python, not graphs as in `bench.ops.head`.
"""

from functools import partial

import torch
from torch import Tensor

from bench.harness import models, options
from bench.harness.inputs import id_sets, in_turn, make_weight
from bench.harness.sizes import CAPACITY, K_BEST, LEVEL, QUICK_CAPACITY, QUICK_ROUNDS, ROUNDS
from microspec_kernels import ops
from microspec_kernels.timing import time_arms

REQUESTS = (1, 2, 4, 8)
MOST = max(REQUESTS)
SETS = 4  # used in turn, each of MOST vocabularies


def call(
    hidden: Tensor, weight: Tensor, sets: list[Tensor], num_groups: int, turn: int
) -> tuple[Tensor, ...]:
    group_ids = torch.arange(len(hidden), device=hidden.device) // LEVEL % num_groups
    return ops.sparse_head(hidden, weight, sets[turn][:num_groups], K_BEST, group_ids=group_ids)


def check(hidden: Tensor, weight: Tensor, sets: list[Tensor], num_groups: int) -> None:
    """Check that each request gets what a call for this request alone returns."""
    found = call(hidden, weight, sets, num_groups, 0)[1].split(LEVEL)
    for request, rows in enumerate(hidden.split(LEVEL)):
        alone = ops.sparse_head(rows, weight, sets[0][request % num_groups], K_BEST)[1]
        assert torch.equal(found[request], alone), f"request {request} of {num_groups} groups"


def measure(device: str, quick: bool) -> options.Rows:
    model = models.TOY if quick else models.MODELS[models.DEFAULT]
    capacity = QUICK_CAPACITY if quick else CAPACITY
    weight = make_weight(model.vocab_size, model.dim, device)
    ids = id_sets(model.vocab_size, capacity, SETS * MOST, device)
    sets = [torch.stack(ids[turn * MOST : (turn + 1) * MOST]) for turn in range(SETS)]
    arms, facts = {}, {}
    for requests in REQUESTS:
        hidden = torch.randn(requests * LEVEL, model.dim, device=device).to(weight.dtype)
        for num_groups in sorted({1, requests}):
            check(hidden, weight, sets, num_groups)
            vocabulary = "one a request" if num_groups > 1 else "shared"
            name = f"{requests} {vocabulary}"
            arms[name] = in_turn(partial(call, hidden, weight, sets, num_groups), SETS)
            facts[name] = {
                "model": model.name, "capacity": capacity, "requests": requests,
                "vocabulary": vocabulary,
                "MB_read": num_groups * capacity * model.dim * weight.element_size() / 1e6,
            }  # fmt: skip
    times = time_arms(arms, rounds=QUICK_ROUNDS if quick else ROUNDS)
    return [{**facts[name], **times[name].in_us()} for name in arms]


if __name__ == "__main__":
    options.run(__doc__, "batches_head", partial(measure, "cpu"), partial(measure, "cuda"))
