"""What an LM head or an embedding may be where its rows are read, and the module is not called.

Its rows are all that such a module computes only where it is exactly PyTorch's own: an adapter, a
hook, a parametrization, another forward or packed values would be left out without a word.
"""

import logging

import torch
from torch import Tensor, nn

from ._checks import FLOATS

logger = logging.getLogger(__name__)


def linear_rows(module: object, what: str) -> tuple[Tensor, Tensor | None]:
    """The weight [V, D] of x · weight + bias, and the bias [V] or None; detached.

    Raises:
        TypeError: names the class of a module that computes anything else (see :func:`not_exactly`)
            or of a tensor that is not dense; ValueError: values that are on no device.
    """
    if (found := not_exactly(module, nn.Linear)) is not None:
        raise TypeError(f"{what}: expected exactly nn.Linear, whose rows can be read, got {found}")
    assert isinstance(module, nn.Linear)
    bias: Tensor | None = module.bias
    weight = plain(module.weight, f"{what}: weight").detach()
    return weight, None if bias is None else plain(bias, f"{what}: bias").detach()


def embedding_rows(module: object, what: str, home: str) -> Tensor:
    """The weight [V, D] of an embedding; detached.

    home: the Python module of the model that it belongs to, whose own embeddings are taken, too.

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
    """What makes a call of `module` another function than `kind`'s; None where nothing does.

    Adapters, quantised layers and parametrized modules are of other classes, though some bear the
    same name; accelerate's hooks are a forward of the instance's own.
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
    """`tensor`, which is an ordinary dense one: not sharded, quantised inside or without values.

    Raises:
        TypeError: another class or layout, by name. ValueError: the device meta.
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
    """With its Python module: adapters, too, call their classes Linear."""
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def broken_rows(weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Rows of weight [V, D] and bias [V] that hold NaN or infinity: int64, ascending; waits.

    int8 and fp8 are not looked into.
    """
    if weight.dtype not in FLOATS:
        return torch.empty(0, dtype=torch.int64, device=weight.device)
    finite = weight.amin(1).isfinite() & weight.amax(1).isfinite()  # of NaN, both are NaN
    if bias is not None:
        finite &= bias.isfinite()
    return (~finite).nonzero()[:, 0]


def log_broken(tokens: Tensor, what: str) -> None:
    """Warn, where there are any, that tokens int64 [n] are left out for their broken rows."""
    if len(tokens):
        named = ", ".join(map(str, tokens[:8].tolist())) + (", ..." if len(tokens) > 8 else "")
        logger.warning(
            "%s: NaN or infinity in the rows of %d tokens, which it never proposes: %s",
            what,
            len(tokens),
            named,
        )
