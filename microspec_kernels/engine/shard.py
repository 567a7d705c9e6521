# SPDX-License-Identifier: Apache-2.0
"""A rank's part of the draft's LM head."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Shard:
    """The rows of the draft's LM head that this rank of a tensor-parallel group holds.

    Attributes:
        total_rows: rows on all ranks together.
        start: index of the first row on this rank.
        process_group: the ranks.
    """

    total_rows: int
    start: int
    process_group: "ProcessGroup"
