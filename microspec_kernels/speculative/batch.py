# SPDX-License-Identifier: Apache-2.0
"""The reference speculative loop: one draft and one target continue a batch of texts."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from microspec_kernels.policy import CAPACITY, Policy, default

from .chain import Chain, chain_uniforms, sample_chain
from .checks import (
    check_counts,
    check_head,
    check_length,
    check_room,
    check_seed,
    checked_frequent_tokens,
    checked_prompt,
    fitted,
)
from .heads import Head, HeadName, make_head
from .models.draft import Draft, ModelDraft
from .models.target import CausalModel
from .observer import Observer
from .request import Request
from .sampling import Sampling, choose, uniforms_at
from .stats import Clock, Stats
from .tree import Tree, TreeShape, grow, of_rows
from .verify import Verified, follow, verify_chain


class Batch:
    """Texts that are drafted and verified together; they join and leave at any step.

        batch = Batch(target, draft, num_groups=8)
        requests = [batch.join(prompt, 256) for prompt in prompts]
        while batch.requests:
            batch.step()

    The output is token-for-token the target's own: its greedy choices, or with `sampling` the
    tokens it draws with the request's seed. With `chain` and a temperature, the output has the
    target's distribution but is another text. Draft, head, trees and the other texts only decide
    how many tokens one pass of the target yields. Rounding can flip a choice at a near tie, because
    a pass over 61 rows rounds differently than 61 passes; this is rare in fp32 and more frequent in
    fp16 and bf16.
    The loop applies only the end-of-text ids of the target's generation config. It logs other rules
    that the config sets.

    target: the result of `load_target`, or a Hugging Face causal LM (see `CausalModel`).
    draft: the result of `load_draft`, or a Hugging Face causal LM with the target's tokenizer. The
        vocabularies may differ in the number of padding rows; prompts may use only tokens that both
        have.
    head: "dense" ranks the draft's next tokens over the vocabulary; "static" over the first
        `capacity` ids of `frequent_tokens`; "sparse" over an active vocabulary of `capacity` tokens
        that follows `policy`. A `Head` object is used as it is and keeps what it has learned.
    depth: number of levels of an EAGLE-2 tree (arXiv 2406.16858), one call of the head each.
    tree_width: number of nodes that a level extends, and of candidates for each.
    tree_size: number of nodes that the target verifies.
    frequent_tokens: integers [S], distinct token ids, the most frequent first.
    policy: decides which tokens enter the active vocabulary and which are never evicted; None:
        `policy.default(frequent_tokens)`.
    mode: "indexed": the sparse head reads rows of the whole weight; "packed": it copies them into a
        slab.
    num_groups: number of active vocabularies, one for each running text; 1: all texts share one.
    sampling: how tokens are drawn; None: greedy.
    chain: draft a chain of `depth` tokens instead of a tree, drawn from the draft's distribution
        under `sampling` (arXiv 2211.17192). Texts that share an active vocabulary then need
        distinct seeds.

    Raises TypeError or ValueError for any other value, naming the argument.
    """

    def __init__(
        self,
        target: Any,
        draft: Any,
        *,
        head: HeadName | Head = "sparse",
        depth: int = 6,
        tree_width: int = 10,
        tree_size: int = 60,
        capacity: int = CAPACITY,
        frequent_tokens: Tensor | Sequence[int] | None = None,
        policy: Policy | None = None,
        mode: Literal["indexed", "packed"] = "indexed",
        num_groups: int = 1,
        sampling: Sampling | None = None,
        chain: bool = False,
    ) -> None:
        self.target = target if isinstance(target, CausalModel) else CausalModel(target)
        draft = draft if hasattr(draft, "extend") else ModelDraft(draft)
        check_counts(
            depth=depth,
            tree_width=tree_width,
            tree_size=tree_size,
            capacity=capacity,
            num_groups=num_groups,
        )
        self.draft: Draft = fitted(draft, self.target)
        if frequent_tokens is not None:
            frequent_tokens = checked_frequent_tokens(frequent_tokens, self.target)
        self.policy = policy or default(() if frequent_tokens is None else frequent_tokens)
        self.shape = TreeShape(depth, tree_width, tree_size)
        self.sampling = sampling or Sampling()
        self.chain = chain
        if isinstance(head, str):
            head = make_head(
                head, self.draft.lm_head, capacity, frequent_tokens, self.policy, mode, num_groups
            )
        else:
            check_head(head, self.target)
        self.head = head
        self._observer = Observer(head, self.policy)
        self.requests: list[Request] = []
        self.seconds: dict[str, float] = {}
        self._clock = Clock(self.target.device, self.seconds)
        # For each text: the caches hold what the models have read; `_newest` is the token they have
        # not read yet; `_features` are the draft's features for it.
        self._cache, self._draft_cache = self.target.new_cache(), self.draft.new_cache()
        for cache in (self._cache, self._draft_cache):
            cache.select([])
        self._newest = torch.empty(0, dtype=torch.int64, device=self.target.device)
        self._features = torch.empty(0)

    @property
    def free_groups(self) -> list[int]:
        """Groups a new request may use: any unused group, or group 0 if all requests share one."""
        taken = {request.group for request in self.requests} if self.head.num_groups > 1 else set()
        return [group for group in range(self.head.num_groups) if group not in taken]

    @torch.no_grad()
    def join(self, input_ids: Tensor, max_new_tokens: int, *, seed: int | None = None) -> Request:
        """Read a prompt and choose its first token; `step` continues the text.

        input_ids: int64 or int32 [P] or [1, P], P >= 1.
        max_new_tokens: the most tokens to add. An end-of-text token ends the text sooner and is
            included.
        seed: seed of the drawn tokens, in [0, 2^64); None: the seed of `sampling`. Texts with equal
            seeds are not independent.

        Returns the request. It is `done` already, and not in the batch, if `max_new_tokens` is 0 or
        the first token ends it.

        Raises TypeError or ValueError: an invalid prompt, count or seed, or no free group.
        """
        prompt = checked_prompt(input_ids, self.target, self.draft)
        check_counts(max_new_tokens=max_new_tokens)
        check_length(self.target, len(prompt) + max_new_tokens + self.shape.depth)
        check_room(self.free_groups, self.head.num_groups)
        seed = self.sampling.seed if seed is None else replace(self.sampling, seed=seed).seed
        if (
            self.chain
            and self.sampling.temperature
            and self.head.follows
            and self.head.num_groups == 1
        ):
            check_seed(seed, [request.seed for request in self.requests])
        stats = Stats(seconds=self.seconds)
        request = Request(max_new_tokens, self.target.eos, seed, self.free_groups[0], stats)
        with self._clock("total"):
            if not request.done:
                self._begin(request, prompt)
        return request

    def _begin(self, request: Request, prompt: Tensor) -> None:
        clock, target, draft = self._clock, self.target, self.draft
        cache, draft_cache = target.new_cache(), draft.new_cache()
        with clock("prefill"):
            hidden, features = target.prefill(prompt, cache, draft.feature_layers)
            logits = target.logits(hidden[-1:])
            position = torch.tensor([len(prompt)], device=target.device)
            first = choose(logits, uniforms_at(self._seeds([request]), position), self.sampling)
            top_tokens = self._observer.target_top_k_of_prompt(target, hidden, logits)
            request.take(first.tolist())
        if request.done:
            return
        with clock("vocabulary"):
            self._observer.begin(request, prompt, top_tokens, first)
        with clock("draft_layer"):
            text = torch.cat((prompt, first))[None]
            feature = draft.extend(text, features[None], [text.shape[1]], draft_cache)
        self._cache.append(cache)
        self._draft_cache.append(draft_cache)
        self._newest = torch.cat((self._newest, first))
        # Feature width depends on the draft, so the first request defines it.
        others = [self._features] if self.requests else []
        self._features = torch.cat((*others, feature))
        self.requests.append(request)

    @torch.no_grad()
    def step(self) -> list[Request]:
        """Draft and verify one tree for each text. Returns the requests that ended and left."""
        if not self.requests:
            return []
        clock, target, draft = self._clock, self.target, self.draft
        with clock("total"):
            text_groups = torch.tensor([r.group for r in self.requests], device=target.device)
            seeds = self._seeds(self.requests)
            prefix_lengths = list(self._cache.lengths)
            positions = torch.tensor(prefix_lengths, device=target.device)
            tree = self._draft(text_groups, seeds, positions)
            with clock("verify"):
                nodes = tree.tokens.clamp(min=0)
                hidden, features = target.forward(
                    nodes, tree.ancestor_mask, self._cache, draft.feature_layers
                )
                logits = target.logits(hidden)
                verified = self._verify(tree, logits, seeds, positions)
                top_tokens = self._observer.target_top_k(logits, "step")
                counts: list[int] = verified.counts.tolist()
                paths = zip(verified.paths.tolist(), counts, strict=True)
                self._cache.keep(prefix_lengths, [path[:count] for path, count in paths])
            with clock("vocabulary"):
                self._emit(verified.tokens, counts, text_groups)
                self._observer.step(self.requests, tree, top_tokens, verified)
            left = [request for request in self.requests if request.done]
            with clock("draft_layer"):
                self._go_on(verified, counts, features)
        return left

    def _draft(self, text_groups: Tensor, seeds: Tensor, positions: Tensor) -> Tree:
        shared = self._newest, self._features, text_groups, self.draft, self._draft_cache, self.head
        if not self.chain:
            return grow(*shared, self.shape, self._clock)
        uniforms = chain_uniforms(seeds, positions, self.shape.depth).draft
        return sample_chain(*shared, self.sampling, uniforms, self._clock)

    def _verify(self, tree: Tree, logits: Tensor, seeds: Tensor, positions: Tensor) -> Verified:
        """Verify trees whose roots stand at `positions` [B], by the target's logits [B, n, V]."""
        if isinstance(tree, Chain):
            uniforms = chain_uniforms(seeds, positions, self.shape.depth)
            p = self.sampling.probabilities(logits)
            drafted = tree.tokens[:, 1:]
            return verify_chain(p, tree.draft_probs, drafted, uniforms.accept, uniforms.final)
        depths = tree.ancestor_mask.sum(-1)

        def choice(texts: Tensor, nodes: Tensor) -> Tensor:
            uniforms = uniforms_at(seeds[texts], positions[texts] + depths[texts, nodes])
            return choose(logits[texts, nodes], uniforms, self.sampling)

        return follow(tree, choice)

    def _seeds(self, requests: list[Request]) -> Tensor:
        """Return the requests' unsigned seeds as int64 [B] with the same 64 bits."""
        bits = [(request.seed ^ 2**63) - 2**63 for request in requests]
        return torch.tensor(bits, device=self.target.device)

    def _emit(self, new: Tensor, counts: list[int], text_groups: Tensor) -> None:
        """Append the first `counts` [B] of the tokens new [B, m] to the texts; update the stats."""
        token_groups = text_groups.repeat_interleave(new.shape[1])
        hits = self.head.contains(new.flatten(), token_groups).view_as(new).tolist()
        active = self.head.active().tolist()
        for text, request in enumerate(self.requests):
            emitted = request.take(new[text, : counts[text]].tolist())
            request.stats.acceptance_lengths.append(emitted)
            request.stats.active_sizes.append(active[request.group])
            request.stats.covered += sum(hits[text][:emitted])

    def _go_on(self, verified: Verified, counts: list[int], features: Tensor) -> None:
        """Remove ended texts; let the draft read the new tokens [B, m] of the others.

        `counts` [B]: number of new tokens of each text. `features` [B, n, F]: the target's, for
        each node.
        """
        going = [text for text, request in enumerate(self.requests) if not request.done]
        if len(going) < len(self.requests):
            self._cache.select(going)
            self._draft_cache.select(going)
            self.requests = [self.requests[text] for text in going]
        self._newest = verified.tokens[going, verified.counts[going] - 1]
        if not going:
            return
        new = verified.tokens.clamp(min=0)[going]
        read = of_rows(features, verified.paths.clamp(min=0))[going]
        self._features = self.draft.extend(
            new, read, [counts[text] for text in going], self._draft_cache
        )
