"""Inside SGLang, by its plugins: off unless MICROSPEC asks for it. docs/engines.md says what it
serves and how to see that it is on."""


def register() -> None:
    """SGLang calls this in each of its processes (entry point group `sglang.srt.plugins`).

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
