"""The addresses that a server listens on: several sockets that serve as one."""

import errno
import ipaddress
import socket
from typing import Any, List, Sequence, Tuple

__all__ = ["Listener", "listen"]

_TRIES = 20  # to find a port that is free at all addresses
_LACKING = frozenset((errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT))  # a family or an address that this machine has not
_EVERYWHERE = (socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")
_LOOPBACKS = (socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")

_Address = Tuple[int, Any]  # its family, and a host or what bind takes


class Listener:
    """Sockets that listen on one port; what is common to all is that of the first one."""

    def __init__(self, sockets: Sequence[socket.socket]) -> None:
        self.sockets = list(sockets)

    def getsockname(self) -> Any:
        """Return the address of the first socket."""
        return self.sockets[0].getsockname()

    def setblocking(self, flag: bool) -> None:
        """Let all sockets wait, or none."""
        for sock in self.sockets:
            sock.setblocking(flag)

    def accept(self) -> Tuple[socket.socket, Any]:
        """Return a waiting connection of any socket; raises BlockingIOError where there is none."""
        for sock in self.sockets[1:]:
            try:
                return sock.accept()
            except BlockingIOError:
                pass
        return self.sockets[0].accept()

    def close(self) -> None:
        """Close all sockets."""
        for sock in self.sockets:
            sock.close()


def listen(host: str, port: int, backlog: int = 1024) -> Listener:
    """Return what listens on a port of an address, or of all addresses of a name; port 0 takes a free one.

    ``::`` is every address of both families, ``localhost`` both loopbacks, as far as this machine has them. Raises
    OSError.
    """
    addresses = _addresses(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
    for last in [port != 0] * (_TRIES - 1) + [True]:
        try:
            return _listening(addresses, port, backlog)
        except OSError as error:
            if last or error.errno != errno.EADDRINUSE:
                raise
    raise AssertionError("the last try raises")


def _listening(addresses: Sequence[_Address], port: int, backlog: int) -> Listener:
    sockets: List[socket.socket] = []
    lacking = None
    try:
        for family, address in addresses:
            bound = (address, port) if isinstance(address, str) else (address[0], port, *address[2:])
            try:
                sock = socket.create_server(bound, family=family, backlog=backlog)
            except OSError as error:
                if error.errno not in _LACKING:
                    raise
                lacking = lacking or error
                continue
            sockets.append(sock)
            port = sock.getsockname()[1]
        if not sockets and lacking is not None:
            raise lacking
    except BaseException:
        Listener(sockets).close()
        raise
    return Listener(sockets)


def _addresses(host: str) -> Sequence[_Address]:
    name = host.lower()[:-1] if host.endswith(".") else host.lower()
    if name == "localhost" or name.endswith(".localhost"):
        return _LOOPBACKS
    try:
        if ipaddress.ip_address(name) == ipaddress.IPv6Address("::"):
            return _EVERYWHERE
    except ValueError:
        pass  # a name, or an address in another spelling
    found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((int(family), address) for family, _, _, _, address in found))
