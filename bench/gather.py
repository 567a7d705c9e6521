"""gather_rows_: what bringing a packed slab up to date costs a step.

python -m bench.gather [--quick] [--device cpu|cuda] [--out DIR]
"""

from typing import Any

import torch

import microspec_kernels as mk
from microspec_kernels.timing import time_arms

from . import gpu_gather, options
from .head_arms import make_weight

VOCAB_SIZE, CAPACITY, CHANGED = 128256, 3072, 128


def on_cpu(quick: bool) -> list[dict[str, Any]]:
    dim = 512 if quick else 4096
    vocab = mk.ActiveVocab(VOCAB_SIZE, CAPACITY)
    vocab.update(torch.randint(VOCAB_SIZE, (2 * CAPACITY,)))
    weight = make_weight(VOCAB_SIZE, dim)
    slabs = {
        "bf16": mk.WeightSlab(weight, vocab, buffers=1),
        "to int8": mk.WeightSlab(weight, vocab, buffers=1, dtype=torch.int8),
    }
    changed = {name: iter(torch.randint(VOCAB_SIZE, (10**4, CHANGED))) for name in slabs}

    def gather(name: str) -> None:
        slab = slabs[name]
        wanted = slab.ids.clone()
        wanted[0, :CHANGED] = next(changed[name])
        mk.gather_rows_(slab.rows, slab.ids, weight, wanted, slab_scale=slab.scale)

    arms = {
        f"gather_rows_, {CHANGED} changed rows of {dim}, {name}": lambda name=name: gather(name)
        for name in slabs
    }
    times = time_arms(arms, 11 if quick else 301)
    shape = {"V": VOCAB_SIZE, "D": dim, "K": CAPACITY}
    return [{**shape, "arm": name, **time.in_us()} for name, time in times.items()]


if __name__ == "__main__":
    options.run(__doc__, "gather", on_cpu, gpu_gather.measure)
