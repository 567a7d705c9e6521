# SPDX-License-Identifier: Apache-2.0
"""The definition of every op in plain PyTorch: slow and obvious. Tests compare the kernels with it.

The functions do not check their arguments (``_checks`` does). Shapes and dtypes are those of
:mod:`microspec_kernels.ops`. ``dtype`` lets a test compute the logits in float64.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._checks import E2M1, EMPTY_STAMP, FOUR_BIT, INT4, INT4_GROUP, PINNED_STAMP
from ..tally import Tally

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
LARGEST_INT4 = 7.0
# The values of e2m1's codes 0 to 7; codes 8 to 15 are their negatives.
E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def by_group(ids: Tensor) -> Tensor:
    """View ids [K] as [1, K]; return [G, K] as is."""
    return ids if ids.dim() == 2 else ids[None]


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
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Compute the logits [M, K] in ``dtype``, in slot order; -inf where empty.

    z[m, slot] = logit_scale · (hidden[m] · row[slot] + bias), then softcap · tanh(z / softcap) if
    softcap > 0.
    """
    ids = by_group(active_ids)
    rows = hidden.size(0)
    group_of = torch.zeros(rows, dtype=torch.long) if group_ids is None else group_ids.cpu().long()
    group_of = group_of.expand(rows)  # one id may stand for all rows
    logits = hidden.new_full((rows, ids.size(1)), float("-inf"), dtype=dtype)
    for group, group_active in enumerate(ids):
        members = (group_of == group).nonzero().flatten().to(hidden.device)
        slots = (group_active >= 0).nonzero().flatten()
        if not len(members) or not len(slots):
            continue
        tokens = group_active[slots].long()
        source = weight.reshape(len(ids), *weight.shape[-2:])[group] if packed else weight
        index = slots if packed else tokens
        row = _rows_at(source, index)
        scale = None
        if weight_scale is not None:
            scales = weight_scale.view(*ids.shape, -1)[group] if packed else weight_scale
            scale = _rows_at(scales, index).view(len(index), -1)
        row = dequantise_rows(row, scale, dtype)
        z = hidden[members].to(dtype) @ row.T
        if bias is not None:
            z = z + bias[tokens].to(dtype)
        z = logit_scale * z
        if softcap > 0:
            z = softcap * torch.tanh(z / softcap)
        logits[members[:, None], slots[None]] = z
    return logits


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
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the top k of sparse_logits and their logsumexp over the row's active tokens.

    Entries are sorted by logit descending, then by id ascending; NaN comes last. Rows with fewer
    than k active tokens are padded with (-inf, -1).

    Returns:
        logits [M, k] in ``dtype``, token_ids int64 [M, k] and logsumexp [M] in ``dtype``.
    """
    z = sparse_logits(
        hidden,
        weight,
        active_ids,
        packed=packed,
        group_ids=group_ids,
        weight_scale=weight_scale,
        bias=bias,
        logit_scale=logit_scale,
        softcap=softcap,
        dtype=dtype,
    )
    ids = by_group(active_ids).long()
    if group_ids is None:
        token_ids = ids[:1].expand(z.size(0), -1)
    else:
        group_of = group_ids.expand(z.size(0))
        padding = (group_of < 0)[:, None]
        token_ids = ids[group_of.clamp(min=0).long()].masked_fill(padding, -1)
    # Stable sorts, least significant key first: id, then logit, then rank (number, NaN, empty).
    order = token_ids.argsort(dim=1, stable=True)
    value = z.nan_to_num(nan=float("-inf"), posinf=float("inf"), neginf=float("-inf"))
    order = order.gather(1, value.gather(1, order).argsort(dim=1, descending=True, stable=True))
    rank = z.isnan().long() + 2 * (token_ids < 0)
    order = order.gather(1, rank.gather(1, order).argsort(dim=1, stable=True))[:, :k]

    padded_logits = z.new_full((z.size(0), k), float("-inf"))
    padded_ids = token_ids.new_full((z.size(0), k), -1)
    padded_logits[:, : order.size(1)] = z.gather(1, order)
    padded_ids[:, : order.size(1)] = token_ids.gather(1, order)
    # If K = 0, the logsumexp is that of an empty sum: -inf.
    logsumexp = z.logsumexp(1) if z.size(1) else z.new_full((z.size(0),), float("-inf"))
    return padded_logits, padded_ids, logsumexp


def philox4x32_10(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, ...]:
    """Compute ten rounds of Philox4x32 (Salmon et al., SC 2011), as Random123 does."""
    (a, b, c, d), (first, second) = counter, key
    for _ in range(10):
        x, y = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (y >> 32) ^ b ^ first, y % 2**32, (x >> 32) ^ d ^ second, x % 2**32
        first, second = (first + 0x9E3779B9) % 2**32, (second + 0xBB67AE85) % 2**32
    return a, b, c, d


DRAW_SALT = 0x64726177  # "draw": no other use of Philox with an engine's seeds has these numbers


def draw_number(seed: int, position: int) -> int:
    """Return 2^64 · u, u in (0, 1) with 53 bits and a half, for int64 seed and position."""
    seed, position = seed % 2**64, position % 2**64
    counter = (position % 2**32, position >> 32, 0, DRAW_SALT)
    high, low, _, _ = philox4x32_10(counter, (seed % 2**32, seed >> 32))
    return (2 * ((high << 21) | (low >> 11)) + 1) << 10


def draw_unit(capacity: int) -> int:
    """Return the largest power of two of which K weights sum up to 2^62 at most."""
    return 1 << max(62 - max(capacity - 1, 0).bit_length(), 0)


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
    """Draw a token of each row; write its logits by token into a row of ``token_logits``.

    The weight of a slot is floor(exp((z - max z) / temperature) · unit), see ``draw_unit``: an
    integer, so that sums are exact in any order. The row draws the first slot at which the running
    sum is above floor(u · total).

    Returns:
        tokens int64 [M] and log_probs fp32 [M].
    """
    operands = hidden, weight, active_ids
    options: dict[str, Any] = {"packed": packed, "group_ids": group_ids, "bias": bias}
    options |= {"weight_scale": weight_scale, "logit_scale": logit_scale, "softcap": softcap}
    z = sparse_logits(*operands, **options)
    best = sparse_head(*operands, 1, **options)[1][:, 0]
    ids = by_group(active_ids)
    group_of = [0] * len(z) if group_ids is None else group_ids.expand(len(z)).tolist()
    rows = range(len(z)) if logit_rows is None else logit_rows.tolist()
    unit = draw_unit(ids.size(1))
    tokens = torch.full((len(z),), -1, device=hidden.device)
    log_probs = torch.full((len(z),), float("-inf"), device=hidden.device)
    for m, group in enumerate(group_of):
        slots = (ids[group] >= 0).nonzero().flatten() if group >= 0 else ids.new_empty(0).long()
        logits, named = z[m, slots], ids[group, slots].long()
        own = named if row_tokens is None else row_tokens[named]
        if token_logits is not None and rows[m] >= 0:
            token_logits[rows[m]] = float("-inf")
            stored = (own >= 0) & (own < token_logits.size(1))
            token_logits[rows[m], own[stored]] = logits[stored].to(token_logits.dtype)
        if not len(slots):
            continue
        at, log_probs[m] = int((named == best[m]).nonzero()[0]), 0.0
        temperature, numbers = float(temperatures[m]), ~logits.isnan()
        if temperature > 0 and bool(numbers.any()):
            top = logits[numbers].max()
            exponents = ((logits - top) / temperature).masked_fill(logits == top, 0.0).double()
            weights = (exponents.exp() * unit).nan_to_num(0.0).long()
            sums = weights.cumsum(0)
            drawn = draw_number(int(seeds[m]), int(positions[m])) * int(sums[-1]) >> 64
            at = int((sums <= drawn).sum())
            others = torch.tensor((int(sums[-1]) - unit) / unit, dtype=torch.float64)
            log_probs[m] = exponents[at] - others.log1p()
        tokens[m] = own[at]
        if not bool(numbers.all()):
            log_probs[m] = float("nan")
    return tokens, log_probs


def _as_bytes(rows: Tensor) -> Tensor:
    """View fp8 and fp4 rows as bytes, because PyTorch cannot index them."""
    return rows.view(torch.uint8) if rows.dtype in (torch.float8_e4m3fn, E2M1) else rows


def _rows_at(rows: Tensor, index: Tensor) -> Tensor:
    """Return rows[index]."""
    return _as_bytes(rows)[index].view(rows.dtype)


def _put_rows(target: Tensor, index: Tensor, rows: Tensor) -> None:
    """Set target[index] = rows."""
    _as_bytes(target)[index] = _as_bytes(rows)


def int4_columns(rows: Tensor) -> Tensor:
    """Unpack uint8 [.., D/2] to int8 [.., D], -8 to 7; the even column is in the low half."""
    halves = torch.stack((rows & 15, rows >> 4), -1).flatten(-2)
    return (halves ^ 8).to(torch.int8) - 8


def e2m1_columns(rows: Tensor) -> Tensor:
    """Unpack float4_e2m1fn_x2 [.., D/2] to fp32 [.., D]; the even column is in the low half."""
    codes = rows.view(torch.uint8)
    halves = torch.stack((codes & 15, codes >> 4), -1).flatten(-2).long()
    values = torch.tensor(E2M1_VALUES, device=rows.device)
    return torch.cat((values, -values))[halves]


def dequantise_rows(rows: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return the values of rows [N, D] in ``dtype``; of 4-bit rows [N, D/2].

    Args:
        rows: the rows.
        scale: fp32 [N, 1]; for 4-bit rows bf16 [N, D/32] (uint8) or float8_e4m3fn [N, D/16]
            (float4_e2m1fn_x2); None for rows that are not quantised.
        dtype: dtype of the result. In fp32 and fp64 the values of 4-bit rows are exact.
    """
    if rows.dtype in FOUR_BIT:
        assert scale is not None
        group, _ = FOUR_BIT[rows.dtype]
        columns = int4_columns(rows) if rows.dtype == INT4 else e2m1_columns(rows)
        return columns.to(dtype) * scale.to(dtype).repeat_interleave(group, 1)
    return rows.to(dtype) if scale is None else rows.to(dtype) * scale.to(dtype)


def quantise_int4(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise rows [N, D] to int4, so that each column ≈ q · scale of its group of 32 columns.

    scale is amax / 7 rounded to bf16, half to even; q is the column divided by that scale, rounded
    half to even, and so from -7 to 7. The rule for tiny and for broken values is that of
    :func:`quantise_rows`, for each group by itself.

    Returns:
        q uint8 [N, D/2], the even column in the low half, and scale bf16 [N, D/32].
    """
    values = rows.float().view(len(rows), rows.size(1) // INT4_GROUP, INT4_GROUP)
    scale = _scales(values, LARGEST_INT4).to(torch.bfloat16)
    q = _quotients(values, scale.float()).round().to(torch.int8).view(torch.uint8).flatten(1) & 15
    return q[:, ::2] | (q[:, 1::2] << 4), scale


def _scales(values: Tensor, largest: float) -> Tensor:
    """Return the scales [..] of values [.., n]."""
    scale = values.abs().amax(-1) / largest
    # amax propagates NaN. This comparison turns it into 1, and the next line into NaN again.
    scale = torch.where(scale >= torch.finfo(torch.float32).tiny, scale, torch.ones_like(scale))
    return torch.where(values.isfinite().all(-1), scale, torch.full_like(scale, float("nan")))


def _quotients(values: Tensor, scale: Tensor) -> Tensor:
    """Return values [.., n] / scale [..]; 0 where scale is NaN."""
    scale = scale[..., None]
    return torch.where(scale.isnan(), torch.zeros_like(values), values / scale)


def quantise_rows(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Quantise rows [N, D] to int8 or float8_e4m3fn, so that row ≈ q · scale.

    scale = amax / (127 or 448); rounding is half to even. A row whose scale would be below the
    smallest normal fp32, such as a row of zeros, gets scale 1. A row with a NaN or an infinity gets
    scale NaN and q = 0.

    Returns:
        q [N, D] in ``dtype`` and scale fp32 [N].
    """
    values = rows.float()
    scale = _scales(values, LARGEST[dtype])
    q = _quotients(values, scale)
    if dtype == torch.int8:
        q = q.round().clamp(-127, 127)
    return q.to(dtype), scale


def gather_rows_(
    slab: Tensor,
    slab_ids: Tensor,
    weight: Tensor,
    active_ids: Tensor,
    *,
    slab_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
) -> None:
    """Copy or quantise the rows of the slots whose id changed, in place. Keep the other rows."""
    changed = (slab_ids != active_ids).flatten().nonzero().flatten()
    tokens = active_ids.flatten()[changed].long()
    slots, tokens = changed[tokens >= 0], tokens[tokens >= 0]
    at = tokens.to(weight.device)  # the weight may lie in host memory
    rows = _rows_at(weight, at).to(slab.device)
    scale = None if weight_scale is None else _rows_at(weight_scale, tokens)
    if slab.dtype != weight.dtype:
        quantise = quantise_int4 if slab.dtype == INT4 else partial(quantise_rows, dtype=slab.dtype)
        rows, scale = quantise(rows)
    _put_rows(slab.view(-1, slab.size(-1)), slots, rows)
    if slab_scale is not None and scale is not None:
        _put_rows(slab_scale.view(active_ids.numel(), *scale.shape[1:]), slots, scale)
    slab_ids.copy_(active_ids)


def vocab_update_(
    active_ids: Tensor,
    slot_stamps: Tensor,
    token_slots: Tensor,
    clock: Tensor,
    tokens: Tensor,
    *,
    token_groups: Tensor | None = None,
) -> None:
    """Run a sequential LRU over the tokens, group by group, and update the state in place.

    A token's stamp is the group's clock before the call plus the token's position in the call. The
    clock then advances by the number of positions, padding included. The n new tokens take n slots:
    those of evicted tokens, and the lowest empty ones. The oldest new token takes the lowest slot.
    """
    ids = by_group(active_ids)
    count = tokens.size(-1)
    for group in range(ids.size(0)):
        if token_groups is not None:
            stream = torch.where(token_groups == group, tokens, -1).tolist()
        else:
            stream = tokens.reshape(ids.size(0), count)[group].tolist()
        _update_group(ids[group], slot_stamps[group], token_slots[group], clock[group], stream)


def _update_group(
    ids: Tensor, stamps: Tensor, slots: Tensor, clock: Tensor, stream: list[int]
) -> None:
    slot_ids: list[int] = ids.tolist()
    slot_stamps: list[int] = stamps.tolist()
    base = int(clock)
    pinned = {t for t, s in zip(slot_ids, slot_stamps, strict=True) if s == PINNED_STAMP}
    before = {t: slot for slot, t in enumerate(slot_ids) if t >= 0}
    room = len(slot_ids) - slot_stamps.count(PINNED_STAMP)
    by_age = sorted((slot_stamps[slot], t) for t, slot in before.items() if t not in pinned)
    recency = OrderedDict((t, stamp) for stamp, t in by_age)
    for position, token in enumerate(stream):
        if token < 0 or token in pinned or room == 0:
            continue
        if token in recency:
            recency.move_to_end(token)
        elif len(recency) == room:
            recency.popitem(last=False)
        recency[token] = base + position

    gone = [t for t in before if t not in recency and t not in pinned]
    newcomers = [t for t in recency if t not in before]
    empty = [slot for slot, t in enumerate(slot_ids) if t < 0 and slot_stamps[slot] < 0]
    # No token is evicted while a slot is empty: if `gone` is not empty, this takes all of `empty`.
    free = sorted(empty[: len(newcomers) - len(gone)] + [before[t] for t in gone])
    for token in gone:
        slots[token] = -1
    for slot, token in zip(free, newcomers, strict=True):
        ids[slot], slots[token] = token, slot
    for token, stamp in recency.items():
        stamps[slots[token]] = stamp
    clock += len(stream)


def vocab_count_(
    text_counts: Tensor,
    seen: Tensor,
    tokens: Tensor,
    *,
    token_requests: Tensor | None = None,
    request_lists: Tensor | None = None,
    total_counts: Tensor | None = None,
) -> None:
    """Count each token once per request, in the request's list and in the total, in place.

    Bit t % 32 of word t // 32 of a request's row of ``seen`` says that token t has been counted.
    """
    num_lists, vocab_size = text_counts.shape
    num_requests, num_words = seen.shape
    count = tokens.size(-1)
    if token_requests is None:
        requests = [r for r in range(num_requests) for _ in range(count)]
    else:
        requests = token_requests.tolist()
    lists = [0] * num_requests if request_lists is None else request_lists.tolist()
    bits = torch.arange(32, device=seen.device)
    was_seen = ((seen[..., None] >> bits) & 1).view(num_requests, -1).bool()
    for token, request in zip(tokens.flatten().tolist(), requests, strict=True):
        if not (0 <= token < vocab_size and 0 <= request < num_requests):
            continue
        if not 0 <= lists[request] < num_lists or was_seen[request, token]:
            continue
        was_seen[request, token] = True
        text_counts[lists[request], token] += 1
        if total_counts is not None:
            total_counts[token] += 1
    words = (was_seen.view(num_requests, num_words, 32).long() << bits).sum(2)
    seen.copy_(words.where(words < 2**31, words - 2**32))


def valid_tokens(tokens: Tensor, lengths: Tensor | None) -> Tensor:
    """Return tokens [B, n] with -1 after the first lengths [B] of each row."""
    if lengths is None:
        return tokens
    columns = torch.arange(tokens.size(1), device=tokens.device)
    return tokens.where(columns < lengths[:, None], -1)


def step_ids(
    tokens: Tensor,
    lengths: Tensor | None,
    candidates: Tensor | None,
    token_rows: Tensor | None,
    vocab_size: int,
) -> Tensor:
    """Return the ids in the vocabulary of a step's candidates, and after them of its tokens."""
    ids = valid_tokens(tokens, lengths).flatten()
    if candidates is not None:
        ids = torch.cat((candidates.flatten().long(), ids.long()))
    if token_rows is not None:
        inside = (ids >= 0) & (ids < len(token_rows))
        ids = token_rows[ids.where(inside, 0).long()].where(inside, -1)
    return ids.where((ids >= 0) & (ids < vocab_size), -1)


def judge(
    active_ids: Tensor, token_slots: Tensor, ids: Tensor, groups: Tensor, requests: Tensor,
    verdicts: Tensor,
) -> None:  # fmt: skip
    """Add to verdicts [2, R] the ids that are active, and those that are not."""
    of_group = by_group(active_ids)
    inside = (ids >= 0) & (groups >= 0) & (groups < len(of_group))
    inside &= (requests >= 0) & (requests < verdicts.size(1))
    id_, group, request = (t.where(inside, 0).long() for t in (ids, groups, requests))
    active = torch.zeros_like(inside)
    if of_group.size(1) and token_slots.size(1):
        slot = token_slots[group, id_].long()
        there = (slot >= 0) & (slot < of_group.size(1))
        active = there & (of_group[group, slot.where(there, 0)] == id_)
    verdicts.index_add_(1, request, torch.stack((active & inside, ~active & inside)).long())


def observing(count: Callable[..., None], update: Callable[..., None]) -> Callable[..., None]:
    """Make vocab_observe_ of vocab_count_ and vocab_update_."""

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
        """Judge and count the tokens, then update with the candidates and the tokens, in place."""
        num_groups, vocab_size = token_slots.shape
        ids = step_ids(tokens, lengths, candidates, token_rows, vocab_size)
        if tally is not None:
            parts = Tally.over(tally, vocab_size, num_lists)
            zeros = torch.zeros_like(ids)
            groups = zeros if token_groups is None else token_groups
            requests = token_requests
            if requests is None:
                requests = groups if parts.verdicts.size(1) == num_groups else zeros
            owned = slice(len(ids) - tokens.numel(), None)
            written, groups, requests = (t[owned] for t in (ids, groups, requests))
            judge(active_ids, token_slots, written, groups, requests, parts.verdicts)
            if num_lists:
                count(
                    parts.text_counts,
                    parts.seen,
                    written,
                    token_requests=requests,
                    request_lists=parts.request_lists,
                    total_counts=parts.total_counts,
                )
        update(active_ids, slot_stamps, token_slots, clock, ids, token_groups=token_groups)

    return vocab_observe_


vocab_observe_ = observing(vocab_count_, vocab_update_)


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
    """Fill groups with the first tokens of their lists, in place.

    Tokens are in the order of (count in the list, the largest first; total count, the largest
    first; rank, the smallest first; id). Negative counts and ranks count as 0. A token that stays
    keeps its slot. New tokens take the free slots, both in ascending order. A slot that is pinned
    without a token is closed: it stays as it is.
    """
    ids = by_group(active_ids)
    totals = torch.zeros_like(token_ranks) if total_counts is None else total_counts
    for group, which in enumerate(group_lists.tolist()):
        if not 0 <= which < len(text_counts):
            continue
        # Stable sorts, least significant key first.
        order = token_ranks.clamp(min=0).argsort(stable=True)
        for counts in (totals, text_counts[which]):
            order = order[counts.clamp(min=0)[order].argsort(descending=True, stable=True)]
        closed = (ids[group] < 0) & (slot_stamps[group] == PINNED_STAMP)
        open_slots = ids.size(1) - int(closed.sum())
        wanted = order[: open_slots if reset else min(pinned, open_slots)].tolist()
        state = ids[group], slot_stamps[group], token_slots[group], clock[group]
        _refill_group(*state, wanted, pinned, reset)


def _refill_group(
    ids: Tensor,
    stamps: Tensor,
    slots: Tensor,
    clock: Tensor,
    wanted: list[int],
    pinned: int,
    reset: bool,
) -> None:
    held = {t: s for s, t in enumerate(ids.tolist()) if 0 <= t < len(slots) and slots[t] == s}
    kept = {held[token] for token in wanted if token in held}
    kept |= {s for s, t in enumerate(ids.tolist()) if t < 0 and stamps[s] == PINNED_STAMP}
    others = [slot for slot in range(len(ids)) if slot not in kept]
    newcomers = sorted(token for token in wanted if token not in held)
    if not reset:
        # Tokens that lose their pin become the oldest, in the order of their slots.
        unpinned = [slot for slot in others if stamps[slot] == PINNED_STAMP]
        stamps[(stamps >= 0) & (stamps != PINNED_STAMP)] += len(unpinned)
        for stamp, slot in enumerate(unpinned):
            stamps[slot] = stamp
        clock += len(unpinned)
        others = sorted(others, key=lambda slot: (int(stamps[slot]), slot))[: len(newcomers)]
    for slot in others:
        slots[[token for token, held_slot in held.items() if held_slot == slot]] = -1
        ids[slot], stamps[slot] = -1, EMPTY_STAMP
    for slot, token in zip(sorted(others), newcomers, strict=False):
        ids[slot], slots[token] = token, slot
    for position, token in enumerate(wanted):
        stays_on_top = not reset or position < pinned
        stamps[slots[token]] = PINNED_STAMP if stays_on_top else len(wanted) - 1 - position
    if reset:
        clock.fill_(max(len(wanted) - pinned, 0))
