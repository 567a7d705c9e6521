# SPDX-License-Identifier: Apache-2.0
"""Read the switch: what the environment and vLLM's configuration ask for."""

import os
from collections.abc import Mapping
from typing import Any

from microspec_kernels.engine import SWITCH, Settings
from microspec_kernels.integrations.hooks import UnsupportedError


def settings_of(vllm_config: Any) -> Settings | None:
    """Return the user's settings; None if the switch is off.

    Raises:
        UnsupportedError: the settings cannot be read, or environment and configuration disagree.
    """
    environment = from_environment()
    additional = vllm_config.additional_config
    if not isinstance(additional, Mapping) or "microspec" not in additional:
        return environment
    where = 'additional_config["microspec"]'
    configured = _parse(where, additional["microspec"])
    if os.environ.get(SWITCH, "").strip() and environment != configured:
        raise UnsupportedError(where, f"the same as {SWITCH}, {environment}", configured)
    return configured


def from_environment() -> Settings | None:
    """Return the settings of :data:`SWITCH`; None if it is off.

    Raises:
        UnsupportedError: the settings cannot be read.
    """
    return _parse(SWITCH, os.environ.get(SWITCH))


def _parse(where: str, value: Any) -> Settings | None:
    try:
        return Settings.parse(value)
    except (ValueError, TypeError) as error:
        raise UnsupportedError(where, "settings", str(error).removeprefix("microspec: ")) from error
