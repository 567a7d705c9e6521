"""The optional dependencies of this folder: the `speculative` extra."""

from importlib import import_module
from typing import Any


def require(module: str) -> Any:
    """Import `module`, or say which extra of this package brings it.

    Raises ImportError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(
            f"microspec_kernels.speculative needs {package}: "
            "pip install 'microspec-kernels[speculative]'"
        ) from error
