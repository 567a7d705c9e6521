"""How a plugin says no: so that no engine can go on as if nothing had been said."""


class Refused(SystemExit):
    """What was asked for cannot be done here; ends the process with this message.

    Engines swallow exceptions of their plugins and go on without them, and the user would never
    know. SystemExit they let through.
    """

    def __init__(self, where: str, expected: str, got: object) -> None:
        super().__init__(f"microspec: {where}: expected {expected}, got {got}")
