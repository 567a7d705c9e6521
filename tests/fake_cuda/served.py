# SPDX-License-Identifier: Apache-2.0
"""Functions of PyTorch that a CPU does not have, or has with other results."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .memory import FakeCudaError
from .streams import refuse_waiting


def wide_product(a: Tensor, b: Tensor, *, out_dtype: torch.dtype | None = None) -> Tensor:
    """Stand in for ``torch.mm``, whose ``out_dtype`` a CPU does not have."""
    if out_dtype is None:
        return torch.mm(a, b)
    if out_dtype not in (a.dtype, torch.float32) or a.dtype != b.dtype:
        raise FakeCudaError(f"mm: out_dtype: expected {a.dtype} or float32, got {out_dtype}")
    return (a.float() @ b.float()).to(out_dtype)


def flash_attention(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, is_causal: bool = False, **options: Any
) -> tuple[Any, ...]:
    """Stand in for CUDA's op with its nine results, and refuse what it refuses."""
    if q.dtype not in (torch.bfloat16, torch.float16) or q.size(-1) > 256 or q.size(-1) % 8:
        raise FakeCudaError(f"flash attention: got {q.dtype}, head size {q.size(-1)}")
    if any(t.stride(-1) != 1 for t in (q, k, v)) or not q.size(1) == k.size(1) == v.size(1):
        raise FakeCudaError("flash attention: expected unit strides, and heads of q for k and v")
    op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, logsumexp = op(q, k, v, dropout_p, is_causal, scale=options.get("scale"))
    nothing = torch.empty(0)
    return out, logsumexp, nothing, nothing, q.size(2), k.size(2), nothing, nothing, nothing


def histogram(values: Tensor, *args: Any, **options: Any) -> Tensor:
    """Stand in for ``torch.histc``, which a CPU has for floating-point numbers only."""
    return torch.histc(values.float(), *args, **options).to(values.dtype)


def grouped_product(a: Tensor, b: Tensor, *args: Any, **options: Any) -> Tensor:
    """Stand in for ``torch._grouped_mm``, which waits for the numbers of rows unless in bf16."""
    if a.dtype != torch.bfloat16:
        refuse_waiting(f"grouped_mm in {a.dtype}")
    return torch._grouped_mm(a, b, *args, **options)


SERVED: dict[str, Callable[..., Any]] = {
    str(torch.mm): wide_product,
    str(torch.histc): histogram,
    str(torch._grouped_mm): grouped_product,
    "aten._scaled_dot_product_flash_attention": flash_attention,
    "aten::_scaled_dot_product_flash_attention": flash_attention,
}
