# SPDX-License-Identifier: Apache-2.0
"""Load targets and drafts from folders or the hub, in every supported format."""

from .load import load_draft, load_target

__all__ = ["load_draft", "load_target"]
