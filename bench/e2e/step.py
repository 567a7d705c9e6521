# SPDX-License-Identifier: Apache-2.0
"""One step of a batch, from the tokens just accepted to the next ones, for capture in one graph.

Trees are grown and verified by the loop's own code (`speculative.tree`, `speculative.verify`). No
value goes to the host. All sizes are fixed, and the weights are random, so the time of a step does
not depend on what is accepted.
"""

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.draft.heads import Best, DraftHead
from bench.harness.inputs import make_weight
from bench.harness.sizes import K_BEST
from bench.ops.head_peers import PADDED, capped
from microspec_kernels.speculative.models.cache import identity
from microspec_kernels.speculative.tree import TreeShape, grow, of_rows
from microspec_kernels.speculative.verify import accept

from .decoder import Decoder, matrices
from .shapes import Pair, Setting


class Models:
    """The weights of a pair, and its caches for a setting. All arms of a setting share them."""

    def __init__(self, pair: Pair, device: str) -> None:
        model = pair.model
        self.pair, self.device = pair, device
        self.lm_head = make_weight(model.vocab_size, model.dim, device)  # also the embedding
        self.fc = make_weight(*model.draft_products()[0], device)
        self._target = matrices(model, pair.layers, device)
        self._draft = matrices(model, 1, device)

    def prepare(self, setting: Setting, fuse: bool) -> None:
        """Make the caches."""
        sizes = self.pair.model, setting.texts, setting.context
        model, *rest = sizes
        self.target = Decoder(model, self._target, *rest, setting.size + 1, fuse)
        self.draft = Decoder(model, self._draft, *rest, setting.drafted, fuse)

    def logits(self, hidden: Tensor) -> Tensor:
        return capped(F.linear(hidden, self.lm_head), self.pair.model.softcap)


class Alone:
    """The target without a draft: one token of each text."""

    def __init__(self, models: Models, setting: Setting) -> None:
        self.models = models
        shape, device = (setting.texts, 1), models.device
        self.newest = torch.randint(len(models.lm_head), shape, device=device)
        self.depths = torch.zeros_like(self.newest)
        self.mask = torch.ones(*shape, 1, dtype=torch.bool, device=device)

    def __call__(self) -> Tensor:
        models = self.models
        x = models.target(models.lm_head[self.newest], self.depths, self.mask)
        self.newest.copy_(models.logits(models.target._normed(x)).argmax(-1))
        return self.newest


class Step:
    """A step with a draft; see `Alone` for the target's own.

    It is a draft and its head as `grow` calls them, too.

    without: parts to replace by constants. The difference between the graphs with and without a
        part is what the part costs in its place.
    """

    def __init__(
        self,
        models: Models,
        setting: Setting,
        head: DraftHead,
        learns: bool,
        without: frozenset[str] = frozenset(),
    ) -> None:
        self.models, self.setting, self.head, self.without = models, setting, head, without
        self.top_tokens = setting.top_tokens if learns else 1
        texts, nodes, device = setting.texts, setting.size + 1, models.device
        dim, vocab_size = models.pair.model.dim, len(models.lm_head)
        shape = (texts, setting.accepted)
        self.text = torch.randint(vocab_size, shape, device=device)
        self.text_features = torch.randn(*shape, dim, device=device).bfloat16()
        self.counts = torch.full((texts,), 3, device=device)
        numbers = torch.arange(setting.accepted, device=device)
        self.numbers = numbers.expand(shape)
        self.causal = (numbers <= numbers[:, None]).expand(texts, -1, -1)
        self.groups = torch.zeros(texts, dtype=torch.int64, device=device)
        rows = -(-texts * K_BEST // PADDED) * PADDED
        self.features = torch.zeros(rows, dim, device=device).bfloat16()
        self.chosen = torch.randint(vocab_size, (texts, nodes), device=device)
        self.hidden = torch.randn(texts, nodes, dim, device=device).bfloat16()
        self.best = {
            n: (
                torch.randn(n, K_BEST, device=device).log_softmax(-1),
                torch.randint(vocab_size, (n, K_BEST), device=device),
                torch.zeros(n, device=device),
            )
            for n in (texts, texts * K_BEST)
        }

    def __call__(self) -> Tensor:
        setting, shape = self.setting, TreeShape(self.setting.depth, K_BEST, self.setting.size)
        if "vocabulary" not in self.without:
            self.head.update()
        if "gather" not in self.without:
            self.head.gather()
        last = (self.counts - 1)[:, None]
        inputs = self.text, self.text_features, self.numbers, self.causal
        roots = of_rows(self._layer(*inputs), last)[:, 0]
        self.features[: len(roots)] = roots
        self.head.join()
        newest = self.text.gather(1, last)[:, 0]
        this: Any = self
        untimed: Any = lambda part: nullcontext()  # noqa: E731
        features = self.features[: len(roots)]
        tree = grow(newest, features, self.groups, this, this, this, shape, untimed)
        chosen, hidden = self._verify(tree)
        verified = accept(tree, chosen, setting.depth)
        self.models.target.keep(verified.paths, setting.size + 1)
        self.text.copy_(verified.tokens.clamp(min=0))
        self.text_features.copy_(of_rows(hidden, verified.paths))
        self.counts.copy_(verified.counts)
        return verified.tokens

    def _verify(self, tree: Any) -> tuple[Tensor, Tensor]:
        if "target" in self.without:
            return self.chosen, self.hidden
        models = self.models
        inputs = models.lm_head[tree.tokens.clamp(min=0)], tree.depths, tree.ancestor_mask
        hidden = models.target._normed(models.target(*inputs))
        logits = models.logits(hidden)
        if self.top_tokens == 1:
            return logits.argmax(-1), hidden
        return logits.topk(self.top_tokens).indices[..., 0].contiguous(), hidden

    def _layer(self, tokens: Tensor, parents: Tensor, depths: Tensor, mask: Tensor) -> Tensor:
        if "layer" in self.without:
            return parents
        models = self.models
        read = torch.cat((models.lm_head[tokens.clamp(min=0)], parents), dim=-1)
        return models.draft(F.linear(read, models.fc), depths.expand_as(tokens), mask)

    # What `grow` asks of a cache.

    def ahead(self, count: int) -> Tensor:
        return self.counts[:, None] + torch.arange(count, device=self.counts.device)

    def mask(self) -> Tensor:
        return (self.numbers < self.counts[:, None])[:, None]

    def alone(self, count: int) -> Tensor:
        device = self.counts.device
        return identity(count, torch.bool, device).expand(self.setting.texts, -1, -1)

    def drop(self) -> None:
        """Do nothing: the next step writes over the tree's entries."""

    # What it asks of a draft.

    def head_input(self, features: Tensor) -> Tensor:
        return features

    def step(
        self, tokens: Tensor, parents: Tensor, positions: Tensor, mask: Tensor, cache: Any
    ) -> Tensor:
        out = self._layer(tokens, parents, positions, mask)
        # Rows for a product of whole tiles follow them, as a layer could write them at once.
        written = self.features[: out.shape[0] * out.shape[1]]
        written.copy_(out.flatten(0, 1))
        return written.view_as(out)

    # And of a head.

    def topk(self, hidden: Tensor, k: int, row_groups: Tensor) -> Best:
        count = len(hidden)
        if "head" in self.without:
            return self.best[count]
        padded = -(-count // PADDED) * PADDED
        return self.head.best(self.features[:padded], count)
