# SPDX-License-Identifier: Apache-2.0
"""The wrappers that plugins put around an engine's methods."""

import inspect
from collections.abc import Mapping
from typing import Any

import pytest

from microspec_kernels.integrations.hooks.wrap import Original, wrap


def engine() -> Any:
    class Speculator:
        def propose(self, tokens: list[int], *, sampled: int = 0, **others: Any) -> Any:
            """The original docstring."""
            return ("proposed", tokens, sampled, others)

    return Speculator


def test_arguments_come_by_name_however_they_were_given() -> None:
    seen: list[Mapping[str, Any]] = []

    def around(original: Original, arguments: Mapping[str, Any]) -> Any:
        seen.append(arguments)
        return "around", original()

    wrapped = engine()
    wrap(wrapped, "propose", around)
    speculator = wrapped()
    assert speculator.propose([1], sampled=2) == ("around", ("proposed", [1], 2, {}))
    assert speculator.propose(tokens=[1]) == ("around", ("proposed", [1], 0, {}))
    assert speculator.propose([1], more=3) == ("around", ("proposed", [1], 0, {"more": 3}))
    assert [arguments["tokens"] for arguments in seen] == [[1]] * 3
    assert all(arguments["self"] is speculator for arguments in seen)
    assert wrapped.propose.__doc__ == "The original docstring."
    assert list(inspect.signature(wrapped.propose).parameters) == [
        "self",
        "tokens",
        "sampled",
        "others",
    ]


def test_the_original_need_not_be_called() -> None:
    wrapped = engine()
    wrap(wrapped, "propose", lambda original, arguments: arguments["tokens"])
    assert wrapped().propose([5]) == [5]


def test_once_for_each_thing_around() -> None:
    """Engines load plugins more than once in a process."""
    calls: list[str] = []

    def first(original: Original, arguments: Mapping[str, Any]) -> Any:
        calls.append("first")
        return original()

    def second(original: Original, arguments: Mapping[str, Any]) -> Any:
        calls.append("second")
        return original()

    wrapped = engine()
    wrap(wrapped, "propose", first)
    wrap(wrapped, "propose", first)
    wrapped().propose([1])
    assert calls == ["first"]
    wrap(wrapped, "propose", second)
    wrapped().propose([1])
    assert calls == ["first", "second", "first"]


def test_only_that_class_is_touched() -> None:
    base = engine()
    derived, other = type("Derived", (base,), {}), type("Other", (base,), {})
    wrap(derived, "propose", lambda original, arguments: "around")
    assert derived().propose([1]) == "around"
    assert base().propose([1])[0] == other().propose([1])[0] == "proposed"


def test_wrong_calls_and_errors_are_the_methods_own() -> None:
    class Speculator:
        def fail(self) -> None:
            raise KeyError("inside")

    wrap(Speculator, "fail", lambda original, arguments: original())
    with pytest.raises(KeyError, match="inside"):
        Speculator().fail()
    with pytest.raises(TypeError, match="too many positional arguments"):
        Speculator().fail(1)  # type: ignore[call-arg]
    with pytest.raises(AttributeError, match="absent"):
        wrap(Speculator, "absent", lambda original, arguments: None)
