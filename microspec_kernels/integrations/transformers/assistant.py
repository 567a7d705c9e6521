# SPDX-License-Identifier: Apache-2.0
"""A sparse LM head for the assistant of transformers' assisted generation."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from microspec_kernels._linear import broken_rows, linear_rows, log_broken
from microspec_kernels.head import SparseLMHead
from microspec_kernels.policy import CAPACITY, Policy, Stage, TargetPass, default
from microspec_kernels.vocab import ActiveVocab

# Not fp32's lowest value: divided by a temperature below 1, it would become -inf again.
LOWEST = -1e30


class AssistantHead(SparseLMHead):
    """A sparse LM head that returns a very low number instead of -inf (inactive tokens) and NaN.

    Beside the logit of any active token, the low number and -inf both have probability 0. But
    transformers' processors may forbid every active token (`suppress_tokens`, `bad_words_ids`, …),
    and a row that is all -inf has no softmax to sample from. With the low number, the tokens that
    are still allowed are drafted with equal probability. A single NaN, from a broken row, would
    make every probability of the row NaN.
    """

    def forward(self, hidden: Tensor, row_groups: Tensor | None = None) -> Tensor:
        lowest = max(LOWEST, torch.finfo(hidden.dtype).min)
        logits = super().forward(hidden, row_groups)
        return logits.nan_to_num_(nan=lowest, posinf=torch.inf, neginf=lowest)


@contextmanager
def sparse_assistant(
    assistant: Any,
    target: Any,
    *,
    capacity: int = CAPACITY,
    policy: Policy | None = None,
    mode: Literal["indexed", "packed"] = "indexed",
) -> Iterator[AssistantHead]:
    """Let `assistant` draft over an active vocabulary that follows `target`, within the context.

    For `target.generate(…, assistant_model=assistant)`. The policy receives the tokens the
    assistant reads (the prompt, accepted tokens, its own drafts) as a "prompt" pass. It receives
    the tokens the target reads (the newest and the drafted tokens), with the target's likeliest
    tokens after each, as a "step" pass. Neither pass contains the chosen tokens, and there are no
    logits for the whole prompt, because transformers does not compute them. The vocabulary persists
    from one `generate` to the next; use a new context for another subject.

    Transformers requires logits over the whole vocabulary from an assistant, so this saves the
    projection but not the softmax over V (:func:`microspec_generate` avoids both). The assistant's
    probabilities are relative to the active tokens, so they are higher than over all tokens, which
    affects `assistant_confidence_threshold`.

    The output is the target's, as with any assistant. In greedy search, transformers compares
    tokens. In sampling, it accepts a token drawn from q with probability min(1, p/q) and otherwise
    draws from (p - q)+, normalised (arXiv 2211.17192). This is correct for any q from which the
    token was drawn. A token outside the active set has q = 0: it is never drafted, and (p - q)+
    keeps all of its p.

    assistant, target: decoder-only causal LMs of `transformers` with one vocabulary, already on
        their devices and in their dtypes.
    capacity: the most tokens that are active.
    policy: decides which tokens are active; None: `microspec_kernels.policy.default()`.
    mode: "indexed": the head reads rows of the whole weight; "packed": it copies them into a slab.

    Yields the head that replaces the assistant's output embeddings; `head.vocab` is the active
    vocabulary. On exit the assistant gets its own head back, and the hooks are removed.

    Raises TypeError: a model is not a causal LM, or the assistant's LM head is not exactly
    `nn.Linear` (adapted, quantised, hooked or sharded; the message names it). ValueError: the
    assistant is the target, a model is an encoder-decoder, the vocabularies differ, the dtype is
    not bf16, fp16 or fp32, or weights are on meta.
    """
    weight, bias = _checked_head(assistant, target)
    dense = assistant.get_output_embeddings()
    policy = default() if policy is None else policy
    log_broken(broken_rows(weight, bias), "sparse_assistant: assistant: LM head")
    size, device = len(weight), weight.device
    vocab = ActiveVocab(
        size,
        min(capacity, size),
        pinned=policy.pinned,
        frequent_tokens=policy.frequent_tokens,
        device=device,
    )
    head = AssistantHead(weight, vocab, bias=bias, mode=mode)
    likeliest = min(policy.target_top_k("step"), size)

    def show(stage: Stage, tokens: Tensor, top_tokens: Tensor) -> None:
        tokens = tokens.flatten().to(device)
        top_tokens, chosen = top_tokens.flatten(0, 1).to(device), torch.full_like(tokens, -1)
        target_pass = TargetPass(stage, tokens, top_tokens, chosen)
        head.observe(policy.select(target_pass))

    def before_assistant(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens = _input_ids(args, kwargs)
        show("prompt", tokens, tokens.new_empty(*tokens.shape, 0))

    def after_target(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        rows = output.logits.shape[1]  # a prompt has logits for its last token only
        tokens = _input_ids(args, kwargs)[:, -rows:]
        show("step", tokens, output.logits.topk(likeliest).indices)

    assistant.set_output_embeddings(head)
    hooks = (
        assistant.register_forward_pre_hook(before_assistant, with_kwargs=True),
        target.register_forward_hook(after_target, with_kwargs=True),
    )
    try:
        yield head
    finally:
        assistant.set_output_embeddings(dense)
        for hook in hooks:
            hook.remove()


def _input_ids(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return input_ids int64 [B, n], passed by keyword as `generate` does or by position."""
    ids = kwargs.get("input_ids", args[0] if args else None)
    if ids is None:
        raise ValueError("sparse_assistant: input_ids: expected token ids, got none")
    tokens: Tensor = ids
    return tokens


def _checked_head(assistant: Any, target: Any) -> tuple[Tensor, Tensor | None]:
    """Check both models; return the weight of the assistant's LM head and its bias."""
    for name, model in (("assistant", assistant), ("target", target)):
        what = f"sparse_assistant: {name}"
        if not hasattr(model, "get_output_embeddings") or not hasattr(model, "config"):
            raise TypeError(f"{what}: expected a causal LM, got {type(model).__name__}")
        if model.config.is_encoder_decoder:
            raise ValueError(f"{what}: expected a decoder-only model, got {type(model).__name__}")
    if assistant is target:
        raise ValueError("sparse_assistant: assistant: expected another model than the target")
    dense = assistant.get_output_embeddings()
    what = "sparse_assistant: assistant: LM head"
    weight, bias = linear_rows(dense, what)
    if weight.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise ValueError(f"{what}: expected bf16, fp16 or fp32, got {weight.dtype}")
    size = target.config.get_text_config().vocab_size
    if len(weight) != size:
        # Other padding is no exception: transformers then takes the tokenizers for different ones.
        raise ValueError(
            f"{what}: expected the target's vocabulary of {size}, got {len(weight)} rows"
        )
    return weight, bias
