# SPDX-License-Identifier: Apache-2.0
"""The entry points of the engine plugins.

This module lies beside the package, not in it. If the package does not load (no compiled library,
another torch), an engine would only log the error and run without the plugin, unnoticed by the
user.
"""

import logging
import os
from importlib import import_module


def vllm() -> None:
    """Register with vLLM (`vllm.general_plugins`): :mod:`microspec_kernels.integrations.vllm`."""
    _register("vllm")


def sglang() -> None:
    """Register with SGLang (`sglang.srt.plugins`): :mod:`microspec_kernels.integrations.sglang`."""
    _register("sglang")


def _register(engine: str) -> None:
    try:
        plugin = import_module(f"microspec_kernels.integrations.{engine}")
    except Exception as error:
        problem = f"microspec: {engine}: expected microspec_kernels to load, got {error!r}"
        if os.environ.get("MICROSPEC", "").strip() in ("", "0", "false"):
            # The environment does not ask for it. The engine's own configuration is not visible
            # here.
            logging.getLogger(engine).error(problem)
            return
        raise SystemExit(problem) from error
    plugin.register()
