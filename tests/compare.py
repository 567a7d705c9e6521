# SPDX-License-Identifier: Apache-2.0
"""The float64 reference head, the tolerance, and assertions that name the first bad coordinate."""

import math

import torch
import torch.nn.functional as F
from generators import E2M1, INT4, HeadCase, row_indexed
from torch import Tensor

from microspec_kernels._checks import E2M1_GROUP, INT4_GROUP

EPS = 2.0**-24  # half an ulp of 1 in fp32


def int4_columns(rows: Tensor) -> Tensor:
    """Unpack rows uint8 [.., D/2] to integers [.., D] from -8 to 7."""
    halves = torch.stack((rows % 16, rows // 16), -1).flatten(-2).long()
    return torch.where(halves < 8, halves, halves - 16)


def e2m1_columns(rows: Tensor) -> Tensor:
    """Unpack rows float4_e2m1fn_x2 [.., D/2] to their values, fp32 [.., D]."""
    codes = rows.view(torch.uint8)
    halves = torch.stack((codes % 16, codes // 16), -1).flatten(-2)
    exponent, fraction = halves // 2 % 4, (halves % 2).float()
    normal = (1 + fraction / 2) * 2.0 ** (exponent.float() - 1)
    magnitude = torch.where(exponent == 0, fraction / 2, normal)
    return torch.where(halves < 8, magnitude, -magnitude)


def values_of(rows: Tensor, scale: Tensor | None, wide: torch.dtype) -> Tensor:
    """Dequantise rows [N, D] with scales [N], 4-bit rows [N, D/2] with scales of groups."""
    if rows.dtype == E2M1:
        assert scale is not None
        return e2m1_columns(rows).to(wide) * scale.to(wide).repeat_interleave(E2M1_GROUP, -1)
    if rows.dtype == INT4:
        assert scale is not None
        return int4_columns(rows).to(wide) * scale.to(wide).repeat_interleave(INT4_GROUP, -1)
    return rows.to(wide) if scale is None else rows.to(wide) * scale.to(wide)[..., None]


def logits_in(case: HeadCase, dtype: torch.dtype) -> Tensor:
    """Compute the logits [M, K] of the contract, group by group.

    Empty slots and padding rows are -inf. PyTorch computes the product in ``dtype``. Scale, bias
    and softcap follow in float64 if ``dtype`` is float64, else in float32, like in all kernels. The
    result has that dtype.
    """
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    ids = torch.atleast_2d(case.active_ids)
    rows = case.weight[None] if case.packed and case.weight.dim() == 2 else case.weight
    count = case.hidden.size(0)
    group_of = torch.zeros(count).long() if case.group_ids is None else case.group_ids.expand(count)
    result = torch.full((count, ids.size(1)), -math.inf, dtype=wide)
    for group in set(group_of.tolist()) - {-1}:
        members = (group_of == group).nonzero().flatten()
        slots = (ids[group] >= 0).nonzero().flatten()
        tokens = ids[group][slots].long()
        source, at = (rows[group], slots) if case.packed else (rows, tokens)
        scale = case.weight_scale
        if scale is not None:
            if case.packed:
                scale = scale.view(*ids.shape, *scale.shape[case.active_ids.dim() :])[group]
            scale = row_indexed(scale)[at].view(scale.dtype)
        row = values_of(row_indexed(source)[at].view(source.dtype), scale, wide)
        z = F.linear(case.hidden[members].to(dtype), row.to(dtype)).to(wide)
        if case.bias is not None:
            z = z + case.bias[tokens].to(wide)
        z = z * case.logit_scale
        z = case.softcap * torch.tanh(z / case.softcap) if case.softcap else z
        result[members[:, None], slots[None]] = z
    return result


def largest_sum(case: HeadCase) -> float:
    """Return the maximum of |scale| · (Σ|x·w| + |bias|) over all logits.

    Rounding errors are relative to this sum.
    """
    absolute = case.changed(
        hidden=case.hidden.abs(),
        weight=values_of(case.weight, case.weight_scale, torch.float64).abs(),
        weight_scale=None,
        bias=None if case.bias is None else case.bias.abs(),
        logit_scale=abs(case.logit_scale),
        softcap=0.0,
    )
    sums = logits_in(absolute, torch.float64)
    return float(sums[sums.isfinite()].max()) if sums.isfinite().any() else 0.0


def tolerance(case: HeadCase) -> float:
    """Return the allowed error of a logit: twice PyTorch's largest error in hidden's dtype.

    Two bounds limit it. The lower bound is 4 ulp of fp32 at the largest sum of magnitudes, for
    cases in which PyTorch is exact (one rounding each for product, scale, bias and logit scale; two
    for tanh). The upper bound is D + 8 roundings of that size, because the contract accumulates in
    fp32 whatever hidden's dtype is. Without it a dropped element of a long row would pass in bf16,
    where PyTorch rounds its result to 8 bits.
    """
    exact, rounded = logits_in(case, torch.float64), logits_in(case, case.hidden.dtype)
    size = largest_sum(case)
    finite = exact.isfinite()
    error = float((rounded.double() - exact)[finite].abs().max()) if finite.any() else 0.0
    floor, ceiling = 8 * EPS * size, (case.hidden.size(1) + 8) * EPS * size
    return min(max(2 * error, floor), ceiling) + 1e-37


def first_bad(bad: Tensor) -> tuple[int, ...] | None:
    where = bad.nonzero()
    return tuple(where[0].tolist()) if len(where) else None


def assert_close(got: Tensor, want: Tensor, allowed: float, what: str = "result") -> None:
    """Assert |got - want| <= allowed, with infinities and NaN at the same coordinates."""
    assert got.shape == want.shape, f"{what}: shape {list(got.shape)}, not {list(want.shape)}"
    got, want = got.double(), want.double()
    same = (got == want) | (got.isnan() & want.isnan())
    bad = ~same & ~((got - want).abs() <= allowed)
    at = first_bad(bad)
    assert at is None, (
        f"{what}{list(at)}: {got[at].item()!r}, not {want[at].item()!r} within {allowed:.3g} "
        f"({int(bad.sum())} of {bad.numel()} are bad)"
    )


def assert_bitwise(got: Tensor, want: Tensor, what: str = "result") -> None:
    """Assert equality of shape, dtype and bits; any NaN equals any other."""
    assert got.dtype == want.dtype, f"{what}: {got.dtype}, not {want.dtype}"
    assert got.shape == want.shape, f"{what}: shape {list(got.shape)}, not {list(want.shape)}"
    if not got.numel():
        return
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[got.element_size()]
    bad = got.contiguous().view(bits) != want.contiguous().view(bits)
    if got.is_floating_point():
        bad &= ~(got.float().isnan() & want.float().isnan())
    at = first_bad(bad)
    assert at is None, (
        f"{what}{list(at)}: {got.float()[at].item() if got.is_floating_point() else got[at].item()}"
        f", not {want.float()[at].item() if want.is_floating_point() else want[at].item()} "
        f"({int(bad.sum())} of {bad.numel()} differ)"
    )


def sorted_row(logits: list[float], ids: list[int]) -> list[tuple[float, int]]:
    """Sort (logit, id) in the contract's order: numbers descending, then NaN; ties by id.

    Empty slots are dropped.
    """
    entries = [(z, t) for z, t in zip(logits, ids, strict=True) if t >= 0]
    return sorted(
        entries, key=lambda e: (math.isnan(e[0]), 0.0 if math.isnan(e[0]) else -e[0], e[1])
    )


def ids_by_row(case: HeadCase) -> Tensor:
    """Return the active ids [M, K] of each row of hidden; all -1 for a padding row."""
    ids = torch.atleast_2d(case.active_ids).long()
    if case.group_ids is None:
        return ids[:1].expand(case.hidden.size(0), -1)
    groups = case.group_ids.expand(case.hidden.size(0))
    return ids[groups.clamp(min=0).long()].masked_fill((groups < 0)[:, None], -1)


def exact_topk(logits: Tensor, ids: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k best of logits [M, K] and their ids, each [M, k], padded with (-inf, -1)."""
    padding = [(-math.inf, -1)] * k
    best = [
        (sorted_row(z, t) + padding)[:k] for z, t in zip(logits.tolist(), ids.tolist(), strict=True)
    ]
    shape = (len(best), k)
    top = torch.tensor([[z for z, _ in row] for row in best], dtype=logits.dtype).view(shape)
    return top, torch.tensor([[t for _, t in row] for row in best], dtype=torch.int64).view(shape)


def logsumexp64(logits: Tensor) -> Tensor:
    """Compute logsumexp [M] of fp32 or fp64 logits [M, K] in float64; -inf if K is 0."""
    if not logits.size(1):
        return torch.full((logits.size(0),), -math.inf, dtype=torch.float64)
    return logits.double().logsumexp(1)


def assert_top_k(got: tuple[Tensor, Tensor], exact: Tensor, ids: Tensor, allowed: float) -> None:
    """Compare logits and token_ids [M, k] with the exact logits [M, K] of slots that hold ``ids``.

    The order of ids may differ from the exact one only if exact logits differ by less than the
    rounding error. Each id's exact logit must be the reported one within ``allowed``, and the
    reported logits must be the best k.
    """
    logits, token_ids = got
    want, want_ids = exact_topk(exact, ids, logits.size(1))
    assert_close(logits, want, allowed, "logits")
    assert_bitwise(token_ids < 0, want_ids < 0, "padding")
    for m, (row, tokens) in enumerate(zip(logits.tolist(), token_ids.tolist(), strict=True)):
        exact_of = {t: z for z, t in zip(exact[m].tolist(), ids[m].tolist(), strict=True) if t >= 0}
        real = [(z, t) for z, t in zip(row, tokens, strict=True) if t >= 0]
        assert len({t for _, t in real}) == len(real), f"token_ids[{m}]: repeated"
        for j, (z, t) in enumerate(real):
            assert t in exact_of, f"token_ids[{m}, {j}]: {t} is not active"
            assert abs(exact_of[t] - z) <= allowed or z == exact_of[t] or (z != z), (
                f"token_ids[{m}, {j}]: {t} has logit {exact_of[t]}, not {z}"
            )
        assert real == sorted_row(*map(list, zip(*real, strict=True))) if real else True, (
            f"row {m} is out of order: {real}"
        )
