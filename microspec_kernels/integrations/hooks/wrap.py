# SPDX-License-Identifier: Apache-2.0
"""Wrap methods of an engine's classes."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

Original = Callable[[], Any]
Around = Callable[[Original, Mapping[str, Any]], Any]


def wrap(owner: type, name: str, around: Around) -> None:
    """Replace a method by `around(original, arguments)`; do nothing if `around` wraps it already.

    Args:
        owner: the class.
        name: the method.
        around: receives `original`, which calls the method with the caller's arguments, and
            `arguments`, the arguments by name, including `self`. Arguments may be added or moved
            between versions of the engine as long as the names that `around` reads stay.
    """
    function = getattr(owner, name)
    if getattr(function, "microspec_around", None) is around:
        return
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        arguments = signature.bind(*args, **kwargs).arguments
        return around(functools.partial(function, *args, **kwargs), arguments)

    wrapped.microspec_around = around  # type: ignore[attr-defined]
    setattr(owner, name, wrapped)
