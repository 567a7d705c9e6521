# SPDX-License-Identifier: Apache-2.0
"""Shared code of the engine plugins: facts about engines, wrapped methods, an error, metrics."""

from .costs import can_win, step_costs
from .expectations import Attributes, CallOrder, Definitions
from .guard import Guard
from .head_choice import HeadChoice, choice_of
from .hook_points import (
    Expectation,
    HookPoint,
    check_hook_points,
    missing_hook_points,
    package_root,
)
from .opt_out import LeftOut, has_opted_out
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
    "HeadChoice",
    "HookPoint",
    "LeftOut",
    "RequestNumbers",
    "StoredRows",
    "TokenRequests",
    "UnsupportedError",
    "can_win",
    "check_hook_points",
    "choice_of",
    "has_opted_out",
    "local_tokenizer",
    "missing_hook_points",
    "package_root",
    "step_costs",
    "stored_rows",
]
