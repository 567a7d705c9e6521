# SPDX-License-Identifier: Apache-2.0
"""Python's built-in error types for the errors of the ops."""

import re
from typing import NoReturn

_KINDS: dict[str, type[Exception]] = {
    kind.__name__: kind for kind in (ValueError, TypeError, IndexError)
}
_MESSAGE = re.compile(r"(ValueError|TypeError|IndexError): (microspec.*)", re.DOTALL)


def reraise(error: RuntimeError) -> NoReturn:
    """Raise the error as the type that its first word names.

    The stable ABI can only raise RuntimeError.
    """
    match = _MESSAGE.match(str(error))
    if match is None:
        raise error
    raise _KINDS[match[1]](match[2]) from None
