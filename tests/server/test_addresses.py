"""Where a server listens."""

import errno
import socket
from typing import Any, List, Tuple

import pytest

from serving import Client, serving
from vllm_bridge.server.addresses import listen


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


SIX = has_ipv6()


@pytest.mark.parametrize("host, expected", [
    ("127.0.0.1", ["127.0.0.1"]), ("127.1", ["127.0.0.1"]), ("0.0.0.0", ["0.0.0.0"]), ("::1", ["::1"]),
    ("[::1]", ["::1"]), ("::", ["::", "0.0.0.0"]), ("[::]", ["::", "0.0.0.0"]), ("0:0::0", ["::", "0.0.0.0"]),
    ("localhost", ["127.0.0.1", "::1"]), ("LocalHost.", ["127.0.0.1", "::1"]), ("a.localhost", ["127.0.0.1", "::1"]),
])
def test_addresses_of_a_host(host: str, expected: List[str]) -> None:
    if not SIX:
        expected = [address for address in expected if ":" not in address]
        if not expected:
            pytest.skip("this machine has no IPv6")
    listener = listen(host, 0)
    try:
        names = [sock.getsockname() for sock in listener.sockets]
        assert [name[0] for name in names] == expected
        assert len({name[1] for name in names}) == 1 and names[0] == listener.getsockname()
        for name in expected:
            socket.create_connection((name.replace("0.0.0.0", "127.0.0.1"), names[0][1]), 30).close()
    finally:
        listener.close()


def looked_up(*found: str) -> Any:
    asked = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *options: Any, **more: Any) -> List[Tuple[Any, ...]]:
        if host != "gateway.example":
            return asked(host, port, *options, **more)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    return getaddrinfo


def test_a_name_is_all_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address of the name that this machine has not is left out, unless it is the only one."""
    monkeypatch.setattr(socket, "getaddrinfo", looked_up("127.0.0.1", "192.0.2.1", "127.0.0.2", "127.0.0.1"))
    listener = listen("gateway.example", 0)
    assert [sock.getsockname()[0] for sock in listener.sockets] == ["127.0.0.1", "127.0.0.2"]
    listener.close()
    monkeypatch.setattr(socket, "getaddrinfo", looked_up("192.0.2.1"))
    with pytest.raises(OSError) as caught:
        listen("gateway.example", 0)
    assert caught.value.errno == errno.EADDRNOTAVAIL


def test_a_port_that_one_address_has_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", looked_up("127.0.0.1", "127.0.0.2"))
    with socket.create_server(("127.0.0.2", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError) as caught:
            listen("gateway.example", port)
        assert caught.value.errno == errno.EADDRINUSE
        socket.create_server(("127.0.0.1", port)).close()  # nothing of the failed try is left
        free = iter([port])  # a free port of the first address may be taken at the second: then another is tried
        bind = socket.create_server

        def first_taken(address: Any, **options: Any) -> socket.socket:
            return bind((address[0], next(free, 0)) if address[1] == 0 else address, **options)

        monkeypatch.setattr(socket, "create_server", first_taken)
        listener = listen("gateway.example", 0)
        assert listener.getsockname()[1] != port and len(listener.sockets) == 2
        listener.close()


def test_a_server_at_several_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", looked_up("127.0.0.1", "127.0.0.2"))
    with serving(sock=listen("gateway.example", 0)) as server:
        for host in ("127.0.0.1", "127.0.0.2", "127.0.0.1"):
            with Client(server, (host, server.server_port)) as client:
                client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                assert client.reply()[0] == 200
    for host in ("127.0.0.1", "127.0.0.2"):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, server.server_port), 30)


def test_a_machine_without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    bind = socket.create_server

    def only_four(address: Any, *, family: int, backlog: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return bind(address, family=family, backlog=backlog)

    monkeypatch.setattr(socket, "create_server", only_four)
    for host, expected in (("::", "0.0.0.0"), ("localhost", "127.0.0.1")):
        listener = listen(host, 0)
        assert [sock.getsockname()[0] for sock in listener.sockets] == [expected]
        listener.close()
    with pytest.raises(OSError) as caught:
        listen("::1", 0)
    assert caught.value.errno == errno.EAFNOSUPPORT
