# SPDX-License-Identifier: Apache-2.0
"""Which vocabulary policies cover recorded text, by source, by list and by capacity?

    python -m bench.policy.traces TRACE.npz ... --frequent-tokens frequent.npy
                                  [--tokenizer tokenizer.json --corpus corpus.jsonl.xz]
                                  [--out DIR]

Replays every policy on the same sequences of each trace (data.py) and writes policy.csv, mixed.csv
and their plots. A corpus adds lists that are counted on it, without the suite of the trace. (The
committed policy.csv also has sources that were dropped, variants and successors.)
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from bench.harness import options, report
from bench.harness.sizes import CAPACITY
from bench.plots import policy as plots
from microspec_kernels import policy
from microspec_kernels._token_ids import read_token_ids
from microspec_kernels.cli.arguments import Parser
from microspec_kernels.policy import TEXT, Policy
from microspec_kernels.replay import Trace, load_tokenizer, load_trace, mixed, replay

from .data import JUDGED, Halves, halves, load_corpus, others, unrelated

CAPACITIES = (512, 1024, 2048, CAPACITY, 8192)
FLOORS = (1024, 2560)
REQUESTS = (10, 40)
CORPUS_TEXTS = 1000  # of each suite, for a list
SHOWN = ("coverage", "coverage_p10", "coverage_first64", "coverage_runs5", "rows_gathered_per_step")


@dataclass(frozen=True, eq=False)
class ReplayedPolicy:
    """A policy and how it is replayed. `list` names the texts that its tokens were counted on."""

    name: str
    policy: Policy
    list: str = ""
    capacity: int = CAPACITY
    keep: bool = False


@dataclass(frozen=True, eq=False)
class Study:
    """What the policies are made of and replayed on.

    Attributes:
        public: token ids, the most frequent first in the outputs of other models.
        corpus: texts by suite.
    """

    vocab_size: int
    public: Tensor
    traces: dict[str, Halves]
    corpus: dict[str, list[Tensor]] = field(default_factory=dict)

    def frequent_tokens(self, texts: list[Tensor]) -> Tensor:
        return policy.count_frequent_tokens(texts, self.vocab_size, self.public)

    def arms(self, name: str) -> Iterator[ReplayedPolicy]:
        """Yield all policies for one trace. None was counted on the sequences it is judged on."""
        yield ReplayedPolicy("text", Policy(TEXT))
        for floor in FLOORS:
            yield ReplayedPolicy(
                f"text, floor {floor}", Policy(TEXT, pinned=self.public[:floor]), "public"
            )
        for capacity in CAPACITIES:
            yield ReplayedPolicy("filled", Policy(TEXT, self.public), "public", capacity)
        pinned = Policy(TEXT, self.public, self.public[: FLOORS[0]])
        yield ReplayedPolicy(f"filled, floor {FLOORS[0]}", pinned, "public")
        yield ReplayedPolicy(
            "filled", Policy(TEXT, self.frequent_tokens(others(name, self.traces))), "other tasks"
        )
        if self.corpus:
            counted = unrelated(name, self.corpus, CORPUS_TEXTS)
            yield ReplayedPolicy("filled", Policy(TEXT, self.frequent_tokens(counted)), "corpus")
        yield from self.same_kind(name)
        for capacity in CAPACITIES:
            yield ReplayedPolicy(
                "filled, kept", Policy(TEXT, self.public), "public", capacity, keep=True
            )
        yield ReplayedPolicy("text, kept", Policy(TEXT), keep=True)

    def same_kind(self, name: str) -> Iterator[ReplayedPolicy]:
        """Yield policies with lists counted on other requests of the same kind."""
        counted = self.traces[name].counted
        for count in REQUESTS:
            few = Policy(TEXT, self.frequent_tokens(counted[:count]))
            yield ReplayedPolicy("filled", few, f"{count} own requests")
        half = Policy(TEXT, self.frequent_tokens(counted))
        for capacity in CAPACITIES:
            yield ReplayedPolicy("filled", half, "own half", capacity)
        yield ReplayedPolicy(
            "filled", Policy(TEXT, self.frequent_tokens(self.all_tasks())), "all tasks"
        )

    def all_tasks(self) -> list[Tensor]:
        """Return requests of every trace, equally many of each."""
        return [text for trace in self.traces.values() for text in trace.counted[:JUDGED]]

    def mixed(self) -> tuple[Trace, list[ReplayedPolicy]]:
        """Return the requests of all traces in random order, and policies for this stream."""
        filled = ReplayedPolicy("filled", Policy(TEXT, self.public), "public")
        counted = Policy(TEXT, self.frequent_tokens(self.all_tasks()))
        return mixed([trace.judged for trace in self.traces.values()], JUDGED), [
            ReplayedPolicy("text", Policy(TEXT)),
            filled,
            replace(filled, name="filled, kept", keep=True),
            replace(filled, policy=counted, list="all tasks"),
            ReplayedPolicy("filled, kept", counted, "all tasks", keep=True),
        ]

    def judge(self, trace: Trace, arm: ReplayedPolicy) -> dict[str, Any]:
        result = replay(
            trace, arm.policy, vocab_size=self.vocab_size, capacity=arm.capacity, keep=arm.keep
        )
        figures = result.as_dict()
        kept = {key: value for key, value in figures.items() if key not in ("policy", "keep")}
        return {"arm": arm.name, "list": arm.list, **kept}


def load(args: argparse.Namespace) -> Study:
    public = read_token_ids(args.frequent_tokens)
    if not len(public):
        raise ValueError(f"{args.frequent_tokens}: expected at least one token id, got none")
    traces = [load_trace(path) for path in args.traces]
    vocab_size = 1 + max(int(public.max()), *(int(trace.tokens.max()) for trace in traces))
    study = Study(vocab_size, public, {trace.name: halves(trace) for trace in traces})
    if args.corpus is None:
        return study
    tokenizer = load_tokenizer(args.tokenizer)
    vocab_size = max(vocab_size, tokenizer.get_vocab_size())
    return replace(study, vocab_size=vocab_size, corpus=load_corpus(args.corpus, tokenizer))


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", nargs="+", type=Path, metavar="TRACE.npz")
    parser.add_argument("--frequent-tokens", type=Path, required=True, metavar="FILE")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="FILE", help="the traces' tokenizer.json, for --corpus"
    )
    parser.add_argument(
        "--corpus",
        type=Path,
        metavar="FILE",
        help="corpus.jsonl.xz, on which lists of frequent tokens are counted",
    )
    parser.add_argument("--out", type=Path, default=report.RESULTS / "policy", metavar="DIR")
    args = parser.parse_args()
    if (args.corpus is None) != (args.tokenizer is None):
        parser.error("--corpus takes the --tokenizer of the traces, and only it does")
    torch.set_num_threads(1)  # these tensors are small: threads would only wait for one another
    with options.checking(parser):
        study = load(args)
    rows = []
    for name, trace in study.traces.items():
        for arm in tqdm(study.arms(name), desc=name, unit="arm", disable=None):
            rows.append(study.judge(trace.judged, arm))
        report.write_csv(args.out / "policy.csv", rows)
    stream, arms = study.mixed()
    mixed = [study.judge(stream, arm) for arm in tqdm(arms, desc="mixed", disable=None)]
    report.write_csv(args.out / "mixed.csv", mixed)
    shown = ("trace", "arm", "list", "capacity", *SHOWN)
    print(report.table([{key: row[key] for key in shown} for row in [*rows, *mixed]]))
    plots.draw(args.out)


if __name__ == "__main__":
    main()
