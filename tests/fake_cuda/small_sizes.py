# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin for a rehearsal of tests/gpu: fewer cases, steps and small models.

    PYTHONPATH=tests/fake_cuda/site:tests:. pytest -p fake_cuda.small_sizes tests/gpu

What the stand-in cannot do is expected to fail, each test at an assertion of its own: a test that
ends otherwise, or passes, fails here.
"""

import math
from collections import defaultdict
from typing import Any

import pytest
from torch.testing._internal.optests import OpCheckError

SIZES: dict[str, dict[str, Any]] = {
    "test_graphs": {"STEPS": 40},
    "test_streams": {"STEPS": 20},
    "test_engine_head": {"STEPS": 101},
    "test_policy_graph": {"STEPS": 60},
    "test_vllm_drafter": {"STEPS": 20},
    "test_offsets": {
        **{"DIM": 16, "RESULT_ROWS": 200, "TOKEN_SLOTS": 2**12},
        **{"MASK_NODES": 40, "POOLS": 5, "POOL_PLACES": 70},
    },
    "test_launch_limits": {"STEP": 2048},
    "test_real_sizes": {"ROWS": (1, 5, 33, 300), "ROW_COUNTS": (1, 17, 64)},
}
VOCAB_SIZE, DIM = 21_000, 96  # of a model, at most
CASES = 4  # of each test

NO_KERNELS = "the stand-in has no kernels"
CANNOT = {
    "test_conformance": f"{NO_KERNELS}: its library does nothing",
    "test_kernels": f"{NO_KERNELS} for the profiler to see",
    "test_opcheck": "PyTorch's fake tensors ask the driver",
    "test_nothing_touches_the_legacy_stream": "all work of the stand-in runs at once",
}
# The first passes whatever the library writes, if that is always the same. The second compares a
# call with itself, compiled by a backend that needs no driver.
PASS_ANYWAY = {"test_the_high_half_of_an_e4m3_word_is_ignored", "test_compiled_in_one_graph"}


class Nothing:
    """A library with every function; they report success and write nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: 0


def shrink(module: Any) -> None:
    for name, value in SIZES.get(module.__name__.rsplit(".", 1)[-1], {}).items():
        assert hasattr(module, name), f"{module.__name__} has no {name}"
        setattr(module, name, value)
    if hasattr(module, "MODELS"):
        for name, model in module.MODELS.items():
            small = min(model.vocab_size, VOCAB_SIZE), min(model.dim, DIM)
            module.MODELS[name] = type(model)(*small, model.softcap)
    if hasattr(module, "conformance"):
        module.conformance.library = lambda arch: Nothing()


def few(items: list[pytest.Item]) -> list[pytest.Item]:
    """Return at most CASES of the items, evenly from all of them."""
    return items[:: math.ceil(len(items) / CASES)]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[Any]) -> None:
    tests: dict[tuple[str, str], list[pytest.Item]] = defaultdict(list)
    for item in items:
        tests[item.module.__name__, item.originalname].append(item)
    for module in {item.module for item in items}:
        shrink(module)
    kept = [item for cases in tests.values() for item in few(cases)]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
    for item in items:
        module = item.module.__name__.rsplit(".", 1)[-1]
        why = CANNOT.get(module) or CANNOT.get(item.originalname)
        if why and item.originalname not in PASS_ANYWAY:
            errors = (AssertionError, OpCheckError)
            item.add_marker(pytest.mark.xfail(reason=why, raises=errors, strict=True))
