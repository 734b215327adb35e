"""The time limits of a call in one value, which says what is left of them."""

import time
from typing import Optional

__all__ = ["Limits", "TimedOut"]


class TimedOut(Exception):
    """A limit has passed: ``which`` is "connect", "silence" or "deadline"."""

    def __init__(self, which: str) -> None:
        super().__init__("the %s limit has passed" % which)
        self.which = which


class Limits:
    """How long a call may take, in seconds; ``None`` is for ever.

    `connect` counts until a connection is made, TLS included; `silence` is each wait for a byte, or for room to send
    one; `deadline`, an instant of time.monotonic, is the end of it all.
    """

    __slots__ = ("connect", "silence", "deadline")

    def __init__(
        self,
        connect: Optional[float] = None,
        silence: Optional[float] = None,
        deadline: Optional[float] = None,
    ) -> None:
        self.connect = connect
        self.silence = silence
        self.deadline = deadline

    def connecting(self) -> "Limits":
        """Return the limits of making a connection that begins now."""
        connect, deadline = self.connect, self.deadline
        if connect is not None:
            end = time.monotonic() + connect
            deadline = end if deadline is None else min(end, deadline)
        return Limits(connect, None, deadline)

    def left(self) -> Optional[float]:
        """Return how long the next wait may be; raises TimedOut when the deadline has passed."""
        if self.deadline is None:
            return self.silence
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimedOut("deadline")
        return left if self.silence is None else min(left, self.silence)

    def over(self) -> TimedOut:
        """Return the error for a wait that was in vain."""
        passed = self.deadline is not None and time.monotonic() >= self.deadline
        return TimedOut("deadline" if passed else "silence")
