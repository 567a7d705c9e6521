# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of 4-bit rows measure what they say."""

import pytest
import torch

from bench.decoding import slab_dtypes
from bench.harness import models
from bench.ops import int4_capacity
from microspec_kernels import policy


def test_the_arms_read_the_bytes_of_their_rows() -> None:
    lines = int4_capacity.measure(models.TOY, 64, [1, 3], 3)
    dim = models.TOY.dim
    bf16, int4 = 64 * dim * 2, 64 * (dim // 2 + dim // 32 * 2)
    assert [(line["M"], line["arm"], line["bytes"]) for line in lines] == [
        (m, arm, size)
        for m in (1, 3)
        for arm, size in (
            ("bf16, K = 64", bf16),
            ("int4, K = 64", int4),
            ("int4, K = 256", 4 * int4),
            ("nvfp4, K = 64", int4),
            ("nvfp4, K = 256", 4 * int4),
        )
    ]


def test_each_slab_drafts_for_the_same_texts_with_the_default_policy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policies, heads = [], []
    generate = slab_dtypes.generate

    def recorded(*arguments, **options):
        policies.append(options["policy"])
        heads.append(options["head"])
        return generate(*arguments, **options)

    monkeypatch.setattr(slab_dtypes, "generate", recorded)
    lines = slab_dtypes.compare([[1, 3, 4, 2000]], 4, 256, "cpu")
    assert [(line["temperature"], line["slab"]) for line in lines] == [
        (0.0, "fp32"), (0.0, "int4"), (1.0, "fp32"), (1.0, "int4"),
    ]  # fmt: skip
    assert [line["same_texts"] for line in lines] == [1] * 4
    *_, frequent_tokens = slab_dtypes.load_pair("cpu")
    expected = policy.default(frequent_tokens)
    for used in policies:
        assert used.sources == expected.sources
        assert torch.equal(torch.as_tensor(used.frequent_tokens), frequent_tokens)
    slabs = [head.head.slab for head in heads]
    assert [slab.rows.dtype for slab in slabs] == [torch.float32, torch.uint8] * 2
