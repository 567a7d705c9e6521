# SPDX-License-Identifier: Apache-2.0
"""The active vocabulary inside other inference loops: transformers, vLLM and SGLang."""
