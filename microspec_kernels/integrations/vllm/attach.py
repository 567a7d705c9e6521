# SPDX-License-Identifier: Apache-2.0
"""Attach a :class:`Drafter` to a draft model that vLLM has loaded."""

import logging
from functools import partial
from typing import Any

import torch
from torch import Tensor

from microspec_kernels.engine import EngineHead, Settings, Shard
from microspec_kernels.engine.draft_head import DraftHead
from microspec_kernels.integrations.hooks import (
    StoredRows,
    UnsupportedError,
    can_win,
    choice_of,
    local_tokenizer,
    step_costs,
)

from .api_metrics import labels_of
from .draft_lm_head import ComputeLogits, DraftLMHead, Handed
from .drafter import Drafter, StepHead
from .metrics import Metrics
from .requirements import read_head

logger = logging.getLogger(f"vllm.{__name__}")  # vLLM shows its own loggers only

_MORE_ROWS = (
    "MicroSpec: vocabulary 'request': %d requests with K = %d may read more rows together than the "
    "LM head has, %d. A shared vocabulary with a larger K covers more and reads less "
    "(docs/policy.md)"
)


def attach(
    name: str,
    model: Any,
    vllm_config: Any,
    settings: Settings,
    max_requests: int,
    *,
    target: torch.nn.Module,
    hidden_size: int,
    compute_logits: ComputeLogits | None = None,
) -> Drafter | None:
    """Make the drafter of a draft model. Call right after the model was loaded.

    vLLM's memory profile then counts the buffers made here, and graphs captured later find them at
    fixed addresses.

    Args:
        name: the drafter's name, for the log.
        model: the draft model.
        vllm_config: the engine's configuration.
        settings: the user's settings.
        max_requests: the most requests that are numbered at once: the number of vocabularies with
            `vocabulary="request"`.
        target: the target model, whose weights weigh against the draft's.
        hidden_size: width of the hidden states that vLLM passes to `compute_logits`. DeepSeek-V4's
            are a multiple of the draft's own.
        compute_logits: see :class:`DraftLMHead`.

    Returns:
        the drafter; None if nothing can be won, which the log then says.

    Raises:
        UnsupportedError: the LM head is unsupported, or the settings do not fit it.
    """
    lm_head = DraftLMHead(model, compute_logits)
    device = next(model.parameters()).device
    hidden = torch.zeros(1, hidden_size, dtype=vllm_config.model_config.dtype, device=device)
    steps = lm_head.find(hidden, vllm_config.speculative_config.num_speculative_tokens)
    layer = steps[0].lm_head
    lm_head_rows = min(layer.org_vocab_size, steps[0].processor.org_vocab_size)
    # By layer, because modules of multi-token prediction may have one each.
    read: dict[int, StoredRows] = {}
    tokens: Tensor | None = None
    for step, handed in enumerate(steps):
        if id(handed.lm_head) not in read:
            _check_like(handed, steps[0], step)
            tokens = _row_tokens(model, lm_head_rows, lm_head.tokens(hidden, step))
            read[id(handed.lm_head)] = read_head(
                handed.lm_head, handed.processor, handed.hidden, settings.slab_dtype
            )
    rows = read[id(layer)]
    start = min(layer.shard_indices.org_vocab_start_index, lm_head_rows)
    shared, config = settings.vocabulary == "shared", vllm_config.model_config
    costs = step_costs(
        target,
        model,
        config.hf_text_config.to_dict(),
        # Ranks have the same number of padded rows, and so decide alike.
        row_bytes=layer.weight.nbytes / lm_head_rows,
        num_rows=lm_head_rows,
        num_drafts=vllm_config.speculative_config.num_speculative_tokens,
        max_requests=max_requests,
    )
    if not can_win(settings, costs, rows.weight, logger):
        return None
    tokenizer = None
    if settings.learn and not getattr(config, "skip_tokenizer_init", False):
        tokenizer = local_tokenizer(config.tokenizer, config.tokenizer_revision)
    try:
        head = EngineHead(
            rows.weight,
            settings,
            num_groups=1 if shared else max_requests,
            num_requests=max(2, max_requests) if shared else max_requests,
            tokenizer=tokenizer,
            costs=costs,
            # Each data-parallel engine learns from its own requests; the first one writes.
            writes=vllm_config.parallel_config.data_parallel_index == 0,
            target_vocab_size=config.get_vocab_size(),
            row_tokens=tokens,
            shard=_shard(layer, lm_head_rows, start),
            **_operands(steps[0], rows),
        )
        heads: dict[int, DraftHead] = {id(layer): head}
        for handed in steps:
            if id(handed.lm_head) not in heads:
                others = read[id(handed.lm_head)]
                heads[id(handed.lm_head)] = head.with_weight(
                    others.weight, **_operands(handed, others)
                )
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise UnsupportedError(f"vllm: {name}", "settings that fit the draft", error) from error
    if not shared and max_requests * head.capacity > lm_head_rows:
        logger.warning(_MORE_ROWS, max_requests, head.capacity, lm_head_rows)
    _announce(name, model, head, len(heads))
    choice = choice_of(head, costs, rows.weight, alone=layer.tp_size == 1, logger=logger)
    metrics = Metrics(head, choice, layer.tp_rank == 0, labels_of(vllm_config))
    used = [
        StepHead(each.lm_head, read[id(each.lm_head)], heads[id(each.lm_head)]) for each in steps
    ]
    return Drafter(lm_head, used, head, metrics, choice)


def _check_like(handed: Handed, first: Handed, step: int) -> None:
    """Refuse a step's LM head that has other rows than that of the first step."""

    def shape(each: Handed) -> tuple[Any, ...]:
        held = each.lm_head.shard_indices
        columns = each.hidden.size(-1)
        rows = min(each.lm_head.org_vocab_size, each.processor.org_vocab_size)
        return rows, columns, held.org_vocab_start_index, held.org_vocab_end_index

    if shape(handed) != shape(first):
        where = f"vllm: the draft's LM head in step {step}"
        expected = f"the rows, columns and shard of step 0, {shape(first)}"
        raise UnsupportedError(where, expected, shape(handed))


def _operands(handed: Handed, rows: StoredRows) -> dict[str, Any]:
    """Return the operands of an LM head beside its weight."""
    bias = None if handed.bias is None else handed.bias[: len(rows.weight)]
    if bias is not None and rows.logit_scale != 1.0:
        bias = bias / rows.logit_scale  # EngineHead scales the bias, too
    return {"weight_scale": rows.weight_scale, "logit_scale": rows.logit_scale, "bias": bias}


def _row_tokens(model: Any, lm_head_rows: int, finite_tokens: Tensor) -> Tensor | None:
    """Return the target's token of each row, int64 [lm_head_rows]; None if row i is token i.

    Args:
        model: the draft model.
        lm_head_rows: rows of its LM head, without padding.
        finite_tokens: the tokens with finite logits in the model's own output, ascending. They must
            be the same tokens.

    Raises:
        UnsupportedError: the tokens differ.
    """
    offsets = getattr(model, "draft_id_to_target_id", None)
    tokens = torch.arange(lm_head_rows, device=finite_tokens.device)
    if offsets is not None:
        tokens += offsets.detach()[:lm_head_rows]
    if not torch.equal(tokens.sort().values, finite_tokens):
        where = f"vllm: {type(model).__name__}.compute_logits"
        raise UnsupportedError(
            where, f"logits of the {lm_head_rows} tokens of its LM head", f"of {len(finite_tokens)}"
        )
    return None if offsets is None else tokens


def _shard(layer: Any, lm_head_rows: int, start: int) -> Shard | None:
    if layer.tp_size == 1:
        return None
    from vllm.distributed.parallel_state import get_tp_group

    group = getattr(layer, "parallel_group", None) or get_tp_group()
    # Along dimension 0 vLLM copies nothing after the collective.
    return Shard(lm_head_rows, start, group.device_group, partial(group.all_gather, dim=0))


def _announce(name: str, model: Any, head: EngineHead, count: int) -> None:
    import vllm

    logger.info(
        "MicroSpec: attached to %s: %s, %s%s, vLLM %s",
        name,
        type(model).__name__,
        head,
        f", {count} LM heads" if count > 1 else "",
        vllm.__version__,
    )
