# SPDX-License-Identifier: Apache-2.0
"""Checks of sparse_sample."""

import torch
from torch import Tensor

from .checker import Checker, numbers
from .dtypes import dtype_name
from .head import head


def sample(
    hidden: Tensor,
    weight: Tensor,
    active_ids: Tensor,
    temperatures: Tensor,
    seeds: Tensor,
    positions: Tensor,
    packed: bool,
    group_ids: Tensor | None,
    weight_scale: Tensor | None,
    bias: Tensor | None,
    logit_scale: float,
    softcap: float,
    row_tokens: Tensor | None,
    token_logits: Tensor | None,
    logit_rows: Tensor | None,
) -> tuple[Checker, int]:
    """Check the arguments of sparse_sample, except the ids' values. Return the bound of the ids."""
    head(
        "sparse_sample", hidden, weight, active_ids, packed, group_ids, weight_scale, bias,
        logit_scale, softcap,
    )  # fmt: skip
    check, rows = Checker("sparse_sample", hidden.device), hidden.size(0)

    def vector(tensor: Tensor, argument: str, dtype: torch.dtype, size: int) -> None:
        check.dtype(tensor, argument, [dtype], dtype_name(dtype))
        check.shape(tensor, argument, (size,))
        check.contiguous(tensor, argument)
        check.on_device(tensor, argument)

    vector(temperatures, "temperatures", torch.float32, rows)
    vector(seeds, "seeds", torch.int64, rows)
    vector(positions, "positions", torch.int64, rows)
    vocab_size = weight.size(0) if not packed else bias.size(0) if bias is not None else None
    if row_tokens is not None:
        check.value(row_tokens.dim() == 1, "row_tokens", "shape [V]", list(row_tokens.shape))
        vocab_size = row_tokens.size(0) if vocab_size is None else vocab_size
        vector(row_tokens, "row_tokens", torch.int64, vocab_size)
    if token_logits is not None:
        name = "token_logits"
        check.floating(token_logits, name)
        check.value(token_logits.dim() == 2, name, "shape [R, V']", list(token_logits.shape))
        held, columns = token_logits.shape
        if row_tokens is None and vocab_size is None:
            vocab_size = columns  # a slab names its tokens freely, as long as they have a column
        fits = row_tokens is not None or columns >= (vocab_size or 0)
        check.value(fits, name, f"at least V = {vocab_size} columns", columns)
        fits = logit_rows is not None or held >= rows
        check.value(fits, name, f"at least M = {rows} rows, or logit_rows", held)
        check.unit_inner_stride(token_logits, name)
        stride = token_logits.stride(0)
        fits = held <= 1 or stride >= columns
        check.value(fits, name, "rows that do not overlap", f"stride {stride}")
        check.on_device(token_logits, name)
    if logit_rows is not None:
        fits = token_logits is not None
        check.value(fits, "logit_rows", "None without token_logits", "a tensor")
        numbers(check, logit_rows, "logit_rows", rows)
    return check, 2**31 if vocab_size is None else vocab_size
