# SPDX-License-Identifier: LGPL-2.1-or-later
"""The timers of one session, each with a name."""

import asyncio
from collections.abc import Callable


class Timers:
    """Calls something later. Each name stands for one timer: to set it again moves it."""

    def __init__(self, fail: Callable[[BaseException], None]) -> None:
        """Have `fail` called with whatever a timer's callback raises. It is raised in the event loop, too."""
        self._loop = asyncio.get_running_loop()
        self._fail = fail
        self._set: dict[str, asyncio.TimerHandle] = {}

    def __contains__(self, name: str) -> bool:
        """Whether that timer is running, or has expired and was neither cancelled nor set again."""
        return name in self._set

    def set(self, name: str, delay: float, call: Callable[..., object], *arguments: object) -> None:
        """Call later, in `delay` seconds, instead of what the timer of that name would have called."""
        self.cancel(name)
        self._set[name] = self._loop.call_later(delay, self._expire, call, arguments)

    def cancel(self, name: str) -> None:
        """Forget the timer of that name, if there is one."""
        if (timer := self._set.pop(name, None)) is not None:
            timer.cancel()

    def stop(self) -> None:
        """Forget all."""
        for name in tuple(self._set):
            self.cancel(name)

    def _expire(self, call: Callable[..., object], arguments: tuple[object, ...]) -> None:
        try:
            call(*arguments)
        except BaseException as error:
            self._fail(error)
            raise
