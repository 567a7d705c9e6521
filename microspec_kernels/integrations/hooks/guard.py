# SPDX-License-Identifier: Apache-2.0
"""Keep the server running when a hook fails after the start."""

import logging
from collections.abc import Callable
from typing import TypeVar

from .unsupported import UnsupportedError

Result = TypeVar("Result")


class Guard:
    """Runs a draft's hooks; the first one that fails after the start is the last.

    What fails before the start ends the engine. So does what fails on one of several ranks: the
    others would wait for this one.

    Args:
        logger: a logger that the engine shows.
        alone: whether no other rank shares the draft's LM head.
        then: what the draft does after a failure, for the log.
        fall_back: called after a failure.

    Attributes:
        started: whether failures pass.
        failed: whether a hook has failed, so that the others do nothing any more.
    """

    def __init__(
        self,
        logger: logging.Logger,
        *,
        alone: bool,
        then: str,
        fall_back: Callable[[], None] = lambda: None,
    ) -> None:
        self._logger, self._alone, self._then, self._fall_back = logger, alone, then, fall_back
        self.started = self.failed = False

    def start(self) -> None:
        """Let later failures pass. Call when the engine is ready for requests."""
        self.started = True

    def run(self, hook: Callable[[], Result], otherwise: Callable[[], Result]) -> Result:
        """Return the hook's result, or that of `otherwise` if the hook failed or one did before.

        Raises:
            UnsupportedError, Exception: the hook's own, before the start or with several ranks.
        """
        if not self.failed:
            try:
                return hook()
            except (Exception, UnsupportedError) as error:
                if not self.started or not self._alone:
                    raise
                self.failed = True
                self._logger.exception(
                    "MicroSpec: failed, and is off from now on: %s: %s", self._then, error
                )
                self._fall_back()
        return otherwise()
