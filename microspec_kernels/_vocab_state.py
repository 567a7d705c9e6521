# SPDX-License-Identifier: Apache-2.0
"""Check that updates of a vocabulary could have produced a saved state."""

from collections.abc import Mapping

from torch import Tensor

from ._checks import EMPTY_STAMP, PINNED_STAMP, dtype_name

LARGEST_CLOCK = 2**62
"""Upper limit of a clock: no text reaches it, and int64 still leaves 2^62 positions above it."""


def check_state(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> None:
    """Check the shapes, dtypes, ranges and consistency of a saved state.

    Args:
        state: "ids" int32 [G, K], "slot_stamps" int64 [G, K], "token_slots" int32 [G, V] and
            "clock" int64 [G].
        like: the same tensors of the vocabulary that will load the state.

    Raises:
        ValueError: a missing entry; a wrong shape; an id, slot, stamp or clock out of range; a
            repeated id or stamp; token_slots is not the inverse of ids.
        TypeError: a wrong dtype, or an entry that is not a tensor.
    """
    for name, tensor in like.items():
        _check_kind(name, state.get(name), tensor)
    ids, stamps, slots, clock = (
        state[name] for name in ("ids", "slot_stamps", "token_slots", "clock")
    )
    capacity, vocab_size = ids.size(1), slots.size(1)
    _check_range("ids", ids, -1, vocab_size)
    _check_range("token_slots", slots, -1, capacity)
    _check_range("clock", clock, 0, LARGEST_CLOCK + 1)
    active, pinned = ids >= 0, stamps == PINNED_STAMP
    closed = ~active & pinned
    wrong = ~active & ~closed & (stamps != EMPTY_STAMP)
    _refuse("slot_stamps", f"{EMPTY_STAMP} at empty slots, or 2^63 - 1 if closed", stamps, wrong)
    wrong = closed[:, :-1] & ~closed[:, 1:]
    _refuse("slot_stamps", "no open slot behind a closed one", stamps[:, :-1], wrong)
    wrong = active & ~pinned & ((stamps < 0) | (stamps >= clock[:, None]))
    _refuse("slot_stamps", "stamps in [0, clock), or 2^63 - 1 where pinned", stamps, wrong)
    _check_distinct("ids", ids, active)
    _check_distinct("slot_stamps", stamps, active & ~pinned)
    held = slots.gather(1, ids.clamp(min=0).long())
    slot_numbers = held.new_ones(held.shape).cumsum(1) - 1
    _refuse("token_slots", "the slot of each active token", held, active & (held != slot_numbers))
    counts, want = (slots >= 0).sum(1), active.sum(1)
    _refuse("token_slots", "as many tokens with a slot as ids has", counts, counts != want)


def _check_kind(name: str, got: object, like: Tensor) -> None:
    where, shape = f"ActiveVocab: state_dict: {name}: expected", list(like.shape)
    if got is None:
        raise ValueError(f"{where} shape {shape}, got none")
    if not isinstance(got, Tensor):
        raise TypeError(f"{where} a tensor, got {type(got).__name__}")
    if got.shape != like.shape:
        raise ValueError(f"{where} shape {shape}, got {list(got.shape)}")
    if got.dtype != like.dtype:
        raise TypeError(f"{where} {dtype_name(like.dtype)}, got {dtype_name(got.dtype)}")


def _check_range(name: str, values: Tensor, low: int, high: int) -> None:
    wrong = (values < low) | (values >= high)
    _refuse(name, f"values in [{low}, {high})", values, wrong)


def _check_distinct(name: str, values: Tensor, where: Tensor) -> None:
    """Check that in each group the values selected by the mask ``where`` are distinct."""
    # Replace the other values by distinct ones below all selected values.
    fillers = -2 - values.new_ones(values.shape).cumsum(1)
    ordered = values.where(where, fillers).sort(1).values
    _refuse(name, "distinct values", ordered[:, 1:], ordered[:, 1:] == ordered[:, :-1])


def _refuse(name: str, expected: str, values: Tensor, wrong: Tensor) -> None:
    if wrong.any():
        group, value = int(wrong.nonzero()[0, 0]), int(values[wrong][0])
        raise ValueError(
            f"ActiveVocab: state_dict: {name}: expected {expected}, got {value} in group {group}"
        )
