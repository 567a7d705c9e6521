#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# sglang_environment.sh PYTHON FOLDER: make an environment with SGLang for machines without a GPU.
# It has the requirements that SGLang imports there, none of CUDA; sglang_standin replaces the rest.
set -eu
"$1" -m venv "$2"
pip="$2/bin/pip"
"$pip" install --quiet 'torch==2.13.0' 'triton>=3.4' 'setuptools>=77'
"$pip" install --quiet --no-deps 'sglang==0.5.23'
"$2/bin/python" - >"$2/requirements.txt" <<'END'
import re
from importlib.metadata import requires

absent = re.compile(
    "torch|cuda|nvidia-(?!ml-py)|nvshmem|flash|humming|quack|sgl|smg|tilelang|timm|tml|deepseek"
)
for requirement in requires("sglang"):
    if not absent.match(requirement) and "extra ==" not in requirement:
        print(requirement)
END
"$pip" install --quiet --requirement "$2/requirements.txt"
