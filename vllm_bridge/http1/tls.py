"""TLS over a socket that does not block, with the few methods of one."""

import socket
import ssl
from typing import Any, Callable, Tuple, Union

__all__ = ["TLSSocket", "client_context"]

_BLOCK = 65536


def client_context(authorities: Union[bool, str], cert: Union[None, str, Tuple[str, str]] = None) -> ssl.SSLContext:
    """Return how servers are checked, and who we say we are.

    `authorities` is a bundle or a folder of certificates, True for the system's, False to check nothing; `cert` a file
    with certificate and key, or one of each. Raises OSError.
    """
    import os

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if authorities is False:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif authorities is True:
        context.load_default_certs()
    elif os.path.isdir(authorities):
        context.load_verify_locations(capath=authorities)
    else:
        context.load_verify_locations(authorities)
    if cert is not None:
        context.load_cert_chain(*((cert,) if isinstance(cert, str) else cert))
    return context


class TLSSocket:
    """What is said over a socket, encrypted; every method raises BlockingIOError where the socket would block.

    The TLS is done in memory (``ssl.MemoryBIO``), so that the socket stays one: it can be waited for, and shut down by
    another thread, like any other.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, host: str) -> None:
        self._socket = sock
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._unsent = b""
        self._ended = False

    def handshake(self) -> None:
        """Go on with the handshake; raises ssl.SSLError."""
        self._run(self._tls.do_handshake)
        self.flush()

    def pending(self) -> bool:
        """Tell whether something may be read without waiting for the socket."""
        return bool(self._tls.pending() or self._incoming.pending)

    def recv(self, size: int) -> bytes:
        """Return what is there, ``b""`` at the end, whether or not TLS was ended in order."""
        try:
            data: bytes = self._run(self._tls.read, size)
        except ssl.SSLZeroReturnError:
            return b""
        except ssl.SSLError:
            if self._ended:
                return b""
            raise
        return data

    def send(self, data: Any) -> int:
        """Take some of the data, unless what was taken before has yet to leave; return how much."""
        self.flush()
        count: int = self._run(self._tls.write, data[:_BLOCK])
        try:
            self.flush()
        except BlockingIOError:
            pass  # taken all the same
        return count

    def flush(self) -> None:
        """Send all that was taken."""
        self._unsent += self._outgoing.read()
        while self._unsent:
            self._unsent = self._unsent[self._socket.send(self._unsent):]

    def _run(self, step: Callable[..., Any], *args: Any) -> Any:
        while True:
            try:
                return step(*args)
            except ssl.SSLWantReadError:
                if self._ended:
                    raise
                try:
                    self.flush()
                except BlockingIOError:
                    pass  # the answer of a handshake, or to an update of keys, is small: there is room soon
                data = self._socket.recv(_BLOCK)
                if data:
                    self._incoming.write(data)
                else:
                    self._ended = True
                    self._incoming.write_eof()
