# SPDX-License-Identifier: Apache-2.0
"""Read the switch: what the environment and vLLM's configuration ask for."""

import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from microspec_kernels.engine import SWITCH, Settings
from microspec_kernels.integrations.hooks import UnsupportedError


class Additional(dict[str, Any]):
    """`additional_config` without the switch, whose value lies beside the entries.

    The entries are part of vLLM's compile hash. Models compile alike with and without the plugin,
    which changes no compiled code, so the switch must not be.

    Attributes:
        settings: the user's settings, as a dict; None if the switch is off.
    """

    settings: dict[str, Any] | None = None


def settings_of(vllm_config: Any) -> Settings | None:
    """Return the user's settings; None if the switch is off.

    The first call moves the switch from `additional_config` into :class:`Additional`, which goes
    with the configuration to other processes.

    Raises:
        UnsupportedError: the settings cannot be read, or environment and configuration disagree.
    """
    additional = vllm_config.additional_config
    if isinstance(additional, Additional):
        return None if additional.settings is None else Settings(**additional.settings)
    settings = from_environment()
    if isinstance(additional, Mapping) and "microspec" in additional:
        where = 'additional_config["microspec"]'
        configured = _parse(where, additional["microspec"])
        if os.environ.get(SWITCH, "").strip() and settings != configured:
            raise UnsupportedError(where, f"the same as {SWITCH}, {settings}", configured)
        settings = configured
    if isinstance(additional, Mapping):
        others = {name: value for name, value in additional.items() if name != "microspec"}
        vllm_config.additional_config = Additional(others)
        vllm_config.additional_config.settings = None if settings is None else asdict(settings)
    return settings


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
