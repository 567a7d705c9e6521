# SPDX-License-Identifier: Apache-2.0
"""Use an installed wheel: its compiled ops against PyTorch's, on every device that is there."""

import sys
from importlib.metadata import files

import torch

import microspec_kernels


def check(device: str) -> None:
    """Small integers, so that every sum is exact."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-3, 4, (500, 64), generator=generator).float().to(device)
    hidden = torch.randint(-3, 4, (6, 64), generator=generator).float().to(device)
    vocab = microspec_kernels.ActiveVocab(500, 40, device=device)
    vocab.update(torch.arange(100, 140, device=device))
    vocab.update(torch.tensor([499, 7, 123], device=device))
    ids = vocab.ids.flatten()
    assert {499, 7, 123} < set(ids.tolist()) and not {100, 101} & set(ids.tolist())

    logits = hidden @ weight[ids].T
    torch.testing.assert_close(torch.ops.microspec.sparse_logits(hidden, weight, ids), logits)
    best, tokens, logsumexp = torch.ops.microspec.sparse_head(hidden, weight, ids, 5)
    torch.testing.assert_close(best, logits.topk(5).values)
    torch.testing.assert_close((hidden[:, None] * weight[tokens]).sum(-1), best)
    torch.testing.assert_close(logsumexp, logits.logsumexp(-1))

    rows, row_ids = torch.zeros_like(weight[ids]), torch.full_like(ids, -1)
    torch.ops.microspec.gather_rows_(rows, row_ids, weight, ids)
    torch.testing.assert_close(rows, weight[ids])


def main() -> None:
    installed = [str(file) for file in files("microspec-kernels") or []]
    assert any(name.endswith(".cdx.json") for name in installed), "no list of contents"
    assert microspec_kernels.backend() in ("cpu", "cuda"), microspec_kernels.backend()
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    for device in devices:
        check(device)
    print(f"ok: Python {sys.version.split()[0]}, torch {torch.__version__}, {', '.join(devices)}")


main()
