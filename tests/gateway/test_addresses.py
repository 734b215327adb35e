"""Servers given by a name: its addresses as they come and go, and the name where it is to be said."""

import socket
import threading
from contextlib import ExitStack
from typing import Any, Dict, Iterator, List, Optional, Union

import pytest

from certificates import authority, needs_openssl  # noqa: F401
from faces import LONG, ask, chat, log_lines, own, until
from scripted import Scripted, answer, completion
from vllm_bridge import ConfigError, Key, ProviderConfig, VLLMProvider
from vllm_bridge.echo import EchoServer
from vllm_bridge.gateway import Gateway
from vllm_bridge.gateway import addresses as module
from vllm_bridge.gateway.addresses import Addresses
from vllm_bridge.gateway.settings import read

CHAT = "/v1/chat/completions"
NAME = "vllm.default.svc"


class Names(Dict[str, Union[List[str], int]]):
    """What the resolver knows: addresses by name, or the error that it gives."""

    asked_by: List[str]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    table = Names()
    table.asked_by = []
    real = socket.getaddrinfo

    def lookup(host: Any, port: Any, *rest: Any, **more: Any) -> Any:
        if host not in table:
            assert host != NAME
            return real(host, port, *rest, **more)
        table.asked_by.append(threading.current_thread().name)
        found = table[host]
        if isinstance(found, int):
            raise socket.gaierror(found, "no")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    monkeypatch.setattr(module, "_EVERY", 0.02)
    yield table


@pytest.fixture
def fleet() -> Iterator[List[EchoServer]]:
    """Three servers at one port of three addresses."""
    with ExitStack() as stack:
        first = stack.enter_context(EchoServer())
        yield [first] + [stack.enter_context(EchoServer(first.port, "127.0.0.%d" % last)) for last in (2, 3)]


def moved(names: Names, *addresses: str) -> None:
    """Give the name other addresses, and wait until they have been asked for twice."""
    names[NAME] = list(addresses)
    seen = names.asked_by.count("vllm-bridge-addresses")
    until(lambda: names.asked_by.count("vllm-bridge-addresses") >= seen + 2)


def used(fleet: List[EchoServer], address: Any, count: int = 24) -> List[int]:
    """Return which servers got one of some requests, by their last number."""
    before = [len(server.requests) for server in fleet]
    for number in range(count):
        reply = ask(address, "POST", CHAT, chat("question %d" % number))
        assert reply.status == 200, reply.body
    return [at + 1 for at, server in enumerate(fleet)
            if any(request.path == CHAT for request in list(server.requests)[before[at]:])]


def test_a_name_that_resolves_to_nothing_then_to_something_then_to_others(
    names: Names, fleet: List[EchoServer], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "vllm_bridge.fleet")
    names[NAME] = socket.EAI_NONAME
    upstream = "dns+http://%s:%d" % (NAME, fleet[0].port)
    gateway = Gateway(read({"upstream": [upstream], "log_format": "json", "routing": "round_robin"}, {}))
    with own(gateway) as address, log_lines() as lines:
        refused = ask(address, "POST", CHAT, chat("x"))
        assert refused.status >= 500 and NAME not in refused.body.decode()
        moved(names, "127.0.0.1")
        assert used(fleet, address) == [1]
        moved(names, "127.0.0.2", "127.0.0.3")
        assert used(fleet, address) == [2, 3]
        moved(names, "127.0.0.1", "127.0.0.2", "127.0.0.3")
        assert used(fleet, address) == [1, 2, 3]
        names[NAME] = socket.EAI_AGAIN  # the resolver's own trouble: what was found stays
        moved_by = len(names.asked_by)
        until(lambda: len(names.asked_by) >= moved_by + 2)
        assert used(fleet, address) == [1, 2, 3]
        until(lambda: len(lines) >= 90)
    host = "%s:%d" % (NAME, fleet[0].port)
    assert {request.headers["host"] for server in fleet for request in server.requests} == {host}
    assert {line["server"] for line in lines if line["status"] == 200} == {
        "http://127.0.0.%d:%d" % (last, fleet[0].port) for last in (1, 2, 3)}
    assert "%s: its addresses are: 127.0.0.2, 127.0.0.3" % NAME in caplog.text
    assert set(names.asked_by) - {"vllm-bridge-addresses"} <= {"vllm-bridge-connection"}  # while it had none


def test_a_running_answer_outlives_its_address(names: Names, fleet: List[EchoServer]) -> None:
    names[NAME] = ["127.0.0.1"]
    gateway = Gateway(read({"upstream": ["dns+http://%s:%d" % (NAME, fleet[0].port)]}, {}))
    answers: List[Any] = []
    with own(gateway) as address:
        gateway.begin()
        moved(names, "127.0.0.1")
        slow = chat("!slow 0.01 !count 60", stream=True)
        asking = threading.Thread(target=lambda: answers.append(ask(address, "POST", CHAT, slow)))
        asking.start()
        until(lambda: fleet[0].running)
        moved(names, "127.0.0.2")
        assert used(fleet, address, 3) == [2]
        assert fleet[0].running
        asking.join(LONG)
    assert answers[0].events()[-1] == "[DONE]"


def test_what_was_found_outlives_a_change_of_the_configuration(names: Names, fleet: List[EchoServer]) -> None:
    names[NAME] = ["127.0.0.2"]
    flags = {"upstream": ["dns+http://%s:%d" % (NAME, fleet[0].port)]}
    before = Gateway(read(flags, {}))
    with own(before) as address:
        before.begin()
        moved(names, "127.0.0.2")
        assert used(fleet, address, 2) == [2]
        names[NAME] = socket.EAI_AGAIN
        after = before.succeeded_by(read(flags, {}))
        with own(after) as address:
            assert used(fleet, address, 2) == [2]


@needs_openssl
def test_the_certificate_is_the_names(
    names: Names, authority: Any, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    bundle, context = authority
    asked_for: List[Optional[str]] = []
    monkeypatch.setattr(context, "sni_callback", lambda sock, name, context: asked_for.append(name))
    names["gpu.example"] = names["other.example"] = ["127.0.0.1"]
    steps = [("tls", context), "request", answer(completion())]
    with Scripted(steps) as server:
        for name, status in (("gpu.example", 200), ("other.example", 502)):
            config = ProviderConfig(
                {"ca_cert_pem": bundle, "max_retries": 0}, keys=[{"url": "dns+https://%s:%d" % (name, server.port)}])
            settings = read({}, {})
            settings.provider = config
            with own(Gateway(settings)) as address:
                seen = len(names.asked_by)
                ask(address, "GET", "/health")
                until(lambda: len(names.asked_by) >= seen + 2)
                assert ask(address, "POST", CHAT, chat("x")).status == status
    assert set(asked_for) == {"gpu.example", "other.example"}
    assert server.posts[0].headers["host"] == "gpu.example:%d" % server.port


def test_keys_keep_what_they_say_and_two_names_of_one_address_stay_apart(names: Names) -> None:
    names.update({"a.example": ["10.0.0.2", "10.0.0.1", "10.0.0.1", "fd00::1"], "b.example": ["10.0.0.1"]})
    given = [
        Key("sk-1", url="dns+http://a.example:8000/vllm", name="a", weight=2, models=["m"]),
        Key(url="dns+http://b.example:8000/vllm"), Key(url="http://gpu:8000"), Key(url="dns+https://a.example"),
    ]
    told: List[List[Key]] = []
    addresses = Addresses(ProviderConfig(keys=given).resolved_keys(plain=False), told.append)
    addresses.look()
    addresses.look()
    assert len(told) == 1
    assert [key.url for key in told[0]] == [
        "http://10.0.0.1:8000/vllm", "http://10.0.0.2:8000/vllm", "http://[fd00::1]:8000/vllm",
        "http://b.example:8000/vllm", "http://gpu:8000",
        "https://10.0.0.1:443", "https://10.0.0.2:443", "https://[fd00::1]:443",
    ]
    assert [key.server_name for key in told[0]] == ["a.example"] * 3 + [None, None] + ["a.example"] * 3
    assert {(key.value, key.name, key.weight, key.models) for key in told[0][:3]} == {("sk-1", "a", 2, ("m",))}


@pytest.mark.parametrize("url, told", [
    ("dns+http://10.0.0.1:8000", "is for a name"), ("dns+http://[::1]:8000", "is for a name"),
    ("dns+ftp://gpu", "expected a URL beginning with http:// or https://"), ("dns+", "got nothing"),
    ("dns+http://", "expected a URL"), ("dns+http://gpu:99999", "a port from 1 to 65535"),
    ("dns+http://gpu/v1/chat/completions", "is the URL of one operation"),
])
def test_what_is_no_name_is_refused(url: str, told: str) -> None:
    with pytest.raises(ConfigError, match="^--upstream: .*" + told):
        read({"upstream": [url]}, {})
    with pytest.raises(ConfigError, match=r"^providers.vllm.keys\[0\].url: .*" + told):
        ProviderConfig.from_dict({"keys": [{"url": url}]})


def test_a_name_is_normalised_and_the_library_takes_it_as_one_address(names: Names, fleet: List[EchoServer]) -> None:
    key, = read({"upstream": ["DNS+HTTP://%s:%d/v1/" % (NAME.upper(), fleet[0].port)]}, {}).provider.keys
    assert key.url == "dns+http://%s:%d" % (NAME, fleet[0].port)
    names[NAME] = ["127.0.0.3"]
    with VLLMProvider(key.url) as provider:
        assert provider.list_models().data[0].id == "echo"
        assert NAME in repr(provider) and "dns" not in repr(provider)
    assert len(fleet[2].requests) == 1
    with pytest.raises(ConfigError, match="server_name: expected a host name"):
        Key(url="http://10.0.0.1", server_name="gpu:8000")
