"""What a policy's sources are worth on the demonstration pair: acceptance length and coverage.

    python -m bench.policy_pair --corpus corpus.jsonl.xz [--prompts 16] [--new 128] [--out DIR]

Greedy, and at temperature 1, where a text does not fall into loops. Every policy continues the same
texts; those that equal the dense head's are counted. Writes pair.csv. EAGLE-2's tree: depth 6,
top-k 10, 60 nodes.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from microspec_kernels.cli.arguments import Parser, positive
from microspec_kernels.cli.tokenizers import Tekken
from microspec_kernels.policy import MICROSPEC, TEXT, Policy, draft_tree, prompt_top_k, top_k
from microspec_kernels.speculative import Generation, Sampling, generate

from . import options, report
from .e2e import PROMPTS, before_loop, load_pair, unseen_prompts

K = 3072
FLOOR = 1024


@dataclass(frozen=True, eq=False)
class Arm:
    """A policy and its capacity, or the dense head."""

    name: str
    policy: Policy | None
    capacity: int = K


def arms(frequency: Tensor, temperature: float) -> Iterator[Arm]:
    nodes, last = (*TEXT, top_k(3)), prompt_top_k(3, "last")
    yield Arm("dense", None)
    yield Arm("microspec", Policy(MICROSPEC))
    for name, sources in (("text", TEXT), ("text, top 3", nodes), ("microspec", MICROSPEC)):
        yield Arm(f"{name}, filled", Policy(sources, frequency))
    if temperature:
        return
    yield Arm("text", Policy(TEXT))
    yield Arm("text, tree", Policy((*TEXT, draft_tree())))
    for k in (1, 3, 10):
        yield Arm(f"text, top {k}", Policy((*TEXT, top_k(k))))
    yield Arm("text, prompt's last top 3", Policy((*TEXT, last)))
    yield Arm("text, prompt's top 3", Policy((*TEXT, prompt_top_k(3))))
    yield Arm("text, top 3, prompt's last top 3", Policy((*nodes, last)))
    yield Arm(f"text, floor {FLOOR}", Policy(TEXT, pinned=frequency[:FLOOR]))
    yield Arm("text, filled", Policy(TEXT, frequency), FLOOR)
    yield Arm("text, top 3, filled", Policy(nodes, frequency), FLOOR)


def row(arm: Arm, temperature: float, made: list[Generation], loops: list[int]) -> dict[str, Any]:
    """Over all texts; `loops`: of each, the tokens before its final loop."""
    lengths, fresh = [], []
    for text, tokens_before in zip(made, loops, strict=True):
        own = text.stats.acceptance_lengths
        ends = np.cumsum([1, *own])[1:]
        lengths += own
        fresh += [n for n, end in zip(own, ends, strict=True) if end <= tokens_before]
    sizes = [size for text in made for size in text.stats.active_sizes]
    return {
        "policy": arm.name,
        "capacity": "" if arm.policy is None else arm.capacity,
        "temperature": temperature,
        "tau": fmean(lengths),
        "tau_before_loops": fmean(fresh),
        "coverage": sum(text.stats.covered for text in made) / sum(lengths),
        "active_mean": fmean(sizes),
        "active_max": max(sizes),
        "steps": len(lengths),
        "prompts": len(made),
    }


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="to take prompts of its split test from")
    parser.add_argument("--prompts", type=positive, help="default 16 of a corpus, 8 without")
    parser.add_argument("--new", type=positive, default=128, help="tokens a text")
    parser.add_argument("--out", type=Path, default=report.RESULTS / "policy", metavar="DIR")
    args = parser.parse_args()
    count = args.prompts or (16 if args.corpus else len(PROMPTS))
    with options.checking(parser):
        prompts = unseen_prompts(args.corpus, Tekken(), count)
    target, draft, frequency = load_pair()
    rows: list[dict[str, Any]] = []
    texts: dict[float, list[list[int]]] = {}
    for temperature in (0.0, 1.0):
        for arm in tqdm(list(arms(frequency, temperature)), desc=f"temperature {temperature}"):
            head = {"head": "dense"} if arm.policy is None else {"policy": arm.policy}
            made = [
                generate(
                    target,
                    draft,
                    torch.tensor(ids),
                    args.new,
                    sampling=Sampling(temperature, seed=seed),
                    capacity=arm.capacity,
                    **head,
                )
                for seed, ids in enumerate(prompts)
            ]
            own = [text.tokens.tolist() for text in made]
            dense = texts.setdefault(temperature, own)
            same = sum(a == b for a, b in zip(own, dense, strict=True))
            figures = row(arm, temperature, made, [before_loop(text) for text in own])
            rows.append({**figures, "as_with_dense_head": same})
            report.write_csv(args.out / "pair.csv", rows)
    print(report.table(rows))


if __name__ == "__main__":
    main()
