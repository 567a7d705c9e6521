# SPDX-License-Identifier: Apache-2.0
"""What a step computes on the device: draft, verify and learn, for all texts of a batch at once."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .chain import Chain, chain_uniforms, no_uniforms, sample_chain
from .models.draft import Draft
from .models.target import CausalModel
from .observer import Observer
from .sampling import BROKEN, Sampling, choose, uniforms_at
from .stats import Clock
from .texts import Texts
from .tree import Tree, TreeShape, grow, of_rows
from .verify import Verified, accept, follow, verify_chain


class Decoded(NamedTuple):
    """A verified draft of each text, on the device.

    `features` [B, n, F]: the target's at each node. `top_tokens` int64 [B, n, t]: its likeliest
    tokens after each node. `report` int64 [B, 2 m + 1], for the host: the new tokens, -1 behind
    them, whether the draft could propose each, and how many tokens it could propose.
    """

    tree: Tree
    verified: Verified
    features: Tensor
    top_tokens: Tensor
    report: Tensor


class Step:
    """The two functions of a step, `decode` and then `learn`. A CUDA graph can capture each.

    For the arguments see `Batch`; `texts` is what it holds of them on the device.
    """

    def __init__(
        self,
        target: CausalModel,
        draft: Draft,
        observer: Observer,
        texts: Texts,
        shape: TreeShape,
        sampling: Sampling,
        chain: bool,
        clock: Clock,
    ) -> None:
        self._target, self._draft = target, draft
        self._observer, self._head = observer, observer.head
        self._texts, self._clock = texts, clock
        self._shape, self._sampling, self._chain = shape, sampling, chain

    def decode(self) -> Decoded:
        """Draft and verify; keep the accepted tokens in the target's cache."""
        target, cache, clock = self._target, self._texts.cache, self._clock
        roots = cache.ends[:, None]
        uniforms = self._uniforms()
        tree = self._drafted(uniforms)
        with clock("verify"):
            hidden, features = target.forward(
                tree.tokens.clamp(min=0),
                tree.depths + roots,
                cache.mask(tree.ancestor_mask),
                cache,
                self._draft.feature_layers,
            )
            logits = target.logits(hidden)
            verified = self._verify(tree, logits, uniforms)
            top_tokens = self._observer.target_top_k(logits, "step")
            cache.keep(verified.paths, verified.counts)
        with clock("vocabulary"):
            head, groups, tokens = self._head, self._texts.groups[: cache.rows], verified.tokens
            hits = head.contains(tokens.flatten(), groups[:, None].expand_as(tokens).flatten())
            active = head.active()
            active = active[groups] if head.num_groups > 1 else active.expand(cache.rows)
            report = torch.cat((tokens, hits.view_as(tokens), active[:, None]), dim=1)
        return Decoded(tree, verified, features, top_tokens, report)

    def learn(self, decoded: Decoded) -> None:
        """Let the vocabulary and the draft learn from the verified tokens."""
        tree, verified, features, top_tokens, _ = decoded
        texts, rows = self._texts, self._texts.cache.rows
        with self._clock("vocabulary"):
            self._observer.step(texts.groups[:rows], tree, top_tokens, verified)
        with self._clock("draft_layer"):
            newest = texts.newest[:rows, None]
            torch.gather(verified.chosen, 1, verified.leaves[:, None], out=newest)
            read = of_rows(features, verified.paths)
            texts.features[:rows] = self._draft.extend(
                verified.tokens, read, verified.counts, texts.draft_cache
            )
        self._head.wait()

    def _uniforms(self) -> Any:
        """Return random numbers for a step: `ChainUniforms`, or fp64 [B, depth + 1] for a tree.

        Greedy choices need none: a tree gets None, a chain zeros.
        """
        texts, depth = self._texts, self._shape.depth
        seeds, roots = texts.seeds[: texts.cache.rows], texts.cache.ends
        if self._chain:
            drawn = self._sampling.temperature > 0
            return chain_uniforms(seeds, roots, depth) if drawn else no_uniforms(roots, depth)
        if self._sampling.temperature == 0:
            return None
        following = torch.arange(1, depth + 2, device=roots.device)
        return uniforms_at(seeds[:, None], roots[:, None] + following)

    def _drafted(self, uniforms: Any) -> Tree:
        texts, rows = self._texts, self._texts.cache.rows
        shared = (
            texts.newest[:rows], texts.features[:rows], texts.groups[:rows],
            self._draft, texts.draft_cache, self._head,
        )  # fmt: skip
        if self._chain:
            return sample_chain(*shared, self._sampling, uniforms.draft, self._clock)
        return grow(*shared, self._shape, self._clock)

    def _verify(self, tree: Tree, logits: Tensor, uniforms: Any) -> Verified:
        """Verify trees by the target's logits [B, n, V] after each node."""
        depth, greedy = self._shape.depth, self._sampling.temperature == 0
        if isinstance(tree, Chain):
            p, drafted = self._sampling.shares(logits), tree.tokens[:, 1:]
            verified = verify_chain(p, tree.draft_probs, drafted, uniforms.accept, uniforms.final)
            if greedy:
                return verified
            undefined = ~logits.amax(-1).isfinite() & (verified.tokens != -1)
            return verified._replace(tokens=verified.tokens.masked_fill(undefined, BROKEN))
        if greedy:
            return accept(tree, choose(logits, None, self._sampling), depth)
        rows = torch.arange(len(logits), device=logits.device)

        def choice(nodes: Tensor, depths: Tensor) -> Tensor:
            return choose(logits[rows, nodes], uniforms[rows, depths], self._sampling)

        return follow(tree, choice, depth)
