# SPDX-License-Identifier: Apache-2.0
"""Python imports this file at its start if its folder is on the path: install the stand-in."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))

import fake_cuda

_installed = fake_cuda.installed()  # kept, or the context would end here
_installed.__enter__()
