"""Ending a run early, without losing it."""

import signal
from types import FrameType


class Interrupted(Exception):
    """A signal asked the program to stop, and nothing is lost: `go_on` says what to call to go on."""

    def __init__(self, message: str, go_on: str):
        super().__init__(message)
        self.go_on = go_on


class StopSignals:
    """While entered, Ctrl-C, SIGTERM and SIGUSR1 only set `received`, to be looked at between two steps.

    A second Ctrl-C stops at once, for whoever cannot wait for the step to end.
    """

    def __init__(self):
        self.received: str | None = None
        self._previous = {}

    def __enter__(self) -> "StopSignals":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
