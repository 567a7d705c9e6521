# SPDX-License-Identifier: Apache-2.0
"""The vLLM plugin: on if MICROSPEC or additional_config={"microspec": …} sets it.

docs/engines.md lists the supported setups and shows how to check that the plugin is on.
"""


def register() -> None:
    """Install the plugin.

    vLLM calls this in each of its processes (entry point group `vllm.general_plugins`).

    Raises:
        UnsupportedError: this vLLM or its setup is not supported.
    """
    from .plugin import install

    install()
