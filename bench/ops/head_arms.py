# SPDX-License-Identifier: Apache-2.0
"""Make every way to do the head's job: ours, and those of head_peers.py."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import microspec_kernels as mk
from bench.harness.head_check import HeadArm
from bench.harness.inputs import in_turn, quantise_nvfp4
from bench.harness.sizes import K_BEST
from bench.harness.supported import DTYPE_NAMES
from microspec_kernels import reference
from microspec_kernels._checks import E2M1, INT4

from .head_peers import peers


def arms_for(
    weight: Tensor,
    sets: list[Tensor],
    hidden: Tensor,
    quantised: Sequence[torch.dtype] = (),
    softcap: float = 0.0,
    *,
    triton: bool = False,
    compile_too: bool = False,
    only: Sequence[str] = ("",),
) -> dict[str, HeadArm]:
    """Return the arms by name, those that have one of ``only`` in their names."""
    slabs = [weight.index_select(0, ids) for ids in sets]
    arms = {
        **sparse_arms(weight, sets, slabs, hidden, quantised, softcap, triton),
        **peers(weight, sets, slabs, hidden, softcap, compile_too),
    }
    return {name: arm for name, arm in arms.items() if any(text in name for text in only)}


def quantise(slab: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    if dtype == INT4:
        return reference.quantise_int4(slab)
    return quantise_nvfp4(slab) if dtype == E2M1 else reference.quantise_rows(slab, dtype)


def sparse_arms(
    weight: Tensor,
    sets: list[Tensor],
    slabs: list[Tensor],
    hidden: Tensor,
    quantised: Sequence[torch.dtype] = (),
    softcap: float = 0.0,
    triton: bool = False,
) -> dict[str, HeadArm]:
    """Return the op over each set, indexed and on the set's slab.

    Args:
        quantised: types of further slabs, of 8 or 4 bits.
        triton: whether to add the same arms served by the Triton kernels.
    """

    def sparse(*operands: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
        return mk.sparse_head(hidden, *operands, K_BEST, softcap=softcap, **options)

    def arm(
        packed: list[Tensor] | None,
        scales: list[Tensor] | None = None,
        backend: str | None = None,
    ) -> HeadArm:
        options = [
            {"packed": packed is not None} | ({"weight_scale": scales[i]} if scales else {})
            for i in range(len(sets))
        ]
        rows = packed or [weight] * len(sets)
        operands = {"weight": rows[0], "active_ids": sets[0], "softcap": softcap, **options[0]}
        return HeadArm(
            in_turn(lambda i: sparse(rows[i], sets[i], **options[i]), len(sets)),
            operands,
            (packed or slabs)[0].nbytes + (scales[0].nbytes if scales else 0),
            backend=backend,
        )

    arms = {"sparse_head indexed": arm(None), "sparse_head packed": arm(slabs)}
    if triton:
        arms["Triton indexed"] = arm(None, backend="triton")
        arms["Triton packed"] = arm(slabs, backend="triton")
    for dtype in quantised:
        pairs = [quantise(slab, dtype) for slab in slabs]
        packed, scales = [rows for rows, _ in pairs], [scale for _, scale in pairs]
        arms[f"sparse_head packed {DTYPE_NAMES[dtype]}"] = arm(packed, scales)
        if triton:
            arms[f"Triton packed {DTYPE_NAMES[dtype]}"] = arm(packed, scales, backend="triton")
    return arms
