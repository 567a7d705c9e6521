# SPDX-License-Identifier: Apache-2.0
"""How does every benchmark make its inputs, check results, time calls and report figures?

Nothing here is a program. Models and sizes are in models.py and sizes.py, inputs in inputs.py, the
check of a head in head_check.py, timing in cuda_graphs.py (and microspec_kernels/timing.py),
command lines in options.py, CSV files in report.py (written) and figures.py (read). limited.py ends
a program that takes too long, archive.py packs its files.
"""
