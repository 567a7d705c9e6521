# SPDX-License-Identifier: Apache-2.0
"""Should the requests of a batch share one active vocabulary, or have one each?

    python -m bench.decoding.batches [--quick] [--device cpu|cuda] [--out DIR]
                                     [--corpus corpus.jsonl.xz] [--prompts 16] [--new 64]

Runs the demonstration pair. B texts are drafted together; when one ends, the next prompt joins. A
request's vocabulary then begins anew: filled with the most frequent tokens, as is the package's
default, or empty. A shared one keeps what earlier texts left. The prompts are of the corpus's split
"test", which the pair has not seen: of several tasks by turns, or all of one task. Without a corpus
they are a few built-in ones.
"""

import argparse
from dataclasses import dataclass, field
from itertools import chain, product
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor

from bench.harness import options, report
from bench.harness.corpus import enough
from bench.harness.corpus import rows as read_corpus
from bench.harness.sizes import CAPACITY
from bench.harness.tiny_pair import LONGEST_PROMPT, PROMPTS, built_in_prompts, load_pair
from microspec_kernels.cli.arguments import positive
from microspec_kernels.cli.tokenizers import Tekken
from microspec_kernels.policy import MICROSPEC, Policy, default
from microspec_kernels.speculative import Batch, Request, Sampling
from microspec_kernels.speculative.alone import target_alone
from microspec_kernels.speculative.stats import coverage_of

TASKS = ("mmlu-pro", "gsm", "crux", "math-l5")  # by turns in the mixed batch
ALONE = ("gsm",)  # also measured alone


@dataclass
class Run:
    """The figures of one arm, over all its texts and at each step with a full batch."""

    requests: list[Request]
    rows: list[int] = field(default_factory=list)  # read by a call of the head
    gathered: list[int] = field(default_factory=list)  # slots whose token changed
    head: list[float] = field(default_factory=list)  # seconds per step
    vocabulary: list[float] = field(default_factory=list)


def prompts_by_task(corpus: Path | None, tokenizer: Tekken, count: int) -> dict[str, list[Tensor]]:
    """Return `count` prompts for each kind of batch, each once, though many models answered it.

    Raises:
        OSError, ValueError: the corpus cannot be read, or has too few prompts.
    """
    if corpus is None:
        return {"mixed": [torch.tensor(ids) for ids in built_in_prompts(tokenizer, count)]}
    texts: dict[str, dict[str, None]] = {task: {} for task in TASKS}
    for row in read_corpus(corpus, "source", "split", "prompt"):
        task = row["source"].removeprefix("zeroeval/").split("/")[0]
        if row["split"] == "test" and row["prompt"] and task in texts:
            texts[task][row["prompt"]] = None
    encoded = {task: [tokenizer.encode(text) for text in texts[task]] for task in TASKS}
    short = {
        task: [torch.tensor(ids) for ids in prompts if len(ids) <= LONGEST_PROMPT][:count]
        for task, prompts in encoded.items()
    }
    mixed = list(chain.from_iterable(zip(*short.values(), strict=False)))[:count]
    kinds = {"mixed": mixed, **{task: short[task] for task in ALONE}}
    for kind, prompts in kinds.items():
        enough(
            corpus, f"{kind} prompts of split test within {LONGEST_PROMPT} tokens", prompts, count
        )
    return kinds


def run(batch: Batch, prompts: list[Tensor], size: int, new: int) -> Run:
    """Continue all prompts, `size` of them at a time."""
    waiting = list(reversed(prompts))
    done = Run([])
    vocab = batch.head.vocab  # type: ignore[attr-defined]
    held = vocab.ids.clone()
    while waiting or batch.requests:
        while waiting and len(batch.requests) < size:
            done.requests.append(batch.join(waiting.pop(), new))
        full = len(batch.requests) == size
        groups = [request.group for request in batch.requests]
        rows = int(vocab.size[sorted(set(groups))].sum())
        changed = int(((vocab.ids != held) & (vocab.ids >= 0)).sum())
        held = vocab.ids.clone()
        before = dict(batch.seconds)
        batch.step()
        if full:
            done.rows.append(rows)
            done.gathered.append(changed)
            for part, seconds in (("head", done.head), ("vocabulary", done.vocabulary)):
                seconds.append(batch.seconds[part] - before.get(part, 0.0))
    return done


def row(done: Run, expected: list[list[int]], depth: int, row_bytes: int) -> dict[str, Any]:
    """Make one line of figures; `expected` are the texts of the target alone."""
    stats = [request.stats for request in done.requests]
    lengths = [n for one in stats for n in one.acceptance_lengths]
    return {
        "coverage": coverage_of(stats),
        "tau": fmean(lengths),
        "active_mean": fmean(n for one in stats for n in one.active_sizes),
        "active_max": max(n for one in stats for n in one.active_sizes),
        "rows_read_per_head_call": fmean(done.rows),
        "MB_read_per_head_call": fmean(done.rows) * row_bytes / 1e6,
        "rows_gathered_per_step": fmean(done.gathered),
        "head_ms_per_draft_step": median(done.head) / depth * 1e3,
        "vocabulary_ms_per_step": median(done.vocabulary) * 1e3,
        "full_steps": len(done.rows),
        "identical_outputs": sum(
            request.tokens == tokens
            for request, tokens in zip(done.requests, expected, strict=True)
        ),
    }


def measure(args: argparse.Namespace, kinds: dict[str, list[Tensor]]) -> options.Rows:
    target, draft, frequent_tokens = load_pair(args.device)
    policies = {"filled": default(frequent_tokens), "empty": Policy(MICROSPEC)}
    weight = draft.lm_head.weight
    row_bytes = weight.shape[1] * weight.element_size()
    new = args.new or (8 if args.quick else 64)
    rows = []
    for tasks, prompts in kinds.items():
        prompts = [prompt.to(args.device) for prompt in prompts]
        expected = [target_alone(target, ids, new, Sampling()).tokens.tolist() for ids in prompts]
        for begins, size in product(policies, (1, 2) if args.quick else (1, 2, 4, 8)):
            # At least two groups: texts that follow each other would share a single one.
            for num_groups in (1, max(size, 2)):
                batch = Batch(
                    target, draft, capacity=CAPACITY, policy=policies[begins],
                    learn=False, num_groups=num_groups, timed=True,
                )  # fmt: skip
                done = run(batch, prompts, size, new)
                rows.append(
                    {
                        "tasks": tasks,
                        "begins": begins,
                        "requests": size,
                        "vocabulary": "shared" if num_groups == 1 else "one a request",
                        **row(done, expected, batch.shape.depth, row_bytes),
                    }
                )
    return rows


def main() -> None:
    parser = options.parser(__doc__)
    parser.add_argument(
        "--corpus", type=Path, help="corpus.jsonl.xz; the prompts are of its split test"
    )
    parser.add_argument(
        "--prompts",
        type=positive,
        help="prompts of each kind; default 16 with a corpus, 8 without, 3 with --quick",
    )
    parser.add_argument("--new", type=positive, help="tokens per text; default 64, 8 with --quick")
    args = options.parsed(parser)
    count = args.prompts or (3 if args.quick else 16 if args.corpus else len(PROMPTS))
    with options.checking(parser):
        kinds = prompts_by_task(args.corpus, Tekken(), count)
    rows = measure(args, kinds)
    print(f"{report.device()}\n\n{report.table(rows)}")
    source = args.corpus.name if args.corpus else "built in"
    options.save(args, "batches.csv", [{"source": source, **row} for row in rows])


if __name__ == "__main__":
    main()
