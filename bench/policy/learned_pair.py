# SPDX-License-Identifier: Apache-2.0
"""Does a draft accept as many tokens over a vocabulary that nobody prepared? On the small pair.

    python -m bench.policy.learned_pair [--corpus corpus.jsonl.xz] [--requests 40] [--new 128]
                                        [--out DIR]

The requests follow one another, greedily and at temperature 1. The vocabulary begins in the order
of the tokenizer, has K = 3072 and learns from every text. learned-pair.csv compares τ with the
dense head's on the same requests: the first five, all before the 20th, and those from it on. It
gives two coverages: the share of the text's tokens that were active, and of those among them that
the dense head's drafts got accepted, the only ones that τ can lose.
"""

import argparse
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from tqdm import tqdm

from bench.harness import options as common
from bench.harness import report
from bench.harness.sizes import CAPACITY
from bench.harness.tiny_pair import PROMPTS, load_pair, unseen_prompts
from microspec_kernels.cli.arguments import Parser, positive
from microspec_kernels.cli.tokenizers import Tekken
from microspec_kernels.policy import default, prior_of_tokenizer
from microspec_kernels.speculative import Generation, Sampling, generate, learned_lists
from microspec_kernels.speculative.stats import coverage_of, coverage_of_accepted

SETTLED = 20  # requests that suffice to find the frequent tokens of such texts
PARTS = {
    "first 5": slice(0, 5),
    f"before {SETTLED}": slice(0, SETTLED),
    f"from {SETTLED} on": slice(SETTLED, None),
}


def learned_texts(
    target: Any, draft: Any, prompts: list[list[int]], new: int, temperature: float
) -> list[Generation]:
    """Continue the prompts one after the other; each begins with what the texts before showed."""
    prior = prior_of_tokenizer(Tekken().tokenizer)
    lists = learned_lists(target, draft, prior)
    return [
        generate(
            target, draft, torch.tensor(ids), new, learn=lists, policy=default(prior),
            capacity=CAPACITY, sampling=Sampling(temperature, seed=seed),
        )
        for seed, ids in enumerate(tqdm(prompts, desc=f"learned, temperature {temperature}"))
    ]  # fmt: skip


def dense_texts(
    target: Any, draft: Any, prompts: list[list[int]], new: int, temperature: float
) -> list[Generation]:
    return [
        generate(
            target, draft, torch.tensor(ids), new, head="dense",
            sampling=Sampling(temperature, seed=seed),
        )
        for seed, ids in enumerate(tqdm(prompts, desc=f"dense, temperature {temperature}"))
    ]  # fmt: skip


def tau(texts: list[Generation]) -> float:
    return fmean(length for text in texts for length in text.stats.acceptance_lengths)


def rows_of(
    temperature: float,
    learned: list[Generation],
    dense: list[Generation],
) -> list[dict[str, Any]]:
    """Make one line of figures for each part of the requests."""
    rows = []
    for name, part in PARTS.items():
        if not (ours := learned[part]):
            continue
        theirs = dense[part]
        rows.append(
            {
                "temperature": temperature,
                "requests": name,
                "count": len(ours),
                "tau_dense": tau(theirs),
                "tau": tau(ours),
                "tau_of_dense": tau(ours) / tau(theirs),
                "coverage": coverage_of([text.stats for text in ours]),
                "coverage_of_accepted": coverage_of_accepted(
                    [text.stats for text in ours], [text.stats for text in theirs]
                ),
                "same_texts": sum(
                    torch.equal(a.tokens, b.tokens) for a, b in zip(ours, theirs, strict=True)
                ),
            }
        )
    return rows


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--corpus", type=Path, help="corpus.jsonl.xz; the prompts are of its split test"
    )
    parser.add_argument(
        "--requests", type=positive, help="number of prompts; default 40 with a corpus, 8 without"
    )
    parser.add_argument("--new", type=positive, default=128, help="tokens per text")
    parser.add_argument("--out", type=Path, default=report.RESULTS / "policy", metavar="DIR")
    args = parser.parse_args()
    count = args.requests or (2 * SETTLED if args.corpus else len(PROMPTS))
    with common.checking(parser):
        prompts = unseen_prompts(args.corpus, Tekken(), count)
    target, draft, _ = load_pair()
    rows: list[dict[str, Any]] = []
    for temperature in (0.0, 1.0):
        arms = target, draft, prompts, args.new, temperature
        rows += rows_of(temperature, learned_texts(*arms), dense_texts(*arms))
        report.write_csv(args.out / "learned-pair.csv", rows)
    print(report.table(rows))


if __name__ == "__main__":
    main()
