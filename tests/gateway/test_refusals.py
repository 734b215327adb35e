"""What the HTTP layer refuses: pages can read it, the log and the metrics have it."""

import json
import re
import socket
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Tuple

import pytest

from faces import LONG, Address, ask, log_lines, own, until
from scripted import nobody
from vllm_bridge.config.settings import ProviderConfig
from vllm_bridge.gateway import Gateway
from vllm_bridge.gateway.settings import Settings

CHAT = "/v1/chat/completions"
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n"
PAGE = b"Origin: http://localhost:3000\r\n"
LOCAL = "http://localhost:3000"

REFUSED: Dict[str, Tuple[int, bytes]] = {
    "a header without a colon": (400, HEAD + PAGE + b"Bad\r\n\r\n"),
    "the same before the origin": (400, HEAD + b"Bad\r\n" + PAGE + b"\r\n"),
    "two lengths": (400, HEAD + PAGE + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n"),
    "a length and chunks": (400, HEAD + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n" + PAGE + b"\r\n"),
    "no Host": (400, b"POST %s HTTP/1.1\r\n%s\r\n" % (CHAT.encode(), PAGE)),
    "a bare line end": (400, HEAD + PAGE + b"X: y\nZ: a\r\n\r\n"),
    "bare line ends alone": (400, (HEAD + PAGE + b"\r\n").replace(b"\r", b"")),
    "a control character": (400, HEAD + PAGE + b"X: \x01\r\n\r\n"),
    "a bad chunk": (400, HEAD + PAGE + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"),
    "half a head": (408, HEAD + PAGE),
    "half a body": (408, HEAD + PAGE + b"Content-Length: 10\r\n\r\n{"),
    "a long body": (413, HEAD + PAGE + b"Content-Length: 2000000\r\n\r\n"),
    "long chunks": (413, HEAD + PAGE + b"Transfer-Encoding: chunked\r\n\r\n" + 2 * (b"f0000\r\n%s\r\n" % (
        b"x" * 0xF0000))),
    "a long line": (414, b"POST " + CHAT.encode() + b"?" + b"x" * 9000 + b" HTTP/1.1\r\nHost: a\r\n" + PAGE + b"\r\n"),
    "an expectation": (417, HEAD + PAGE + b"Expect: x\r\nContent-Length: 1\r\n\r\n"),
    "a long header": (431, HEAD + PAGE + b"X: " + b"x" * 70000 + b"\r\n\r\n"),
    "many headers": (431, HEAD + b"X: y\r\n" * 200 + PAGE + b"\r\n"),
    "a transfer coding": (501, HEAD + PAGE + b"Transfer-Encoding: gzip, chunked\r\n\r\n"),
    "another HTTP": (505, HEAD.replace(b"1.1", b"2.0") + PAGE + b"\r\n"),
}


@contextmanager
def gateway(**more: Any) -> Iterator[Address]:
    config = ProviderConfig.from_dict({"keys": [{"url": nobody()}]}, environ={})
    settings = Settings(config, max_body_mb=1, log_format="json", **more)
    with own(Gateway(settings), header_timeout=0.2, body_timeout=0.2) as address:
        yield address


def told(address: Address, data: bytes) -> Tuple[int, Dict[str, str], bytes]:
    with socket.create_connection(address, timeout=LONG) as sock:
        sock.sendall(data)
        got = b""
        while True:
            try:
                block = sock.recv(65536)
            except ConnectionResetError:
                break
            if not block:
                break
            got += block
    head, _, body = got.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = [line.partition(": ") for line in lines]
    return int(first.split()[1]), {name.lower(): value for name, _, value in pairs}, body


def logged(lines: List[Dict[str, Any]]) -> Dict[str, Any]:
    until(lambda: lines)
    return lines.pop()


def test_a_refusal_is_readable_for_pages_and_stands_in_the_log_and_the_metrics() -> None:
    counted: Dict[int, int] = {}
    with gateway() as address, log_lines() as lines:
        for name, (status, data) in REFUSED.items():
            found, headers, body = told(address, data)
            assert (found, headers.get("access-control-allow-origin")) == (status, LOCAL), name
            assert "Origin" in headers["vary"] and "X-Request-Id" in headers["access-control-expose-headers"]
            assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
            line = logged(lines)
            assert (line["status"], line["method"], line["path"]) == (status, "POST", CHAT), name
            assert line["client"] == "127.0.0.1" and line["request_id"] == headers["x-request-id"]
            counted[status] = counted.get(status, 0) + 1
        metrics = ask(address, "GET", "/metrics").body.decode()
    for status, number in counted.items():
        rows = re.findall(r'vllm_bridge_requests_total\{operation="chat_completion",.*status="%d"\} (\d+)' % status,
                          metrics)
        assert rows == [str(number)], status


@pytest.mark.parametrize("data, method, path", [
    (b"\x16\x03\x01\r\n" + PAGE + b"\r\n", "", ""),
    (b"GET /v1/models HTTP/1.1 x\r\n" + PAGE + b"\r\n", "GET", "/v1/models"),
    (b"GET /v1/%6dodels\r\n" + PAGE + b"\r\n", "GET", "/v1/models"),
    (b"GET /" + b"x" * 100000, "GET", "/" + "x" * 99),
    (b"G" * 100000, "", ""),
])
def test_what_is_known_of_a_head_that_is_none(data: bytes, method: str, path: str) -> None:
    with gateway() as address, log_lines() as lines:
        status, headers, _ = told(address, data)
        line = logged(lines)
        assert (line["status"], line["method"], line["path"][:100]) == (status, method, path)
        assert headers.get("access-control-allow-origin") == (LOCAL if PAGE in data else None)


@pytest.mark.parametrize("origins", [
    b"Origin: http://evil.example\r\n", PAGE + b"Origin: http://evil.example\r\n",
    b"Origin: http://evil.example\r\n" + PAGE, b"Origin: null\r\n", b"X: y\r\n " + PAGE, b"Origin: \r\n",
    b"Origin : http://localhost\r\n", b"Origin: http://localhost\x01\r\n", b"Origin: http://localhost.evil.example\r\n",
])
def test_a_foreign_page_cannot_read_a_refusal(origins: bytes) -> None:
    with gateway() as address:
        status, headers, _ = told(address, HEAD + origins + b"Bad\r\n\r\n")
        assert status == 400 and "access-control-allow-origin" not in headers
