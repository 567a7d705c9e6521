"""The entry points of the engines' plugins.

Beside the package, not in it: where the package itself does not load (no compiled library, another
torch), engines would log that and go on without it, and the user would never know.
"""

import logging
import os
from importlib import import_module


def vllm() -> None:
    """Entry point group `vllm.general_plugins`; :mod:`microspec_kernels.integrations.vllm`."""
    _register("vllm")


def sglang() -> None:
    """Entry point group `sglang.srt.plugins`; :mod:`microspec_kernels.integrations.sglang`."""
    _register("sglang")


def _register(engine: str) -> None:
    try:
        plugin = import_module(f"microspec_kernels.integrations.{engine}")
    except Exception as error:
        problem = f"microspec: {engine}: expected microspec_kernels to load, got {error!r}"
        if os.environ.get("MICROSPEC", "").strip() in ("", "0", "false"):
            # Nobody asked for it here; an engine's own configuration cannot be looked at.
            logging.getLogger(engine).error(problem)
            return
        raise SystemExit(problem) from error
    plugin.register()
