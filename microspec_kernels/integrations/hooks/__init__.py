# SPDX-License-Identifier: Apache-2.0
"""Shared code of the engine plugins: hook points, wrapped methods, an error, metrics."""

from .guard import Guard
from .hook_points import HookPoint, check_hook_points, missing_hook_points, package_root
from .requests import RequestNumbers, TokenRequests
from .tokenizers import local_tokenizer
from .unsupported import UnsupportedError

__all__ = [
    "Guard",
    "HookPoint",
    "RequestNumbers",
    "TokenRequests",
    "UnsupportedError",
    "check_hook_points",
    "local_tokenizer",
    "missing_hook_points",
    "package_root",
]
