# SPDX-License-Identifier: Apache-2.0
"""SGLang's EAGLE draft worker with its LM head over an active vocabulary.

SGLang's own code chooses among the logits and maps the choices to tokens, as it does without the
plugin: :class:`WideLogits` gives it a column for each row of the LM head.
"""

import logging
import weakref
from typing import Any

import torch
from torch import Tensor

from microspec_kernels.engine import EngineHead, Settings, Shard
from microspec_kernels.integrations.hooks import UnsupportedError

from .metrics import Metrics
from .requirements import read_head
from .wide_logits import WideLogits

logger = logging.getLogger(__name__)


class ActiveDraft:
    """The active vocabulary of one draft worker.

    Make it right after the worker gets its LM head and before its CUDA graphs are captured.

    Args:
        worker: an EagleDraftWorker; its logits processor gets another LM head.
        settings: the user's settings.

    Raises:
        UnsupportedError: the LM head is unsupported, or the settings do not fit it.
    """

    def __init__(self, worker: Any, settings: Settings) -> None:
        runner = worker.draft_runner
        vocab_size = worker.target_worker.model_config.vocab_size
        lm_head_rows = vocab_size if worker.hot_token_id is None else len(worker.hot_token_id)
        self._rows = read_head(runner.model, lm_head_rows, runner.dtype)
        self._lm_head, processor = runner.model.lm_head, runner.model.logits_processor
        self._dtype, self._drafts = runner.dtype, False
        try:
            self.head = EngineHead(
                self._rows.weight,
                settings,
                target_vocab_size=vocab_size,
                row_tokens=worker.hot_token_id,
                weight_scale=self._rows.weight_scale,
                logit_scale=self._rows.logit_scale,
                shard=_shard(self._lm_head, processor, lm_head_rows),
            )
        except (ValueError, TypeError, OSError) as error:
            raise UnsupportedError(
                "sglang: EagleDraftWorker", "settings that fit the draft", error
            ) from error
        self._wide = WideLogits(self.head, lm_head_rows)
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()
        self._metrics = Metrics(self.head)
        processor._compute_lm_head = self.logits
        processor.do_tensor_parallel_all_gather = False
        _announce(worker, self.head)

    def logits(
        self,
        hidden_states: Tensor,
        lm_head: Any,
        embedding_bias: Tensor | None = None,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        """Return logits fp32 [M, R] of hidden states [M, D]. May be captured.

        Replaces LogitsProcessor._compute_lm_head.

        Raises:
            UnsupportedError: the call has a bias or another LM head than the attached one.
        """
        if lm_head is not self._lm_head or embedding_bias is not None:
            other = type(lm_head).__name__
            raise UnsupportedError(
                "sglang: the draft's LM head", "the one that was attached to", other
            )
        self._drafts = True
        return self._wide.logits(hidden_states.to(self._dtype), out)

    def prompts(self, batch: Any, next_token_ids: Tensor) -> None:
        """Observe the part of each prompt that the target has read. Call before the draft reads it.

        Other parts of a prompt come in other batches. Tokens with cached keys and values come in no
        batch; they are taken from the request.

        Args:
            batch: SGLang's batch.
            next_token_ids: [B], the target's token after each part.
        """
        cached: list[int] = []
        for request, length in zip(batch.reqs, batch.prefix_lens, strict=True):
            if request not in self._seen:
                self._seen.add(request)
                cached += [*request.origin_input_ids, *request.output_ids][:length]
        self._observe(torch.cat((self._to_device(cached), batch.input_ids, next_token_ids)))

    def verified(self, tree: Tensor, result: Any) -> None:
        """Observe the trees that the target has verified. Call before the draft's next step.

        Args:
            tree: [B · nodes], the tokens of the trees.
            result: SGLang's GenerationBatchResult: accept_lens [B], next_token_ids [B · nodes] with
                each request's accepted tokens first, and logits [B · nodes, V].

        Raises:
            UnsupportedError: the logits have another shape, or the tree came from another LM head.
        """
        if not self._drafts:
            where = "sglang: the first drafts"
            raise UnsupportedError(where, "drafts by the attached LM head", "drafts by another way")
        logits = result.logits_output.next_token_logits
        if logits.shape != (len(tree), self.head.token_map.target_vocab_size):
            expected = f"shape [{len(tree)}, {self.head.token_map.target_vocab_size}]"
            raise UnsupportedError("sglang: the target's logits", expected, list(logits.shape))
        lengths = result.accept_lens
        accepted = result.next_token_ids.view(len(lengths), -1)
        column = torch.arange(accepted.size(1), device=accepted.device)
        accepted = accepted.masked_fill(column >= lengths[:, None], -1).flatten()
        likeliest = self.head.top_target_tokens(logits).flatten()
        self.head.count_coverage(accepted)
        self._observe(torch.cat((tree, likeliest, accepted)))
        self._metrics.tick()

    def reload(self) -> None:
        """Update the head after the weights changed in place.

        Raises:
            UnsupportedError: the LM head's weight lies at another address now.
        """
        if self._rows.moved():
            raise UnsupportedError(
                "sglang: update_weights", "the draft's LM head at its old address", "not"
            )
        self._rows.refresh()
        self.head.reload()

    def _observe(self, tokens: Tensor) -> None:
        self.head.observe(tokens)
        self._wide.update()

    def _to_device(self, tokens: list[int]) -> Tensor:
        pinned = torch.tensor(tokens, dtype=torch.int64, pin_memory=self._rows.weight.is_cuda)
        return pinned.to(self._rows.weight.device, non_blocking=True)


def _shard(lm_head: Any, processor: Any, lm_head_rows: int) -> Shard | None:
    if lm_head.tp_size == 1:
        return None
    from sglang.srt.runtime_context import get_parallel

    parallel, start = get_parallel(), lm_head.shard_indices.org_vocab_start_index
    ranks = parallel.attn_tp_group if processor.use_attn_tp_group else parallel.tp_group
    return Shard(lm_head_rows, start, ranks.device_group)


def _announce(worker: Any, head: EngineHead) -> None:
    import sglang

    logger.info(
        "MicroSpec: attached to %s: %s, %s, SGLang %s",
        type(worker).__name__,
        type(worker.draft_runner.model).__name__,
        head,
        sglang.__version__,
    )
