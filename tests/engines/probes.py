# SPDX-License-Identifier: Apache-2.0
"""What a worker's process does beside the plugin: let a hook fail, or count what hooks launch."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

FAILS_AT = "MICROSPEC_TEST_FAILS_AT"
"""The number of the call of `EngineHead.observe` that raises an error, and all after it."""
LAUNCHES = "MICROSPEC_TEST_LAUNCHES"
"""A file for the ops of each of the plugin's hooks: a line of JSON for each step."""


def install(*methods: tuple[type, str]) -> None:
    """Do what the environment asks for.

    Args:
        methods: the hooks of a step, as a class and a method's name; the last one ends the step.
    """
    if FAILS_AT in os.environ:
        _fail(int(os.environ[FAILS_AT]))
    if LAUNCHES in os.environ:
        _count(Path(os.environ[LAUNCHES]), methods)


def _fail(at: int) -> None:
    from microspec_kernels.engine import EngineHead

    observe, calls = EngineHead.observe, iter(range(1, 1 << 30))

    def failing(self: Any, *args: Any, **kwargs: Any) -> None:
        if next(calls) >= at:
            raise RuntimeError("a test's error")
        observe(self, *args, **kwargs)

    EngineHead.observe = failing  # type: ignore[method-assign]


def _count(file: Path, methods: tuple[tuple[type, str], ...]) -> None:
    import torch

    sys.path.append(str(Path(__file__).parents[1] / "integrations"))
    from launches import launched

    step: list[str] = []

    def counted(method: Callable[..., Any], last: bool) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            results: list[Any] = []
            # In inference mode some copies count as views.
            with torch.inference_mode(False):
                step.extend(launched(lambda: results.append(method(*args, **kwargs))))
            if last:
                with file.open("a") as output:
                    print(json.dumps(step), file=output)
                step.clear()
            return results[0]

        return call

    for number, (owner, name) in enumerate(methods, 1):
        setattr(owner, name, counted(getattr(owner, name), number == len(methods)))
