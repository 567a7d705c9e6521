"""A sparse LM head for the assistant of transformers' assisted generation."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from microspec_kernels._linear import broken_rows, linear_rows, log_broken
from microspec_kernels.head import SparseLMHead
from microspec_kernels.policy import Policy, Stage, TargetPass, default
from microspec_kernels.vocab import ActiveVocab

# Not the lowest of all in fp32: divided by a temperature below 1, that would be -inf again.
LOWEST = -1e30


class AssistantHead(SparseLMHead):
    """A very low number in place of -inf off the active set, and of NaN.

    Beside the logit of any active token both are probability 0. But transformers' processors may
    forbid every active token (`suppress_tokens`, `bad_words_ids`, …), and a row of nothing but -inf
    has no softmax to sample from; so what they still allow is drafted evenly.
    One of NaN, from a broken row, would leave no other token a probability.
    """

    def forward(self, hidden: Tensor, group_ids: Tensor | None = None) -> Tensor:
        lowest = max(LOWEST, torch.finfo(hidden.dtype).min)
        logits = super().forward(hidden, group_ids)
        return logits.nan_to_num_(nan=lowest, posinf=torch.inf, neginf=lowest)


@contextmanager
def sparse_assistant(
    assistant: Any,
    target: Any,
    *,
    capacity: int = 3072,
    policy: Policy | None = None,
    mode: Literal["indexed", "packed"] = "indexed",
) -> Iterator[AssistantHead]:
    """Within the context, `assistant` drafts over an active vocabulary that follows `target`.

    For `target.generate(…, assistant_model=assistant)`. The policy is shown what the assistant
    reads (the prompt, accepted tokens, its own drafts) as a "prompt" pass, and what the target
    reads (the newest and the drafted tokens) with its likeliest tokens after each as a "step" pass.
    Neither knows yet what will be chosen, and logits for the whole prompt are not there:
    transformers does not compute them. The vocabulary goes on from one `generate` to the next;
    another subject is better served by a context of its own.

    Transformers wants logits over the whole vocabulary from an assistant, so this saves the
    projection alone, not the softmax over V (:func:`microspec_generate` has neither). The
    assistant's probabilities are those among the active tokens: higher than over all, which
    `assistant_confidence_threshold` will notice.

    The output is the target's, as with any assistant. Greedily, transformers compares tokens. In
    sampling it accepts a token drawn from q with probability min(1, p/q) and else draws from
    (p - q)+, normalised (arXiv 2211.17192), which is right for every q that the token was really
    drawn from. A token off the active set has q = 0: it is never drafted, and (p - q)+ keeps all
    of its p.

    assistant, target: decoder-only causal LMs of `transformers` with one vocabulary, on the
        devices and in the dtypes in which they shall run.
    capacity: how many tokens are active at most.
    policy: what they are; by default `microspec_kernels.policy.default()`.
    mode: whether the head reads rows of the whole weight or packs them into a slab.

    Yields the head that has taken the place of the assistant's output embeddings: `head.vocab` is
    the active vocabulary. On exit the assistant has its own head again, and the hooks are gone.

    Raises TypeError: no causal LM, or an LM head that is not exactly `nn.Linear` (adapted,
    quantised, hooked, sharded: by name). ValueError: the target as its own assistant, an
    encoder-decoder, another vocabulary than the target's, a dtype, weights on meta.
    """
    weight, bias = _checked_head(assistant, target)
    dense = assistant.get_output_embeddings()
    policy = default() if policy is None else policy
    policy.reset()
    log_broken(broken_rows(weight, bias), "sparse_assistant: assistant: LM head")
    size, device = len(weight), weight.device
    vocab = ActiveVocab(
        size, min(capacity, size), pinned=policy.pinned, initial=policy.initial, device=device
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
        rows = output.logits.shape[1]  # of a prompt the last alone, and one for each drafted token
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
    """int64 [B, n], as `generate` calls a model and as others may."""
    ids = kwargs.get("input_ids", args[0] if args else None)
    if ids is None:
        raise ValueError("sparse_assistant: input_ids: expected token ids, got none")
    tokens: Tensor = ids
    return tokens


def _checked_head(assistant: Any, target: Any) -> tuple[Tensor, Tensor | None]:
    """The rows of the assistant's own LM head, and its bias."""
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
        # Not even of other padding: transformers then takes the tokenizers for different ones.
        raise ValueError(
            f"{what}: expected the target's vocabulary of {size}, got {len(weight)} rows"
        )
    return weight, bias
