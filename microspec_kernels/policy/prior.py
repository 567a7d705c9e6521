# SPDX-License-Identifier: Apache-2.0
"""The order of tokens before anything has been counted: of a list, of a tokenizer, or of ids."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._token_ids import token_ids

# A word behind a space ranks as if it had been merged at a third of its place. Texts show such
# words more often than the parts of words that were merged before them (docs/policy.md).
WORD_FACTOR = 3
_BYTE = re.compile("<0x([0-9A-F]{2})>")


def token_ranks(prior: Tensor | Sequence[int], vocab_size: int) -> Tensor:
    """Return each token's place: first the prior's tokens, then the others by id.

    Args:
        prior: distinct token ids, the most frequent first.
        vocab_size: V.

    Returns:
        int32 [V] on the CPU, a permutation of 0 to V - 1.

    Raises:
        ValueError: a repeated or out-of-range token.
        TypeError: tokens that are not integers.
    """
    first = token_ids("LearnedLists: prior", prior, vocab_size)
    places = torch.arange(vocab_size, dtype=torch.int32, device="cpu")
    ranks, others = places.clone(), torch.ones(vocab_size, dtype=torch.bool, device="cpu")
    others[first] = False
    ranks[first], ranks[others] = places[: len(first)], places[len(first) :]
    return ranks


def prior_of_tokenizer(tokenizer: Any) -> Tensor:
    """Order a tokenizer's tokens by how frequent they are likely to be, without any text.

    A BPE vocabulary numbers its tokens in the order of their merges, the most frequent pair first.
    A word behind a space comes at a third of its place. Special tokens, and bytes that are no
    ASCII text, come last.

    Args:
        tokenizer: a ``tokenizers.Tokenizer``, one of ``transformers`` that is built on it, or a
            ``Tekkenizer`` of ``mistral_common``.

    Returns:
        int64 [n] on the CPU, distinct.

    Raises:
        TypeError: a tokenizer of another kind.
    """
    tokens, last = tokens_of(tokenizer)
    ordinary = [(number, text) for number, text in tokens if number not in last]
    places = [
        (place / WORD_FACTOR if _is_word(text) else place, number)
        for place, (number, text) in enumerate(ordinary)
    ]
    ordered = [number for _, number in sorted(places)]
    ordered += [number for number, _ in tokens if number in last]
    return torch.tensor(ordered, dtype=torch.int64, device="cpu")


def tokens_of(tokenizer: Any) -> tuple[list[tuple[int, str]], set[int]]:
    """Return a tokenizer's tokens by id, and the ids of special tokens and of odd bytes.

    Args:
        tokenizer: see :func:`prior_of_tokenizer`.

    Raises:
        TypeError: a tokenizer of another kind.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if hasattr(backend, "get_added_tokens_decoder"):
        tokens = sorted((number, text) for text, number in backend.get_vocab().items())
        odd = {number for number, text in tokens if _is_odd(_byte_of(text))}
        return tokens, odd.union(backend.get_added_tokens_decoder())
    if hasattr(backend, "num_special_tokens"):
        tokens = list(enumerate(backend.vocab()))
        special = set(range(backend.num_special_tokens))
        first = len(special)  # the 256 bytes follow, then the merges
        return tokens, special.union(first + byte for byte in range(256) if _is_odd(byte))
    got = type(tokenizer).__name__
    raise TypeError(f"tokenizer: expected a tokenizers.Tokenizer or a Tekkenizer, got {got}")


def _is_word(token: str) -> bool:
    """Test for letters behind a space, which byte-level BPE writes Ġ and SentencePiece ▁."""
    return len(token) > 1 and token[0] in "Ġ▁ " and token[1].isalpha()


def _byte_of(text: str) -> int | None:
    """Return the byte that a token stands for alone, in SentencePiece or byte-level BPE."""
    if match := _BYTE.fullmatch(text):
        return int(match[1], 16)
    return _BYTE_OF_LETTER.get(text)


def _is_odd(byte: int | None) -> bool:
    """Test for a byte that is not printable ASCII, a space, a tab or a line break."""
    return byte is not None and not (32 <= byte < 127 or byte in b"\t\n\r")


def _byte_letters() -> dict[str, int]:
    """Return byte-level BPE's letter for each byte: printable Latin-1 as is, others from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {
        **{chr(byte): byte for byte in printable},
        **{chr(256 + i): byte for i, byte in enumerate(others)},
    }


_BYTE_OF_LETTER = _byte_letters()
