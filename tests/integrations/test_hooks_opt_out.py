# SPDX-License-Identifier: Apache-2.0
"""Requests that opt out: how they say so, and what is taken from what a vocabulary observes."""

import logging
from typing import Any

import pytest
import torch

from microspec_kernels.integrations.hooks import LeftOut, has_opted_out

LOGGER = logging.getLogger("an engine")


@pytest.mark.parametrize("value", [False, 0, 0.0, "0", "false", "False", " FALSE "])
def test_opts_out(value: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert has_opted_out({"microspec": value, "other": 3}, "a", LOGGER)
    assert not caplog.messages


@pytest.mark.parametrize("extra", [None, {}, {"other": False}, "microspec", 3])
@pytest.mark.parametrize("value", [True, 1, 1.0, "1", "true", None])
def test_takes_part(extra: Any, value: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert not has_opted_out(extra, "a", LOGGER)
    assert not has_opted_out({"microspec": value}, "a", LOGGER)
    assert not caplog.messages


@pytest.mark.parametrize("value", ["off", "", 2, -1, 0.5, float("nan"), [], [0], {"on": 0}])
def test_neither_is_an_error_that_names_the_request(
    value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert not has_opted_out({"microspec": value}, "request 7", LOGGER)
    [record] = caplog.records
    assert record.levelname == "ERROR"
    assert record.getMessage() == (
        "MicroSpec: request request 7: microspec: expected true or false, so it has not opted out; "
        f"got {value!r}"
    )


@pytest.mark.parametrize("rows", [None, [1, 2, 0]])
def test_takes_what_belongs_to_a_request(rows: list[int] | None) -> None:
    left_out, flags = LeftOut(torch.device("cpu")), [False, True, True]
    tokens = torch.arange(6, dtype=torch.int32).view(3, 2)
    candidates = torch.arange(6).view(3, 2)
    taken, lengths = left_out.take(tokens, flags, None, candidates, rows)
    assert taken.tolist() == [[0, 1], [-1, -1], [-1, -1]] and lengths is None
    assert taken.dtype == torch.int32 and tokens.min() == 0, "the engine's tokens stay"
    assert candidates.tolist() == [[0, 1], [-1, -1], [-1, -1]]
    taken, lengths = left_out.take(tokens, flags, torch.tensor([2, 1, 2], dtype=torch.int32))
    assert lengths is not None and lengths.tolist() == [2, 0, 0] and lengths.dtype == torch.int32
    assert taken is tokens
