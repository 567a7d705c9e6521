"""Functions of the engine with something around them."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

Original = Callable[[], Any]
Around = Callable[[Original, Mapping[str, Any]], Any]


def wrap(owner: type, name: str, around: Around) -> None:
    """Replace a method by `around(original, given)`; once, however often it is asked for.

    original calls the method as it was called. given: its arguments by name, `self` among them, so
    that arguments may come and move between versions as long as those that are read keep theirs.
    """
    function = getattr(owner, name)
    if getattr(function, "microspec_around", None) is around:
        return
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        return around(functools.partial(function, *args, **kwargs), given)

    wrapped.microspec_around = around  # type: ignore[attr-defined]
    setattr(owner, name, wrapped)
