# SPDX-License-Identifier: Apache-2.0
"""What `reading` makes of a parser's exception."""

import pytest

from microspec_kernels._files import reading


def test_a_missing_package_is_named_with_the_file_that_needs_it() -> None:
    with (
        pytest.raises(ImportError, match=r"^model\.bin: needs sentencepiece$"),
        reading("model.bin", "a tokenizer"),
    ):
        raise ImportError("\nneeds sentencepiece\nin a long text")
