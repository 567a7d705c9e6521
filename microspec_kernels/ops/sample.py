# SPDX-License-Identifier: Apache-2.0
"""The function sparse_sample."""

import torch
from torch import Tensor

from .._gradients import refuse_backward
from .errors import reraise
from .flatten import flatten, flatten_rows


def sparse_sample(
    hidden: Tensor,
    weight: Tensor,
    active_ids: Tensor,
    temperatures: Tensor,
    seeds: Tensor,
    positions: Tensor,
    *,
    packed: bool = False,
    group_ids: Tensor | None = None,
    weight_scale: Tensor | None = None,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float = 0.0,
    row_tokens: Tensor | None = None,
    token_logits: Tensor | None = None,
    logit_rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw a token of each row from the draft's distribution over the active tokens.

    The distribution is softmax(z / temperature), z the logits of :func:`sparse_logits`. The row's
    number u in (0, 1) is 53 bits of Philox4x32-10, keyed by the seed and counted by the position:
    the same on every backend, without a state, so a captured graph draws anew whenever the
    positions change. The token is that of the first slot, in their order, at which the running sum
    of the probabilities passes u. The sums are exact (:mod:`microspec_kernels.reference`).

    Args:
        hidden, weight, active_ids, packed, group_ids, weight_scale, bias, logit_scale, softcap: as
            :func:`sparse_head` takes them.
        temperatures: fp32 [...], hidden's leading dimensions. A row whose temperature is not above
            0 takes the best token, as :func:`sparse_head` orders them, with log-probability 0.
        seeds, positions: int64 [...]. Rows with the same pair have the same number u.
        row_tokens: int64 [V], the token of each id, for a draft whose tokens are not the target's
            (EAGLE-3's d2t): the op then returns and stores these tokens. V is a slab's own choice.
        token_logits: fp32, fp16 or bf16 [R, V'] with any row stride, written in place: the logits,
            before the temperature, by token; -inf for all others. This is what a rejection sampler
            needs of the draft. V' is at least V; with ``row_tokens`` a token of V' or above is not
            stored.
        logit_rows: int32 or int64 [...], the row of token_logits for each row of hidden; -1 writes
            none. No row may be named twice. Default: row m for row m of the flat hidden.

    Returns:
        tokens int64 [...] and log_probs fp32 [...], the logarithm of the token's probability among
        the active tokens. A padding row and a row without an active token get (-1, -inf), and
        token_logits of -inf only. A NaN logit is never drawn unless all are NaN, and makes the
        log-probability of its row NaN. Tokens with a logit of +inf share the probability evenly.
        The results have no gradient.

    Raises:
        ValueError, TypeError, IndexError, NotImplementedError: as :func:`sparse_head`. The op then
            writes nothing.
    """
    rows, row_groups, leading = flatten("sparse_sample", hidden, group_ids)
    by_row = {"temperatures": temperatures, "seeds": seeds, "positions": positions}
    by_row = flatten_rows(hidden, by_row)
    if logit_rows is not None:
        logit_rows = flatten_rows(hidden, {"logit_rows": logit_rows})["logit_rows"]
    try:
        results: tuple[Tensor, Tensor] = torch.ops.microspec.sparse_sample(
            rows,
            weight,
            active_ids,
            **by_row,
            packed=packed,
            group_ids=row_groups,
            weight_scale=weight_scale,
            bias=bias,
            logit_scale=logit_scale,
            softcap=softcap,
            row_tokens=row_tokens,
            token_logits=token_logits,
            logit_rows=logit_rows,
        )
    except RuntimeError as error:
        reraise(error)
    tokens, log_probs = refuse_backward(
        "sparse_sample",
        results,
        hidden=hidden,
        weight=weight,
        weight_scale=weight_scale,
        bias=bias,
    )
    if hidden.dim() == 2:
        return tokens, log_probs
    return tokens.view(leading), log_probs.view(leading)
