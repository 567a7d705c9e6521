# SPDX-License-Identifier: Apache-2.0
"""Run transformers' assisted generation with a dense and then a sparse LM head of the assistant.

    python examples/assisted_generation.py "Write a short story about a dog."

Runs offline: the target is that of examples/tiny_pair, and the assistant is its first layers.
"""

import argparse
import copy
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from microspec_kernels.cli.tokenizers import load_tokenizer
from microspec_kernels.integrations.transformers import sparse_assistant
from microspec_kernels.policy import default
from microspec_kernels.speculative import load_target

PAIR = Path(__file__).parent / "tiny_pair"


def first_layers(target: PreTrainedModel, count: int) -> PreTrainedModel:
    """Return an assistant of the target's first `count` layers.

    It keeps the target's embedding, norm and LM head, and drafts four tokens at a time.
    """
    config = copy.deepcopy(target.config)
    config.num_hidden_layers = count
    assistant = type(target)(config).eval()
    assistant.load_state_dict(target.state_dict(), strict=False)
    assistant.generation_config.num_assistant_tokens = 4
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    assistant.generation_config.assistant_confidence_threshold = 0.0
    return assistant


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("prompt", nargs="?", default="Write a short story about a dog.")
parser.add_argument("--max-new-tokens", type=int, default=64)
args = parser.parse_args()

tokenizer = load_tokenizer("tekken")
target = load_target(PAIR / "target").model
assistant = first_layers(target, 3)
policy = default(torch.from_numpy(np.load(PAIR / "frequent_tokens.npy")))
sparse = sparse_assistant(assistant, target, capacity=3072, policy=policy)

input_ids = torch.tensor([tokenizer.encode(args.prompt)])
options = {"max_new_tokens": args.max_new_tokens, "do_sample": False}
alone = target.generate(input_ids, **options)
print(tokenizer.decode(alone[0, input_ids.shape[1] :].tolist()), end="\n\n")

passes: list[None] = []
target.register_forward_hook(lambda *_: passes.append(None))
for name, head in (("dense", nullcontext()), ("sparse", sparse)):
    passes.clear()
    start = time.perf_counter()
    with head:
        out = target.generate(input_ids, assistant_model=assistant, **options)
    seconds = time.perf_counter() - start
    same = "the target's own text" if torch.equal(out, alone) else "ANOTHER TEXT"
    print(f"{name}: {len(passes)} passes of the target, {seconds:.2f} s, {same}")
