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
    place = torch.full((vocab_size,), vocab_size, dtype=torch.int64, device="cpu")
    place[first] = torch.arange(len(first), device="cpu")
    ranks = torch.empty(vocab_size, dtype=torch.int32, device="cpu")
    ranks[place.argsort(stable=True)] = torch.arange(vocab_size, dtype=torch.int32, device="cpu")
    return ranks


def prior_of_tokenizer(tokenizer: Any) -> Tensor:
    """Order a tokenizer's tokens by how frequent they are likely to be, without any text.

    A BPE vocabulary numbers its tokens in the order of their merges, the most frequent pair first.
    A word behind a space comes at a third of its place. Special tokens, and bytes that are no
    ASCII text, come last.

    Args:
        tokenizer: a ``tokenizers.Tokenizer``, or one of ``transformers`` that is built on it.

    Returns:
        int64 [n] on the CPU, distinct.

    Raises:
        TypeError: a tokenizer of another kind.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(backend, "get_added_tokens_decoder"):
        got = type(tokenizer).__name__
        raise TypeError(
            f"prior_of_tokenizer: tokenizer: expected a tokenizers.Tokenizer, got {got}"
        )
    special = backend.get_added_tokens_decoder().keys()
    by_id = sorted((number, token) for token, number in backend.get_vocab().items())
    ordinary = [(n, t) for n, t in by_id if n not in special and not _is_odd_byte(t)]
    places = [
        (place / WORD_FACTOR if _is_word(token) else place, number)
        for place, (number, token) in enumerate(ordinary)
    ]
    ordered = [number for _, number in sorted(places)]
    kept = set(ordered)
    ordered += [number for number, _ in by_id if number not in kept]
    return torch.tensor(ordered, dtype=torch.int64, device="cpu")


def backend_of(tokenizer: Any) -> Any:
    """Return the ``tokenizers.Tokenizer`` of a tokenizer.

    Raises:
        TypeError: a tokenizer of another kind.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(backend, "get_added_tokens_decoder"):
        got = type(tokenizer).__name__
        raise TypeError(f"tokenizer: expected a tokenizers.Tokenizer, got {got}")
    return backend


def _is_word(token: str) -> bool:
    """Test for letters behind a space, which byte-level BPE writes Ġ and SentencePiece ▁."""
    return len(token) > 1 and token[0] in "Ġ▁ " and token[1].isalpha()


def _is_odd_byte(token: str) -> bool:
    """Test for a single byte that is not printable ASCII, a space, a tab or a line break."""
    if match := _BYTE.fullmatch(token):
        byte = int(match[1], 16)
    elif len(token) == 1 and token in _BYTE_OF_LETTER:
        byte = _BYTE_OF_LETTER[token]
    else:
        return False
    return not (32 <= byte < 127 or byte in b"\t\n\r")


def _byte_letters() -> dict[str, int]:
    """Return byte-level BPE's letter for each byte: printable Latin-1 as is, others from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {
        **{chr(byte): byte for byte in printable},
        **{chr(256 + i): byte for i, byte in enumerate(others)},
    }


_BYTE_OF_LETTER = _byte_letters()
