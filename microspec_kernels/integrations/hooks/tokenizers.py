# SPDX-License-Identifier: Apache-2.0
"""Load the tokenizer that an engine serves, without network."""

import logging
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def local_tokenizer(model: str | None, revision: str | None = None) -> Any | None:
    """Return the `tokenizers.Tokenizer` of a model; None if there is no local tokenizer.json.

    Args:
        model: a folder, or a name on the Hugging Face hub whose files are in the local cache.
        revision: the hub's revision.
    """
    if not model:
        return None
    try:
        from tokenizers import Tokenizer

        path = Path(model, "tokenizer.json")
        if not path.is_file():
            from huggingface_hub import try_to_load_from_cache

            found = try_to_load_from_cache(model, "tokenizer.json", revision=revision)
            if not isinstance(found, str):
                return None
            path = Path(found)
        return Tokenizer.from_file(str(path))
    except Exception as error:
        # Without a tokenizer the lowest ids are the prior, so no engine needs to end.
        logger.warning("MicroSpec: the tokenizer of %s is not read: %s", model, error)
        return None
