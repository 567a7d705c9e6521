# SPDX-License-Identifier: Apache-2.0
"""Snippets, commands and links of README and docs.

Python snippets run unchanged on a CPU. Commands exist, with their options. Links lead to existing
files and headings. Small stand-ins replace the parts that a snippet leaves to its reader (models,
prompts, an engine's loop).
"""

import argparse
import contextlib
import html
import importlib
import importlib.util
import inspect
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers import models as tokenizer_models

pytest.importorskip("transformers")

from backends_under_test import COMPILED
from speculative.models import VOCAB, noisy, prompt, tiny

import microspec_kernels
from microspec_kernels import cli, ops, speculative

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
MODULES = [
    "microspec_kernels.engine",
    "microspec_kernels.integrations.transformers",
    "microspec_kernels.policy",
    "microspec_kernels.replay",
    "microspec_kernels.speculative",
]


class Times:
    """A condition for an engine's loop that is true `count` times."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __bool__(self) -> bool:
        self.count -= 1
        return self.count >= 0


def page_snippets(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def docstring_snippet(module: str) -> str:
    """Return the indented part of a module's docstring."""
    text = inspect.getdoc(importlib.import_module(module)) or ""
    lines = [line for line in text.splitlines() if line.startswith("    ") or not line]
    return textwrap.dedent("\n".join(lines))


def engine() -> dict[str, Any]:
    target = tiny()
    return {
        "target": target,
        "draft": noisy(target).model,
        "DRAFTS": 3,
        "prompt": prompt(9)[0],
        "text": prompt(9)[0],
        "generating": Times(3),
    }


class Graph:
    def replay(self) -> None:
        pass


def captured() -> dict[str, Any]:
    from microspec_kernels.engine import EngineHead, Settings

    weight = torch.randn(VOCAB, 32)
    return {
        "torch": SimpleNamespace(
            cuda=SimpleNamespace(CUDAGraph=Graph, graph=lambda graph: contextlib.nullcontext())
        ),
        "head": EngineHead(weight, Settings(capacity=64)),
        "hidden": weight[:2],
        "next_tokens": torch.full((2,), -1),
        "verified": lambda tokens: tokens,
        "generating": Times(2),
    }


def captured_loop() -> dict[str, Any]:
    """Return the names that README's loop defines, for the captured loop below it."""
    (loop,) = (code for code in page_snippets(ROOT / "README.md", "python") if "V, D =" in code)
    names: dict[str, Any] = {}
    exec(compile(loop, "README.md", "exec"), names)
    return {**names, "torch": SimpleNamespace(cat=torch.cat, cuda=captured()["torch"].cuda)}


def decoding() -> dict[str, Any]:
    """Return names for the loop's snippets; `_folder` replaces the functions that load models."""
    prompts = [prompt(9)[0], prompt(5, seed=1)[0]]
    return {"input_ids": prompts[0], "prompts": prompts}


def generate() -> dict[str, Any]:
    target = tiny()
    target.generation_config.max_new_tokens = 8
    assistant = noisy(target)
    ids = prompt(9)
    return {
        "target": target, "assistant": assistant, "draft": assistant, "input_ids": ids,
        "inputs": {"input_ids": ids},
    }  # fmt: skip


def texts() -> dict[str, Any]:
    return {
        "recent_outputs": [prompt(30, seed)[0] for seed in range(3)],
        "public_list": torch.arange(VOCAB),
        "vocab_size": 4096,
        "lm_head": torch.empty(4096, 8),
        "frequent_tokens": torch.arange(4096),
        "tree_tokens": torch.arange(5),
        "top_tokens": torch.zeros(5, 3).long(),
        "chosen": torch.arange(5),
    }


def learned() -> dict[str, Any]:
    words = {word: number for number, word in enumerate(("the", " a", "of"))}
    return {
        "vocab_size": VOCAB,
        "tokenizer": Tokenizer(tokenizer_models.WordLevel(words, "the")),
        "lm_head": torch.empty(VOCAB, 8),
        "request": 0,
        "prompt_tokens": prompt(9)[0],
        "accepted": torch.arange(3),
        "requests": torch.zeros(3, dtype=torch.int64),
    }


def attached() -> dict[str, Any]:
    weight = torch.randn(VOCAB, 32)
    draft = SimpleNamespace(lm_head=SimpleNamespace(weight=weight))
    tokens = torch.arange(5)
    return {"draft": draft, "prompt": tokens, "accepted": tokens, "hidden": weight[:2]}


def nvfp4() -> dict[str, Any]:
    frequent = torch.arange(0, VOCAB, 9)
    return {
        "codes": torch.zeros(VOCAB, 32, dtype=torch.uint8),
        "scales": torch.ones(VOCAB, 4).to(torch.float8_e4m3fn),
        "tensor_scale": 0.01,
        "vocab": microspec_kernels.ActiveVocab(VOCAB, 64, frequent_tokens=frequent, device="cpu"),
    }


# By a part of the snippet. A snippet without any of these parts runs alone.
STANDINS: dict[str, Callable[[], dict[str, Any]]] = {
    "head = EngineHead(target.lm_head": engine,
    "head = EngineHead(draft.lm_head": attached,
    "# writes `drafted`": captured_loop,
    "CUDAGraph()": captured,
    "learned_lists(": lambda: {**learned(), **generate()},
    "load_draft(": decoding,
    "sparse_assistant(": generate,
    "LearnedLists(": learned,
    "frequent_tokens": texts,
    "float4_e2m1fn_x2": nvfp4,
    "pytest.mark": lambda: {"pytest": pytest, "COMPILED": COMPILED},
}
PYTHON = [(page.name, code) for page in PAGES for code in page_snippets(page, "python")]
PYTHON += [(module, docstring_snippet(module)) for module in MODULES]


@pytest.fixture
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work offline in a folder with the files that the pages name, and clean up."""
    np.save(tmp_path / "frequent.npy", np.arange(VOCAB))
    ones, ends = np.ones(40, dtype=bool), np.array([0, 40])
    np.savez(tmp_path / "chat.npz", tokens=np.arange(40), generated=ones, offsets=ends)
    model = tiny()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(speculative, "load_target", lambda _: speculative.CausalModel(model))
    monkeypatch.setattr(speculative, "load_draft", lambda *_: noisy(model))
    yield


@pytest.mark.usefixtures("_folder")
@pytest.mark.parametrize(
    "code", [code for _, code in PYTHON], ids=[f"{name}-{i}" for i, (name, _) in enumerate(PYTHON)]
)
def test_a_snippet_runs(code: str) -> None:
    assert code.strip()
    standins = next((make() for part, make in STANDINS.items() if part in code), {})
    with torch.inference_mode():
        exec(compile(code, "snippet", "exec"), standins)


def test_every_page_shows_python() -> None:
    counts = {page.name: len(page_snippets(page, "python")) for page in PAGES}
    shown = {"README.md": 3, "engines.md": 4, "loop.md": 3, "policy.md": 1, "testing.md": 1}
    assert {name: count for name, count in counts.items() if count} == shown
    assert microspec_kernels.policy.count_frequent_tokens is not None


def test_the_loop_of_the_readme_counts_every_token() -> None:
    stats = captured_loop()["head"].stats()
    assert stats.hits + stats.misses == 8 * 4
    assert stats.active > 200


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub names them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


LINKED = [*PAGES, ROOT / "bench" / "RESULTS.md", ROOT / "examples" / "tiny_pair" / "README.md"]


@pytest.mark.parametrize("page", LINKED, ids=[str(page.relative_to(ROOT)) for page in LINKED])
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        other = (page.parent / name).resolve() if name else page
        assert other.exists(), link
        assert other.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(other), link


@pytest.mark.parametrize("page", LINKED, ids=[str(page.relative_to(ROOT)) for page in LINKED])
def test_named_files_exist(page: Path) -> None:
    folders = "bench|csrc|docs|examples|microspec_kernels|tests|triton_kernels"
    for path in re.findall(rf"(?<![\w./])(?:{folders})/[\w./*-]*\w", page.read_text()):
        assert list(ROOT.glob(path)) or path.endswith("isa_NAME.cpp"), path


def test_links_of_the_reference_lead_somewhere(tmp_path: Path) -> None:
    pytest.importorskip("pdoc")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(ROOT / "docs" / "reference.py"), str(tmp_path)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path})
    pages = {
        page: re.sub(r"<script.*?</script>", "", page.read_text(), flags=re.DOTALL)
        for page in tmp_path.rglob("*.html")
    }
    places = {page: set(re.findall(r'\bid="([^"]+)"', text)) for page, text in pages.items()}
    links = [(page, link) for page in pages for link in re.findall(r'href="([^"]+)"', pages[page])]
    assert len(links) > 100
    for page, link in links:
        if not re.match(r"[a-z]+:", link):
            name, _, anchor = link.partition("#")
            other = (page.parent / name).resolve() if name else page
            assert other in pages, f"{page.name}: {link}"
            assert not anchor or anchor in places[other], f"{page.name}: {link}"
    for op in ops.__all__:
        schema = html.escape(str(getattr(torch.ops.microspec, op).default._schema), quote=False)
        assert schema.replace("::", ".") in pages[tmp_path / "microspec_kernels" / "ops.html"]


def commands() -> Iterator[list[str]]:
    """Yield the words of each shell line and of all code in prose."""
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        lines = [line for code in page_snippets(page, "(?:sh)?") for line in code.splitlines()]
        prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
        for line in lines + re.findall(r"`([^`\n]+)`", prose):
            with contextlib.suppress(ValueError):  # an unclosed quote: not a command
                yield shlex.split(line, comments=True)


def options_of(command: str) -> set[str]:
    (commands,) = (
        action
        for action in cli._parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    return {name for action in commands.choices[command]._actions for name in action.option_strings}


def test_commands_exist() -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    seen = set()
    for words in commands():
        match words:
            case ["make", target, *_]:
                assert target in targets, f"make {target}"
            case ["microspec", command, *options] | [("replay" | "info") as command, *options]:
                assert command in cli.COMMANDS, f"microspec {command}"
                unknown = {word for word in options if word.startswith("--")} - options_of(command)
                assert not unknown, f"microspec {command}: {unknown}"
            case ["python", "-m", module, *_] if module.startswith("bench"):
                assert importlib.util.find_spec(module) is not None, module
            case _:
                continue
        seen.add(words[0])
    assert {"make", "microspec", "python", "replay", "info"} <= seen, seen


PUBLIC = ["microspec_kernels", "microspec_kernels.ops", "microspec_kernels.parallel", *MODULES]
VERBS = re.compile(
    "Accept|Add|Append|Apply|Begin|Build|Check|Choose|Compute|Continue|Convert|Copy|Count|Cut|Do|Draft|Draw|Fill|Forget|"
    "Gather|Join|Learn|Let|List|Load|Make|Map|Mark|Merge|Move|Order|Parse|Pin|Read|Reset|Return|Run|"
    "Select|Set|Take|Test|Write|Yield"
)


def public() -> dict[str, Any]:
    """Return what the public modules export, with the methods and properties of classes."""
    found = {}
    for module in PUBLIC:
        exports = importlib.import_module(module)
        for name in exports.__all__:
            entry = getattr(exports, name)
            if inspect.isfunction(entry) or inspect.isclass(entry):
                found[f"{module}.{name}"] = entry
            if inspect.isclass(entry):
                for base in entry.__mro__:
                    if base.__module__.startswith("microspec_kernels"):
                        members = [member for member in vars(base) if not member.startswith("_")]
                        found |= {
                            f"{module}.{name}.{member}": getattr(entry, member)
                            for member in members
                        }
    is_documented = (inspect.isfunction, inspect.ismethod, inspect.isclass)
    return {
        name: entry
        for name, entry in found.items()
        if isinstance(entry, property) or any(is_one(entry) for is_one in is_documented)
    }


def docstring(entry: Any) -> str:
    """Return an entry's docstring; methods inherit theirs, classes do not."""
    own = vars(entry).get("__doc__") if inspect.isclass(entry) else inspect.getdoc(entry)
    return inspect.cleandoc(own or "")


def test_everything_public_has_a_docstring() -> None:
    entries = public()
    assert len(entries) > 150
    # A dataclass without a docstring gets its signature as one.
    texts = {
        name: "" if text.startswith(f"{name.rpartition('.')[2]}(") else text
        for name, text in ((name, docstring(entry)) for name, entry in entries.items())
    }
    assert [name for name, text in texts.items() if not text] == []
    functions = [name for name in texts if not isinstance(entries[name], (property, type))]
    first = {name: texts[name].split()[0] for name in functions}
    assert {name: word for name, word in first.items() if not VERBS.fullmatch(word)} == {}
