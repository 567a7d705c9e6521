# SPDX-License-Identifier: Apache-2.0
"""Files that only a service or another tool reads: they parse, and agree with pyproject.toml."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")  # comes with transformers

ROOT = Path(__file__).parents[1]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def parsed(path: Path) -> dict[str, Any]:
    content = yaml.safe_load(path.read_text())
    assert isinstance(content, dict), path
    return content


def lint_extra() -> set[str]:
    (line,) = re.findall(r"^lint = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    return set(re.findall(r'"(.*?)"', line))


def steps(workflow: Path) -> list[dict[str, Any]]:
    return [step for job in parsed(workflow)["jobs"].values() for step in job["steps"]]


def make_targets(workflow: Path) -> set[str]:
    commands = "\n".join(step.get("run", "") for step in steps(workflow))
    return set(re.findall(r"^make ([\w-]+)", commands, re.MULTILINE))


def test_pre_commit_has_the_linters_of_the_lint_extra() -> None:
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    assert set(re.findall(r"[\w-]+==\d+(?:\.\d+)*", text)) == lint_extra()
    (repository,) = parsed(ROOT / ".pre-commit-config.yaml")["repos"]
    names = {hook["entry"].split()[0].split("/")[-1] for hook in repository["hooks"]}
    assert names == {requirement.split("==")[0] for requirement in lint_extra()}
    for hook in repository["hooks"]:
        assert bool(hook.get("additional_dependencies")) == (hook["language"] == "python"), hook


def test_the_version_is_the_last_released_one_or_the_next_in_development() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$", changelog, re.MULTILINE)
    assert released, "CHANGELOG.md names no released version"
    coming = re.findall(r"^## \[Unreleased\]\n\nTo be (\S+)\.$", changelog, re.MULTILINE)
    expected = f"{coming[0]}.dev0" if coming else released[0]
    assert f'\nversion = "{expected}"\n' in (ROOT / "pyproject.toml").read_text()
    assert parsed(ROOT / "CITATION.cff")["version"] == released[0]


def test_the_citation_names_the_licence_and_the_paper() -> None:
    citation = parsed(ROOT / "CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert f'\nlicense = "{citation["license"]}"\n' in (ROOT / "pyproject.toml").read_text()
    (paper,) = citation["references"]
    assert {"type", "title", "authors"} <= paper.keys()
    assert paper["url"] in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("form", FORMS, ids=[form.name for form in FORMS])
def test_an_issue_form_is_complete(form: Path) -> None:
    content = parsed(form)
    assert {"name", "description", "body"} <= content.keys()
    names = [element["id"] for element in content["body"]]
    assert len(set(names)) == len(names)
    assert all(element["attributes"]["label"] for element in content["body"])


def test_there_are_two_issue_forms() -> None:
    assert [form.name for form in FORMS] == ["bug.yml", "feature.yml"]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=[workflow.name for workflow in WORKFLOWS])
def test_a_workflow_is_complete(workflow: Path) -> None:
    content = parsed(workflow)
    assert content[True], "`on` is true in YAML 1.1"
    assert content["permissions"] == {"contents": "read"}
    for name, job in content["jobs"].items():
        assert job["runs-on"] and job["steps"], name
    for step in steps(workflow):
        assert ("uses" in step) != ("run" in step), step
        assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step.get("uses", "a/b@v1")), step


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=[workflow.name for workflow in WORKFLOWS])
def test_a_workflow_calls_targets_that_exist(workflow: Path) -> None:
    existing = re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    targets = make_targets(workflow)
    assert targets and targets <= set(existing)


def test_ci_runs_what_a_change_must_pass() -> None:
    targets = make_targets(ROOT / ".github" / "workflows" / "ci.yml")
    required = re.findall(r"^make ([\w-]+)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert {*required, "test-oldest", "test-wheel", "docs"} <= targets


@pytest.mark.skipif(sys.version_info < (3, 11), reason="needs tomllib")
def test_ci_runs_the_oldest_and_the_newest_python() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    jobs = parsed(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]
    versions = {
        name: step["with"]["python-version"]
        for name, job in jobs.items()
        for step in job["steps"]
        if "python-version" in step.get("with", {})
    }
    (wheel,) = re.findall(r"^WHEEL_PYTHON \?= python(.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert project["requires-python"] == f">={versions['oldest']}"
    assert versions["newest"] == wheel
