# SPDX-License-Identifier: Apache-2.0
"""Fixtures to run transformers' own loops on the small random models of the speculative tests."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from speculative.models import greedy, noisy, prompt, tiny

NEW = 24


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def target() -> Any:
    return tiny()


@pytest.fixture(scope="session")
def text(target: Any) -> tuple[Tensor, Tensor]:
    """Return a prompt [1, P] and its greedy continuation [1, P + NEW]."""
    ids = prompt(24)
    return ids, torch.cat((ids[0], greedy(target, ids, NEW)))[None]


@pytest.fixture
def assistant(target: Any) -> Any:
    """Return an assistant that is mostly right and never stops drafting early."""
    model = noisy(target)
    model.generation_config.num_assistant_tokens = 5
    model.generation_config.num_assistant_tokens_schedule = "constant"
    model.generation_config.assistant_confidence_threshold = 0.0
    return model
