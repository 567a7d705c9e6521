"""The active vocabulary: the set of token ids that the draft may propose."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ._checks import EMPTY_STAMP, PINNED_STAMP, dtype_name
from ._group_ids import group_ids
from ._token_ids import token_ids
from ._vocab_state import check_state
from .ops import vocab_update_


class ActiveVocab:
    """At most ``capacity`` tokens a group, the least recently seen evicted first.

    One group serves one request or a whole batch; ``groups`` > 1 keeps one vocabulary per request.
    All state is on the device and updated in place, so a captured CUDA graph sees every change.
    Method: MicroSpec, arXiv 2605.26444.

    Args:
        vocab_size: V, tokens of the tokenizer.
        capacity: K, slots a group.
        groups: G.
        pinned: tokens that are never evicted, at most K; they take the first slots of every group.
        initial: tokens that every group begins with, the likeliest first, which is the last of them
            to be evicted; as many as there is room for beside the pinned ones.
        device: where the state lives.

    Attributes:
        ids: int32 [G, K], the token in each slot, -1 where empty. A token keeps its slot.
        slot_stamps: int64 [G, K], time of last use.
        token_slots: int32 [G, V], each token's slot, -1 where absent.
        clock: int64 [G], positions seen.

    Raises:
        ValueError: a size below 1; too many, repeated or out-of-range pinned or initial tokens.
        TypeError: pinned or initial tokens that are not integers.
    """

    @torch.inference_mode(False)  # or the state could not be updated outside
    def __init__(
        self,
        vocab_size: int,
        capacity: int,
        *,
        groups: int = 1,
        pinned: Tensor | Sequence[int] | None = None,
        initial: Tensor | Sequence[int] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        for name, size in (("vocab_size", vocab_size), ("capacity", capacity), ("groups", groups)):
            if size < 1:
                raise ValueError(f"ActiveVocab: {name}: expected at least 1, got {size}")
        self.vocab_size, self.capacity, self.groups = vocab_size, capacity, groups
        self.pinned = _distinct_ids("pinned", pinned, vocab_size, device)
        if len(self.pinned) > capacity:
            raise ValueError(
                f"ActiveVocab: pinned: expected at most capacity = {capacity} tokens, "
                f"got {len(self.pinned)}"
            )
        initial = _distinct_ids("initial", initial, vocab_size, device)
        others = initial[~torch.isin(initial, self.pinned)]
        self.initial = others[: capacity - len(self.pinned)]
        self.ids = torch.empty(groups, capacity, dtype=torch.int32, device=device)
        self.slot_stamps = torch.empty(groups, capacity, dtype=torch.int64, device=device)
        self.token_slots = torch.empty(groups, vocab_size, dtype=torch.int32, device=device)
        self.clock = torch.empty(groups, dtype=torch.int64, device=device)
        self.reset()

    @property
    def device(self) -> torch.device:
        return self.ids.device

    @property
    def size(self) -> Tensor:
        """Active tokens, int32 [G]."""
        return (self.ids >= 0).sum(1, dtype=torch.int32)

    def update(self, tokens: Tensor, *, token_groups: Tensor | None = None) -> None:
        """Let tokens in, or refresh them; the last is the newest. See :func:`~.ops.vocab_update_`.

        Args:
            tokens: int32 or int64 [G, N], or [N] when G = 1 or with ``token_groups``; -1 pads.
            token_groups: int32 or int64 [N], each token's group, -1 to ignore it.

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
        """Which tokens are active: bool, shaped as ``tokens``.

        Args:
            tokens: int32 or int64 [G, ...], or any shape when G = 1 or with ``token_groups``. What
                is no id in [0, V) is not active.
            token_groups: int32 or int64, shaped as ``tokens``: the group of each token of a ragged
                batch. Nothing is active in what is no group in [0, G).

        Raises:
            TypeError: another dtype.
        """
        inside, tokens = _inside("tokens", tokens, self.vocab_size)
        if token_groups is None:
            flat = tokens.reshape(self.groups, -1)
            return inside & (self.token_slots.gather(1, flat).view(tokens.shape) >= 0)
        in_group, groups = _inside("token_groups", token_groups, self.groups)
        return inside & in_group & (self.token_slots[groups, tokens] >= 0)

    def reset(self, groups: Tensor | Sequence[int] | None = None) -> None:
        """Go back to the pinned and the initial tokens, in some groups.

        Args:
            groups: their numbers, integers [n]; or a bool mask [G]. Default: all. A mask on a GPU
                is waited for, numbers there are not.

        Raises:
            IndexError: a number outside [0, G). (On a GPU it ends in PyTorch's device assert.)
            ValueError, TypeError: another shape; floats.
        """
        which = group_ids("ActiveVocab: reset: groups", groups, self.groups, self.device)
        first, later = len(self.pinned), len(self.initial)
        known = torch.cat((self.pinned, self.initial))
        ids = torch.full((self.capacity,), -1, dtype=torch.int32, device=self.device)
        ids[: len(known)] = known
        stamps = torch.full((self.capacity,), EMPTY_STAMP, dtype=torch.int64, device=self.device)
        stamps[:first] = PINNED_STAMP
        stamps[first : len(known)] = torch.arange(later, device=self.device).flip(0)
        slots = torch.full((self.vocab_size,), -1, dtype=torch.int32, device=self.device)
        slots[known.long()] = torch.arange(len(known), dtype=torch.int32, device=self.device)
        self.ids[which], self.slot_stamps[which], self.token_slots[which] = ids, stamps, slots
        self.clock[which] = later

    def state_dict(self) -> dict[str, Tensor]:
        """The whole state, as copies."""
        return {name: tensor.clone() for name, tensor in self._state().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what :meth:`state_dict` gave, in place.

        Nothing is copied unless all of it is consistent: shapes, ranges, and ``token_slots`` the
        inverse of ``ids``.

        Raises:
            ValueError: a missing entry, one of another shape, or what no update can have left.
            TypeError: an entry of another dtype.
        """
        own = self._state()
        check_state(state, own)
        for name, tensor in own.items():
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
    """Distinct token ids, int32 [n]."""
    where = f"ActiveVocab: {name}"
    return token_ids(where, () if ids is None else ids, vocab_size, device=device).int()


def _inside(name: str, values: Tensor, bound: int) -> tuple[Tensor, Tensor]:
    """Which values lie in [0, bound), and all of them as int64, those brought into it."""
    if values.dtype not in (torch.int32, torch.int64):
        got = dtype_name(values.dtype)
        raise TypeError(f"ActiveVocab: contains: {name}: expected int32 or int64, got {got}")
    inside = (values >= 0) & (values < bound)
    return inside, values.where(inside, 0).long()
