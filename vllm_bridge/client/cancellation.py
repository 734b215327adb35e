"""The handle that breaks calls off."""

from typing import Any, Optional, Set, Tuple

from ..http1.connection import Exchange

__all__ = ["Cancellation"]


class Cancellation:
    """A handle that breaks calls off from another thread: pass it to ``with_options(cancel=...)``.

    `cancel` closes the connections of the calls under way, also while they wait for their first byte; they and all
    later calls with this handle raise `RequestCancelledError`. A signal's handler may call it too: there is no lock
    that the interrupted call could hold.
    """

    def __init__(self) -> None:
        self._exchanges: Set[Exchange] = set()
        self._why: Optional[str] = None

    def __reduce__(self) -> Tuple[Any, ...]:
        return Cancellation, ()  # the calls under way are not the copy's

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` has been called."""
        return self._why is not None

    @property
    def why(self) -> Optional[str]:
        """The reason given to `cancel`, or ``None``."""
        return self._why

    def cancel(self, why: str = "the call was cancelled") -> None:
        """Break off every call that uses this handle."""
        if self._why is None:
            self._why = why
        for exchange in list(self._exchanges):  # copied in one step, whatever other threads add meanwhile
            exchange.cancel(self._why)

    def add(self, exchange: Exchange) -> None:
        """Cover an exchange; cancels it at once if `cancel` has been called."""
        self._exchanges.add(exchange)
        if self._why is not None:
            exchange.cancel(self._why)

    def discard(self, exchange: Exchange) -> None:
        """Stop covering an exchange."""
        self._exchanges.discard(exchange)
