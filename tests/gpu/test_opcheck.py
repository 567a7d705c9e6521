# SPDX-License-Identifier: Apache-2.0
"""The ops in PyTorch on CUDA tensors: schema, fakes, dispatch under torch.compile."""

from typing import Any

import pytest
import torch
from generators import gather_case
from test_registration import (
    GATHERS,
    HEADS,
    head_arguments,
    opcheck,
    other_calls,
    vocab_arguments,
)
from torch import Tensor

from microspec_kernels import sparse_head


def there(value: Any) -> Any:
    return value.cuda() if isinstance(value, Tensor) else value


def check(name: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    opcheck(name, tuple(map(there, arguments)), {k: there(v) for k, v in keywords.items()})


@pytest.mark.parametrize("options", HEADS, ids=str)
def test_head(options: dict[str, Any]) -> None:
    arguments, keywords = head_arguments(**options)
    check("sparse_head", (*arguments, 5), keywords)
    check("sparse_logits", arguments, keywords)


@pytest.mark.parametrize("options", GATHERS, ids=str)
def test_gather(options: dict[str, Any]) -> None:
    case = gather_case(32, **options)
    tensors = (case.slab, case.slab_ids, case.weight, case.active_ids)
    scales = {"slab_scale": case.slab_scale, "weight_scale": case.weight_scale}
    check("gather_rows_", tensors, scales)


@pytest.mark.parametrize(("num_groups", "ragged"), [(1, False), (3, False), (3, True)])
def test_vocab(num_groups: int, ragged: bool) -> None:
    check("vocab_update_", *vocab_arguments(num_groups, ragged))


@pytest.mark.parametrize("call", other_calls(), ids=lambda call: call[0])
def test_learn(call: tuple[str, tuple[Any, ...], dict[str, Any]]) -> None:
    check(*call)


def test_compiled_in_one_graph() -> None:
    arguments, keywords = head_arguments(dtype=torch.bfloat16, m=5)
    hidden, weight, ids = map(there, arguments)

    def step(hidden: Tensor) -> Tensor:
        logits, _, logsumexp = sparse_head(hidden * 2, weight, ids, 5, **keywords)
        return (logits - logsumexp[:, None]).exp()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(hidden), step(hidden), rtol=0, atol=0)
