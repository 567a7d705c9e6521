# SPDX-License-Identifier: Apache-2.0
"""What does each head save from prompt to text, on the demonstration pair and unseen prompts?

    python -m bench.decoding.pair [--quick] [--device cpu|cuda] [--out DIR]
                                  [--corpus corpus.jsonl.xz] [--prompts 32] [--new 128]
                                  [--temperature 1]

The prompts are of the corpus's split "test", which the pair has not seen, or else a few built-in
ones. Greedy text of a small model ends in loops, which any draft predicts. So τ is also given for
the steps before the loop alone. Text drawn at a temperature has no loops.
"""

from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from bench.harness import options, report
from bench.harness.sizes import CAPACITY, STATIC
from bench.harness.tiny_pair import (
    PROMPTS,
    VOCAB_SIZE,
    before_loop,
    lengths_before_loop,
    load_pair,
    unseen_prompts,
)
from microspec_kernels._checks import MAX_TOP_K
from microspec_kernels.cli.arguments import positive, real, whole
from microspec_kernels.cli.tokenizers import Tekken
from microspec_kernels.policy import MICROSPEC, Policy
from microspec_kernels.speculative import Generation, Sampling, generate
from microspec_kernels.speculative.alone import target_alone
from microspec_kernels.speculative.stats import Stats, coverage_of

# Head and capacity of each arm. "MicroSpec" follows the paper's sources and begins empty.
ARMS = {
    "dense": ("dense", VOCAB_SIZE),
    "static": ("static", STATIC),
    "sparse": ("sparse", CAPACITY),
    "sparse, K = 1024": ("sparse", 1024),
    "MicroSpec": ("sparse", CAPACITY),
}


@dataclass
class Total:
    """The sums of one arm over all prompts."""

    tokens: int = 0
    stats: list[Stats] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    lengths: list[int] = field(default_factory=list)
    fresh_lengths: list[int] = field(default_factory=list)
    active: list[int] = field(default_factory=list)
    identical: int = 0

    def add(self, generation: Generation, expected: list[int], fresh: int) -> None:
        """Add a text.

        Args:
            expected: the text of the target alone.
            fresh: how many of its tokens precede the final loop.
        """
        tokens, stats = generation.tokens.tolist(), generation.stats
        self.tokens += len(tokens)
        self.stats.append(stats)
        self.identical += tokens == expected
        self.active += stats.active_sizes
        self.lengths += stats.acceptance_lengths
        self.fresh_lengths += lengths_before_loop(stats.acceptance_lengths, fresh)
        for part, seconds in stats.seconds.items():
            self.seconds[part] = self.seconds.get(part, 0.0) + seconds


def row(arm: str, total: Total, depth: int) -> dict[str, Any]:
    """Make one line of figures."""
    steps = max(1, len(total.lengths))
    parts = ("draft_layer", "head", "vocabulary", "tree")
    draft = sum(total.seconds.get(part, 0.0) for part in parts)
    alone = arm == "target alone"
    return {
        "head": arm,
        "tokens": total.tokens,
        "tokens_per_s": total.tokens / total.seconds["total"],
        "tau": 1.0 if alone else fmean(total.lengths),
        "tau_before_loops": 1.0 if alone else fmean(total.fresh_lengths or [float("nan")]),
        "steps_before_loops": len(total.fresh_lengths),
        "coverage": 1.0 if alone else coverage_of(total.stats),
        "active_mean": "" if alone else fmean(total.active),
        "active_max": "" if alone else max(total.active),
        "head_ms_per_draft_step": "" if alone else total.seconds["head"] / steps / depth * 1e3,
        "draft_ms_per_draft_step": "" if alone else draft / steps / depth * 1e3,
        "verify_ms_per_step": "" if alone else total.seconds["verify"] / steps * 1e3,
        "identical_outputs": total.identical,
    }


def main() -> None:
    parser = options.parser(__doc__)
    parser.add_argument(
        "--corpus", type=Path, help="corpus.jsonl.xz; the prompts are of its split test"
    )
    parser.add_argument(
        "--prompts",
        type=positive,
        help="number of prompts; default 32 with a corpus, 8 without, 1 with --quick",
    )
    parser.add_argument(
        "--new", type=positive, help="tokens per text; default 128, 16 with --quick"
    )
    parser.add_argument("--depth", type=positive, default=6)
    parser.add_argument("--tree-width", type=whole(1, MAX_TOP_K), default=10)
    parser.add_argument("--tree-size", type=positive, default=60)
    not_negative = real("a number of at least 0", lambda value: value >= 0)
    parser.add_argument("--temperature", type=not_negative, default=0.0, help="0: greedy")
    args = options.parsed(parser)
    new = args.new or (16 if args.quick else 128)
    count = args.prompts or (1 if args.quick else 32 if args.corpus else len(PROMPTS))
    with options.checking(parser):
        prompts = unseen_prompts(args.corpus, Tekken(), count)
    target, draft, frequent_tokens = load_pair(args.device)
    totals = {arm: Total() for arm in ("target alone", *ARMS)}
    shape = {"depth": args.depth, "tree_width": args.tree_width, "tree_size": args.tree_size}
    # The first text runs twice. Its first run does not count: it pays for what happens only once.
    for index, ids in enumerate([prompts[0], *prompts]):
        prompt = torch.tensor(ids, device=args.device)
        sampling = Sampling(args.temperature, seed=index)
        alone = target_alone(target, prompt, new, sampling)
        expected = alone.tokens.tolist()
        generations = {"target alone": alone}
        for arm, (head, capacity) in ARMS.items():
            generations[arm] = generate(
                target,
                draft,
                prompt,
                new,
                head=head,
                capacity=capacity,
                frequent_tokens=frequent_tokens,
                learn=False,
                policy=Policy(MICROSPEC) if arm == "MicroSpec" else None,
                sampling=sampling,
                timed=True,
                **shape,
            )
        if index:
            for arm, total in totals.items():
                total.add(generations[arm], expected, before_loop(expected))
    columns = {"depth": args.depth, "top_k": args.tree_width, "tree_size": args.tree_size}
    rows = [{**row(arm, total, args.depth), **columns} for arm, total in totals.items()]
    print(f"{report.device()}, {len(prompts)} prompts\n\n{report.table(rows)}")
    drawn = f"-temperature{args.temperature:g}" if args.temperature else ""
    name = f"e2e-depth{args.depth}-top{args.tree_width}-tree{args.tree_size}{drawn}.csv"
    facts = {
        "source": args.corpus.name if args.corpus else "built in",
        "prompts": len(prompts),
        "temperature": args.temperature,
    }
    options.save(args, name, [{**facts, **r} for r in rows])


if __name__ == "__main__":
    main()
