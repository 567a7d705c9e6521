# SPDX-License-Identifier: Apache-2.0
"""Draft in a captured CUDA graph that contains the LM head over an active vocabulary.

    python examples/captured_engine.py "Write a short story about a dog."

Runs offline: the target is that of examples/tiny_pair, and the draft is its first layers. On a GPU,
one graph drafts all tokens of a step; it is captured once. On a CPU the same function runs eagerly.
"""

import argparse
import copy
from collections.abc import Callable
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
parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
args = parser.parse_args()


class CapturedDraft:
    """A draft of the next DRAFTS tokens of a text, in buffers with fixed shapes and addresses.

    The text fills ``tokens`` from the left. Attention is causal, so the padding after it does not
    matter, and one graph serves texts of every length.
    """

    def __init__(self, model: torch.nn.Module, head: EngineHead, longest: int) -> None:
        self.model, self.head = model, head
        device = head.vocab.device
        self.tokens = torch.zeros(1, longest, dtype=torch.int64, device=device)
        self.length = torch.zeros(1, dtype=torch.int64, device=device)
        self.drafted = torch.zeros(DRAFTS, dtype=torch.int64, device=device)
        self.run: Callable[[], None] = self._draft
        if device.type == "cuda":
            self._capture()

    def _draft(self) -> None:
        """Draft without reading a value back: no shape depends on the data."""
        tokens = self.tokens.clone()
        for i in range(DRAFTS):
            end = self.length + i
            hidden = self.model(tokens, use_cache=False).last_hidden_state[0]
            token = self.head.argmax(hidden.index_select(0, end - 1))
            tokens.index_copy_(1, end, token[None])
            self.drafted[i : i + 1] = token

    def _capture(self) -> None:
        self.length.fill_(1)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._draft()  # first calls choose kernels and allocate, not allowed in a capture
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._draft()
        self.run = graph.replay

    def __call__(self, text: Tensor) -> Tensor:
        self.tokens[0, : len(text)] = text
        self.length.fill_(len(text))
        self.run()
        return self.drafted


tokenizer = load_tokenizer("tekken")
target = load_target(PAIR / "target").model.to(args.device)
model = copy.deepcopy(target.model)  # hidden states without an LM head
model.layers = model.layers[:3]
settings = Settings(capacity=1024, frequent_tokens_file=str(PAIR / "frequent_tokens.npy"))

with torch.inference_mode():
    prompt = torch.tensor(tokenizer.encode(args.prompt), device=args.device)
    head = EngineHead(target.lm_head.weight, settings)
    draft = CapturedDraft(model, head, len(prompt) + args.max_new_tokens + 2 * DRAFTS)
    text, passes = prompt, 0
    head.begin([0], [prompt])
    while len(text) < len(prompt) + args.max_new_tokens:
        tokens = draft(text)
        logits = target(torch.cat((text, tokens))[None]).logits[0, len(text) - 1 :]
        best, likeliest = logits.argmax(-1), head.top_target_tokens(logits)
        right = int((tokens == best[:-1]).long().cumprod(0).sum())
        accepted, passes = best[: right + 1], passes + 1
        head.observe(accepted, candidates=likeliest)  # between two replays, on the same stream
        text = torch.cat((text, accepted))
    alone = target.generate(prompt[None], max_new_tokens=args.max_new_tokens, do_sample=False)[0]

print(tokenizer.decode(alone[len(prompt) :].tolist()), end="\n\n")
same = "the target's own text" if torch.equal(text[: len(alone)], alone) else "ANOTHER TEXT"
how = "replays of one graph" if args.device == "cuda" else "eager drafts"
print(f"{len(text) - len(prompt)} tokens in {passes} passes of the target, {same}; {passes} {how}")
