# SPDX-License-Identifier: Apache-2.0
"""The dtypes of rows, and what their scales are."""

import torch

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
QUANTISED = (torch.int8, torch.float8_e4m3fn)  # one fp32 scale a row
# Rows of 4 bits: int4, two columns a byte, the even one in the low half, and a bf16 scale for each
# INT4_GROUP columns.
INT4 = torch.uint8
INT4_GROUP = 32
# The layout of nvfp4: e2m1, also two columns a byte, and an e4m3 scale for each E2M1_GROUP columns.
E2M1 = torch.float4_e2m1fn_x2
E2M1_GROUP = 16
# For each dtype of 4-bit rows: the columns that share a scale, and its dtype.
FOUR_BIT = {INT4: (INT4_GROUP, torch.bfloat16), E2M1: (E2M1_GROUP, torch.float8_e4m3fn)}


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
