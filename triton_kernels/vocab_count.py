# SPDX-License-Identifier: Apache-2.0
"""vocab_count_: the tokens that a text shows for the first time are counted.

An atomic or on the token's word of ``seen`` tells the one element that sets the bit, and that one
counts. Integer sums do not depend on the order of the atomics.
"""

import triton
import triton.language as tl
from torch import Tensor

from .common import on_device_of

BLOCK = 256  # tokens of a program: two for each thread of four warps


@triton.jit(do_not_specialize=["requests", "lists", "vocab_size", "words", "count", "total"])
def count_kernel(
    text_counts,  # int32 [C, V]
    seen,  # int32 [R, W]
    tokens,  # [R, N]; RAGGED: [N]
    token_requests,  # [N], when RAGGED
    request_lists,  # [R], when LISTED
    total_counts,  # int32 [V], when TOTALS
    requests,
    lists,
    vocab_size,
    words,
    count,  # N
    total,  # tokens of all requests
    RAGGED: tl.constexpr,
    LISTED: tl.constexpr,
    TOTALS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = at < total
    token = tl.load(tokens + at, mask=there, other=-1).to(tl.int64)
    there = there & (token >= 0) & (token < vocab_size)
    if RAGGED:
        request = tl.load(token_requests + at, mask=there, other=-1).to(tl.int64)
    else:
        request = at // count
    there = there & (request >= 0) & (request < requests)
    text_list = tl.zeros_like(request)
    if LISTED:
        text_list = tl.load(request_lists + request, mask=there, other=-1).to(tl.int64)
    there = there & (text_list >= 0) & (text_list < lists)
    bit = tl.full((BLOCK,), 1, tl.int32) << (token & 31).to(tl.int32)
    before = tl.atomic_or(seen + request * words + (token >> 5), bit, mask=there, sem="relaxed")
    new = there & ((before & bit) == 0)
    one = tl.full((BLOCK,), 1, tl.int32)
    tl.atomic_add(text_counts + text_list * vocab_size + token, one, mask=new, sem="relaxed")
    if TOTALS:
        tl.atomic_add(total_counts + token, one, mask=new, sem="relaxed")


def vocab_count_(
    text_counts: Tensor,
    seen: Tensor,
    tokens: Tensor,
    *,
    token_requests: Tensor | None = None,
    request_lists: Tensor | None = None,
    total_counts: Tensor | None = None,
) -> None:
    """Compute :func:`microspec_kernels.vocab_count_` in Triton, without its checks."""
    if not tokens.numel():
        return
    optional = (token_requests, request_lists, total_counts)
    given = [tokens if tensor is None else tensor for tensor in optional]
    sizes = (len(seen), *text_counts.shape, seen.size(1), tokens.size(-1), tokens.numel())
    ragged, listed, totals = (tensor is not None for tensor in optional)
    with on_device_of(text_counts):
        count_kernel[(triton.cdiv(tokens.numel(), BLOCK),)](
            text_counts, seen, tokens, *given, *sizes,
            RAGGED=ragged, LISTED=listed, TOTALS=totals, BLOCK=BLOCK, num_warps=4,
        )  # fmt: skip
