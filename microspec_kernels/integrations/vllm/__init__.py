"""Inside vLLM, by its plugins: off unless MICROSPEC or additional_config={"microspec": …} asks for
it. docs/engines.md says what it serves and how to see that it is on."""


def register() -> None:
    """vLLM calls this in each of its processes (entry point group `vllm.general_plugins`).

    Raises:
        Refused: what was asked for cannot be done with this vLLM.
    """
    from .plugin import install

    install()
