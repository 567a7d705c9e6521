# SPDX-License-Identifier: Apache-2.0
"""The reference speculative loop: one draft and one target continue a batch of texts."""

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import Any, Literal

import torch
from torch import Tensor

from microspec_kernels.policy import CAPACITY, FILLED, LearnedLists, Policy, default

from .checks import (
    check_counts,
    check_head,
    check_learn,
    check_length,
    check_room,
    check_seed,
    checked_frequent_tokens,
    checked_prompt,
    fitted,
)
from .graphs import Graphs, HostRead
from .heads import Head, HeadName, Sparse, make_head
from .learning import Learning, lists_of
from .models.draft import Draft, ModelDraft
from .models.target import CausalModel
from .observer import Observer
from .request import Request
from .sampling import Sampling, checked, choose, uniforms_at
from .stats import Clock, Stats
from .step import Step
from .texts import Texts
from .timeline import Timeline
from .tree import TreeShape


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
    learn: whether the sparse head called "sparse" learns which tokens a text begins with: those
        that stood in the most texts before it, then `frequent_tokens`, then the others by id (see
        `LearnedVocab`). A text counts when it ends. The lists are the batch's own, or the caller's
        (see `learned_lists`), and outlast it then. False: every text begins with `frequent_tokens`
        only, or empty.
    policy: decides which tokens enter the active vocabulary and, unless it learns, which are never
        evicted; None: `policy.default(frequent_tokens)`, and with learning the sources of a
        vocabulary that begins filled. The policy's own frequent tokens replace the others.
    mode: "indexed": the sparse head reads rows of the whole weight; "packed": it copies them into a
        slab.
    num_groups: number of active vocabularies, one for each running text; 1: all texts share one.
        A shared one that learns is filled for each text as long as they run one at a time, and has
        a floor of the most frequent tokens once two have run together.
    sampling: how tokens are drawn; None: greedy.
    chain: draft a chain of `depth` tokens instead of a tree, drawn from the draft's distribution
        under `sampling` (arXiv 2211.17192). Texts that share an active vocabulary or learned lists
        then need distinct seeds, also those of earlier batches.
    timed: measure each part of a step (`Stats.seconds`); no graph is captured then.
    timeline: a clock that notes when each part of each step ran; no graph is captured then, and
        `Stats.seconds` has only the total.
    capture: on a GPU, replay a step as CUDA graphs, one pair for each number of texts and room of
        the caches. A target whose passes no graph can capture runs eagerly (see
        `CausalModel.capturable`). A `Head` object of the caller must not wait for the device.
    compile: run the target's pass of a step under `torch.compile`, which compiles it in the first
        steps, and again if the number of texts or the caches' room changes.

    A step waits for the device once, for the new tokens; what the vocabulary and the draft learn
    from them is enqueued before.

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
        learn: bool | LearnedLists = True,
        policy: Policy | None = None,
        mode: Literal["indexed", "packed"] = "indexed",
        num_groups: int = 1,
        sampling: Sampling | None = None,
        chain: bool = False,
        timed: bool = False,
        timeline: Timeline | None = None,
        capture: bool = True,
        compile: bool = False,
    ) -> None:
        target = target if isinstance(target, CausalModel) else CausalModel(target)
        self.target: CausalModel = target.compiled() if compile else target
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
        learns = bool(learn) and head == "sparse"
        check_learn(learn, learns, policy)
        if policy is None and learns and frequent_tokens is None:
            policy = Policy(FILLED)
        self.policy = policy or default(() if frequent_tokens is None else frequent_tokens)
        self.shape = TreeShape(depth, tree_width, tree_size)
        self.sampling = sampling or Sampling()
        self.chain = chain
        if isinstance(head, str):
            begins = Policy(()) if learns else self.policy  # the lists fill the vocabulary
            head = make_head(
                head, self.draft.lm_head, capacity, frequent_tokens, begins, mode, num_groups
            )
        else:
            check_head(head, self.target)
        self.head = head
        learning = None
        if learns and isinstance(head, Sparse):
            if isinstance(learn, bool):
                learn = lists_of(self.draft.lm_head, self.policy.frequent_tokens)
            learning = Learning(head, learn)
        self._observer = Observer(head, self.policy, learning)
        self._ended_seeds: set[int] = set()
        self.requests: list[Request] = []
        self.seconds: dict[str, float] = {}
        device = self.target.device
        self._clock = timeline or Clock(device, self.seconds, timed)
        if isinstance(head, Sparse):
            head.clock = timeline
        capturable = self.target.capturable and getattr(self.draft, "capturable", True)
        capture = capture and capturable and not timed and timeline is None
        self._graphs = Graphs(capture and device.type == "cuda")
        nodes = max(depth, 1 if chain else tree_size) + 1
        self._texts = Texts(
            self.target.new_cache(), self.draft.new_cache(), (nodes, depth * tree_width + 1)
        )
        self._step = Step(
            self.target, self.draft, self._observer, self._texts,
            self.shape, self.sampling, self.chain, self._clock,
        )  # fmt: skip

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
        if self.chain and self.sampling.temperature:
            check_seed(seed, self._seeds_that_taught)
        begin, stats = time.perf_counter(), Stats(seconds=self.seconds)
        group = self.free_groups[0]
        numbers = {request.number for request in self.requests}
        number = next(number for number in count() if number not in numbers)
        request = Request(max_new_tokens, self.target.eos, seed, group, stats, len(prompt), number)
        if not request.done:
            self._begin(request, prompt)
        self._count_total(begin)
        return request

    def _begin(self, request: Request, prompt: Tensor) -> None:
        clock, target, draft = self._clock, self.target, self.draft
        cache, draft_cache = target.new_cache(), draft.new_cache()
        seed = (request.seed ^ 2**63) - 2**63  # the same 64 bits, as int64
        with clock("prefill"):
            hidden, features = target.prefill(prompt, cache, draft.feature_layers)
            logits = target.logits(hidden[-1:])
            uniforms = uniforms_at(seed, cache.ends) if self.sampling.temperature else None
            first = choose(logits, uniforms, self.sampling)
            top_tokens = self._observer.target_top_k_of_prompt(target, hidden, logits)
            request.take(checked(first.tolist()))
        if request.done:
            return
        with clock("vocabulary"):
            self._observer.begin(request, prompt, top_tokens, first)
            self.head.wait()  # a graph does not wait for what was enqueued outside of it
        with clock("draft_layer"):
            text = torch.cat((prompt, first))[None]
            length = torch.full_like(first, text.shape[1])
            feature = draft.extend(text, features[None], length, draft_cache)
        request.row = len(self.requests)
        longest = len(prompt) + request.max_new_tokens + self.shape.depth + 1
        values = first, request.group, seed, feature
        if self._texts.put(request.row, longest, (cache, draft_cache), values):
            self._graphs.forget()
        self.requests.append(request)

    @property
    def _seeds_that_taught(self) -> set[int]:
        """Seeds of texts whose tokens change what is drafted in a text that begins now."""
        shared = self.head.follows and self.head.num_groups == 1
        ended = self._ended_seeds if shared or self._observer.learning is not None else set()
        return ended | {request.seed for request in self.requests if shared}

    @torch.no_grad()
    def step(self) -> list[Request]:
        """Draft and verify one tree for each text. Returns the requests that ended and left."""
        if not self.requests:
            return []
        begin, texts = time.perf_counter(), self._texts
        with self._clock.step():
            texts.set(len(self.requests), 1 + max(request.read for request in self.requests))
            shape = texts.cache.rows, texts.cache.room
            decoded = self._graphs.run(("decode", shape), self._step.decode)
            report = HostRead(decoded.report)
            self._graphs.run(("learn", shape), lambda: self._step.learn(decoded))
            self._emit(report.wait())
        left = [request for request in self.requests if request.done]
        if left:
            with self._clock("vocabulary"):
                self._leave(left)
        self._count_total(begin)
        return left

    def _emit(self, report: list[list[int]]) -> None:
        """Append the new tokens to the texts, and count them; `report`: see `step.Decoded`."""
        for request in self.requests:
            *figures, active = report[request.row]
            width = len(figures) // 2
            new = [token for token in figures[:width] if token != -1]
            emitted = request.take(checked(new))
            request.stats.acceptance_lengths.append(emitted)
            request.stats.active_sizes.append(active)
            request.stats.covered += map(bool, figures[width : width + emitted])

    def _leave(self, left: list[Request]) -> None:
        """Remove texts, which may be learned; the texts of the last rows take their rows."""
        rows = sorted(self.requests, key=lambda request: request.row)
        for request in left:
            last = rows.pop()
            if last is not request:
                self._texts.move(last.row, request.row)
                last.row, rows[request.row] = request.row, last
            if self.chain:
                self._ended_seeds.add(request.seed)
            self._observer.end(request)
        self.requests[:] = [request for request in self.requests if not request.done]

    def _count_total(self, begin: float) -> None:
        self.seconds["total"] = self.seconds.get("total", 0.0) + time.perf_counter() - begin
