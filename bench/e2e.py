"""The demonstration pair from prompt to text, with every head, on prompts it was not trained on.

    python -m bench.e2e [--quick] [--device cpu|cuda] [--out DIR] [--corpus corpus.jsonl.xz]
                        [--prompts 32] [--new 128] [--temperature 1]

Without the corpus, whose split "test" the pair has not seen, the few prompts below serve. Greedy
text of a small model falls into loops, which any draft predicts: τ is therefore also given for the
steps before the loop alone, and a text that is drawn at a temperature has none.
"""

from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from microspec_kernels.cli.arguments import positive, real, whole
from microspec_kernels.cli.tokenizers import Tekken
from microspec_kernels.policy import MICROSPEC, Policy
from microspec_kernels.speculative import (
    CausalModel,
    Draft,
    Generation,
    Sampling,
    generate,
    load_draft,
    load_target,
)
from microspec_kernels.speculative.alone import target_alone

from . import options, report
from .corpus import enough
from .corpus import rows as read_corpus

PAIR = Path(__file__).parent.parent / "examples" / "tiny_pair"
# Head and capacity of each arm; "MicroSpec" follows the paper's sources and begins empty.
ARMS = {
    "dense": ("dense", 131072),
    "static": ("static", 32768),
    "sparse": ("sparse", 3072),
    "sparse, K = 1024": ("sparse", 1024),
    "MicroSpec": ("sparse", 3072),
}
LONGEST_PROMPT = 256  # tokens; the pair was trained on texts of 512
LONGEST_PERIOD = 64
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
    """Target, draft, and token ids by falling frequency in what they were trained on."""
    target = load_target(PAIR / "target", device=device)
    frequency = torch.from_numpy(np.load(PAIR / "frequency_rank.npy")).to(device)
    return target, load_draft(PAIR / "draft", target), frequency


@dataclass
class Total:
    """What one arm did over all prompts."""

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


def unseen_prompts(corpus: Path | None, tokenizer: Tekken, count: int) -> list[list[int]]:
    """Prompts of split "test" as token ids, evenly from all of it; or those of this file.

    Raises:
        OSError, ValueError: the corpus, or too few prompts.
    """
    if corpus is None:
        if count > len(PROMPTS):
            expected = f"at most {len(PROMPTS)} without a --corpus"
            raise ValueError(f"--prompts: expected {expected}, got {count}")
        return [tokenizer.encode(prompt) for prompt in PROMPTS[:count]]
    rows = read_corpus(corpus, "split", "prompt")
    texts = [row["prompt"] for row in rows if row["split"] == "test"]
    prompts = [
        ids for ids in map(tokenizer.encode, filter(None, texts)) if len(ids) <= LONGEST_PROMPT
    ]
    enough(corpus, f"prompts of split test within {LONGEST_PROMPT} tokens", prompts, count)
    return prompts[:: max(1, len(prompts) // count)][:count]


def row(arm: str, total: Total, depth: int) -> dict[str, Any]:
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
        "coverage": 1.0 if alone else total.covered / sum(total.lengths),
        "active_mean": "" if alone else fmean(total.active),
        "active_max": "" if alone else max(total.active),
        "head_ms_per_draft_step": "" if alone else total.seconds["head"] / steps / depth * 1e3,
        "draft_ms_per_draft_step": "" if alone else draft / steps / depth * 1e3,
        "verify_ms_per_step": "" if alone else total.seconds["verify"] / steps * 1e3,
        "identical_outputs": total.identical,
    }


def main() -> None:
    parser = options.parser(__doc__)
    parser.add_argument("--corpus", type=Path, help="to take prompts of its split test from")
    parser.add_argument(
        "--prompts", type=positive, help="default 32 of a corpus, 8 without, of --quick 1"
    )
    parser.add_argument("--new", type=positive, help="tokens a text; default 128, of --quick 16")
    parser.add_argument("--depth", type=positive, default=6)
    parser.add_argument("--top-k", type=whole(1, 128), default=10)
    parser.add_argument("--tree-size", type=positive, default=60)
    not_negative = real("a number of at least 0", lambda value: value >= 0)
    parser.add_argument("--temperature", type=not_negative, default=0.0, help="0: greedy")
    args = options.parsed(parser)
    new = args.new or (16 if args.quick else 128)
    count = args.prompts or (1 if args.quick else 32 if args.corpus else len(PROMPTS))
    with options.checking(parser):
        prompts = unseen_prompts(args.corpus, Tekken(), count)
    target, draft, frequency = load_pair(args.device)
    totals = {arm: Total() for arm in ("target alone", *ARMS)}
    shape = {"depth": args.depth, "top_k": args.top_k, "tree_size": args.tree_size}
    # The first text is run twice, and its first run not counted: it pays for what comes but once.
    for index, ids in enumerate([prompts[0], *prompts]):
        prompt = torch.tensor(ids, device=args.device)
        sampling = Sampling(args.temperature, seed=index)
        alone = target_alone(target, prompt, new, sampling)
        own = alone.tokens.tolist()
        made = {"target alone": alone}
        for arm, (head, capacity) in ARMS.items():
            made[arm] = generate(
                target,
                draft,
                prompt,
                new,
                head=head,
                capacity=capacity,
                frequency=frequency,
                policy=Policy(MICROSPEC) if arm == "MicroSpec" else None,
                sampling=sampling,
                **shape,
            )
        if index:
            for arm, total in totals.items():
                total.add(made[arm], own, before_loop(own))
    rows = [{**row(arm, total, args.depth), **shape} for arm, total in totals.items()]
    print(f"{report.device()}, {len(prompts)} prompts\n\n{report.table(rows)}")
    drawn = f"-temperature{args.temperature:g}" if args.temperature else ""
    name = f"e2e-depth{args.depth}-top{args.top_k}-tree{args.tree_size}{drawn}.csv"
    facts = {
        "source": args.corpus.name if args.corpus else "built in",
        "prompts": len(prompts),
        "temperature": args.temperature,
    }
    options.save(args, name, [{**facts, **r} for r in rows])


if __name__ == "__main__":
    main()
