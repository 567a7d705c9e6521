# SPDX-License-Identifier: Apache-2.0
"""The emulated ops take arrays only of the types that stand for an element type."""

from typing import Any

import numpy as np
import pytest
from emulated import load


@pytest.mark.parametrize("wrong", [np.float64, np.int16, np.int32, np.bool_])
@pytest.mark.parametrize("argument", ["hidden", "weight"])
def test_an_array_of_another_type_is_an_error(argument: str, wrong: Any) -> None:
    arrays = {"hidden": np.zeros((1, 4), np.float32), "weight": np.zeros((3, 4), np.float32)}
    arrays[argument] = arrays[argument].astype(wrong)
    results = np.zeros((1, 2), np.float32), np.zeros((1, 2), np.int64), np.zeros(1, np.float32)
    ids = np.arange(3, dtype=np.int32)
    name = f"{np.dtype(wrong).kind}{np.dtype(wrong).itemsize}"
    with pytest.raises(TypeError, match=f"element_type: expected f4, .* or S1, got {name}$"):
        load().sparse_head(*results, *arrays.values(), ids, 2)
