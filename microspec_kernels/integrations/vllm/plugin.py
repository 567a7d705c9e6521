# SPDX-License-Identifier: Apache-2.0
"""Patch vLLM when one of its workers receives a configuration with the switch on."""

import logging
from collections.abc import Mapping
from typing import Any

from microspec_kernels.integrations.hooks import UnsupportedError, check_hook_points
from microspec_kernels.integrations.hooks.wrap import Original, wrap

from . import api_metrics, v1, v2
from .drafter import drafter_of, is_decided
from .hook_points import TESTED, hook_points
from .requirements import check_config
from .switch import from_environment, settings_of

logger = logging.getLogger(f"vllm.{__name__}")  # vLLM shows its own loggers only


def install() -> None:
    """Wrap the worker's constructor, which reads the configuration's switch.

    If MICROSPEC is set, wrap the executor's constructor and the server's statistics, too. vLLM is
    otherwise unchanged until a worker gets a configuration with the switch on.

    Raises:
        UnsupportedError: MICROSPEC cannot be read, or it is on and this version of vLLM is
            unsupported.
    """
    version = _version()
    if from_environment() is not None:
        hook_points(version)
        from vllm.v1.executor.abstract import Executor

        wrap(Executor, "__init__", _make_executor)
        api_metrics.install()
    try:
        from vllm.v1.worker.worker_base import WorkerBase

        wrap(WorkerBase, "__init__", _make_worker)
    except (ImportError, AttributeError) as error:
        # Only an unsupported version gets here; the plugin cannot see its configuration's switch.
        logger.warning("microspec: additional_config is not read by vLLM %s: %s", version, error)


def _version() -> str:
    import vllm

    version: str = vllm.__version__
    return version


def _make_executor(original: Original, arguments: Mapping[str, Any]) -> None:
    """Keep the settings on the configuration: Ray's workers do not inherit this environment."""
    settings_of(arguments["vllm_config"])
    original()


def _make_worker(original: Original, arguments: Mapping[str, Any]) -> None:
    vllm_config = arguments["vllm_config"]
    if settings_of(vllm_config) is not None:
        _prepare(vllm_config, type(arguments["self"]))
    original()


def _prepare(vllm_config: Any, worker: type) -> None:
    version = _version()
    check_hook_points("vllm", version, ", ".join(TESTED), hook_points(version))
    check_config(vllm_config)
    runner = v2 if vllm_config.use_v2_model_runner else v1
    runner.install()
    wrap(worker, "load_model", _load_model)
    wrap(worker, "compile_or_warm_up_model", _warm_up)
    for name in ("reload_weights", "finish_weight_update"):
        wrap(worker, name, _reload)
    worker.microspec_stats = _stats  # type: ignore[attr-defined]


def _load_model(original: Original, arguments: Mapping[str, Any]) -> Any:
    loaded = original()
    runner = arguments["self"].model_runner
    if settings_of(arguments["self"].vllm_config) is not None and not is_decided(runner):
        raise UnsupportedError(
            f"vllm: {type(runner).__name__}.load_model", "a drafter attached", None
        )
    return loaded


def _warm_up(original: Original, arguments: Mapping[str, Any]) -> Any:
    warm = original()
    drafter = drafter_of(arguments["self"].model_runner)
    if drafter is not None:
        drafter.reset()  # the warm-up runs requests of made-up tokens
        drafter.guard.start()
    return warm


def _reload(original: Original, arguments: Mapping[str, Any]) -> Any:
    reloaded = original()
    drafter = drafter_of(arguments["self"].model_runner)
    if drafter is not None:
        drafter.guard.run(drafter.reload, lambda: None)
    return reloaded


def _stats(worker: Any, wait: bool = True) -> dict[str, Any] | None:
    """Return one worker's totals, for `llm.collective_rpc("microspec_stats")`; None if off.

    Also None after a hook has failed.
    """
    drafter = drafter_of(worker.model_runner)
    return None if drafter is None else drafter.stats(wait)
