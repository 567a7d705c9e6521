# SPDX-License-Identifier: Apache-2.0
"""Turn the corpus into two token streams and a list of frequent tokens; draw batches of them."""

import argparse
import json
import lzma
from collections.abc import Iterator
from pathlib import Path

import mistral_common
import numpy as np
import torch
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from tqdm import tqdm

VOCAB = 131072
BOS, EOS, INST, INST_END = 1, 2, 3, 4
LISTED = 32768
FREQUENT_TOKENS = Path(__file__).parents[1] / "frequent_tokens.npy"


def tokenizer() -> Tekkenizer:
    """Return the Tekken tokenizer that mistral-common ships."""
    return Tekkenizer.from_file(Path(mistral_common.__file__).parent / "data/tekken_240911.json")


def documents(corpus: Path, split: str) -> Iterator[dict[str, str]]:
    """Yield the corpus's documents of one split, in file order."""
    with lzma.open(corpus, "rt", encoding="utf-8") as lines:
        for line in lines:
            document = json.loads(line)
            if document["split"] == split:
                yield document


def encode_prompt(tekken: Tekkenizer, prompt: str) -> list[int]:
    """Return the tokens of `<s>[INST]prompt[/INST]`; of `<s>` only if there is no prompt."""
    if not prompt:
        return [BOS]
    return [BOS, INST, *tekken.encode(prompt, bos=False, eos=False), INST_END]


def encode_split(corpus: Path, split: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Encode a split as one stream of its documents in random order; count its responses' tokens.

    Returns the stream int32 [n] and the counts int64 [VOCAB].
    """
    tekken = tokenizer()
    encoded = []
    counts = np.zeros(VOCAB, dtype=np.int64)
    for document in tqdm(documents(corpus, split), desc=split, unit="doc"):
        prompt = encode_prompt(tekken, document["prompt"])
        response = [*tekken.encode(document["response"], bos=False, eos=False), EOS]
        np.add.at(counts, response, 1)
        encoded.append(np.array(prompt + response, dtype=np.int32))
    # The corpus is sorted by source, but a window of the stream should see a mixture.
    order = np.random.default_rng(seed).permutation(len(encoded))
    return np.concatenate([encoded[i] for i in order]), counts


def windows(stream: np.ndarray, starts: np.ndarray, length: int) -> torch.Tensor:
    """Return rows of `length` consecutive tokens from the given starts, int64 [rows, length]."""
    return torch.from_numpy(stream[starts[:, None] + np.arange(length)].astype(np.int64))


def random_windows(
    stream: np.ndarray, rng: np.random.Generator, rows: int, length: int
) -> torch.Tensor:
    """Return rows of `length` consecutive tokens from random places."""
    return windows(stream, rng.integers(0, len(stream) - length, rows), length)


def fixed_windows(stream: np.ndarray, rows: int, length: int) -> torch.Tensor:
    """Return evenly spread rows of `length` tokens, the same at every call, to measure on."""
    return windows(stream, np.linspace(0, len(stream) - length, rows).astype(np.int64), length)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="corpus.jsonl.xz")
    parser.add_argument("--cache", type=Path, required=True, help="folder for the token streams")
    parser.add_argument("--frequent-tokens", type=Path, default=FREQUENT_TOKENS)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    for split in ("test", "train"):
        stream, counts = encode_split(args.corpus, split, args.seed)
        np.save(args.cache / f"{split}.npy", stream)
        print(f"{split}: {len(stream)} tokens")
    # The last split encoded is "train": its responses give the frequent tokens.
    frequent_tokens = np.argsort(-counts, kind="stable")[:LISTED].astype(np.int32)
    np.save(args.frequent_tokens, frequent_tokens)


if __name__ == "__main__":
    main()
