# SPDX-License-Identifier: Apache-2.0
"""The pairs that are measured, their acceptance, and the least that their steps have to read."""

from collections.abc import Mapping
from dataclasses import dataclass

from bench.draft.heads import ObservedTokens
from bench.harness.models import MODELS, TOY, Model
from bench.harness.sizes import K_BEST, STATIC

BF16 = 2  # bytes


@dataclass(frozen=True)
class Pair:
    """A target of `layers` layers, and a draft of one more behind a product [D, 2 D].

    That is EAGLE-2's draft, and an MTP module, which only has two norms more.
    """

    model: Model
    layers: int
    draft: str = "EAGLE-2"

    @property
    def name(self) -> str:
        return self.model.name


PAIRS = {
    pair.name: pair
    for pair in (
        Pair(MODELS["Llama-3.1-8B"], 32),
        Pair(MODELS["Qwen3-8B"], 36),
        # The widths, heads and rows of transformers' Qwen3_5TextConfig. Three quarters of its
        # layers have linear attention; here all have full attention, so a long context costs more.
        Pair(Model("MTP-248k", 248320, 4096, 12288, 16, 4, 256), 32, "MTP"),
    )
}
QUICK = Pair(TOY, 2)


SEEN = ObservedTokens()  # by a step, of each text


@dataclass(frozen=True)
class Setting:
    """Sizes of a step: the batch, the tree, the vocabulary and what it learns for each text.

    One vocabulary serves all texts.
    """

    texts: int
    context: int
    capacity: int
    depth: int = 6
    size: int = 60
    seen: ObservedTokens = SEEN
    top_tokens: int = 3  # of the target at each node, which the vocabulary learns

    @property
    def accepted(self) -> int:
        """Count the tokens that the draft reads first: a path, padded, and its bonus token."""
        return self.depth + 1

    @property
    def drafted(self) -> int:
        """Count the tokens that the draft's cache takes beside the context."""
        return self.accepted + (self.depth - 1) * K_BEST

    @property
    def observed(self) -> ObservedTokens:
        """Return what a step shows of all texts."""
        return ObservedTokens(self.texts * self.seen.tokens, self.texts * self.seen.new)


# τ of EAGLE-2 with Llama-3-8B, greedy, on an H20: NanoSpec's paper (arXiv 2605.26444), whose 3.59
# is that of a vocabulary below 3072 tokens, so it holds for NanoSpec's way and for ours.
# An nvfp4 copy of the dense head counts as the dense head, in its favour.
PUBLISHED = {
    "dense": 3.80,
    "dense nvfp4": 3.80,
    "static 32k": 3.62,
    "NanoSpec": 3.59,
    "indexed": 3.59,
    "packed": 3.59,
}
SOURCE = "arXiv 2605.26444, EAGLE-2 with Llama-3-8B"


def source_of(pair: Pair, given: Mapping[str, float]) -> str:
    """Say where a pair's acceptance comes from."""
    if given:
        return "--tau"
    return SOURCE if pair.name == "Llama-3.1-8B" else f"stand-in: {SOURCE}"


def bytes_of(pair: Pair, setting: Setting, arm: str) -> dict[str, int]:
    """Return the least that each part of a step reads, and the gather also writes.

    Activations are not counted. The draft's layer runs once for the accepted tokens and once for
    each further level.
    """
    model = pair.model
    fc, *rest = (out * size for out, size in model.draft_products())
    row = BF16 * model.dim
    cache = 2 * BF16 * setting.texts * setting.context * model.kv_heads * model.head_dim
    head_rows = {
        "dense": model.vocab_size,
        "dense nvfp4": model.vocab_size * 9 / 32,  # 4.5 bits a column
        "static 32k": min(STATIC, model.vocab_size),
    }
    target = pair.layers * (BF16 * sum(rest) + cache) + model.vocab_size * row
    if arm == "target alone":
        return {"target": target, "layer": 0, "head": 0, "gather": 0}
    copied = 2 * setting.observed.new * row
    return {
        "target": target,
        "layer": setting.depth * (BF16 * (fc + sum(rest)) + cache),
        "head": int(setting.depth * head_rows.get(arm, setting.capacity) * row),
        "gather": copied if arm in ("NanoSpec", "packed") else 0,
    }
