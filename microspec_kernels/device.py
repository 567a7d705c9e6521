# SPDX-License-Identifier: Apache-2.0
"""Name the device on which figures are measured."""

import platform
import re
from pathlib import Path

import torch

from ._library import instruction_set


def device_name() -> str:
    """Name the GPU; without one, name the CPU, its threads and its instruction set."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"{cpu_name()}, {torch.get_num_threads()} threads, {instruction_set()}"


def cpu_name() -> str:
    """Name the CPU with family and model: a virtual machine's CPU name often hides them."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    pattern = r"^(model name|cpu family|model)\s*: (.*)$"
    fields: dict[str, str] = dict(re.findall(pattern, text, re.MULTILINE))
    name = fields.get("model name", platform.machine())
    if "cpu family" not in fields:
        return name
    return f"{name} (family {fields['cpu family']}, model {fields['model']})"
