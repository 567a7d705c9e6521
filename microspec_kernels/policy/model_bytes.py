# SPDX-License-Identifier: Apache-2.0
"""The bytes of a model's weights that a pass reads, for :class:`~.StepCosts`."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts")
"""The fields of configs that give the number of routed experts of a layer."""


class Weights(NamedTuple):
    """Bytes of weights.

    Attributes:
        dense: those that each pass reads.
        experts: those of routed experts.
        share: the share of the experts that a token uses.
    """

    dense: float
    experts: float = 0.0
    share: float = 1.0

    def read_by(self, tokens: int) -> float:
        """Return the bytes that so many tokens read, if each chooses its experts by itself."""
        return self.dense + self.experts * (1 - (1 - self.share) ** tokens)


def weights_of(
    module: nn.Module,
    config: Mapping[str, Any] | None = None,
    *,
    skips: Callable[[str, Tensor], bool] = lambda name, parameter: False,
    itemsize: Callable[[Tensor], float] = Tensor.element_size,
) -> Weights:
    """Count the bytes of a module's parameters.

    Args:
        module: parameters with `.experts.` in their names are those of routed experts.
        config: fields of the model's config that say how many experts a token uses; None: all.
        skips: returns whether a parameter, by its name, does not count, as the input embedding's.
        itemsize: returns the bytes of each element of a parameter.
    """
    dense = experts = 0.0
    for name, parameter in module.named_parameters():
        if skips(name, parameter):
            continue
        size = parameter.numel() * itemsize(parameter)
        if ".experts." in f".{name}":
            experts += size
        else:
            dense += size
    fields = config or {}
    total = next((int(fields[key]) for key in EXPERTS if fields.get(key)), 0)
    used = int(fields.get("num_experts_per_tok") or total)
    return Weights(dense, experts, used / total if total else 1.0)
