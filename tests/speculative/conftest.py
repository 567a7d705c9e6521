# SPDX-License-Identifier: Apache-2.0
"""Every test here needs the `speculative` extra and runs models that are too small for threads."""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import pytest
import torch

pytest.importorskip("transformers")

if TYPE_CHECKING:
    from .paths import Path


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["plain", "captured"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> "Path":
    """Return the path that a test's loop takes; see `paths.with_captured` for a choice of cases."""
    from . import paths

    return paths.plain if request.param == "plain" else partial(paths.captured, monkeypatch)
