# SPDX-License-Identifier: Apache-2.0
"""Does a draft accept as many tokens over a slab of 4 bits? On the demonstration pair.

    python -m bench.decoding.slab_dtypes [--quick] [--device cpu|cuda] [--out DIR]
                                         [--corpus corpus.jsonl.xz] [--prompts 16] [--new 128]
                                         [--capacity 3072]

All dtypes draft for the same texts, which are the target's own, greedily and at temperature 1, at
the same K. So τ differs by what the rows' rounding changes in the drafts alone.
"""

from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch

from bench.harness import options, report
from bench.harness.sizes import CAPACITY
from bench.harness.tiny_pair import PROMPTS, load_pair, unseen_prompts
from microspec_kernels import ActiveVocab
from microspec_kernels.cli.arguments import positive
from microspec_kernels.cli.tokenizers import Tekken
from microspec_kernels.policy import default
from microspec_kernels.speculative import CausalModel, Draft, Sampling, generate
from microspec_kernels.speculative.heads import Sparse

SlabDtype = torch.dtype | Literal["int4"] | None

# The pair computes in fp32, so this is what its draft does without a quantised slab.
SLABS: dict[str, SlabDtype] = {"fp32": None, "int4": "int4"}
TEMPERATURES = (0.0, 1.0)


def lengths(
    target: CausalModel,
    draft: Draft,
    prompt: torch.Tensor,
    new: int,
    sampling: Sampling,
    frequent_tokens: torch.Tensor,
    capacity: int,
    dtype: SlabDtype,
) -> tuple[list[int], list[int]]:
    """Return one text's tokens and the acceptance lengths of its steps."""
    rows = draft.lm_head.weight
    vocab = ActiveVocab(len(rows), capacity, frequent_tokens=frequent_tokens, device=rows.device)
    head = Sparse(draft.lm_head, vocab, "packed", dtype)
    policy = default(frequent_tokens)
    result = generate(target, draft, prompt, new, head=head, policy=policy, sampling=sampling)
    return result.tokens.tolist(), result.stats.acceptance_lengths


def compare(prompts: list[list[int]], new: int, capacity: int, device: str) -> list[dict[str, Any]]:
    """Return one line of figures for each temperature and dtype."""
    target, draft, frequent_tokens = load_pair(device)
    table = []
    for temperature in TEMPERATURES:
        taus: dict[str, float] = {}
        texts: dict[str, list[list[int]]] = {}
        for name, dtype in SLABS.items():
            runs = [
                lengths(
                    target, draft, torch.tensor(ids, device=device), new,
                    Sampling(temperature, seed=index), frequent_tokens, capacity, dtype,
                )
                for index, ids in enumerate(prompts)
            ]  # fmt: skip
            texts[name] = [text for text, _ in runs]
            taus[name] = fmean(length for _, steps in runs for length in steps)
            table.append(
                {
                    "temperature": temperature,
                    "slab": name,
                    "K": capacity,
                    "prompts": len(prompts),
                    "tokens": sum(map(len, texts[name])),
                    "steps": sum(len(steps) for _, steps in runs),
                    "tau": taus[name],
                    "tau_of_fp32": taus[name] / taus["fp32"],
                    "same_texts": sum(
                        a == b for a, b in zip(texts[name], texts["fp32"], strict=True)
                    ),
                }
            )
    return table


def main() -> None:
    parser = options.parser(__doc__)
    parser.add_argument(
        "--corpus", type=Path, help="corpus.jsonl.xz; the prompts are of its split test"
    )
    parser.add_argument(
        "--prompts",
        type=positive,
        help="number of prompts; default 16 with a corpus, 8 without, 1 with --quick",
    )
    parser.add_argument(
        "--new", type=positive, help="tokens per text; default 128, 16 with --quick"
    )
    parser.add_argument("--capacity", type=positive, default=CAPACITY)
    args = options.parsed(parser)
    count = args.prompts or (1 if args.quick else 16 if args.corpus else len(PROMPTS))
    with options.checking(parser):
        prompts = unseen_prompts(args.corpus, Tekken(), count)
    table = compare(prompts, args.new or (16 if args.quick else 128), args.capacity, args.device)
    print(f"{report.device()}\n\n{report.table(table)}")
    source = args.corpus.name if args.corpus else "built in"
    options.save(args, "slab-dtypes.csv", [{"source": source, **row} for row in table])


if __name__ == "__main__":
    main()
