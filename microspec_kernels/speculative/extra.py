"""The optional dependencies of this folder: the `speculative` extra."""

from functools import partial

from microspec_kernels import _extras

require = partial(_extras.require, extra="speculative")
