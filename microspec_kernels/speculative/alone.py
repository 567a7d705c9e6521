# SPDX-License-Identifier: Apache-2.0
"""Generation by the target alone: the baseline for the loop's output and speed."""

import time

import torch
from torch import Tensor

from .models.target import CausalModel
from .sampling import Sampling, checked, choose, uniforms_at
from .stats import Generation, Stats


def target_alone(
    target: CausalModel, input_ids: Tensor, max_new_tokens: int, sampling: Sampling
) -> Generation:
    """Generate without a draft: one token a pass, through the same cache as the loop."""
    stats = Stats()
    tokens: list[int] = []
    cache, begin = target.new_cache(), time.perf_counter()
    with torch.no_grad():
        hidden = target.prefill(input_ids, cache)[0][-1:]
        while True:
            position = cache.ahead(1)[0]
            uniforms = uniforms_at(sampling.seed, position) if sampling.temperature else None
            new = choose(target.logits(hidden), uniforms, sampling)
            tokens += checked(new.tolist())
            if len(tokens) == max_new_tokens or tokens[-1] in target.eos:
                stats.seconds["total"] = time.perf_counter() - begin
                return Generation(torch.tensor(tokens), stats.acceptance_lengths, stats)
            hidden = target.forward(new[None], position[None], cache.causal(1), cache)[0][0]
            cache.keep_all()
