# SPDX-License-Identifier: Apache-2.0
"""Settings of the active vocabulary, the same for every engine, and the switch that sets them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from microspec_kernels._checks import INT4, QUANTISED
from microspec_kernels._token_ids import INT32_IDS, read_token_ids
from microspec_kernels.policy import NUM_LISTS, TARGET_TOP_K

SWITCH = "MICROSPEC"
"""The environment variable: 1 or a JSON object of settings turns it on; 0 or empty is off."""

Vocabulary = Literal["shared", "request"]
Mode = Literal["indexed", "packed"]
_SLAB_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in QUANTISED} | {"int4": INT4}


@dataclass(frozen=True)
class Settings:
    """Settings of the active vocabulary in the draft's LM head.

    Attributes:
        capacity: K, the number of tokens that can be active at a time; "auto": as many as the bytes
            of a step are worth (see docs/policy.md), with `learn` chosen again while texts are
            written.
        vocabulary: for plugins. "shared": one vocabulary for all requests; "request": one for each
            running request. Your own engine passes `num_groups` to :class:`EngineHead`.
        target_top_k: how many of the target's likeliest tokens
            :meth:`EngineHead.top_target_tokens` returns for each verified row, for the
            vocabulary. 0 costs nothing, 1 one pass over the logits, more a top-k over V, in every
            step.
        learn: whether the vocabulary learns from the texts which tokens are frequent (see
            docs/policy.md). Without it, a vocabulary begins with the frequent tokens, or empty.
        num_lists: number of learned lists. A shared vocabulary needs only one.
        learned_file: path of a .safetensors file that keeps what was learned from one start to the
            next. Its folder must exist.
        frequent_tokens_file: path of a .npy, .pt or .json file of token ids, the most frequent
            first. A vocabulary begins with them. With `learn`, they lead until texts have shown
            others.
        mode: "indexed" reads rows of the draft's LM head; "packed" copies the active rows into a
            slab.
        slab_dtype: dtype of the slab: "int8", "float8_e4m3fn", "int4" (4 bits a column), or None
            for the head's dtype.
        dense_steps: for plugins, whether a step may draft with the engine's own LM head. "auto":
            while a request runs that has opted out and, with a capacity of "auto", while coverage
            or load makes the active vocabulary the dearer one; True: by cost at any capacity;
            False: never.

    Raises:
        ValueError, TypeError: a value is outside these ranges; the message names the setting.
    """

    capacity: int | Literal["auto"] = "auto"
    vocabulary: Vocabulary = "shared"
    target_top_k: int = TARGET_TOP_K
    learn: bool = True
    num_lists: int = NUM_LISTS
    learned_file: str | None = None
    frequent_tokens_file: str | None = None
    mode: Mode = "indexed"
    slab_dtype: str | None = None
    dense_steps: bool | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if type(self.learn) is not bool:
            raise TypeError(f"microspec: learn: expected true or false, got {self.learn!r}")
        if type(self.dense_steps) is not bool and self.dense_steps != "auto":
            expected, got = "expected true, false or 'auto'", repr(self.dense_steps)
            raise TypeError(f"microspec: dense_steps: {expected}, got {got}")
        for name, least in (("capacity", 1), ("target_top_k", 0), ("num_lists", 1)):
            value = getattr(self, name)
            if name == "capacity" and value == "auto":
                continue
            if type(value) is not int:
                raise TypeError(f"microspec: {name}: expected an int, got {value!r}")
            if value < least:
                raise ValueError(f"microspec: {name}: expected at least {least}, got {value}")
        _one_of("vocabulary", self.vocabulary, get_args(Vocabulary))
        _one_of("mode", self.mode, get_args(Mode))
        _one_of("slab_dtype", self.slab_dtype, (None, *_SLAB_DTYPES))
        for name in ("frequent_tokens_file", "learned_file"):
            path = getattr(self, name)
            if path is not None and not isinstance(path, str):
                got = type(path).__name__
                raise TypeError(f"microspec: {name}: expected the path of a file, got {got}")
        if self.learned_file is not None and not self.learn:
            raise ValueError("microspec: learned_file: expected learn true, got false")
        if self.slab_dtype is not None and self.mode != "packed":
            raise ValueError(f"microspec: slab_dtype: expected mode 'packed', got {self.mode!r}")

    @classmethod
    def parse(cls, value: str | bool | Mapping[str, Any] | None) -> "Settings | None":
        """Parse the text of :data:`SWITCH` or an engine's configuration value; None if it is off.

        Args:
            value: None, a bool, an int 0 or 1, JSON text, or a mapping of settings.

        Raises:
            ValueError, TypeError: value is not a switch or an object of known settings.
        """
        if isinstance(value, str):
            try:
                value = json.loads(value) if value.strip() else None
            except json.JSONDecodeError as error:
                expected = "expected 0, 1 or a JSON object of settings"
                raise ValueError(f"microspec: {SWITCH}: {expected}, got {value!r}") from error
        if value is None or value is False or value == 0:
            return None
        if value is True or value == 1:
            return cls()
        if not isinstance(value, Mapping):
            expected = "expected true, false or an object of settings"
            raise TypeError(f"microspec: {expected}, got {value!r}")
        names = [field.name for field in fields(cls)]
        for name in value:
            if name not in names:
                raise ValueError(f"microspec: expected settings among {names}, got {name!r}")
        return cls(**value)

    @property
    def dense_by_cost(self) -> bool:
        """Whether coverage and load decide which head drafts (:attr:`dense_steps`)."""
        if self.dense_steps == "auto":
            return self.capacity == "auto"
        return self.dense_steps

    @property
    def slab_torch_dtype(self) -> torch.dtype | None:
        """:attr:`slab_dtype` as a torch dtype; None for the head's dtype."""
        return None if self.slab_dtype is None else _SLAB_DTYPES[self.slab_dtype]

    def read_frequent_tokens(self, target_vocab_size: int = INT32_IDS) -> Tensor:
        """Read :attr:`frequent_tokens_file`: int64 [n] on the CPU; n = 0 without a file.

        Raises:
            OSError: the file cannot be read.
            ValueError: the file does not hold distinct token ids in [0, target_vocab_size).
        """
        if self.frequent_tokens_file is None:
            return torch.empty(0, dtype=torch.int64, device="cpu")
        return read_token_ids(self.frequent_tokens_file, target_vocab_size)


def _one_of(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ValueError(f"microspec: {name}: expected one of {list(choices)}, got {value!r}")
