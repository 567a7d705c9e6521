# SPDX-License-Identifier: Apache-2.0
"""What does four times the vocabulary cost with 4-bit rows? On a CPU.

    python -m bench.ops.int4_capacity [--quick] [--out DIR] [--num-tokens 1,10] [--rounds N]

A call of sparse_head over a packed bf16 slab with K = 3072, and over int4 and nvfp4 slabs with
K = 3072 and 12288, in turn, each over the next of a few slabs. The logits of the first call are
checked against fp64 of the dequantised rows.
"""

from typing import Any

import torch

import microspec_kernels as mk
from bench.harness import models, options, report
from bench.harness.head_check import HeadArm, validate
from bench.harness.inputs import id_sets, in_turn, make_weight, quantise_nvfp4
from bench.harness.sizes import CAPACITY, K_BEST, QUICK_CAPACITY, QUICK_ROUNDS, ROUNDS
from microspec_kernels.cli.arguments import listed, positive
from microspec_kernels.timing import time_arms

FACTOR = 4  # of K
SETS = 4


def slab_arm(weight: torch.Tensor, hidden: torch.Tensor, capacity: int, rows: str) -> HeadArm:
    """Return the op over SETS slabs of "bf16", "int4" or "nvfp4" rows."""
    operands: list[dict[str, Any]] = []
    for ids in id_sets(len(weight), capacity, SETS):
        vocab = mk.ActiveVocab(len(weight), capacity, frequent_tokens=ids, device="cpu")
        slab = mk.WeightSlab(weight, vocab, dtype="int4" if rows == "int4" else None, buffers=1)
        slab.refresh()
        packed, scale = slab.rows[0], None if slab.scale is None else slab.scale[0]
        if rows == "nvfp4":  # no op quantises to it: a checkpoint has such rows
            packed, scale = quantise_nvfp4(packed)
        operands.append({"weight": packed, "active_ids": slab.ids[0], "weight_scale": scale})
    return HeadArm(
        in_turn(lambda i: mk.sparse_head(hidden, k=K_BEST, packed=True, **operands[i]), SETS),
        {**operands[0], "packed": True},
        packed.nbytes + (0 if scale is None else scale.nbytes),
    )


def measure(
    model: models.Model, capacity: int, num_tokens: list[int], rounds: int
) -> list[dict[str, Any]]:
    """Return one line of figures for each M and arm."""
    weight = make_weight(model.vocab_size, model.dim)
    table = []
    for m in num_tokens:
        hidden = torch.randn(m, model.dim, dtype=torch.bfloat16)
        shapes = [(capacity, "bf16")]
        shapes += [(k, rows) for rows in ("int4", "nvfp4") for k in (capacity, FACTOR * capacity)]
        arms = {f"{rows}, K = {k}": slab_arm(weight, hidden, k, rows) for k, rows in shapes}
        validate(arms, hidden)
        times = time_arms({name: arm.call for name, arm in arms.items()}, rounds)
        base = next(iter(times.values()))
        for name, time in times.items():
            shape = {"model": model.name, "V": model.vocab_size, "D": model.dim, "M": m}
            ratios = {"of_bf16_p20": time.p20 / base.p20, "of_bf16_p50": time.p50 / base.p50}
            table.append(
                {**shape, "arm": name, "bytes": arms[name].bytes, **time.in_us(), **ratios}
            )
    return table


def main() -> None:
    parser = options.parser(__doc__)
    parser.add_argument(
        "--num-tokens", type=listed(positive), default=[1, 10], help="M, rows of hidden"
    )
    parser.add_argument("--rounds", type=positive, default=ROUNDS)
    args = options.parsed(parser)
    if args.device != "cpu":
        parser.error("--device: expected cpu; CUDA_VISIBLE_DEVICES= in front hides the GPU")
    torch.manual_seed(0)
    rows = args.num_tokens
    if args.quick:
        table = measure(models.TOY, QUICK_CAPACITY, rows, QUICK_ROUNDS)
    else:
        table = measure(models.MODELS[models.DEFAULT], CAPACITY, rows, args.rounds)
    print(f"{report.device()}\n\n{report.table(table)}")
    options.save(args, "int4-capacity.csv", table)


if __name__ == "__main__":
    main()
