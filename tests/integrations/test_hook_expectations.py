# SPDX-License-Identifier: Apache-2.0
"""Facts about an engine's source whose names stay while their meaning moves."""

from pathlib import Path

import pytest

from microspec_kernels.integrations.hooks import (
    Attributes,
    CallOrder,
    Definitions,
    Expectation,
    HookPoint,
)

PASS = """
class Runner:
    limit: int = 3
    kind = "plain"

    def __init__(self):
        self.drafts, other.absent = 3, 4
        self.speculator = None

    @property
    def width(self): ...

    def step(self, batch):
        state = prepare(batch)
        if batch:
            output = self.sample(self.target(state))
        else:
            output = self.sample(state)
        self.speculator.observe(output)
        return self.speculator.propose(self.sampler(output))
"""
BASE = "class Base:\n    def draft(self): ...\n"
OTHER = "class Special(Base):\n    def draft(self): ...\n    def drafts(self): ...\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    engine = tmp_path / "engine"
    (engine / "spec" / "deep").mkdir(parents=True)
    (engine / "runner.py").write_text(PASS, encoding="utf-8")
    (engine / "spec" / "base.py").write_text(BASE, encoding="utf-8")
    (engine / "spec" / "deep" / "other.py").write_text(OTHER, encoding="utf-8")
    return engine


def calls(*names: str) -> CallOrder:
    return CallOrder("engine.runner", "Runner.step", names)


@pytest.mark.parametrize(
    ("expectation", "problem"),
    [
        (calls("self.sample", "self.speculator.observe", "self.speculator.propose"), None),
        (calls("prepare", "self.target", "self.sampler"), None),
        # The inner call runs first, and so it comes first.
        (calls("self.sampler", "self.speculator.propose"), "no call of self.speculator.propose"),
        (calls("self.speculator.observe", "self.sample"), "no call of self.sample after"),
        (calls("self.sample", "self.sample", "self.sample"), "no call of self.sample after"),
        (calls("speculator.observe"), "no call of speculator.observe"),
        (CallOrder("engine.runner", "Runner.steps", ("prepare",)), "no 'steps' there"),
        (Attributes("engine.runner", "Runner", ("limit", "kind", "drafts", "width", "step")), None),
        (Attributes("engine.runner", "Runner", ("speculator", "absent")), "has no absent"),
        (Attributes("engine.runner", "Runner.step", ()), "not a class"),
        (Attributes("engine.runner", "Walker", ("limit",)), "no 'Walker' there"),
        (Attributes("engine.walker", "Walker", ("limit",)), "no such module"),
        (Definitions("engine.spec", "draft", ("Base", "Special")), None),
        (Definitions("engine.spec", "draft", ("Base",)), "also defined by Special"),
        (Definitions("engine.spec", "drafts", ("Base", "Special")), "not defined by Base"),
        (Definitions("engine.specs", "draft", ("Base",)), "no such module"),
        (HookPoint("engine.runner", "Runner.step", ("self", "batch"), positional=True), None),
        (HookPoint("engine.runner", "Runner.step", ("batch", "self")), None),
        (
            HookPoint("engine.runner", "Runner.step", ("batch", "self"), positional=True),
            "begins with self, batch",
        ),
    ],
)
def test_problem(root: Path, expectation: Expectation, problem: str | None) -> None:
    found = expectation.problem(root)
    if problem is None:
        assert found is None
    else:
        assert found is not None and found.startswith(problem)


def test_names() -> None:
    assert str(calls("a", "b.c")) == "engine.runner:Runner.step calls a, b.c"
    assert str(Attributes("engine.runner", "Runner", ("a", "b"))) == "engine.runner:Runner has a, b"
    text = "engine.spec: draft defined by Base, Special only"
    assert str(Definitions("engine.spec", "draft", ("Base", "Special"))) == text
