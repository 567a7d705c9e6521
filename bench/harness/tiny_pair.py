# SPDX-License-Identifier: Apache-2.0
"""Load the demonstration pair, and choose prompts that it was not trained on."""

from pathlib import Path

import numpy as np
import torch

from microspec_kernels.cli.tokenizers import Tekken
from microspec_kernels.speculative import CausalModel, Draft, load_draft, load_target

from .corpus import enough
from .corpus import rows as read_corpus

PAIR = Path(__file__).parents[2] / "examples" / "tiny_pair"
VOCAB_SIZE = 131072
LONGEST_PROMPT = 256  # tokens; the pair was trained on texts of 512
LONGEST_PERIOD = 64  # tokens of a loop
PROMPTS = (
    "A train leaves at 14:20 and arrives at 17:05. How long is the journey?",
    "Write a Python function that returns the three longest words of a text.",
    "Explain to a child why the moon seems to change its shape.",
    "Solve for x: 3x + 7 = 2x - 5.",
    "List four things to check before renting a flat, with a reason for each.",
    "A jar holds 24 red and 36 blue marbles. What share of them is red?",
    "What does this shell command do? find . -name '*.log' -mtime +7 -delete",
    "Write a short letter that asks a library for a later return date.",
)


def load_pair(device: str = "cpu") -> tuple[CausalModel, Draft, torch.Tensor]:
    """Return target, draft, and the frequent tokens of what they were trained on."""
    target = load_target(PAIR / "target", device=device)
    frequent_tokens = torch.from_numpy(np.load(PAIR / "frequent_tokens.npy")).to(device)
    return target, load_draft(PAIR / "draft", target), frequent_tokens


def built_in_prompts(tokenizer: Tekken, count: int) -> list[list[int]]:
    """Return the first `count` of PROMPTS as token ids.

    Raises:
        ValueError: more than there are.
    """
    if count > len(PROMPTS):
        expected = f"at most {len(PROMPTS)} without a --corpus"
        raise ValueError(f"--prompts: expected {expected}, got {count}")
    return [tokenizer.encode(prompt) for prompt in PROMPTS[:count]]


def unseen_prompts(corpus: Path | None, tokenizer: Tekken, count: int) -> list[list[int]]:
    """Return prompts of split "test" as token ids, evenly from all of it, or built-in ones.

    Raises:
        OSError, ValueError: the corpus cannot be read, or has too few prompts.
    """
    if corpus is None:
        return built_in_prompts(tokenizer, count)
    rows = read_corpus(corpus, "split", "prompt")
    texts = [row["prompt"] for row in rows if row["split"] == "test"]
    prompts = [
        ids for ids in map(tokenizer.encode, filter(None, texts)) if len(ids) <= LONGEST_PROMPT
    ]
    enough(corpus, f"prompts of split test within {LONGEST_PROMPT} tokens", prompts, count)
    return prompts[:: max(1, len(prompts) // count)][:count]


def before_loop(tokens: list[int]) -> int:
    """Count the tokens in front of the loop that ends the text: at least three times the same."""
    text = np.array(tokens)
    start = len(text)
    for period in range(1, min(LONGEST_PERIOD, len(text) // 3) + 1):
        differs = np.flatnonzero(text[period:] != text[:-period])
        begin = differs[-1] + 1 if len(differs) else 0
        if len(text) - begin >= 3 * period:
            start = min(start, int(begin))
    return start


def lengths_before_loop(lengths: list[int], tokens_before: int) -> list[int]:
    """Return the acceptance lengths of the steps that end within the first `tokens_before` tokens.

    The first token of a text belongs to no step.
    """
    ends = np.cumsum([1, *lengths])[1:]
    return [length for length, end in zip(lengths, ends, strict=True) if end <= tokens_before]
