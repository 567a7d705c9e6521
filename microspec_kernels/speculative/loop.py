# SPDX-License-Identifier: Apache-2.0
"""`generate`: continue one text speculatively."""

from typing import Any

from torch import Tensor

from microspec_kernels._optional import require

from .batch import Batch
from .sampling import Sampling
from .stats import Generation


def generate(
    target: Any,
    draft: Any,
    input_ids: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    sampling: Sampling | None = None,
    progress: bool = False,
    **options: Any,
) -> Generation:
    """Continue one text with the target's own output, in fewer of its passes.

    target, draft, input_ids, max_new_tokens: see `Batch` and `Batch.join`.
    temperature, sampling: how tokens are drawn. `temperature` is short for `Sampling(temperature)`,
        which also has top-p, top-k and a seed. Default: greedy.
    progress: show a progress bar.
    options: options of `Batch`: head, depth, tree_width, tree_size, capacity, frequent_tokens,
        policy, mode, chain.

    Returns the new tokens and their statistics, see `Generation`.

    Raises TypeError or ValueError as `Batch` and `Batch.join` do, and ValueError if both a
    temperature and `sampling` are given. ImportError: the `speculative` extra is missing.
    """
    if sampling is not None and temperature:
        raise ValueError(
            f"generate: temperature: expected 0 beside a sampling, which has one, got {temperature}"
        )
    tqdm = require("tqdm", "speculative").tqdm
    bar = tqdm(total=max_new_tokens, unit="tok", disable=not progress)
    batch = Batch(target, draft, sampling=sampling or Sampling(temperature), **options)
    with bar:
        request = batch.join(input_ids, max_new_tokens)
        while not request.done:
            bar.update(len(request.tokens) - bar.n)
            batch.step()
        bar.update(len(request.tokens) - bar.n)
    return request.result()
