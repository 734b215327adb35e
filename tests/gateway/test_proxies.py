"""Whose X-Forwarded-For is believed."""

import pytest

from faces import ask, face, log_lines, until
from vllm_bridge.gateway.proxies import Proxies, networks


@pytest.mark.parametrize("allowed, peer, forwarded, client", [
    # As uvicorn 0.54's ProxyHeadersMiddleware has it.
    ("127.0.0.1", "127.0.0.1", "1.2.3.4", "1.2.3.4"), ("127.0.0.1", "127.0.0.2", "1.2.3.4", "127.0.0.2"),
    ("127.0.0.1", "127.0.0.1", "9.9.9.9, 1.2.3.4", "1.2.3.4"), ("127.0.0.1", "127.0.0.1", "2001:db8::1", "2001:db8::1"),
    ("127.0.0.1,10.0.0.0/8", "127.0.0.1", "9.9.9.9, 1.2.3.4,10.1.2.3", "1.2.3.4"),
    ("127.0.0.1, 10.0.0.0/8", "10.9.9.9", "10.0.0.1, 10.1.2.3", "10.0.0.1"),
    ("*", "8.8.8.8", "9.9.9.9, 1.2.3.4", "9.9.9.9"), ("*", "", "1.2.3.4", "1.2.3.4"), ("*", "8.8.8.8", "", "8.8.8.8"),
    ("2001:db8::/32", "2001:db8::9", "1.2.3.4, 2001:db8::7", "1.2.3.4"), ("127.0.0.1", "127.0.0.1", "", "127.0.0.1"),
    ("127.0.0.1", "127.0.0.1", "1.2.3.4:80", "1.2.3.4"), ("::1", "::1", "[2001:db8::1]:443", "2001:db8::1"),
    # Where it takes any word for an address, the nearest address counts.
    ("127.0.0.1", "127.0.0.1", "unknown", "127.0.0.1"), ("127.0.0.1", "127.0.0.1", "1.2.3.4, evil", "127.0.0.1"),
    ("127.0.0.1,10.0.0.0/8", "127.0.0.1", 'a"b status=200, 10.0.0.3', "10.0.0.3"),
    ("*", "8.8.8.8", "x, 1.2.3.4", "1.2.3.4"), ("127.0.0.1", "127.0.0.1", "1.2.3.4,", "127.0.0.1"),
    ("127.0.0.1", "127.0.0.1", "1.2.3.4\x85", "127.0.0.1"), ("127.0.0.1", "127.0.0.1", "1.2.3.4.5", "127.0.0.1"),
    # A socket of both families shows IPv4 so.
    ("10.0.0.0/8", "::ffff:10.0.0.1", "::ffff:1.2.3.4", "1.2.3.4"),
    ("fe80::/10", "fe80::1%eth0", "1.2.3.4", "1.2.3.4"), ("10.0.0.7/8", "10.1.1.1", "1.2.3.4", "1.2.3.4"),
    ("", "127.0.0.1", "1.2.3.4", "127.0.0.1"),
])
def test_who_a_request_is_from(allowed: str, peer: str, forwarded: str, client: str) -> None:
    assert Proxies([allowed]).client(peer, forwarded) == client
    assert Proxies(allowed.split(",")).client(peer, forwarded) == client


@pytest.mark.parametrize("text", ["localhost", "10.0.0.0/40", "10.0.0", "1.2.3.4:80", "*.example", "10.0.0.1 10.0.0.2"])
def test_what_is_no_proxy(text: str) -> None:
    with pytest.raises(ValueError):
        networks(text)


@pytest.mark.parametrize("allowed, client", [("127.0.0.1,::1", "203.0.113.7"), ("192.0.2.0/24", "127.0.0.1"),
                                             ("", "127.0.0.1")])
def test_the_log_has_the_proxys_word(allowed: str, client: str) -> None:
    environ = {"VLLM_BRIDGE_FORWARDED_ALLOW_IPS": allowed, "VLLM_BRIDGE_LOG_FORMAT": "json"}
    with face("own", environ) as address, log_lines() as lines:
        ask(address, "GET", "/version", None, {"X-Forwarded-For": "198.51.100.1, 203.0.113.7"})
        ask(address, "POST", "/v1/chat/completions", b"{", {"X-Forwarded-For": "203.0.113.7"})
        until(lambda: len(lines) == 2)
    assert [line["client"] for line in lines] == [client] * 2
