# SPDX-License-Identifier: Apache-2.0
"""The types and docstrings that editors and mypy see for the ops."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from schemas import SCHEMAS

import microspec_kernels
from microspec_kernels import ops, torch_ops

PACKAGE = Path(microspec_kernels.__file__).parent

GOOD = """
import torch
from microspec_kernels import torch_ops

x, ids = torch.zeros(2, 8), torch.zeros(6, dtype=torch.int32)
logits, tokens, logsumexp = torch_ops.sparse_head(x, x, ids, 4, packed=True, softcap=30.0)
every: torch.Tensor = torch_ops.sparse_logits(x, x, ids, group_ids=None) + logits + logsumexp
torch_ops.gather_rows_(x, ids, x, ids, slab_scale=None)
torch_ops.vocab_update_(ids, ids, ids, ids, ids, token_groups=ids)
"""


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_schema_is_the_functions_signature(name: str) -> None:
    """The stub gives each op the type of its function."""
    signature = inspect.signature(getattr(ops, name))
    op = getattr(torch_ops, name)
    assert op is getattr(torch.ops.microspec, name)
    assert inspect.getdoc(op) == inspect.getdoc(getattr(ops, name))
    none = inspect.Parameter.empty
    arguments = [
        (a.name, a.kwarg_only, a.default_value if a.has_default_value() else none)
        for a in op.default._schema.arguments
    ]
    assert arguments == [
        (p.name, p.kind is p.KEYWORD_ONLY, p.default) for p in signature.parameters.values()
    ]


@pytest.mark.slow  # mypy reads torch
def test_mypy_sees_the_types(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(GOOD)
    bad = GOOD.replace("ids, 4,", "ids, 4.5,").replace("slab_scale=", "scales=")
    bad = bad.replace("group_ids=", "groups=").replace("token_groups=", "of_token=")
    (tmp_path / "bad.py").write_text(bad)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "good.py", "bad.py"]
    command += ["--follow-imports=silent", f"--cache-dir={tmp_path}"]
    environment = {"MYPYPATH": str(PACKAGE.parent), "PATH": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if "error:" in line]
    assert [line.partition(":")[0] for line in lines] == ["bad.py"] * 4, done.stdout + done.stderr
    assert 'has incompatible type "float"; expected "int"' in lines[0]
    assert 'Unexpected keyword argument "groups" for "sparse_logits"' in lines[1]
    assert 'Unexpected keyword argument "scales" for "gather_rows_"' in lines[2]
    assert 'Unexpected keyword argument "of_token" for "vocab_update_"' in lines[3]
