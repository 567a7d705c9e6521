# SPDX-License-Identifier: Apache-2.0
"""The error that ends an engine whose setup a plugin does not support."""


class UnsupportedError(SystemExit):
    """End the process with a message: the plugin does not support this setup.

    Derives from SystemExit because engines catch other exceptions of their plugins and run on
    without the plugin, unnoticed by the user.

    Args:
        where: the engine and the option.
        expected: the supported value.
        got: the actual value.
    """

    def __init__(self, where: str, expected: str, got: object) -> None:
        super().__init__(f"microspec: {where}: expected {expected}, got {got}")
