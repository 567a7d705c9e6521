# SPDX-License-Identifier: Apache-2.0
"""Show a worker's counters on the /metrics of the process that serves vLLM's API.

The worker counts in a process of its own, and its scheduler's statistics have no room for a
plugin's. So the API's process asks for the totals as often as vLLM logs its statistics. In
Prometheus' multi-process mode it does not ask, because each process exports its own counters there.
"""

import logging
import os
from collections.abc import Mapping
from typing import Any

from microspec_kernels.engine import EngineStats
from microspec_kernels.integrations.hooks.metrics import export
from microspec_kernels.integrations.hooks.wrap import Original, wrap

from .switch import settings_of

logger = logging.getLogger(f"vllm.{__name__}")  # vLLM shows its own loggers only

_EXPORTED = "microspec_exported"
_NOTHING = EngineStats(*[0] * len(EngineStats._fields))


def install() -> None:
    """Wrap the client's method that vLLM's server calls at its logging interval."""
    from vllm.v1.engine.async_llm import AsyncLLM

    wrap(AsyncLLM, "do_log_stats", _do_log_stats)


def labels_of(vllm_config: Any) -> dict[str, str]:
    """Return the labels of vLLM's own metrics: the model's name and the data-parallel rank."""
    return {
        "model_name": vllm_config.model_config.served_model_name,
        "engine": str(vllm_config.parallel_config.data_parallel_index),
    }


def _do_log_stats(original: Original, arguments: Mapping[str, Any]) -> Any:
    return _log(original, arguments["self"])


async def _log(original: Original, client: Any) -> None:
    await original()
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ or settings_of(client.vllm_config) is None:
        return
    try:
        answers = await client.collective_rpc("microspec_stats", kwargs={"wait": False})
        _export(client, next((answer for answer in answers if answer is not None), None))
    except Exception:  # the server's loop of statistics must go on
        logger.exception("microspec: the counters cannot be shown on /metrics")


def _export(client: Any, totals: Mapping[str, int] | None) -> None:
    if totals is None:
        return  # before the first copy of the counters, or off
    stats = EngineStats(*(totals[name] for name in EngineStats._fields))
    last = getattr(client, _EXPORTED, _NOTHING)
    if stats.hits + stats.misses < last.hits + last.misses:
        last = _NOTHING  # the worker has begun anew
    setattr(client, _EXPORTED, stats)
    export(stats, last, labels_of(client.vllm_config))
