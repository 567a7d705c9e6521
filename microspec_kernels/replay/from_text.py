# SPDX-License-Identifier: Apache-2.0
"""Convert a user's text to a trace."""

import json
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from microspec_kernels._optional import require

from .._files import read_text, reading
from .trace import Trace


def load_tokenizer(path: Path) -> Any:
    """Load a tokenizer.json as a `tokenizers.Tokenizer`.

    Raises:
        OSError: the file does not exist or is not readable.
        ValueError: the file is not a tokenizer.
        ImportError: the `replay` extra is missing.
    """
    tokenizers = require("tokenizers", "replay")
    text = read_text(path)
    with reading(path, "a tokenizer.json"):
        return tokenizers.Tokenizer.from_str(text)


def load_text(path: Path, tokenizer: Any, prompt_tokens: int = 0) -> Trace:
    """Load a text file as one sequence, or a .jsonl file as one sequence per line.

    Args:
        path: a text file; or a .jsonl file of objects with the fields "prompt" (given tokens) and
            "response" (generated tokens).
        tokenizer: a tokenizer from :func:`load_tokenizer`.
        prompt_tokens: number of tokens at the start of a text file that count as given; the rest
            count as generated. A .jsonl file does not use it.

    Raises:
        OSError: the file does not exist or is not readable.
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
    for number, line in enumerate(text.split("\n"), 1):  # splitlines also splits at U+2028
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            pair = fields["prompt"], fields["response"]
            for part in pair:
                part.encode()  # raises UnicodeEncodeError, a ValueError, for lone surrogates
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            expected = 'an object with texts as "prompt" and "response"'
            got = f"{line[:80]}{'…' * (len(line) > 80)}"
            raise ValueError(f"{path}:{number}: expected {expected}, got {got}") from error
        pairs.append(pair)
    return pairs
