"""The lean adapter: what it takes on, what it leaves to the adapter beside it, and what it never reuses or trusts."""

import socket

import pytest
import requests
import responses
from requests.adapters import HTTPAdapter
from scripted import LAST_CHUNK, Scripted, answer, chunk, completion

from vllm_bridge import NetworkConfig, ProviderConfig, VLLMProvider
from vllm_bridge.client.adapter import PoolAdapter
from vllm_bridge.client.lean import LeanAdapter, _taken_apart

ASK = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
OK = ["request", answer(completion("good")), "again"]
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Beside(PoolAdapter):
    """The adapter beside it, which notes what it was given."""

    def __init__(self):
        self.taken = []
        super().__init__()

    def send(self, request, **kwargs):
        self.taken.append(request)
        reply = requests.Response()
        reply.status_code = 299
        return reply


@pytest.fixture
def beside():
    adapter = Beside()
    yield adapter
    adapter.close()


@pytest.fixture
def lean(beside):
    adapter = LeanAdapter(beside)
    yield adapter
    adapter.close()


def prepared(url, body=b"{}", **headers):
    return requests.Request("POST", url, data=body, headers=headers).prepare()


# ---------------------------------------------------------------- what it leaves alone


@pytest.mark.parametrize("url", [
    "https://127.0.0.1:1/v1", "http://user:word@127.0.0.1:1/v1", "http://[fe80::1%25lo]:1/v1",
])
def test_an_address_that_is_not_its_own(lean, beside, url):
    assert lean.send(with_url(url)).status_code == 299
    assert len(beside.taken) == 1


def with_url(url):
    request = prepared("http://127.0.0.1:1/")
    request.url = url
    return request


@pytest.mark.parametrize("kwargs", [
    {"proxies": {"http": "http://127.0.0.1:1"}}, {"proxies": {"all": "http://127.0.0.1:1"}},
    {"timeout": object()}, {"timeout": (1, object())},
])
def test_a_way_of_sending_that_is_not_its_own(lean, beside, kwargs):
    assert lean.send(prepared("http://127.0.0.1:1/v1"), **kwargs).status_code == 299


def test_a_body_of_unknown_length(lean, beside):
    assert lean.send(prepared("http://127.0.0.1:1/v1", iter([b"x"]))).status_code == 299


def test_a_proxy_for_other_addresses_does_not_matter(lean, beside):
    with Scripted(OK) as server:
        reply = lean.send(prepared(server.url + "/v1"), proxies={"https": "http://127.0.0.1:1"})
        assert reply.status_code == 200 and not beside.taken


def test_what_replaces_requests_own_way_of_sending_is_asked(monkeypatch):
    with responses.RequestsMock() as mock, VLLMProvider("http://127.0.0.1:1", max_retries=0) as vllm:
        mock.add("POST", "http://127.0.0.1:1/v1/chat/completions", json=completion("mocked"))
        assert vllm.chat_completion(**ASK).text == "mocked"
        assert mock.calls[0].request.headers["content-TYPE"] == "application/json"


def test_what_replaces_session_send_is_asked(monkeypatch):
    seen = []
    real = requests.Session.send

    def traced(self, request, **kwargs):
        seen.append(request.headers["user-agent"])
        return real(self, request, **kwargs)

    monkeypatch.setattr(requests.Session, "send", traced)
    with Scripted(OK) as server, VLLMProvider(server.url) as vllm:
        assert vllm.chat_completion(**ASK).text == "good"
    assert seen and seen[0].startswith("vllm-bridge")


def test_the_switch_turns_it_off(monkeypatch):
    used = []
    real = HTTPAdapter.send

    def noted(self, request, *args, **kwargs):
        used.append(request.url)
        return real(self, request, *args, **kwargs)

    with Scripted(OK) as server:
        config = ProviderConfig(NetworkConfig(server.url, lean_http=False))
        with VLLMProvider(config=config) as vllm:
            monkeypatch.setattr(HTTPAdapter, "send", noted)
            assert vllm.chat_completion(**ASK).text == "good"
    assert used


# ---------------------------------------------------------------- as a requests adapter


def test_a_session_can_mount_it(lean):
    with Scripted(["request", answer({"a": "é"}, extra="Set-Cookie: a=b\r\n"), "again"]) as server:
        with requests.Session() as session:
            session.trust_env = False
            session.mount("http://", lean)
            reply = session.post(server.url + "/v1?a=b c#frag", json={"x": 1})
            assert reply.json() == {"a": "é"} and reply.encoding == "utf-8" and reply.ok
            assert len(reply.cookies) == 0 and reply.reason == "OK"
            assert not hasattr(reply, "nothing")
            with session.post(server.url + "/v1", data=b"y", stream=True) as streamed:
                assert b"".join(streamed.iter_content(3)) == answer({"a": "é"}).partition(b"\r\n\r\n")[2]
        assert server.requests[0].line == "POST /v1?a=b%20c HTTP/1.1"
        assert server.requests[0].headers["host"] == server.url[len("http://"):]


def test_its_own_host_header_is_not_added_to_the_caller_s(lean):
    with Scripted(OK) as server:
        lean.send(prepared(server.url + "/", host="elsewhere"))
        assert server.requests[0].headers["host"] == "elsewhere"


def test_a_header_that_cannot_be_sent(lean):
    request = prepared("http://127.0.0.1:1/v1")
    request.headers["x"] = "a\r\nInjected: yes"
    with pytest.raises(requests.exceptions.InvalidHeader):
        lean.send(request)


def test_nobody_listens(lean):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(requests.exceptions.ConnectionError):
            lean.send(prepared("http://127.0.0.1:%d/v1" % sock.getsockname()[1]))


# ---------------------------------------------------------------- what it reads


def sent(lean, *parts):
    with Scripted(["request", *parts]) as server:
        return lean.send(prepared(server.url + "/v1"), timeout=(5, 5))


def test_interim_replies_come_before_the_reply(lean):
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    assert sent(lean, interim + answer(b"ok")).content == b"ok"
    assert sent(lean, interim, answer(b"ok")).content == b"ok"


@pytest.mark.parametrize("reply", [
    b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n" * 40,
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
    b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    b"HTTP/2 200 OK\r\n\r\n",
])
def test_a_head_that_is_not_sure_is_refused(lean, reply):
    with pytest.raises(requests.exceptions.InvalidHeader):
        sent(lean, reply)


@pytest.mark.parametrize("reply", [b"", b"HTTP/1.1 200 O"])
def test_a_server_that_hangs_up_on_the_head(lean, reply):
    with pytest.raises(requests.exceptions.ConnectionError):
        sent(lean, reply)


def test_a_body_that_ends_with_the_connection(lean):
    assert sent(lean, b"HTTP/1.0 200 OK\r\n\r\nall ", b"of it").content == b"all of it"


@pytest.mark.parametrize("first", [
    answer(b"ok") + b"HTTP/1.1 200 OK\r\n",
    CHUNKED + chunk(b"ok") + LAST_CHUNK + b"more",
    answer(b"ok", extra="Connection: close\r\n"),
    b"HTTP/1.1 204 No Content\r\n\r\nextra",
])
def test_a_connection_on_which_more_came_than_the_reply_is_not_used_again(lean, first):
    with Scripted(["request", first, "hold"], OK) as server:
        reply = lean.send(prepared(server.url + "/v1"), timeout=(5, 5))
        assert reply.content in (b"ok", b"")
        reply.close()
        assert lean.send(prepared(server.url + "/v1"), timeout=(5, 5)).json() == completion("good")
        assert len(server.requests) == 2


def test_bytes_that_come_while_a_connection_is_idle_end_it(lean):
    with Scripted(["request", answer(b"ok"), ("sleep", 0.05), b"HTTP/1.1 200 OK\r\n", "hold"], OK) as server:
        assert lean.send(prepared(server.url + "/v1"), timeout=(5, 5)).content == b"ok"
        (idle,) = [one for held in lean._idle.values() for one in held]
        idle.sock.settimeout(5)
        idle.sock.recv(1, socket.MSG_PEEK)
        assert lean.send(prepared(server.url + "/v1"), timeout=(5, 5)).json() == completion("good")


def test_no_more_idle_connections_are_kept_than_allowed(beside):
    lean = LeanAdapter(beside, pool_maxsize=1)
    with Scripted(OK) as server:
        both = [lean.send(prepared(server.url + "/v1"), stream=True, timeout=5) for _ in range(2)]
        for reply in both:
            assert reply.content
        assert sum(map(len, lean._idle.values())) == 1
        lean.close()
        assert not lean._idle


# ---------------------------------------------------------------- addresses


@pytest.mark.parametrize("url, expected", [
    ("http://gpu:8000/v1/models", (("gpu", 8000), "/v1/models", "gpu:8000")),
    ("http://gpu", (("gpu", 80), "/", "gpu")),
    ("http://gpu:80/a?b=c#d", (("gpu", 80), "/a?b=c", "gpu")),
    ("http://[::1]:8000/v1", (("::1", 8000), "/v1", "[::1]:8000")),
    ("http://gpu:99999/", None), ("http://gpu/a b", None), ("http://gpü/", None), ("http:///v1", None),
    ("gpu:8000", None),
])
def test_how_an_address_is_taken_apart(url, expected):
    assert _taken_apart(url) == expected
