# SPDX-License-Identifier: Apache-2.0
"""Let the target continue prompts greedily, as training data for the draft."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from torch import Tensor
from tqdm import tqdm

from data import BOS, EOS, documents, encode_prompt, tokenizer
from export import load_target
from model import Llama
from train_target import document_mask

PAD = 0


class Cache:
    """Keys and values of one layer, for a batch of rows of equal length."""

    def __init__(self, model: Llama, rows: int, length: int) -> None:
        config = model.config
        shape = (2, rows, config.num_attention_heads, length, config.head_dim)
        self.keys, self.values = model.embed_tokens.weight.new_zeros(shape)
        self.length = 0

    def keep(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values; return all of them."""
        start, self.length = self.length, self.length + keys.shape[2]
        self.keys[:, :, start : self.length] = keys
        self.values[:, :, start : self.length] = values
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]


@torch.no_grad()
def greedy(model: Llama, prompts: list[list[int]], new: int) -> list[list[int]]:
    """Return each prompt with a greedy continuation of at most `new` tokens.

    An end-of-text token ends a continuation and is included.
    """
    weight = model.embed_tokens.weight
    head = weight.bfloat16()
    longest = max(map(len, prompts))
    # Pad at the left, so that all rows grow at the same index. Rotary positions are relative, and
    # the padding counts as another document, so the rows' output does not change.
    padded = [[PAD] * (longest - len(prompt)) + prompt for prompt in prompts]
    rows = torch.tensor(padded, device=weight.device)
    keeps = [Cache(model, len(prompts), longest + new).keep for _ in model.layers]
    features = model(rows, document_mask(rows), keeps=keeps)
    for position in range(longest, longest + new):
        token = (features[:, -1].bfloat16() @ head.T).max(-1, keepdim=True).indices
        rows = torch.cat((rows, token), 1)
        if (rows[:, longest:] == EOS).any(1).all():
            break
        from_start = (rows == BOS).cumsum(1) > 0
        features = model(token, from_start[:, None, None], start=position, keeps=keeps)
    continued = []
    for row, prompt in zip(rows.tolist(), prompts, strict=True):
        text = row[longest:]
        continued.append(prompt + text[: text.index(EOS) + 1 if EOS in text else None])
    return continued


def prompts_of(corpus: Path, split: str, tekken: Tekkenizer, longest: int) -> Iterator[list[int]]:
    """Yield the split's distinct prompts of at most `longest` tokens."""
    seen = set()
    for document in documents(corpus, split):
        if document["prompt"] and document["prompt"] not in seen:
            seen.add(document["prompt"])
            tokens = encode_prompt(tekken, document["prompt"])
            if len(tokens) <= longest:
                yield tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="corpus.jsonl.xz")
    parser.add_argument("--cache", type=Path, required=True, help="gets generated.npy")
    parser.add_argument("--target", type=Path, default=Path(__file__).parents[1] / "target")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--prompts", type=int, default=2560)
    parser.add_argument("--longest", type=int, default=256, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=200)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model = load_target(args.target).to(args.device)
    prompts = list(prompts_of(args.corpus, "train", tokenizer(), args.longest))
    rng = np.random.default_rng(args.seed)
    chosen = [prompts[i] for i in rng.permutation(len(prompts))[: args.prompts]]
    # Rows of a batch should have about the same length.
    chosen.sort(key=len)
    texts = []
    for start in tqdm(range(0, len(chosen), args.rows), unit="batch"):
        texts += greedy(model, chosen[start : start + args.rows], args.new)
    stream = np.concatenate([texts[i] for i in rng.permutation(len(texts))]).astype(np.int32)
    np.save(args.cache / "generated.npy", stream)
    print(f"{len(stream)} tokens in {len(texts)} texts")


if __name__ == "__main__":
    main()
