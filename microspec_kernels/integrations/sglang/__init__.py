# SPDX-License-Identifier: Apache-2.0
"""The SGLang plugin: on if MICROSPEC sets it.

docs/engines.md lists the supported setups and shows how to check that the plugin is on.
"""


def register() -> None:
    """Install the plugin.

    SGLang calls this in each of its processes (entry point group `sglang.srt.plugins`).

    Raises:
        UnsupportedError: this SGLang or its setup is not supported. SGLang would catch any other
            exception.
    """
    from microspec_kernels.engine import SWITCH
    from microspec_kernels.integrations.hooks import UnsupportedError

    try:
        from .plugin import install

        install()
    except Exception as error:
        raise UnsupportedError(f"sglang: {SWITCH}", "a plugin that loads", repr(error)) from error
