# SPDX-License-Identifier: Apache-2.0
"""Raise an error in a backward pass through ops without a gradient, rather than omit gradients."""

from typing import Any

import torch
from torch import Tensor


class _Refusal(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, op: str, argument: str, tensor: Tensor, *results: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.op, ctx.argument = op, argument
        ctx.mark_non_differentiable(*(r for r in results if not r.is_floating_point()))
        return tuple(result.view_as(result) for result in results)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise NotImplementedError(
            f"microspec::{ctx.op}: {ctx.argument}: expected no backward pass through this op, "
            "which has no gradient, got one; use a dense head, or detach()"
        )


def refuse_backward(
    op: str, results: tuple[Tensor, ...], **inputs: Tensor | None
) -> tuple[Tensor, ...]:
    """Return the results, so that a backward pass from them to an input raises an error.

    The backward pass raises NotImplementedError. It names ``op`` and the first input that requires
    a gradient.
    """
    if torch.is_grad_enabled():
        for argument, tensor in inputs.items():
            if tensor is not None and tensor.requires_grad:
                detached = (result.detach() for result in results)
                refusing: tuple[Tensor, ...] = _Refusal.apply(op, argument, tensor, *detached)  # type: ignore[no-untyped-call]
                return refusing
    return results
