# SPDX-License-Identifier: Apache-2.0
"""Generation by the target alone: the baseline for the loop's output and speed."""

import torch
from torch import Tensor

from .models.cache import causal
from .models.target import CausalModel
from .sampling import Sampling, choose, uniforms_at
from .stats import Clock, Generation, Stats


def target_alone(
    target: CausalModel, input_ids: Tensor, max_new_tokens: int, sampling: Sampling
) -> Generation:
    """Generate without a draft: one token a pass, through the same cache as the loop."""
    stats, tokens = Stats(), []
    clock = Clock(target.device, stats.seconds)
    cache = target.new_cache()
    with torch.no_grad(), clock("total"):
        hidden = target.prefill(input_ids, cache)[0][-1:]
        while True:
            position = torch.tensor(cache.lengths, device=target.device)
            new = choose(target.logits(hidden), uniforms_at(sampling.seed, position), sampling)
            tokens.append(int(new))
            if len(tokens) == max_new_tokens or tokens[-1] in target.eos:
                return Generation(torch.tensor(tokens), stats.acceptance_lengths, stats)
            hidden = target.forward(new[None], causal(1, target.device), cache)[0][0]
