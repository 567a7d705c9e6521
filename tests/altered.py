# SPDX-License-Identifier: Apache-2.0
"""LM heads that compute more than their rows, with the structures that libraries produce."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class Linear(nn.Module):
    """A layer like peft's: it has the weight of the layer that it adapts and changes its output."""

    def __init__(self, base: nn.Linear, scale: float = 1.0) -> None:
        super().__init__()
        self.base_layer = base
        self.in_features, self.out_features = base.in_features, base.out_features
        values = torch.Generator().manual_seed(5)
        self.down = nn.Parameter(scale * torch.randn(4, base.in_features, generator=values))
        self.up = nn.Parameter(torch.randn(base.out_features, 4, generator=values))

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base_layer.bias

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base_layer(x) + x @ self.down.T @ self.up.T
        return out


class Embedding(nn.Module):
    """An embedding like peft's: it has the weight of the one that it adapts."""

    def __init__(self, base: nn.Embedding) -> None:
        super().__init__()
        self.base_layer = base
        values = torch.Generator().manual_seed(6)
        self.change = nn.Parameter(torch.randn(base.weight.shape, generator=values))

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.base_layer(ids) + self.change[ids]
        return out


class QuantisedLinear(nn.Linear):
    """A subclass like bitsandbytes': it computes with other values than its weight's."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.round(decimals=0), self.bias)


class PackedTensor(Tensor):
    """A tensor subclass under nn.Linear, like torchao's and DTensor."""


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * torch.linspace(-1, 1, len(weight))[:, None]


def adapted(head: nn.Linear) -> nn.Module:
    return Linear(head)


def quantised(head: nn.Linear) -> nn.Module:
    other = QuantisedLinear(head.in_features, head.out_features, bias=False)
    other.weight = head.weight
    return other


def packed(head: nn.Linear) -> nn.Module:
    head.weight = nn.Parameter(head.weight.detach().as_subclass(PackedTensor))
    return head


def hooked(head: nn.Linear) -> nn.Module:
    head.register_forward_hook(lambda module, args, out: out.roll(1, -1))
    return head


def pre_hooked(head: nn.Linear) -> nn.Module:
    head.register_forward_pre_hook(lambda module, args: (args[0].roll(1, -1),))
    return head


def replaced(head: nn.Linear) -> nn.Module:
    """Replace the instance's forward, like accelerate's hooks do."""
    whole = head.forward
    head.forward = functools.wraps(whole)(lambda x: whole(x).roll(3, -1))  # type: ignore
    return head


def parametrized(head: nn.Linear) -> nn.Module:
    parametrize.register_parametrization(head, "weight", Halved())
    return head


# name: the function that alters a head, and the error's description of the result
ALTERED: dict[str, tuple[Callable[[nn.Linear], nn.Module], str]] = {
    "adapter": (adapted, r"got altered\.Linear"),
    "quantised": (quantised, r"got altered\.QuantisedLinear"),
    "tensor subclass": (
        packed,
        r"weight: expected a plain torch.Tensor, .*\.PackedTensor",
    ),
    "hook": (hooked, "got Linear with forward hooks"),
    "pre-hook": (pre_hooked, "got Linear with forward hooks"),
    "own forward": (replaced, "got Linear with a forward of its own"),
    "parametrization": (parametrized, r"got torch.nn.utils.parametrize.ParametrizedLinear"),
}


def alter(model: Any, kind: str) -> Any:
    """Give the model such an LM head and return the model."""
    head: Any = ALTERED[kind][0](model.get_output_embeddings())
    model.set_output_embeddings(head)
    return model
