# SPDX-License-Identifier: Apache-2.0
"""Fixtures for the tests inside engines."""

from pathlib import Path

import numpy
import pytest
from checkpoints import VOCAB, make


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of :mod:`checkpoints`' files, with all.npy, which has every token."""
    folder = tmp_path_factory.mktemp("checkpoints")
    make(folder)
    numpy.save(folder / "all.npy", numpy.arange(VOCAB))
    return folder
