# SPDX-License-Identifier: Apache-2.0
"""Convert text to tokens and back with Mistral's Tekken or a checkpoint's tokenizer."""

from pathlib import Path
from typing import Any, Protocol

from microspec_kernels._files import reading
from microspec_kernels._optional import require

BOS, INST, INST_END = 1, 3, 4  # Tekken's <s>, [INST] and [/INST]


class Tokenizer(Protocol):
    """A tokenizer of texts; `tokenizer` is the library's own object."""

    tokenizer: Any

    def encode(self, prompt: str) -> list[int]: ...
    def decode(self, tokens: list[int]) -> str: ...


class Tekken:
    """Mistral's Tekken from the package mistral-common, with its instruction format."""

    def __init__(self) -> None:
        package = Path(require("mistral_common", "demo").__file__).parent
        tekken = require("mistral_common.tokens.tokenizers.tekken", "demo")
        self.tokenizer = tekken.Tekkenizer.from_file(package / "data" / "tekken_240911.json")
        self._specials = tekken.SpecialTokenPolicy.IGNORE

    def encode(self, prompt: str) -> list[int]:
        text = self.tokenizer.encode(prompt, bos=False, eos=False)
        return [BOS, INST, *text, INST_END]

    def decode(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, special_token_policy=self._specials))


class HuggingFace:
    """A checkpoint's tokenizer, with its chat template if it has one."""

    def __init__(self, name: str) -> None:
        self._name, transformers = name, require("transformers", "speculative")
        with reading(name, "a tokenizer"):
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(name)

    def encode(self, prompt: str) -> list[int]:
        if self.tokenizer.chat_template is None:
            return list(self.tokenizer.encode(prompt))
        message = [{"role": "user", "content": prompt}]
        with reading(self._name, "a chat template that takes one message of a user"):
            text = self.tokenizer.apply_chat_template(
                message, tokenize=False, add_generation_prompt=True
            )
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def decode(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))


def load_tokenizer(name: str) -> Tokenizer:
    """Load Tekken for the name "tekken", else the tokenizer of a folder or of the hub."""
    return Tekken() if name == "tekken" else HuggingFace(name)
