# SPDX-License-Identifier: Apache-2.0
"""Sizes that every benchmark measures at, unless its command line says otherwise."""

from microspec_kernels import policy

CAPACITY = policy.CAPACITY  # K, tokens in the active vocabulary
LEVEL = 10  # M, rows of hidden at one level of EAGLE-2's tree
K_BEST = 10  # k, tokens that the head returns for each row
STATIC = 32768  # rows of FR-Spec's static head
CHANGED = 128  # tokens of one step that are new to the vocabulary
QUICK_CAPACITY = 300  # K of --quick, for models.TOY

ROUNDS, QUICK_ROUNDS = 31, 3
SHORT_ROUNDS, QUICK_SHORT_ROUNDS = 301, 11  # of calls on a CPU that take microseconds
