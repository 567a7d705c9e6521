"""Inside vLLM, by its plugins: off unless MICROSPEC or additional_config={"microspec": …} asks for
it. docs/engines.md says what it serves and how to see that it is on."""


def register() -> None:
    """vLLM calls this in each of its processes (entry point group `vllm.general_plugins`).

    Raises:
        UnsupportedError: this vLLM or its setup is not supported.
    """
    from .plugin import install

    install()
