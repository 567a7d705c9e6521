# SPDX-License-Identifier: Apache-2.0
"""A rank's part of the draft's LM head."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Shard:
    """The rows of the draft's LM head that this rank of a tensor-parallel group holds.

    Attributes:
        total_rows: rows on all ranks together.
        start: index of the first row on this rank.
        process_group: the ranks.
        all_gather: gathers fp32 [n, m] of each rank, any bits, to [ranks · n, m], in the order of
            process_group. A draft step calls it once. An engine's own communicator launches less
            than torch.distributed, the default.
    """

    total_rows: int
    start: int
    process_group: "ProcessGroup"
    all_gather: Callable[[Tensor], Tensor] | None = None
