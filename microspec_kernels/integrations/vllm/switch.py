# SPDX-License-Identifier: Apache-2.0
"""Read the switch: what the environment and vLLM's configuration ask for."""

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import asdict
from typing import Any

from microspec_kernels.engine import SWITCH, Settings
from microspec_kernels.integrations.hooks import UnsupportedError

_ATTRIBUTE = "microspec_settings"


def settings_of(vllm_config: Any) -> Settings | None:
    """Return the user's settings; None if the switch is off.

    The first call takes the switch out of `additional_config`, which enters vLLM's compile hash:
    models compile alike with and without the plugin, which changes no compiled code. The settings
    stay on the configuration, also when it is sent to another process.

    Raises:
        UnsupportedError: the settings cannot be read, or environment and configuration disagree.
    """
    kept = vars(vllm_config)
    if _ATTRIBUTE not in kept:
        kept[_ATTRIBUTE] = _read(vllm_config.additional_config)
    values: dict[str, Any] | None = kept[_ATTRIBUTE]
    return None if values is None else Settings(**values)


def _read(additional: Any) -> dict[str, Any] | None:
    environment = from_environment()
    settings = environment
    if isinstance(additional, Mapping) and "microspec" in additional:
        where = 'additional_config["microspec"]'
        settings = _parse(where, additional["microspec"])
        if os.environ.get(SWITCH, "").strip() and environment != settings:
            raise UnsupportedError(where, f"the same as {SWITCH}, {environment}", settings)
        if isinstance(additional, MutableMapping):
            del additional["microspec"]
    return None if settings is None else asdict(settings)


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
