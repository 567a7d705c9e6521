"""The active vocabulary inside other inference loops: transformers, vLLM and SGLang."""
