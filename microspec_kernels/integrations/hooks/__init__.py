# SPDX-License-Identifier: Apache-2.0
"""Shared code of the engine plugins: facts about engines, wrapped methods, an error, metrics."""

from .costs import can_win, step_costs
from .expectations import Attributes, CallOrder, Definitions
from .guard import Guard
from .hook_points import (
    Expectation,
    HookPoint,
    check_hook_points,
    missing_hook_points,
    package_root,
)
from .requests import RequestNumbers, TokenRequests
from .stored_rows import StoredRows, stored_rows
from .tokenizers import local_tokenizer
from .unsupported import UnsupportedError

__all__ = [
    "Attributes",
    "CallOrder",
    "Definitions",
    "Expectation",
    "Guard",
    "HookPoint",
    "RequestNumbers",
    "StoredRows",
    "TokenRequests",
    "UnsupportedError",
    "can_win",
    "check_hook_points",
    "local_tokenizer",
    "missing_hook_points",
    "package_root",
    "step_costs",
    "stored_rows",
]
