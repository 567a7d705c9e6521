# SPDX-License-Identifier: Apache-2.0
"""Run calls of an instrumented module, read from stdin; sanitized.py starts this process.

The worker writes each call's name to stderr before the sanitizer can report on it. It writes the
arrays' contents after each call to the file that the second argument names.
"""

import importlib
import pickle
import sys
from typing import Any

import numpy as np


def exact(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Copy the array, with the same strides, into memory that ends with its last element."""
    steps = zip(array.shape, array.strides, strict=True)
    extent = sum((n - 1) * s for n, s in steps) + array.itemsize if array.size else 0
    memory = np.empty(extent, np.uint8)
    copy = np.ndarray(array.shape, array.dtype, memory, strides=array.strides)
    copy[...] = array
    return copy


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    results = []
    for call in pickle.load(sys.stdin.buffer):
        print(f"=== {call['name']}", file=sys.stderr, flush=True)
        module = importlib.import_module(call["module"])
        module.configure(**call["settings"])
        arguments = [exact(a) if isinstance(a, np.ndarray) else a for a in call["arguments"]]
        options = {
            name: exact(value) if isinstance(value, np.ndarray) else value
            for name, value in call["options"].items()
        }
        getattr(module, call["function"])(*arguments, **options)
        results.append(arguments + list(options.values()))
    print("=== end", file=sys.stderr, flush=True)
    with open(sys.argv[2], "wb") as file:
        pickle.dump(results, file)


if __name__ == "__main__":
    main()
