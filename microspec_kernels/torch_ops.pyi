# SPDX-License-Identifier: Apache-2.0
from torch import Tensor

__all__ = ["gather_rows_", "sparse_head", "sparse_logits", "vocab_update_"]

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
) -> tuple[Tensor, Tensor, Tensor]: ...
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
) -> Tensor: ...
def gather_rows_(
    slab: Tensor,
    slab_ids: Tensor,
    weight: Tensor,
    active_ids: Tensor,
    *,
    slab_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
) -> None: ...
def vocab_update_(
    active_ids: Tensor,
    slot_stamps: Tensor,
    token_slots: Tensor,
    clock: Tensor,
    tokens: Tensor,
    *,
    token_groups: Tensor | None = None,
) -> None: ...
