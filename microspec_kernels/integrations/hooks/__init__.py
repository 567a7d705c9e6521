# SPDX-License-Identifier: Apache-2.0
"""Shared code of the engine plugins: hook points, wrapped methods, an error, metrics."""

from .hook_points import HookPoint, check_hook_points, missing_hook_points, package_root
from .unsupported import UnsupportedError

__all__ = [
    "HookPoint",
    "UnsupportedError",
    "check_hook_points",
    "missing_hook_points",
    "package_root",
]
