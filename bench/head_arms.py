"""The ways to do the head's whole job, on CPU and GPU alike, and the check of each.

The job: projection, log-probabilities, the ten best with their token ids. Each call of an arm takes
the next of several sets of active ids.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import microspec_kernels as mk
from microspec_kernels import reference

K_BEST = 10
NAMES = {torch.float8_e4m3fn: "fp8", torch.int8: "int8"}


@dataclass(frozen=True)
class Arm:
    # Over the next set of ids, [M, K_BEST]: log-probabilities and token ids, or logits, token ids
    # and the logsumexp to subtract from them.
    call: Callable[[], tuple[Tensor, ...]]
    # What the reference takes for the first set but for hidden and k.
    operands: dict[str, Any]
    # The least that a call has to read: the rows it works on, with their scales.
    bytes: int
    # Whether its logits pass through bf16, as a product in PyTorch's usual way leaves them.
    rounded: bool = False
    # Which backend has to serve the ops when the arm is called or captured; None: the default.
    backend: str | None = None
    # Called from Python, one by one, instead of being captured in a graph.
    eager: bool = False


def make_weight(vocab_size: int, dim: int, device: str = "cpu") -> Tensor:
    """Random bf16 rows of about unit scale over sqrt(dim), made without an fp32 copy."""
    weight = torch.empty(vocab_size, dim, dtype=torch.bfloat16, device=device)
    for chunk in weight.split(8192):
        chunk.copy_(torch.randn(chunk.shape, device=device) * dim**-0.5)
    return weight


def id_sets(vocab_size: int, capacity: int, count: int, device: str = "cpu") -> list[Tensor]:
    """Random active ids from all over the vocabulary; sets share none while there are enough."""
    ids: list[Tensor] = []
    while len(ids) < count:
        ids += (
            torch.randperm(vocab_size, device=device)
            .int()
            .split(capacity)[: vocab_size // capacity]
        )
    return [own.clone() for own in ids[:count]]


def in_turn(call: Callable[[int], tuple[Tensor, ...]], count: int) -> Callable[[], Any]:
    """Calls with 0 to count - 1, again and again."""
    turn = itertools.cycle(range(count))
    return lambda: call(next(turn))


def sparse_arms(
    weight: Tensor,
    sets: list[Tensor],
    slabs: list[Tensor],
    hidden: Tensor,
    quantised: Sequence[torch.dtype] = (),
    softcap: float = 0.0,
    triton: bool = False,
) -> dict[str, Arm]:
    """The op over each set, indexed and on its slab; with ``triton``, once more by Triton."""

    def sparse(*operands: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
        return mk.sparse_head(hidden, *operands, K_BEST, softcap=softcap, **options)

    def arm(
        of: list[Tensor] | None, scales: list[Tensor] | None = None, backend: str | None = None
    ) -> Arm:
        options = [
            {"packed": of is not None} | ({"weight_scale": scales[i]} if scales else {})
            for i in range(len(sets))
        ]
        rows = of or [weight] * len(sets)
        operands = {"weight": rows[0], "active_ids": sets[0], "softcap": softcap, **options[0]}
        return Arm(
            in_turn(lambda i: sparse(rows[i], sets[i], **options[i]), len(sets)),
            operands,
            (of or slabs)[0].nbytes + (scales[0].nbytes if scales else 0),
            backend=backend,
        )

    arms = {"sparse_head indexed": arm(None), "sparse_head packed": arm(slabs)}
    if triton:
        arms["Triton indexed"] = arm(None, backend="triton")
        arms["Triton packed"] = arm(slabs, backend="triton")
    for dtype in quantised:
        pairs = [reference.quantise_rows(slab, dtype) for slab in slabs]
        of, scales = [rows for rows, _ in pairs], [scale for _, scale in pairs]
        arms[f"sparse_head packed {NAMES[dtype]}"] = arm(of, scales)
        if triton:
            arms[f"Triton packed {NAMES[dtype]}"] = arm(of, scales, backend="triton")
    return arms


def validate(arms: dict[str, Arm], hidden: Tensor, allowed: float = 1e-5) -> None:
    """Each arm's first call against fp64."""
    for name, arm in arms.items():
        with serving_backend(arm.backend):
            check(name, arm, hidden, arm.call(), allowed)


@contextmanager
def serving_backend(name: str | None) -> Iterator[None]:
    """That backend serves the ops. A graph captured here replays its kernels ever after."""
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
    name: str, arm: Arm, hidden: Tensor, result: tuple[Tensor, ...], allowed: float = 1e-5
) -> None:
    """A result of the first set against fp64, in its first and last row.

    Log-probabilities have to be the best ones, and those of the tokens beside them; an arm that
    rounds to bf16 on its way may be off by that. So ids may differ from the exact order only among
    log-probabilities that close.
    """
    rows = torch.tensor([0, len(hidden) - 1], device=hidden.device)
    operands = {**arm.operands, "dtype": torch.float64}
    logits = reference.sparse_logits(hidden[rows], **operands)
    exact = logits.log_softmax(-1)
    got, tokens, *rest = (tensor[rows] for tensor in result)
    got = got - rest[0][:, None] if rest else got
    rounded = arm.rounded or got.dtype == torch.bfloat16
    # Up to four roundings to bf16: logit, log-probability, and the cap's own steps.
    largest = max(logits.abs().max().item(), exact.topk(K_BEST).values.abs().max().item())
    rounding = 2**-6 * largest if rounded else allowed
    found = tokens[:, :, None] == arm.operands["active_ids"].view(1, 1, -1)
    assert found.any(-1).all(), (name, "a token that is not active", tokens)
    assert len(set(tokens[0].tolist())) == K_BEST, (name, "a token twice", tokens)
    of_tokens = exact.gather(1, found.int().argmax(-1))
    for want in (exact.topk(K_BEST).values, of_tokens):
        off = ~((got - want).abs() <= rounding)  # a NaN is off, too
        assert not off.any(), (name, off.nonzero()[0].tolist(), got[off][0], want[off][0])
