# SPDX-License-Identifier: Apache-2.0
"""Checks of vocab_observe_."""

from torch import Tensor

from ..tally import tally_words
from .checker import Checker, numbers
from .vocab import vocab_state


def _integers(check: Checker, tensor: Tensor, argument: str) -> None:
    """Check an int32 or int64 tensor of any shape."""
    check.integer(tensor, argument)
    check.contiguous(tensor, argument)
    check.on_device(tensor, argument)


def _step_tokens(
    check: Checker,
    tokens: Tensor,
    lengths: Tensor | None,
    candidates: Tensor | None,
    token_rows: Tensor | None,
) -> int:
    """Check the tokens of a step. Return the number of them and of the candidates."""
    _integers(check, tokens, "tokens")
    fits = tokens.dim() == 2 or (tokens.dim() == 1 and lengths is None)
    expected = "shape [N] or [B, n]" if lengths is None else "shape [B, n] beside lengths"
    check.value(fits, "tokens", expected, list(tokens.shape))
    if lengths is not None:
        numbers(check, lengths, "lengths", tokens.size(0))
    if candidates is not None:
        _integers(check, candidates, "candidates")
    if token_rows is not None:
        check.int32(token_rows, "token_rows")
        fits = token_rows.dim() == 1 and token_rows.numel() > 0
        check.value(fits, "token_rows", "shape [T], T >= 1", list(token_rows.shape))
        check.contiguous(token_rows, "token_rows")
        check.on_device(token_rows, "token_rows")
    return tokens.numel() + (0 if candidates is None else candidates.numel())


def _tally(check: Checker, tally: Tensor, num_lists: int, vocab_size: int) -> int:
    """Check a tally's data. Return R."""
    check.int32(tally, "tally")
    check.contiguous(tally, "tally")
    check.on_device(tally, "tally")
    per_request, tables = tally_words(num_lists, vocab_size)
    num_requests = (tally.numel() - tables) // per_request
    fits = num_requests > 0 and num_requests * per_request + tables == tally.numel()
    expected = f"shape [{per_request} R + {tables}], R >= 1"
    check.value(tally.dim() == 1 and fits, "tally", expected, list(tally.shape))
    aligned = tally.storage_offset() % 2 == 0  # the verdicts are int64
    check.value(aligned, "tally", "data aligned to 8 bytes", "data aligned to 4")
    return num_requests


def vocab_observe(
    active_ids: Tensor,
    slot_stamps: Tensor,
    token_slots: Tensor,
    clock: Tensor,
    tokens: Tensor,
    lengths: Tensor | None,
    candidates: Tensor | None,
    token_rows: Tensor | None,
    token_groups: Tensor | None,
    token_requests: Tensor | None,
    tally: Tensor | None,
    num_lists: int,
) -> Checker:
    """Check the arguments of vocab_observe_, except the tokens' values."""
    check = Checker("vocab_observe_", active_ids.device)
    num_groups, _, vocab_size = vocab_state(check, active_ids, slot_stamps, token_slots, clock)
    count = _step_tokens(check, tokens, lengths, candidates, token_rows)
    expected = "the group of each token, as G > 1"
    check.value(token_groups is not None or num_groups == 1, "token_groups", expected, None)
    if token_groups is not None:
        numbers(check, token_groups, "token_groups", count)
    given = tally is not None or token_requests is None
    check.value(given, "token_requests", "None without tally", "a tensor")
    if tally is None:
        check.value(num_lists == 0, "num_lists", "0 without tally", num_lists)
        return check
    check.value(num_lists >= 0, "num_lists", "at least 0", num_lists)
    num_requests = _tally(check, tally, num_lists, vocab_size)
    given = token_requests is not None or num_requests in (1, num_groups)
    expected = "the request of each token, as R is neither 1 nor G"
    check.value(given, "token_requests", expected, None)
    if token_requests is not None:
        numbers(check, token_requests, "token_requests", count)
    return check
