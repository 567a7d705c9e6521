# SPDX-License-Identifier: Apache-2.0
"""SGLang's EAGLE draft worker with its LM head over an active vocabulary.

SGLang's own code chooses among the logits and maps the choices to tokens, as it does without the
plugin: :class:`WideLogits` gives it a column for each row of the LM head.
"""

import logging
import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor

from microspec_kernels.engine import EngineHead, Settings, Shard
from microspec_kernels.engine.draft_head import DraftHead
from microspec_kernels.integrations.hooks import (
    Guard,
    LeftOut,
    RequestNumbers,
    TokenRequests,
    UnsupportedError,
    can_win,
    choice_of,
    has_opted_out,
    local_tokenizer,
    step_costs,
)
from microspec_kernels.policy import StepCosts

from .metrics import Metrics
from .requirements import read_head
from .wide_logits import WideLogits

logger = logging.getLogger(__name__)

# Texts that are counted at a time: of more, the first ones are served, but no longer learned from.
# Each takes a bit for each row of the LM head: 4 MB for 256 texts of 128k rows.
TEXTS = 256
_AFTER_A_FAILURE = "the draft goes on with SGLang's own LM head"
_OF_ONE_CAPTURE = "the draft goes on with the tokens active now"


def attach(worker: Any, settings: Settings) -> "ActiveDraft | None":
    """Return the active vocabulary of a draft worker; None if nothing can be won.

    The log then says why.

    Args:
        worker, settings: see :class:`ActiveDraft`.

    Raises:
        UnsupportedError: as :class:`ActiveDraft`.
    """
    draft, target = worker.draft_runner.model, worker.target_worker
    num_rows = _num_rows(worker)
    costs = step_costs(
        target.model_runner.model,
        draft,
        target.model_config.hf_text_config.to_dict(),
        # Ranks have the same number of padded rows, and so decide alike.
        row_bytes=draft.lm_head.weight.nbytes / num_rows,
        num_rows=num_rows,
        num_drafts=worker.speculative_num_steps,
        max_requests=TEXTS,
    )
    if not can_win(settings, costs, draft.lm_head.weight, logger):
        return None
    return ActiveDraft(worker, settings, costs)


class ActiveDraft:
    """The active vocabulary of one draft worker.

    Make it right after the worker gets its LM head and before its CUDA graphs are captured.

    Args:
        worker: an EagleDraftWorker, or a MultiLayerEagleDraftWorker, which has a model for each
            step; the models' logits processors get other LM heads.
        settings: the user's settings.
        costs: what a step reads, for a capacity of "auto" and the choice of the head.

    Attributes:
        head: the LM head over the active vocabulary.
        choice: chooses between it and SGLang's own.
        guard: runs the hooks after the start.

    Raises:
        UnsupportedError: the LM head is unsupported, or the settings do not fit it.
    """

    def __init__(self, worker: Any, settings: Settings, costs: StepCosts | None = None) -> None:
        runners = _runners(worker)
        runner = runners[0]
        vocab_size, lm_head_rows = worker.target_worker.model_config.vocab_size, _num_rows(worker)
        self._rows = [read_head(each.model, lm_head_rows, each.dtype) for each in runners]
        first, lm_head, processor = (
            self._rows[0],
            runner.model.lm_head,
            runner.model.logits_processor,
        )
        self._dtype, self._drafts = runner.dtype, False
        try:
            self.head = EngineHead(
                first.weight,
                settings,
                num_requests=TEXTS,
                tokenizer=_tokenizer() if settings.learn else None,
                costs=costs,
                writes=_writes(),
                target_vocab_size=vocab_size,
                row_tokens=_token_map(worker),
                weight_scale=first.weight_scale,
                logit_scale=first.logit_scale,
                shard=_shard(lm_head, processor, lm_head_rows),
            )
            # By the weight's address: models that share the target's rows share its slab, too.
            heads: dict[int, DraftHead] = {first.weight.data_ptr(): self.head}
            for rows in self._rows:
                if rows.weight.data_ptr() not in heads:
                    heads[rows.weight.data_ptr()] = self.head.with_weight(
                        rows.weight, weight_scale=rows.weight_scale, logit_scale=rows.logit_scale
                    )
        except (ValueError, TypeError, OSError, ImportError) as error:
            raise UnsupportedError(
                f"sglang: {type(worker).__name__}", "settings that fit the draft", error
            ) from error
        self._heads = [
            (
                each.model.lm_head,
                heads[rows.weight.data_ptr()],
                each.model.logits_processor._compute_lm_head,
            )
            for each, rows in zip(runners, self._rows, strict=True)
        ]
        self._wide = WideLogits(self.head, lm_head_rows)
        self._numbers = RequestNumbers(TEXTS)
        self._token_requests = TokenRequests(self.head.vocab.device)
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()
        self._opted_out: weakref.WeakSet[Any] = weakref.WeakSet()
        self._left_out = LeftOut(self.head.vocab.device)
        alone = lm_head.tp_size == 1
        self.choice = choice_of(self.head, costs, first.weight, alone=alone, logger=logger)
        self._metrics = Metrics(self.head, self.choice)
        then = _AFTER_A_FAILURE if self.choice.allowed else _OF_ONE_CAPTURE
        self.guard = Guard(logger, alone=alone, then=then, fall_back=self.choice.fail)
        processors = [each.model.logits_processor for each in runners]
        gathers = [each.do_tensor_parallel_all_gather for each in processors]

        def switch(dense: bool) -> None:
            # The active tokens' logits are those of all ranks already.
            for each, gather in zip(processors, gathers, strict=True):
                each.do_tensor_parallel_all_gather = gather and dense

        self.choice.switch = switch
        switch(False)
        for each in processors:
            each._compute_lm_head = self.logits
        _announce(worker, self.head, len(heads))

    def logits(
        self,
        hidden_states: Tensor,
        lm_head: Any,
        embedding_bias: Tensor | None = None,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        """Return logits fp32 [M, R] of hidden states [M, D]. May be captured.

        Replaces LogitsProcessor._compute_lm_head, and calls it in a step of SGLang's own head.

        Raises:
            UnsupportedError: the call has a bias or another LM head than the attached ones.
        """
        attached = next((each for each in self._heads if each[0] is lm_head), None)
        if attached is None or embedding_bias is not None:
            other = type(lm_head).__name__
            raise UnsupportedError(
                "sglang: the draft's LM head", "the one that was attached to", other
            )
        _, head, own_logits = attached
        self._drafts = True
        if self.choice.dense:
            own: Tensor = own_logits(hidden_states, lm_head, embedding_bias, out=out)
            return own
        return self._wide.logits(hidden_states.to(self._dtype), out, head)

    def drafts_for(self, batch: Any) -> None:
        """Choose the head for a batch of SGLang's. Call before the draft's steps of the batch."""
        self.choice.use(self._opted_out_of(batch) is not None)

    def _opted_out_of(self, batch: Any) -> list[bool] | None:
        """Return which of a batch's requests have opted out; None if none has."""
        flags = [request in self._opted_out for request in batch.reqs] if self._opted_out else []
        return flags if any(flags) else None

    def check_use(self) -> None:
        """Check that the drafts came from :meth:`logits`. Call when the target verifies drafts.

        Raises:
            UnsupportedError: SGLang drafted without calling it.
        """
        if not self._drafts:
            where = "sglang: the first drafts"
            raise UnsupportedError(where, "drafts by the attached LM head", "drafts by another way")

    def prompts(self, batch: Any, next_token_ids: Tensor) -> None:
        """Begin the requests that are new. Call before the draft reads their prompts.

        Args:
            batch: SGLang's batch.
            next_token_ids: [B], the target's token after what it read of each prompt.
        """
        new = [request for request in batch.reqs if request not in self._seen]
        for request in new:
            self._seen.add(request)
            if has_opted_out(request.sampling_params.custom_params, request.rid, logger):
                self._opted_out.add(request)
        new = [request for request in new if request not in self._opted_out]
        if new:
            begun = [self._numbers.begin(request.rid) for request in new]
            self.head.begin(begun, [_text(request) for request in new])
        opted_out = self._opted_out_of(batch)
        if opted_out is not None:
            next_token_ids = self._left_out.take(next_token_ids[:, None], opted_out)[0][:, 0]
        self.head.admit(next_token_ids)
        self._wide.update()
        self.choice.use(opted_out is not None)

    def verified(self, batch: Any, result: Any) -> None:
        """Observe what the target has verified, and choose the head of the draft's next step.

        Call before that step.

        Args:
            batch: SGLang's batch.
            result: SGLang's GenerationBatchResult: accept_lens [B], next_token_ids [B · nodes] with
                each request's accepted tokens first, and logits [B · nodes, V].

        Raises:
            UnsupportedError: the logits have another shape.
        """
        lengths, likeliest = result.accept_lens, None
        accepted = result.next_token_ids.view(len(lengths), -1)
        numbers = self._numbers.of(request.rid for request in batch.reqs)
        parts = [(numbers, accepted.size(1))]
        if self.head.settings.target_top_k:
            likeliest = self._likeliest(result.logits_output.next_token_logits, accepted.numel())
            parts.insert(0, ([-1], likeliest.numel()))
        token_requests = None
        if self.head.learning is not None:
            token_requests = self._token_requests.of(*parts)
        opted_out = self._opted_out_of(batch)
        if opted_out is not None:
            accepted, lengths = self._left_out.take(accepted, opted_out, lengths, likeliest)
        self.head.observe(accepted, token_requests, lengths=lengths, candidates=likeliest)
        self._wide.update()
        self.choice.step(len(batch.reqs), opted_out is not None)
        self._metrics.tick()

    def _likeliest(self, logits: Tensor, rows: int) -> Tensor:
        shape = [rows, self.head.token_map.target_vocab_size]
        if list(logits.shape) != shape:
            raise UnsupportedError(
                "sglang: the target's logits", f"shape {shape}", list(logits.shape)
            )
        return self.head.top_target_tokens(logits)

    def reload(self) -> None:
        """Update the head after the weights changed in place.

        Raises:
            UnsupportedError: the LM head's weight lies at another address now.
        """
        for rows in self._rows:
            if rows.moved():
                raise UnsupportedError(
                    "sglang: update_weights", "the draft's LM head at its old address", "not"
                )
            rows.refresh()
        self.head.reload()


def _runners(worker: Any) -> list[Any]:
    """Return the model runner of each draft step, or the one of all."""
    return list(getattr(worker, "draft_runner_list", None) or [worker.draft_runner])


def _token_map(worker: Any) -> Tensor | None:
    """Return the token of each row; None if row i is token i, as with a model for each step."""
    tokens: Tensor | None = getattr(worker, "hot_token_id", None)
    return tokens


def _num_rows(worker: Any) -> int:
    """Return the number of rows of a draft's LM head, without padding."""
    if (tokens := _token_map(worker)) is not None:
        return len(tokens)
    return int(worker.target_worker.model_config.vocab_size)


def _text(request: Any) -> Tensor:
    """Return a request's tokens so far, int64 [n] on the host."""
    parts = [
        np.asarray(part, dtype=np.int64) for part in (request.origin_input_ids, request.output_ids)
    ]
    return torch.from_numpy(np.concatenate(parts))


def _tokenizer() -> Any | None:
    from sglang.srt.runtime_context import get_serving

    return local_tokenizer(get_serving().tokenizer_path)


def _writes() -> bool:
    """Whether this process may write the file: the first of those that learn by themselves."""
    from sglang.srt.runtime_context import get_parallel

    parallel = get_parallel()
    return not getattr(parallel, "dp_rank", None) and parallel.attn_dp_rank == 0


def _shard(lm_head: Any, processor: Any, lm_head_rows: int) -> Shard | None:
    if lm_head.tp_size == 1:
        return None
    from sglang.srt.runtime_context import get_parallel

    parallel, start = get_parallel(), lm_head.shard_indices.org_vocab_start_index
    ranks = parallel.attn_tp_group if processor.use_attn_tp_group else parallel.tp_group
    return Shard(lm_head_rows, start, ranks.device_group)


def _announce(worker: Any, head: EngineHead, count: int) -> None:
    import sglang

    logger.info(
        "MicroSpec: attached to %s: %s, %s%s, SGLang %s",
        type(worker).__name__,
        type(worker.draft_runner.model).__name__,
        head,
        f", {count} LM heads" if count > 1 else "",
        sglang.__version__,
    )
