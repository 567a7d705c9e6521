# SPDX-License-Identifier: Apache-2.0
"""Run ``python -m microspec_kernels.cli``, for systems where the command is not on the path."""

import sys

from . import main

sys.exit(main())
