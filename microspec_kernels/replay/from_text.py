"""A user's own text as a trace, and a tokenizer's tokens as text."""

import json
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from microspec_kernels._optional import require

from .._files import read_text, reading
from .trace import Trace

BYTE_LEVEL_SPACE, METASPACE = "Ġ", "▁"


def load_tokenizer(path: Path) -> Any:
    """The `tokenizers.Tokenizer` of a tokenizer.json.

    Raises:
        OSError: no such file, or not readable.
        ValueError: not a tokenizer.
        ImportError: the `replay` extra is missing.
    """
    tokenizers = require("tokenizers", "replay")
    text = read_text(path)
    with reading(path, "a tokenizer.json"):
        return tokenizers.Tokenizer.from_str(text)


def load_text(path: Path, tokenizer: Any, prompt_tokens: int = 0) -> Trace:
    """A text file as one sequence, or a .jsonl as one a line.

    Args:
        path: of a text, whose first ``prompt_tokens`` count as given and the rest as generated; or
            of a .jsonl of objects with the fields "prompt" and "response".
        tokenizer: :func:`load_tokenizer`'s.

    Raises:
        OSError: no such file, or not readable.
        ValueError: a line of a .jsonl that is not such an object, a text that is not UTF-8,
            or prompt_tokens below 0.
    """

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    if prompt_tokens < 0:
        raise ValueError(f"load_text: prompt_tokens: expected at least 0, got {prompt_tokens}")
    text = read_text(path)
    if path.suffix == ".jsonl":
        pairs = [(encode(p), encode(r)) for p, r in _prompts_and_responses(path, text)]
    else:
        ids = encode(text)
        pairs = [(ids[:prompt_tokens], ids[prompt_tokens:])]
    tokens = [token for prompt, response in pairs for token in (*prompt, *response)]
    flags = [flag for p, r in pairs for flag in (*[False] * len(p), *[True] * len(r))]
    offsets = [0, *accumulate(len(p) + len(r) for p, r in pairs)]
    written = torch.tensor(flags, dtype=torch.bool)
    return Trace(path.stem, torch.tensor(tokens, dtype=torch.int64), written, offsets)


def _prompts_and_responses(path: Path, text: str) -> list[tuple[str, str]]:
    pairs = []
    for number, line in enumerate(text.split("\n"), 1):  # splitlines knows ends that JSON does not
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            pair = fields["prompt"], fields["response"]
            for part in pair:
                part.encode()  # lone surrogates are no text
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            expected = 'an object with texts as "prompt" and "response"'
            got = f"{line[:80]}{'…' * (len(line) > 80)}"
            raise ValueError(f"{path}:{number}: expected {expected}, got {got}") from error
        pairs.append(pair)
    return pairs


def token_texts(tokenizer: Any) -> list[str | None]:
    """Each token's text, by id, for :func:`~microspec_kernels.policy.variants`.

    None for special tokens, for parts of a character, and for ids without a token. Reads the two
    common alphabets: byte-level (GPT-2, Llama 3, Qwen) and metaspace (Llama 2, Mistral).
    """
    decode = require("tokenizers.decoders", "replay").ByteLevel().decode
    pieces = tokenizer.get_vocab()
    special = tokenizer.get_added_tokens_decoder()
    byte_level = any(piece.startswith(BYTE_LEVEL_SPACE) for piece in pieces)
    texts: list[str | None] = [None] * (max(pieces.values(), default=-1) + 1)
    for piece, token in pieces.items():
        text = decode([piece]) if byte_level else piece.replace(METASPACE, " ")
        if token not in special and "\N{REPLACEMENT CHARACTER}" not in text:
            texts[token] = text
    return texts
