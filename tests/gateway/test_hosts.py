"""Names that a gateway without keys is asked under."""

import pytest

from vllm_bridge.errors import PermissionDeniedError
from vllm_bridge.gateway.hosts import Hosts

OURS = [
    "", "localhost", "localhost:8080", "LOCALHOST.", "localhost:", "app.localhost:3000", "127.0.0.1:8080", "127.1",
    "0.0.0.0:1", "10.0.0.5:8080", "8.8.8.8", "[::1]", "[::1]:8080", "[fe80::1]:1", "[::ffff:127.0.0.1]", "127.0.0.1.",
    "vllm-bridge:8080", "gpu_1",
]
FOREIGN = [
    "attacker.example", "attacker.example:8080", "localhost.attacker.example", "127.0.0.1.attacker.example",
    "127.0.0.1.nip.io:8080", "7f000001.c0a80001.rbndr.us", "printer.local", "localhost:8080.attacker.example",
    "[::1].attacker.example", "[::1]attacker.example", "[attacker.example]", "attacker.example.", "attacker.example:",
    "localhost, attacker.example", "localhost@attacker.example", "attacker.example#localhost", "\xe9vil.example", "::",
    "a.example:1:2", ".", "..localhost", "a\x00.localhost", "[", "1.2.3.4.5", "0x7f.evil", "a.1", "." * 60000,
    "x" * 64, "0" * 60000 + "1",
]


@pytest.mark.parametrize("host", OURS)
def test_addresses_and_our_own_names_pass(host: str) -> None:
    Hosts().check({"host": host})
    Hosts().check({})


@pytest.mark.parametrize("host", FOREIGN)
def test_a_foreign_name_does_not(host: str) -> None:
    hosts = Hosts(["localhost", "127.0.0.1"])
    for _ in range(2):
        with pytest.raises(PermissionDeniedError, match="--allowed-host") as caught:
            hosts.check({"host": host})
        found = (caught.value.status_code, caught.value.type, caught.value.code)
        assert found == (403, "permission_error", "host_not_allowed")
        assert caught.value.message.isascii() and len(caught.value.message) < 250


@pytest.mark.parametrize("allowed, host, passes", [
    ("gateway.example", "gateway.example", True), ("gateway.example", "Gateway.Example:8080", True),
    ("gateway.example", "gateway.example.", True), ("gateway.example", "a.gateway.example", False),
    ("gateway.example", "gateway.example.attacker.example", False), ("gateway.example", "xgateway.example", False),
    ("*.corp.example", "a.b.corp.example", True), ("*.corp.example", "corp.example", False),
    ("*.corp.example", "a.corp.example.attacker.example", False), ("*", "anything.example", True),
])
def test_allowed_names(allowed: str, host: str, passes: bool) -> None:
    hosts = Hosts([allowed])
    for _ in range(2):  # what has passed once is remembered
        if passes:
            hosts.check({"host": host})
        else:
            with pytest.raises(PermissionDeniedError):
                hosts.check({"host": host})
