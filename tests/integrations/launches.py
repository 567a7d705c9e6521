# SPDX-License-Identifier: Apache-2.0
"""Count what would be launched on a device: dispatched ops that neither view nor only allocate."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_FREE = (
    *("aten::empty", "aten::new_empty", "aten::lift_fresh", "aten::detach", "aten::alias"),
    "aten::_unsafe_view",
)


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.ops: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func._schema.name
        if not func.is_view and not name.startswith(_FREE):
            self.ops.append(name)
        return func(*args, **(kwargs or {}))


def launched(call: Callable[[], Any]) -> list[str]:
    """Return the names of the ops that a call dispatches.

    Not in inference mode: there `to` and `reshape` count as views even if they copy.
    """
    with torch.no_grad(), _Recorder() as recorder:
        call()
    return recorder.ops
