# SPDX-License-Identifier: Apache-2.0
"""Attach an active vocabulary to the draft's LM head of your own engine, in four places.

    python examples/own_engine.py "Write a short story about a dog."

Runs offline: the target is that of examples/tiny_pair, and the draft is its first layers. The
example has no caches, batches or graphs (captured_engine.py has a graph). The four places are where
an engine attaches, drafts, verifies and observes.
"""

import argparse
import copy
from pathlib import Path

import torch
from torch import Tensor

from microspec_kernels.cli.tokenizers import load_tokenizer
from microspec_kernels.engine import EngineHead, Settings
from microspec_kernels.speculative import load_target

PAIR = Path(__file__).parent / "tiny_pair"
DRAFTS = 4

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("prompt", nargs="?", default="Write a short story about a dog.")
parser.add_argument("--max-new-tokens", type=int, default=64)
args = parser.parse_args()
tokenizer = load_tokenizer("tekken")
target = load_target(PAIR / "target").model
draft = copy.deepcopy(target.model)  # hidden states without an LM head
draft.layers = draft.layers[:3]

# Attach once, before graphs are captured. From here on, all state stays at fixed addresses.
settings = Settings(capacity=1024, frequent_tokens_file=str(PAIR / "frequent_tokens.npy"))
head = EngineHead(target.lm_head.weight, settings)


def drafted(text: Tensor) -> Tensor:
    """Draft the next DRAFTS tokens. An engine captures this function, the head included."""
    for _ in range(DRAFTS):
        text = torch.cat((text, head.argmax(draft(text[None]).last_hidden_state[0, -1:])))
    return text[-DRAFTS:]


with torch.inference_mode():
    prompt = torch.tensor(tokenizer.encode(args.prompt))
    text, passes = prompt, 0
    head.begin([0], [prompt])
    while len(text) < len(prompt) + args.max_new_tokens:
        tokens = drafted(text)
        logits = target(torch.cat((text, tokens))[None]).logits[0, len(text) - 1 :]
        best, likeliest = logits.argmax(-1), head.top_target_tokens(logits)
        right = int((tokens == best[:-1]).long().cumprod(0).sum())
        accepted, passes = best[: right + 1], passes + 1
        head.observe(accepted, candidates=likeliest)  # between two replays, eagerly
        text = torch.cat((text, accepted))
    alone = target.generate(prompt[None], max_new_tokens=args.max_new_tokens, do_sample=False)[0]

print(tokenizer.decode(alone[len(prompt) :].tolist()), end="\n\n")
same = "the target's own text" if torch.equal(text[: len(alone)], alone) else "ANOTHER TEXT"
print(f"{len(text) - len(prompt)} tokens in {passes} passes of the target, {same}")
print(head.stats())
