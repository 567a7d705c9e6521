# SPDX-License-Identifier: Apache-2.0
"""Read the rows of an LM head or an embedding without calling the module.

The rows define the module's result only if it is exactly PyTorch's own class. Code that reads rows
would silently ignore an adapter, a hook, a parametrization, another forward or packed values.
"""

import logging

import torch
from torch import Tensor, nn

from ._checks import FLOATS

logger = logging.getLogger(__name__)


def linear_rows(module: object, what: str) -> tuple[Tensor, Tensor | None]:
    """Return the weight [V, D] and the bias [V] or None of a linear layer, detached.

    Args:
        module: the LM head.
        what: name of the module in an error.

    Raises:
        TypeError: a module that computes anything but x · weight + bias (see :func:`not_exactly`),
            or a tensor that is not dense. The message names its class.
        ValueError: a tensor without values (on meta).
    """
    if (found := not_exactly(module, nn.Linear)) is not None:
        raise TypeError(f"{what}: expected exactly nn.Linear, whose rows can be read, got {found}")
    assert isinstance(module, nn.Linear)
    bias: Tensor | None = module.bias
    weight = plain(module.weight, f"{what}: weight").detach()
    return weight, None if bias is None else plain(bias, f"{what}: bias").detach()


def embedding_rows(module: object, what: str, home: str) -> Tensor:
    """Return the weight [V, D] of an embedding, detached.

    Args:
        module: the embedding.
        what: name of the module in an error.
        home: the Python module that defines the model. Subclasses of nn.Embedding defined there
            are accepted, too.

    Raises:
        TypeError, ValueError: as :func:`linear_rows`.
    """
    kind = nn.Embedding
    if isinstance(module, nn.Embedding) and type(module).__module__ == home:
        kind = type(module)
    if (found := not_exactly(module, kind)) is not None:
        expected = "exactly nn.Embedding, whose rows can be read"
        raise TypeError(f"{what}: expected {expected}, got {found}")
    assert isinstance(module, nn.Embedding)
    return plain(module.weight, f"{what}: weight").detach()


def not_exactly(module: object, kind: type[nn.Module]) -> str | None:
    """Describe why calling `module` may differ from `kind`'s forward; None if it does not.

    Adapters, quantised layers and parametrized modules have other classes, some with the same name.
    accelerate's hooks replace the forward of the instance.
    """
    if type(module) is not kind:
        return class_name(module)
    assert isinstance(module, nn.Module)
    if module._forward_hooks or module._forward_pre_hooks:
        return f"{kind.__name__} with forward hooks"
    if "forward" in vars(module):
        return f"{kind.__name__} with a forward of its own"
    return None


def plain(tensor: Tensor, what: str) -> Tensor:
    """Return `tensor` if it is an ordinary dense tensor with values.

    Args:
        tensor: the tensor to check.
        what: name of the tensor in an error.

    Raises:
        TypeError: another class (such as a sharded tensor), another layout, or a quantised dtype.
            The message names it.
        ValueError: a tensor on the meta device.
    """
    if type(tensor) not in (Tensor, nn.Parameter):
        raise TypeError(f"{what}: expected a plain torch.Tensor, got {class_name(tensor)}")
    if tensor.layout is not torch.strided or tensor.is_quantized:
        got = tensor.dtype if tensor.is_quantized else tensor.layout
        raise TypeError(f"{what}: expected a dense tensor, got {got}")
    if tensor.is_meta:
        raise ValueError(f"{what}: expected a tensor with values, got one on meta")
    return tensor


def class_name(thing: object) -> str:
    """Name the class with its Python module: adapters also call their classes Linear."""
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def broken_rows(
    weight: Tensor, bias: Tensor | None = None, weight_scale: Tensor | None = None
) -> Tensor:
    """Find the rows of weight [V, D] and bias [V] that hold NaN or infinity; wait for the device.

    Of a quantised weight only the scales [V] or [V, n] are searched.

    Returns:
        int64 [n], row numbers, ascending.
    """
    if weight_scale is not None:
        finite = weight_scale.float().isfinite()  # there is none for fp8
        finite = finite.all(1) if finite.dim() == 2 else finite
    elif weight.dtype in FLOATS:
        finite = weight.amin(1).isfinite() & weight.amax(1).isfinite()  # both propagate NaN
    else:
        return torch.empty(0, dtype=torch.int64, device=weight.device)
    if bias is not None:
        finite &= bias.isfinite()
    return (~finite).nonzero()[:, 0]


def log_broken(tokens: Tensor, what: str) -> None:
    """Log a warning that names the tokens int64 [n] with broken rows; do nothing if n = 0."""
    if len(tokens):
        named = ", ".join(map(str, tokens[:8].tolist())) + (", ..." if len(tokens) > 8 else "")
        logger.warning(
            "%s: NaN or infinity in the rows of %d tokens, which it never proposes: %s",
            what,
            len(tokens),
            named,
        )
