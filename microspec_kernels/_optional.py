# SPDX-License-Identifier: Apache-2.0
"""Import optional dependencies, or name the extra of this package that installs them."""

from importlib import import_module
from typing import Any


def require(module: str, extra: str) -> Any:
    """Import and return `module`, a dependency of the package's extra `extra`.

    Raises:
        ImportError: the module is not installed. The message names the extra.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(
            f"{package} is missing: pip install 'microspec-kernels[{extra}]'"
        ) from error
