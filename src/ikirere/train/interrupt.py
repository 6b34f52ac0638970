"""Ctrl-C between steps, not in the middle of one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any


class Interrupts:
    """A context in which the first Ctrl-C only sets `asked`; a second one acts at once. SIGTERM is treated alike where
    the program handles it. Outside the main thread, where no signal arrives, it does nothing.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.asked = False
        self._say = say
        self._signal = signal.SIGINT
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if callable(before := signal.getsignal(number)):
                    self._before[number] = before
                    signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def deliver(self) -> None:
        """Does what the signal would have done; raises KeyboardInterrupt where that raises nothing."""
        if self._signal in self._before:
            self._before[self._signal](self._signal, None)
        raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._signal = signal.Signals(number)
        if self.asked:
            self.deliver()
        self.asked = True
        self._say("interrupted: finishing this step and writing a checkpoint; once more stops at once")
