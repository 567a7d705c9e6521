"""The demonstration pair from prompt to text, with every head, on prompts it was not trained on.

    python -m bench.e2e corpus.jsonl.xz [--prompts 32] [--new 128]

Greedy text of a small model falls into loops, which any draft predicts: τ is therefore also given
for the steps before the loop alone.
"""

import argparse
import json
import lzma
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from microspec_kernels.cli.text import Tekken, target_alone
from microspec_kernels.speculative import Generation, generate, load_draft, load_target

from . import report

PAIR = Path(__file__).parent.parent / "examples" / "tiny_pair"
HEADS = {"dense": 131072, "static": 32768, "sparse": 3072}
LONGEST_PROMPT = 256  # tokens; the pair was trained on texts of 512
LONGEST_PERIOD = 64


@dataclass
class Total:
    """What one head did over all prompts."""

    tokens: int = 0
    covered: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    lengths: list[int] = field(default_factory=list)
    fresh_lengths: list[int] = field(default_factory=list)
    active: list[int] = field(default_factory=list)
    identical: int = 0

    def add(self, made: Generation, own: list[int], fresh: int) -> None:
        """`own` is the target's own text, of which the first `fresh` tokens are before a loop."""
        tokens, stats = made.tokens.tolist(), made.stats
        self.tokens += len(tokens)
        self.covered += stats.covered
        self.identical += tokens == own
        self.active += stats.active_sizes
        self.lengths += stats.acceptance_lengths
        ends = np.cumsum([1, *stats.acceptance_lengths])[1:]
        self.fresh_lengths += [
            n for n, end in zip(stats.acceptance_lengths, ends, strict=True) if end <= fresh
        ]
        for part, seconds in stats.seconds.items():
            self.seconds[part] = self.seconds.get(part, 0.0) + seconds


def before_loop(tokens: list[int]) -> int:
    """How many tokens precede the loop that the text ends in: at least three times the same."""
    text = np.array(tokens)
    start = len(text)
    for period in range(1, min(LONGEST_PERIOD, len(text) // 3) + 1):
        differs = np.flatnonzero(text[period:] != text[:-period])
        begin = differs[-1] + 1 if len(differs) else 0
        if len(text) - begin >= 3 * period:
            start = min(start, int(begin))
    return start


def unseen_prompts(corpus: Path, tokenizer: Tekken, count: int) -> list[list[int]]:
    """Prompts of split "test" as token ids, evenly from all of it."""
    with lzma.open(corpus, "rt") as lines:
        texts = [row["prompt"] for row in map(json.loads, lines) if row["split"] == "test"]
    prompts = [
        ids for ids in map(tokenizer.encode, filter(None, texts)) if len(ids) <= LONGEST_PROMPT
    ]
    return prompts[:: max(1, len(prompts) // count)][:count]


def row(head: str, total: Total, depth: int) -> dict[str, Any]:
    steps = max(1, len(total.lengths))
    parts = ("draft_layer", "head", "vocabulary", "tree")
    draft = sum(total.seconds.get(part, 0.0) for part in parts)
    alone = head == "target alone"
    return {
        "head": head,
        "tokens": total.tokens,
        "tokens_per_s": total.tokens / total.seconds["total"],
        "tau": 1.0 if alone else fmean(total.lengths),
        "tau_before_loops": 1.0 if alone else fmean(total.fresh_lengths),
        "steps_before_loops": len(total.fresh_lengths),
        "coverage": 1.0 if alone else total.covered / sum(total.lengths),
        "active_mean": "" if alone else fmean(total.active),
        "active_max": "" if alone else max(total.active),
        "head_ms_per_draft_step": "" if alone else total.seconds["head"] / steps / depth * 1e3,
        "draft_ms_per_draft_step": "" if alone else draft / steps / depth * 1e3,
        "verify_ms_per_step": "" if alone else total.seconds["verify"] / steps * 1e3,
        "identical_outputs": total.identical,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--new", type=int, default=128, help="tokens a text")
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--top-k", type=int, default=10)
    parser.add_argument("--tree-size", type=int, default=60)
    args = parser.parse_args()
    target = load_target(PAIR / "target")
    draft = load_draft(PAIR / "draft", target)
    frequency = torch.from_numpy(np.load(PAIR / "frequency_rank.npy"))
    totals = {head: Total() for head in ("target alone", *HEADS)}
    shape = {"depth": args.depth, "top_k": args.top_k, "tree_size": args.tree_size}
    prompts = unseen_prompts(args.corpus, Tekken(), args.prompts)
    # The first text is run twice, and its first run not counted: it pays for what comes but once.
    for index, ids in enumerate([prompts[0], *prompts]):
        alone = target_alone(target, torch.tensor(ids), args.new)
        own = alone.tokens.tolist()
        made = {"target alone": alone}
        for head, capacity in HEADS.items():
            made[head] = generate(
                target,
                draft,
                torch.tensor(ids),
                args.new,
                head=head,  # type: ignore[arg-type]
                capacity=capacity,
                frequency=frequency,
                **shape,
            )
        if index:
            for head, total in totals.items():
                total.add(made[head], own, before_loop(own))
    rows = [{**row(head, total, args.depth), **shape} for head, total in totals.items()]
    print(f"{report.device()}, {len(prompts)} prompts\n\n{report.table(rows)}")
    name = f"e2e-depth{args.depth}-top{args.top_k}-tree{args.tree_size}.csv"
    report.write_csv(report.folder() / name, [{"prompts": len(prompts), **r} for r in rows])


if __name__ == "__main__":
    main()
