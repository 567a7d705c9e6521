"""Import optional dependencies, or name the extra of this package that brings them."""

from importlib import import_module
from typing import Any


def require(module: str, extra: str) -> Any:
    """Import `module`, or say which extra brings it.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(
            f"{package} is missing: pip install 'microspec-kernels[{extra}]'"
        ) from error
