# SPDX-License-Identifier: Apache-2.0
"""The active vocabulary: the set of token ids that the draft may propose."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ._checks import EMPTY_STAMP, PINNED_STAMP, dtype_name
from ._group_numbers import group_numbers
from ._token_ids import token_ids
from ._vocab_state import check_state
from .ops import vocab_refill_, vocab_update_


class ActiveVocab:
    """An LRU set of at most ``capacity`` token ids per group.

    One group serves one request or a whole batch. ``num_groups`` > 1 keeps one vocabulary per
    request. All state is on the device. Methods update it in place, so a captured CUDA graph sees
    every change. Method: MicroSpec, arXiv 2605.26444.

    Args:
        vocab_size: V, number of tokens of the tokenizer.
        capacity: K, number of slots per group.
        num_groups: G, number of groups.
        pinned: at most K distinct token ids that are never evicted. They take the first slots of
            every group.
        frequent_tokens: distinct token ids that every group begins with, the most frequent first.
            The most frequent is evicted last. Ids that do not fit beside the pinned ones are left
            out.
        device: device of the state.

    Attributes:
        ids: int32 [G, K], the token in each slot; -1 where empty. A token keeps its slot.
        slot_stamps: int64 [G, K], time of last use; -1 at an empty slot, 2^63 - 1 at a pinned or
            closed one (see :meth:`set_limit`).
        token_slots: int32 [G, V], the slot of each token; -1 where absent.
        clock: int64 [G], positions seen so far.
        pinned: int32 [n], the pinned tokens.
        frequent_tokens: int32 [m], the frequent tokens that fit; none of them is pinned.

    Raises:
        ValueError: a size below 1; more than K pinned tokens; a repeated or out-of-range pinned or
            frequent token.
        TypeError: pinned or frequent tokens that are not integers.
    """

    # Inference tensors could not be updated in place outside inference mode.
    @torch.inference_mode(False)
    def __init__(
        self,
        vocab_size: int,
        capacity: int,
        *,
        num_groups: int = 1,
        pinned: Tensor | Sequence[int] | None = None,
        frequent_tokens: Tensor | Sequence[int] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        for name, size in (
            ("vocab_size", vocab_size),
            ("capacity", capacity),
            ("num_groups", num_groups),
        ):
            if size < 1:
                raise ValueError(f"ActiveVocab: {name}: expected at least 1, got {size}")
        self.vocab_size, self.capacity, self.num_groups = vocab_size, capacity, num_groups
        self.pinned = _distinct_ids("pinned", pinned, vocab_size, device)
        if len(self.pinned) > capacity:
            raise ValueError(
                f"ActiveVocab: pinned: expected at most capacity = {capacity} tokens, "
                f"got {len(self.pinned)}"
            )
        frequent_tokens = _distinct_ids("frequent_tokens", frequent_tokens, vocab_size, device)
        others = frequent_tokens[~torch.isin(frequent_tokens, self.pinned)]
        self.frequent_tokens = others[: capacity - len(self.pinned)]
        self.ids = torch.empty(num_groups, capacity, dtype=torch.int32, device=device)
        self.slot_stamps = torch.empty(num_groups, capacity, dtype=torch.int64, device=device)
        self.token_slots = torch.empty(num_groups, vocab_size, dtype=torch.int32, device=device)
        self.clock = torch.empty(num_groups, dtype=torch.int64, device=device)
        self.slot_stamps.fill_(EMPTY_STAMP)
        self.reset()

    @property
    def device(self) -> torch.device:
        """The device of all state."""
        return self.ids.device

    @property
    def size(self) -> Tensor:
        """Number of active tokens, int32 [G]."""
        return (self.ids >= 0).sum(1, dtype=torch.int32)

    @property
    def limit(self) -> Tensor:
        """Number of slots that may hold a token, int64 [G]: K, or what :meth:`set_limit` set."""
        return (~self._closed()).sum(1)

    def set_limit(self, limit: int, groups: Tensor | Sequence[int] | None = None) -> None:
        """Set the number of open slots: the first ``limit`` open, the others close.

        Closed slots stay empty until a later call opens them, so the number of active tokens can
        change under a captured graph. The call waits for nothing. Tokens in slots that close leave:
        set a limit before :meth:`reset` or :meth:`refill`, which then use open slots alone.

        Args:
            limit: number of open slots, 1 to K and at least the number of :attr:`pinned` tokens.
            groups: see :meth:`reset`, which raises the same errors.

        Raises:
            ValueError: a limit out of range.
        """
        least = max(1, len(self.pinned))
        if not least <= limit <= self.capacity:
            expected, where = f"{least} to {self.capacity}", "ActiveVocab: set_limit: limit"
            raise ValueError(f"{where}: expected {expected}, got {limit}")
        where = "ActiveVocab: set_limit: groups"
        which = group_numbers(where, groups, self.num_groups, self.device)
        stamps, slots = self.slot_stamps[which], self.token_slots[which]
        stamps = stamps.where(~self._closed()[which], EMPTY_STAMP)
        stamps[:, limit:] = PINNED_STAMP
        ids = self.ids[which]
        ids[:, limit:] = -1
        self.ids[which], self.slot_stamps[which] = ids, stamps
        self.token_slots[which] = slots.where(slots < limit, -1)

    def _closed(self) -> Tensor:
        """Return which slots are closed: bool [G, K], those that are pinned without a token."""
        return (self.ids < 0) & (self.slot_stamps == PINNED_STAMP)

    def update(self, tokens: Tensor, *, token_groups: Tensor | None = None) -> None:
        """Add tokens, or refresh those already active. See :func:`~.ops.vocab_update_`.

        Args:
            tokens: int32 or int64 [G, N], or [N] if G = 1 or with ``token_groups``; oldest first;
                -1 is padding.
            token_groups: int32 or int64 [N], the group of each token; -1 ignores the token.

        Raises:
            ValueError, TypeError, IndexError: as :func:`~.ops.vocab_update_`.
        """
        vocab_update_(
            self.ids,
            self.slot_stamps,
            self.token_slots,
            self.clock,
            tokens,
            token_groups=token_groups,
        )

    def contains(self, tokens: Tensor, *, token_groups: Tensor | None = None) -> Tensor:
        """Test which tokens are active.

        Args:
            tokens: int32 or int64 [G, ...], or any shape if G = 1 or with ``token_groups``. An id
                outside [0, V) is not active.
            token_groups: int32 or int64, shape of ``tokens``: the group of each token of a ragged
                batch. A token of a group outside [0, G) is not active.

        Returns:
            bool, shape of ``tokens``.

        Raises:
            TypeError: ``tokens`` or ``token_groups`` of another dtype.
        """
        inside, tokens = _inside("tokens", tokens, self.vocab_size)
        if token_groups is None:
            flat = tokens.reshape(self.num_groups, -1)
            return inside & (self.token_slots.gather(1, flat).view(tokens.shape) >= 0)
        in_group, groups = _inside("token_groups", token_groups, self.num_groups)
        return inside & in_group & (self.token_slots[groups, tokens] >= 0)

    def reset(self, groups: Tensor | Sequence[int] | None = None) -> None:
        """Reset some groups to the pinned and the frequent tokens.

        Args:
            groups: integers [n], the numbers of the groups; or a bool mask [G]. Default: all
                groups. The call waits for a mask on a GPU, but not for numbers there.

        Raises:
            IndexError: a number outside [0, G). (On a GPU, PyTorch's device assert fails instead.)
            ValueError: wrong shape.
            TypeError: floats.
        """
        which = group_numbers("ActiveVocab: reset: groups", groups, self.num_groups, self.device)
        first, later = len(self.pinned), len(self.frequent_tokens)
        tokens = torch.cat((self.pinned, self.frequent_tokens))
        ids = torch.full((self.capacity,), -1, dtype=torch.int32, device=self.device)
        ids[: len(tokens)] = tokens
        stamps = torch.full((self.capacity,), EMPTY_STAMP, dtype=torch.int64, device=self.device)
        stamps[:first] = PINNED_STAMP
        stamps[first : len(tokens)] = torch.arange(later, device=self.device).flip(0)
        slots = torch.full((self.vocab_size,), -1, dtype=torch.int32, device=self.device)
        slots[tokens.long()] = torch.arange(len(tokens), dtype=torch.int32, device=self.device)
        closed = self._closed()[which]
        limit = (~closed).sum(1, keepdim=True)
        self.ids[which] = ids.where(~closed, -1)
        self.slot_stamps[which] = stamps.where(~closed, PINNED_STAMP)
        self.token_slots[which] = slots.where(slots < limit, -1)
        self.clock[which] = later

    def refill(
        self,
        text_counts: Tensor,
        token_ranks: Tensor,
        group_lists: Tensor,
        *,
        total_counts: Tensor | None = None,
        pinned: int = 0,
        reset: bool = True,
    ) -> None:
        """Fill groups with the tokens of the most texts. See :func:`~.ops.vocab_refill_`.

        Args:
            text_counts: int32 [C, V].
            token_ranks: int32 [V].
            group_lists: int32 or int64 [G], the list of each group; -1 leaves the group as it is.
            total_counts: int32 [V].
            pinned: number of tokens to pin, 0 to K; open slots limit it.
            reset: whether the slots that are not pinned begin anew too.

        Raises:
            ValueError, TypeError, IndexError: as :func:`~.ops.vocab_refill_`.
        """
        vocab_refill_(
            self.ids,
            self.slot_stamps,
            self.token_slots,
            self.clock,
            text_counts,
            token_ranks,
            group_lists,
            total_counts=total_counts,
            pinned=pinned,
            reset=reset,
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of the whole state.

        Returns:
            "ids" int32 [G, K], "slot_stamps" int64 [G, K], "token_slots" int32 [G, V] and "clock"
            int64 [G].
        """
        return {name: tensor.clone() for name, tensor in self._state().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy a state that :meth:`state_dict` returned, in place.

        The method checks everything before it copies anything: shapes, ranges, and that
        ``token_slots`` is the inverse of ``ids``.

        Raises:
            ValueError: missing entry, wrong shape, or values that no update can produce.
            TypeError: an entry of another dtype, or one that is not a tensor.
        """
        current = self._state()
        check_state(state, current)
        for name, tensor in current.items():
            tensor.copy_(state[name])

    def _state(self) -> dict[str, Tensor]:
        return {
            "ids": self.ids,
            "slot_stamps": self.slot_stamps,
            "token_slots": self.token_slots,
            "clock": self.clock,
        }


def _distinct_ids(
    name: str,
    ids: Tensor | Sequence[int] | None,
    vocab_size: int,
    device: torch.device | str,
) -> Tensor:
    """Check that token ids are distinct, and return them as int32 [n]."""
    where = f"ActiveVocab: {name}"
    return token_ids(where, () if ids is None else ids, vocab_size, device=device).int()


def _inside(name: str, values: Tensor, bound: int) -> tuple[Tensor, Tensor]:
    """Return a mask of the values in [0, bound), and the values as int64.

    Values outside [0, bound) become others in the second result. Both have the shape of ``values``.
    """
    if values.dtype not in (torch.int32, torch.int64):
        got = dtype_name(values.dtype)
        raise TypeError(f"ActiveVocab: contains: {name}: expected int32 or int64, got {got}")
    within = values.clamp(0, bound - 1)
    return within == values, within.long()
