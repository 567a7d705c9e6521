"""Inside SGLang, by its plugins: off unless MICROSPEC asks for it. docs/engines.md says what it
serves and how to see that it is on."""


def register() -> None:
    """SGLang calls this in each of its processes (entry point group `sglang.srt.plugins`).

    Raises:
        Refused: what was asked for cannot be done with this SGLang. No other exception, as SGLang
            would swallow it.
    """
    from microspec_kernels.integrations.engine import SWITCH, Refused

    try:
        from .plugin import install

        install()
    except Exception as error:
        raise Refused(f"sglang: {SWITCH}", "a plugin that loads", repr(error)) from error
