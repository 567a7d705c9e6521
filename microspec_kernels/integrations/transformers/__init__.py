# SPDX-License-Identifier: Apache-2.0
"""Hugging Face's `generate`: a sparse LM head for assisted generation, or the reference loop.

    from microspec_kernels.integrations.transformers import microspec_generate, sparse_assistant

    with sparse_assistant(assistant, target):
        target.generate(input_ids, assistant_model=assistant)

    target.generate(input_ids, custom_generate=microspec_generate(draft, head="sparse"))

Requires transformers 4.56 or later and patches nothing in it: `sparse_assistant` sets hooks on the
two models, and `microspec_generate` returns a callable.
"""

from .assistant import sparse_assistant
from .custom import microspec_generate

__all__ = ["microspec_generate", "sparse_assistant"]
