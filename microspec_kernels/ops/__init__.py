# SPDX-License-Identifier: Apache-2.0
"""The ops with Python's built-in error types, and their fakes for ``torch.compile``.

Each function calls ``torch.ops.microspec.<name>``. Engines may also call the op directly: it raises
``RuntimeError`` with the same text, and takes hidden [M, D] only. The functions take [..., D].
"""

import re
from typing import NoReturn

import torch
from torch import Tensor

from .. import _checks, _library, _registrations
from .._gradients import refuse_backward

__all__ = [
    "gather_rows_",
    "sparse_head",
    "sparse_logits",
    "sparse_sample",
    "vocab_count_",
    "vocab_observe_",
    "vocab_refill_",
    "vocab_update_",
]

_library.load()  # every schema is registered from here on
_registrations.register()

_KINDS: dict[str, type[Exception]] = {
    kind.__name__: kind for kind in (ValueError, TypeError, IndexError)
}
_MESSAGE = re.compile(r"(ValueError|TypeError|IndexError): (microspec.*)", re.DOTALL)


def _reraise(error: RuntimeError) -> NoReturn:
    """Raise the error as the type that its first word names.

    The stable ABI can only raise RuntimeError.
    """
    match = _MESSAGE.match(str(error))
    if match is None:
        raise error
    raise _KINDS[match[1]](match[2]) from None


def _flatten(
    op: str, hidden: Tensor, group_ids: Tensor | None
) -> tuple[Tensor, Tensor | None, torch.Size]:
    """Flatten hidden [..., D] and group_ids [...] to the [M, D] and [M] that the op takes.

    Returns:
        hidden, group_ids and the leading dimensions of hidden. The op itself refuses a hidden
        that is no tensor or has no dimension.

    Raises:
        ValueError: group_ids of another shape; stride in the last dimension of hidden, which a copy
            would hide.
    """
    if not isinstance(hidden, Tensor) or hidden.dim() == 0:
        return hidden, group_ids, torch.Size()
    if hidden.dim() == 2:
        return hidden, group_ids, hidden.shape[:-1]
    check = _checks.Checker(op, hidden.device)
    check.unit_inner_stride(hidden, "hidden")
    if group_ids is not None:
        leading = hidden.shape[:-1]
        fits = group_ids.shape in (leading, (1,))
        check.value(fits, "group_ids", f"shape {list(leading)} or [1]", list(group_ids.shape))
        group_ids = group_ids.flatten()
    return hidden[None].flatten(0, -2), group_ids, hidden.shape[:-1]


def _flatten_rows(hidden: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Flatten tensors of hidden's leading dimensions to [M]; [M, D] leaves them as they are.

    Raises:
        ValueError: another shape.
    """
    if not isinstance(hidden, Tensor) or hidden.dim() in (0, 2):
        return tensors
    check, leading = _checks.Checker("sparse_sample", hidden.device), hidden.shape[:-1]
    for name, tensor in tensors.items():
        check.shape(tensor, name, leading)
    return {name: tensor.flatten() for name, tensor in tensors.items()}


def sparse_head(
    hidden: Tensor,
    weight: Tensor,
    active_ids: Tensor,
    k: int,
    *,
    packed: bool = False,
    group_ids: Tensor | None = None,
    weight_scale: Tensor | None = None,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Apply the LM head to the active vocabulary: projection, logsumexp and top-k in one pass.

    A logit is z = logit_scale · (x·w + bias), then softcap · tanh(z / softcap) if softcap > 0. The
    op accumulates in fp32. It sorts by logit descending, then by token id ascending; NaN comes
    last. The result therefore equals ``torch.topk`` over a dense head restricted to the same ids.
    Method: MicroSpec, arXiv 2605.26444.

    Args:
        hidden: bf16, fp16 or fp32 [..., D], any number of leading dimensions; M is their product.
            Stride 1 in the last dimension. Any row stride; rows that are not one stride apart are
            copied. (The op itself takes [M, D] only.)
        weight: the LM head [V, D] (``packed=False``), or a slab [K, D] or [G, K, D]
            (``packed=True``). Its dtype is hidden's, or float8_e4m3fn or int8 with
            ``weight_scale``. Rows of 4 bits are uint8 [.., D/2], D a multiple of 32: a byte holds
            the int4 codes of two columns, the even one in the low half. Or they are nvfp4's:
            float4_e2m1fn_x2 [.., D/2], D a multiple of 16.
        active_ids: int32 [K] or [G, K]; -1 marks an empty slot, anywhere.
        k: number of entries per row, 1 to 128.
        packed: whether row i of ``weight`` belongs to slot i rather than to token i.
        group_ids: int32 or int64 [...], hidden's leading dimensions: the group of each row; or [1]:
            one group for all rows. Required if G > 1; -1 marks a padding row.
        weight_scale: fp32 [V], [K] or [G, K], the scale of each row of a quantised weight; bf16
            [.., D/32], the scale of each 32 columns of int4 rows; float8_e4m3fn [.., D/16], the
            scale of each 16 columns of e2m1 rows.
        bias: [V], in hidden's dtype or fp32.
        logit_scale: finite factor that multiplies every logit, after the bias. It also takes
            nvfp4's scale g of a whole tensor: pass g, and bias / g; or s · g, if the model itself
            scales its logits by s.
        softcap: bound on the magnitude of the logits; 0 applies none.

    Returns:
        logits fp32 [..., k], token_ids int64 [..., k] and logsumexp fp32 [...] over the row's
        active tokens, so that log-probability = logits - logsumexp. A row with fewer than k active
        tokens is padded with (-inf, -1). A NaN logit makes the logsumexp of its row NaN. The
        results have no gradient.

    Raises:
        ValueError: wrong shape, stride, device, k, logit_scale or softcap.
        TypeError: wrong dtype.
        IndexError: id or group out of range (CPU).
        NotImplementedError: a backward pass reaches the results.
    """
    rows, row_groups, leading = _flatten("sparse_head", hidden, group_ids)
    try:
        results: tuple[Tensor, Tensor, Tensor] = torch.ops.microspec.sparse_head(
            rows,
            weight,
            active_ids,
            k,
            packed=packed,
            group_ids=row_groups,
            weight_scale=weight_scale,
            bias=bias,
            logit_scale=logit_scale,
            softcap=softcap,
        )
    except RuntimeError as error:
        _reraise(error)
    logits, token_ids, logsumexp = refuse_backward(
        "sparse_head",
        results,
        hidden=hidden,
        weight=weight,
        weight_scale=weight_scale,
        bias=bias,
    )
    if hidden.dim() == 2:
        return logits, token_ids, logsumexp
    shape = *leading, logits.size(1)
    return logits.view(shape), token_ids.view(shape), logsumexp.view(leading)


def sparse_logits(
    hidden: Tensor,
    weight: Tensor,
    active_ids: Tensor,
    *,
    packed: bool = False,
    group_ids: Tensor | None = None,
    weight_scale: Tensor | None = None,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float = 0.0,
) -> Tensor:
    """Compute the logits of :func:`sparse_head` for every slot.

    Arguments and errors are those of :func:`sparse_head`.

    Returns:
        fp32 [..., K], in slot order; -inf at empty slots.
    """
    rows, row_groups, leading = _flatten("sparse_logits", hidden, group_ids)
    try:
        logits: Tensor = torch.ops.microspec.sparse_logits(
            rows,
            weight,
            active_ids,
            packed=packed,
            group_ids=row_groups,
            weight_scale=weight_scale,
            bias=bias,
            logit_scale=logit_scale,
            softcap=softcap,
        )
    except RuntimeError as error:
        _reraise(error)
    (logits,) = refuse_backward(
        "sparse_logits",
        (logits,),
        hidden=hidden,
        weight=weight,
        weight_scale=weight_scale,
        bias=bias,
    )
    return logits if hidden.dim() == 2 else logits.view((*leading, logits.size(1)))


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
    rows, row_groups, leading = _flatten("sparse_sample", hidden, group_ids)
    by_row = {"temperatures": temperatures, "seeds": seeds, "positions": positions}
    by_row = _flatten_rows(hidden, by_row)
    if logit_rows is not None:
        logit_rows = _flatten_rows(hidden, {"logit_rows": logit_rows})["logit_rows"]
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
        _reraise(error)
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


def gather_rows_(
    slab: Tensor,
    slab_ids: Tensor,
    weight: Tensor,
    active_ids: Tensor,
    *,
    slab_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
) -> None:
    """Copy the rows of changed tokens into a slab, in place.

    Afterwards slab_ids equals active_ids, and each row of the slab holds the row of its token.
    (The op does not check ids on a GPU. An id out of range becomes -1 in slab_ids there.)

    The op neither reads nor writes a row whose id did not change. It quantises the rows of a float
    weight for an int8 or float8_e4m3fn slab: q = round(row / scale), scale = amax / 127 or
    amax / 448 (see :func:`microspec_kernels.reference.quantise_rows`). For a slab of 4-bit rows it
    quantises each group of 32 columns with its own scale, amax / 7 (see
    :func:`microspec_kernels.reference.quantise_int4`).

    Args:
        slab: [K, D] or [G, K, D], contiguous; weight's dtype, or int8 or float8_e4m3fn; or uint8
            [.., D/2] for int4 rows, D a multiple of 32. Rows are not quantised to e2m1: a slab
            float4_e2m1fn_x2 [.., D/2] needs a weight of that dtype.
        slab_ids: int32, shape of active_ids: the token that each row of the slab holds, or -1.
        weight: [V, D], bf16, fp16 or fp32, or int8 or float8_e4m3fn with ``weight_scale``; or 4-bit
            rows uint8 or float4_e2m1fn_x2 [V, D/2] with ``weight_scale``.
        active_ids: int32 [K] or [G, K]; -1 marks an empty slot.
        slab_scale: fp32 [K] or [G, K]; for 4-bit rows bf16 [.., D/32] (int4) or float8_e4m3fn
            [.., D/16] (e2m1); required if the slab is quantised, else None.
        weight_scale: the same of the weight, for its V rows.

    Raises:
        ValueError, TypeError, IndexError: as :func:`sparse_head`. The op then writes nothing.
    """
    try:
        torch.ops.microspec.gather_rows_(
            slab, slab_ids, weight, active_ids, slab_scale=slab_scale, weight_scale=weight_scale
        )
    except RuntimeError as error:
        _reraise(error)


def vocab_update_(
    active_ids: Tensor,
    slot_stamps: Tensor,
    token_slots: Tensor,
    clock: Tensor,
    tokens: Tensor,
    *,
    token_groups: Tensor | None = None,
) -> None:
    """Add tokens to the active vocabulary in place, and evict the least recently used ones.

    The set and its recency order are exactly those of a sequential LRU over the tokens. A token
    that stays keeps its slot. New tokens, oldest first, take the free slots in ascending order.
    A slot with stamp 2^63 - 1 is pinned: the op never evicts its token.

    Args:
        active_ids: int32 [K] or [G, K]; -1 marks an empty slot.
        slot_stamps: int64 [G, K], time of last use; -1 at an empty slot.
        token_slots: int32 [G, V], the slot of each token, or -1.
        clock: int64 [G], positions seen so far, padding included.
        tokens: int32 or int64 [G, N], or [N] if G = 1 or with ``token_groups``; oldest first;
            -1 is padding. N may exceed K.
        token_groups: int32 or int64 [N], the group of each token of a ragged batch; -1 ignores the
            token.

    Raises:
        ValueError, TypeError, IndexError: as :func:`sparse_head`. The op then writes nothing.
    """
    try:
        torch.ops.microspec.vocab_update_(
            active_ids, slot_stamps, token_slots, clock, tokens, token_groups=token_groups
        )
    except RuntimeError as error:
        _reraise(error)


def vocab_count_(
    text_counts: Tensor,
    seen: Tensor,
    tokens: Tensor,
    *,
    token_requests: Tensor | None = None,
    request_lists: Tensor | None = None,
    total_counts: Tensor | None = None,
) -> None:
    """Count in how many texts each token stands, in place.

    A token counts once per text: the op sets its bit in ``seen``, and counts it if the bit was not
    set. Clear a request's row of ``seen`` when its text begins. The op ignores tokens outside
    [0, V), and tokens of a request or a list that does not exist.

    Args:
        text_counts: int32 [C, V], for each list the number of texts with each token.
        seen: int32 [R, ceil(V / 32)], the tokens that each request's text has shown: bit t % 32 of
            word t // 32 is that of token t.
        tokens: int32 or int64 [R, N], or [N] if R = 1 or with ``token_requests``, in any order.
        token_requests: int32 or int64 [N], the request of each token.
        request_lists: int32 or int64 [R], the list of each request; -1 ignores the request's
            tokens. Required if C > 1.
        total_counts: int32 [V], counts of all lists together.

    Raises:
        ValueError, TypeError: as :func:`sparse_head`. The op then writes nothing.
    """
    try:
        torch.ops.microspec.vocab_count_(
            text_counts,
            seen,
            tokens,
            token_requests=token_requests,
            request_lists=request_lists,
            total_counts=total_counts,
        )
    except RuntimeError as error:
        _reraise(error)


def vocab_observe_(
    active_ids: Tensor,
    slot_stamps: Tensor,
    token_slots: Tensor,
    clock: Tensor,
    tokens: Tensor,
    *,
    lengths: Tensor | None = None,
    candidates: Tensor | None = None,
    token_rows: Tensor | None = None,
    token_groups: Tensor | None = None,
    token_requests: Tensor | None = None,
    tally: Tensor | None = None,
    num_lists: int = 0,
) -> None:
    """Take a step's tokens: judge and count those that the target wrote, and update with all.

    The op does in turn what three calls would: it counts which tokens are active now, then
    :func:`vocab_count_` of them, then :func:`vocab_update_` of candidates and tokens. On a GPU it
    is two kernels.

    Args:
        active_ids, slot_stamps, token_slots, clock: the vocabulary, as :func:`vocab_update_` takes
            it.
        tokens: int32 or int64 [N], or [B, n] with a row for each text: what the target wrote,
            oldest first; -1 is padding.
        lengths: int32 or int64 [B], how many of each row of tokens are valid. What follows them may
            be anything.
        candidates: int32 or int64 of any shape, M tokens that also become active, such as the
            target's likeliest; older than ``tokens``. They are neither judged nor counted.
        token_rows: int32 [T], each token's id in the vocabulary, -1 for none, where the draft has
            another vocabulary than the target. Tokens and candidates are then in [-1, T).
        token_groups: int32 or int64 [M + N], the group of each candidate and then of each token.
            Required if G > 1.
        token_requests: int32 or int64 [M + N], the request of each. Default: the number of its
            group if R = G, else 0. A token of a request outside [0, R) is neither judged nor
            counted.
        tally: int32 [n], the data of a :class:`~.tally.Tally`, to which the op adds. Without it
            nothing is judged or counted.
        num_lists: C, the tally's number of lists. With 0 there are only verdicts.

    Raises:
        ValueError, TypeError, IndexError: as :func:`sparse_head`. The op then writes nothing.
    """
    try:
        torch.ops.microspec.vocab_observe_(
            active_ids,
            slot_stamps,
            token_slots,
            clock,
            tokens,
            lengths=lengths,
            candidates=candidates,
            token_rows=token_rows,
            token_groups=token_groups,
            token_requests=token_requests,
            tally=tally,
            num_lists=num_lists,
        )
    except RuntimeError as error:
        _reraise(error)


def vocab_refill_(
    active_ids: Tensor,
    slot_stamps: Tensor,
    token_slots: Tensor,
    clock: Tensor,
    text_counts: Tensor,
    token_ranks: Tensor,
    group_lists: Tensor,
    *,
    total_counts: Tensor | None = None,
    pinned: int = 0,
    reset: bool = True,
) -> None:
    """Fill active vocabularies with the tokens that stood in the most texts, in place.

    The order of tokens is: the count in the group's list, the largest first; then the total count,
    the largest first; then the rank, the smallest first; then the id. Negative counts and ranks
    count as 0. A token that stays keeps its slot. New tokens take the free slots, both in
    ascending order.

    With ``reset``, the group becomes the first K tokens: ``pinned`` of them pinned, the others with
    stamps that let the last of the order be evicted first. Without it, only the pinned tokens
    change: the first ``pinned`` tokens become pinned, those not active take the slots of the least
    recently used, and tokens that lose their pin become the least recently used.

    An empty slot with a pinned one's stamp is closed and stays as it is: K means the others.

    Args:
        active_ids: int32 [K] or [G, K]; -1 marks an empty slot.
        slot_stamps: int64 [G, K], time of last use.
        token_slots: int32 [G, V], the slot of each token, or -1.
        clock: int64 [G].
        text_counts: int32 [C, V], for each list the number of texts with each token.
        token_ranks: int32 [V], the order of tokens with equal counts, the smallest first. The op is
            fastest if the ranks are a permutation of 0 to V - 1.
        group_lists: int32 or int64 [G], the list of each group; -1 leaves the group as it is.
        total_counts: int32 [V], counts of all lists together.
        pinned: number of pinned tokens, 0 to K.
        reset: whether the slots that are not pinned begin anew too.

    Raises:
        ValueError, TypeError, IndexError: as :func:`sparse_head`. The op then writes nothing.
    """
    try:
        torch.ops.microspec.vocab_refill_(
            active_ids,
            slot_stamps,
            token_slots,
            clock,
            text_counts,
            token_ranks,
            group_lists,
            total_counts=total_counts,
            pinned=pinned,
            reset=reset,
        )
    except RuntimeError as error:
        _reraise(error)


for _function in (
    sparse_head,
    sparse_logits,
    sparse_sample,
    gather_rows_,
    vocab_update_,
    vocab_count_,
    vocab_observe_,
    vocab_refill_,
):
    getattr(torch.ops.microspec, _function.__name__).__doc__ = _function.__doc__  # for help()
