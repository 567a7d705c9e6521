# SPDX-License-Identifier: Apache-2.0
"""One way to do the head's whole job, and the check of its results against fp64.

The job is projection, log-probabilities, and the K_BEST best with their token ids. Each call of an
arm takes the next of several sets of active ids.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import microspec_kernels as mk
from microspec_kernels import reference

from .sizes import K_BEST


@dataclass(frozen=True)
class HeadArm:
    """A way to do the job.

    Attributes:
        call: returns, over the next set of ids, log-probabilities and token ids [M, K_BEST], or
            logits, token ids and the logsumexp to subtract from the logits.
        operands: what the reference takes for the first set, except hidden and k.
        bytes: the least that a call has to read: the rows it works on, and their scales.
        rounded: whether the logits pass through bf16, as PyTorch's usual product leaves them.
        backend: which backend serves the ops while the arm is called or captured; None: the
            default.
        eager: whether it is called from Python instead of being captured in a graph.
    """

    call: Callable[[], tuple[Tensor, ...]]
    operands: dict[str, Any]
    bytes: int
    rounded: bool = False
    backend: str | None = None
    eager: bool = False


def validate(arms: dict[str, HeadArm], hidden: Tensor, allowed: float = 1e-5) -> None:
    """Check the first call of each arm against fp64."""
    for name, arm in arms.items():
        with serving_backend(arm.backend):
            check(name, arm, hidden, arm.call(), allowed)


@contextmanager
def serving_backend(name: str | None) -> Iterator[None]:
    """Let backend `name` serve the ops inside. A graph captured inside keeps its kernels."""
    before = mk.backend()
    if name is None or name == before:
        yield
        return
    try:
        mk.backend(name)
        yield
    finally:
        mk.backend(before)


def check(
    name: str, arm: HeadArm, hidden: Tensor, result: tuple[Tensor, ...], allowed: float = 1e-5
) -> None:
    """Check the first and the last row of a result of the first set against fp64.

    The log-probabilities have to be the best ones, and those of the tokens that stand beside them.
    So ids may differ from the exact order only among log-probabilities that differ by at most
    `allowed`, or by the rounding to bf16 of an arm that rounds.
    """
    rows = torch.tensor([0, len(hidden) - 1], device=hidden.device)
    operands = {**arm.operands, "dtype": torch.float64}
    logits = reference.sparse_logits(hidden[rows], **operands)
    exact = logits.log_softmax(-1)
    got, tokens, *rest = (tensor[rows] for tensor in result)
    got = got - rest[0][:, None] if rest else got
    rounded = arm.rounded or got.dtype == torch.bfloat16
    # Up to four roundings to bf16: logit, log-probability, and two steps of the softcap.
    largest = max(logits.abs().max().item(), exact.topk(K_BEST).values.abs().max().item())
    rounding = 2**-6 * largest if rounded else allowed
    found = tokens[:, :, None] == arm.operands["active_ids"].view(1, 1, -1)
    assert found.any(-1).all(), (name, "a token that is not active", tokens)
    assert len(set(tokens[0].tolist())) == K_BEST, (name, "a token twice", tokens)
    of_tokens = exact.gather(1, found.int().argmax(-1))
    for want in (exact.topk(K_BEST).values, of_tokens):
        off = ~((got - want).abs() <= rounding)  # a NaN is off, too
        assert not off.any(), (name, off.nonzero()[0].tolist(), got[off][0], want[off][0])
