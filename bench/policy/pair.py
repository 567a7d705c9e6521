# SPDX-License-Identifier: Apache-2.0
"""What is each source of a policy worth on the demonstration pair, in acceptance and coverage?

    python -m bench.policy.pair [--corpus corpus.jsonl.xz] [--prompts 16] [--new 128] [--out DIR]

Decodes greedily, and at temperature 1, where texts do not end in loops. Every policy continues the
same prompts; pair.csv counts the texts that equal the dense head's. The tree is EAGLE-2's: depth 6,
top-k 10, 60 nodes.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from bench.harness import options, report
from bench.harness.sizes import CAPACITY
from bench.harness.tiny_pair import (
    PROMPTS,
    before_loop,
    lengths_before_loop,
    load_pair,
    unseen_prompts,
)
from microspec_kernels.cli.arguments import Parser, positive
from microspec_kernels.cli.tokenizers import Tekken
from microspec_kernels.policy import MICROSPEC, TEXT, Policy, draft_tree, prompt_top_k, target_top_k
from microspec_kernels.speculative import Generation, Sampling, generate
from microspec_kernels.speculative.stats import coverage_of

FLOOR = 1024


@dataclass(frozen=True, eq=False)
class DecodedPolicy:
    """A policy and its capacity; without a policy, the dense head."""

    name: str
    policy: Policy | None
    capacity: int = CAPACITY


def arms(frequent_tokens: Tensor, temperature: float) -> Iterator[DecodedPolicy]:
    nodes, last = (*TEXT, target_top_k(3)), prompt_top_k(3, "last")
    yield DecodedPolicy("dense", None)
    yield DecodedPolicy("microspec", Policy(MICROSPEC))
    for name, sources in (("text", TEXT), ("text, top 3", nodes), ("microspec", MICROSPEC)):
        yield DecodedPolicy(f"{name}, filled", Policy(sources, frequent_tokens))
    if temperature:
        return
    yield DecodedPolicy("text", Policy(TEXT))
    yield DecodedPolicy("text, tree", Policy((*TEXT, draft_tree())))
    for k in (1, 3, 10):
        yield DecodedPolicy(f"text, top {k}", Policy((*TEXT, target_top_k(k))))
    yield DecodedPolicy("text, prompt's last top 3", Policy((*TEXT, last)))
    yield DecodedPolicy("text, prompt's top 3", Policy((*TEXT, prompt_top_k(3))))
    yield DecodedPolicy("text, top 3, prompt's last top 3", Policy((*nodes, last)))
    yield DecodedPolicy(f"text, floor {FLOOR}", Policy(TEXT, pinned=frequent_tokens[:FLOOR]))
    yield DecodedPolicy("text, filled", Policy(TEXT, frequent_tokens), FLOOR)
    yield DecodedPolicy("text, top 3, filled", Policy(nodes, frequent_tokens), FLOOR)


def row(
    arm: DecodedPolicy, temperature: float, texts: list[Generation], loops: list[int]
) -> dict[str, Any]:
    """Make one line of figures over all texts.

    Args:
        loops: for each text, the tokens before its final loop.
    """
    lengths, fresh = list[int](), list[int]()
    for text, tokens_before in zip(texts, loops, strict=True):
        lengths += text.stats.acceptance_lengths
        fresh += lengths_before_loop(text.stats.acceptance_lengths, tokens_before)
    sizes = [size for text in texts for size in text.stats.active_sizes]
    return {
        "policy": arm.name,
        "capacity": "" if arm.policy is None else arm.capacity,
        "temperature": temperature,
        "tau": fmean(lengths),
        "tau_before_loops": fmean(fresh),
        "coverage": coverage_of([text.stats for text in texts]),
        "active_mean": fmean(sizes),
        "active_max": max(sizes),
        "steps": len(lengths),
        "prompts": len(texts),
    }


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--corpus", type=Path, help="corpus.jsonl.xz; the prompts are of its split test"
    )
    parser.add_argument(
        "--prompts", type=positive, help="number of prompts; default 16 with a corpus, 8 without"
    )
    parser.add_argument("--new", type=positive, default=128, help="tokens per text")
    parser.add_argument("--out", type=Path, default=report.RESULTS / "policy", metavar="DIR")
    args = parser.parse_args()
    count = args.prompts or (16 if args.corpus else len(PROMPTS))
    with options.checking(parser):
        prompts = unseen_prompts(args.corpus, Tekken(), count)
    target, draft, frequent_tokens = load_pair()
    rows: list[dict[str, Any]] = []
    dense: dict[float, list[list[int]]] = {}
    for temperature in (0.0, 1.0):
        for arm in tqdm(
            list(arms(frequent_tokens, temperature)), desc=f"temperature {temperature}"
        ):
            head = {"head": "dense"} if arm.policy is None else {"policy": arm.policy}
            texts = [
                generate(
                    target,
                    draft,
                    torch.tensor(ids),
                    args.new,
                    sampling=Sampling(temperature, seed=seed),
                    capacity=arm.capacity,
                    learn=False,
                    **head,
                )
                for seed, ids in enumerate(prompts)
            ]
            tokens = [text.tokens.tolist() for text in texts]
            expected = dense.setdefault(temperature, tokens)  # the dense head is the first arm
            same = sum(a == b for a, b in zip(tokens, expected, strict=True))
            figures = row(arm, temperature, texts, [before_loop(text) for text in tokens])
            rows.append({**figures, "as_with_dense_head": same})
            report.write_csv(args.out / "pair.csv", rows)
    print(report.table(rows))


if __name__ == "__main__":
    main()
