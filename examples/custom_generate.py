# SPDX-License-Identifier: Apache-2.0
"""Run the reference loop in transformers' `generate`, as its `custom_generate`.

    python examples/custom_generate.py "Write a short story about a dog." --temperature 0.7

Runs offline, with the target and the EAGLE draft of examples/tiny_pair.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from microspec_kernels.cli.tokenizers import load_tokenizer
from microspec_kernels.integrations.transformers import microspec_generate
from microspec_kernels.speculative import load_draft, load_target

PAIR = Path(__file__).parent / "tiny_pair"

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("prompt", nargs="?", default="Write a short story about a dog.")
parser.add_argument("--max-new-tokens", type=int, default=64)
parser.add_argument("--temperature", type=float, default=0.0, help="0: greedy")
args = parser.parse_args()

tokenizer = load_tokenizer("tekken")
target = load_target(PAIR / "target")
draft = load_draft(PAIR / "draft", target)
frequent_tokens = torch.from_numpy(np.load(PAIR / "frequent_tokens.npy"))
speculative = microspec_generate(
    draft, head="sparse", capacity=3072, frequent_tokens=frequent_tokens
)

input_ids = torch.tensor([tokenizer.encode(args.prompt)])
sampling = {"do_sample": True, "temperature": args.temperature, "top_p": 0.95}
out = target.model.generate(
    input_ids,
    custom_generate=speculative,
    max_new_tokens=args.max_new_tokens,
    return_dict_in_generate=True,
    **(sampling if args.temperature else {"do_sample": False}),
)
new = out.sequences[0, input_ids.shape[1] :]
print(tokenizer.decode(new.tolist()), end="\n\n")
(stats,) = out.stats
print(f"{len(new)} tokens in {stats.steps + 1} passes of the target, τ = {stats.tau:.2f}")
print(f"the draft knew {stats.active_mean:.0f} tokens on average, coverage {stats.coverage:.3f}")
