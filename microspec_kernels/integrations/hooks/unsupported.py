"""The error that ends an engine whose setup a plugin does not support."""


class UnsupportedError(SystemExit):
    """End the process with a message: the plugin does not support this setup.

    Engines catch their plugins' exceptions and go on without the plugin, and the user would never
    know. They let SystemExit through.
    """

    def __init__(self, where: str, expected: str, got: object) -> None:
        super().__init__(f"microspec: {where}: expected {expected}, got {got}")
