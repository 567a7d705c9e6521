"""vocab_update_ and gather_rows_: what keeping the active vocabulary costs a step.

python -m bench.vocab [--quick]
"""

import argparse
from typing import Any

import torch

import microspec_kernels as mk
from microspec_kernels.timing import time_arms

from . import report

VOCAB_SIZE, CAPACITY, TOKENS = 128256, 3072, 300


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rounds, no file")
    quick = parser.parse_args().quick
    torch.manual_seed(0)
    dim = 512 if quick else 4096
    vocab = mk.ActiveVocab(VOCAB_SIZE, CAPACITY)
    vocab.update(torch.randint(VOCAB_SIZE, (2 * CAPACITY,)))
    known = vocab.ids[0, torch.randperm(CAPACITY)[:TOKENS]].long()
    weight = torch.randn(VOCAB_SIZE, dim).bfloat16()
    slabs = {
        "bf16": mk.WeightSlab(weight, vocab, buffers=1),
        "int8": mk.WeightSlab(weight, vocab, buffers=1, dtype=torch.int8),
    }
    # Always new: every call lets 300 tokens in and 300 out, the most that a step can ask for.
    fresh = iter(torch.randint(VOCAB_SIZE, (10**4, TOKENS)))
    changed = {name: iter(torch.randint(VOCAB_SIZE, (10**4, 128))) for name in slabs}

    def gather(name: str) -> None:
        slab = slabs[name]
        wanted = slab.ids.clone()
        wanted[0, :128] = next(changed[name])
        mk.gather_rows_(slab.rows, slab.ids, weight, wanted, slab_scale=slab.scale)

    arms = {
        f"vocab_update_, {TOKENS} tokens, all new": lambda: vocab.update(next(fresh)),
        f"vocab_update_, {TOKENS} tokens, all active": lambda: vocab.update(known),
        f"gather_rows_, 128 changed rows of {dim}, bf16": lambda: gather("bf16"),
        f"gather_rows_, 128 changed rows of {dim}, to int8": lambda: gather("int8"),
    }
    times = time_arms(arms, 11 if quick else 301)
    rows: list[dict[str, Any]] = [
        {
            "V": VOCAB_SIZE,
            "K": CAPACITY,
            "arm": name,
            "p20_us": time.p20 * 1e6,
            "p50_us": time.p50 * 1e6,
            "p80_us": time.p80 * 1e6,
        }
        for name, time in times.items()
    ]
    print(f"{report.device()}\n\n{report.table(rows)}")
    if not quick:
        report.write_csv(report.folder() / "vocab.csv", rows)


if __name__ == "__main__":
    main()
