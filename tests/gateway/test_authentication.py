"""Keys of clients, and origins of web pages."""

from typing import Any, Dict

import pytest

from vllm_bridge.gateway.authentication import Doors

LOCAL = [
    "http://localhost", "http://localhost:3000", "https://127.0.0.1:8443", "http://[::1]:5173", "HTTP://LocalHost:1",
    "http://127.0.0.2", "http://0.0.0.0:8080", "http://app.localhost:3000",
]
FOREIGN = [
    "http://localhost.evil.example", "http://evil.example", "null", "", "http://localhost:3000.evil.example",
    "http://127.0.0.1.evil.example", "http://127.evil.example", "http://[::1].evil.example",
    "http://localhost@evil.example", "file://localhost", "http://localhost:3000\n",
]


def key(value: str) -> Dict[str, Any]:
    return {"HTTP_AUTHORIZATION": value}


def test_a_key_lets_in() -> None:
    doors = Doors(["sk-1", "sk-ö"])
    for header in ("Bearer sk-1", "bearer  sk-1 "):
        assert doors.check(key(header)) is None
    for header in ("Bearer sk-2", "sk-1", "Basic sk-1", "Bearer", "Bearer ", "", "Bearer sk-1x", "Bearer sk-1 sk-1"):
        error = doors.check(key(header))
        assert error is not None and error.status_code == 401 and error.code == "invalid_api_key"
    assert doors.check({}) is not None


def test_with_a_key_any_page_may_try() -> None:
    # A page cannot send a key that it does not know.
    assert Doors(["sk-1"]).check({"HTTP_ORIGIN": "http://evil.example", **key("Bearer sk-1")}) is None


def test_without_keys_everybody_but_foreign_pages() -> None:
    doors = Doors()
    assert doors.check({}) is None
    for origin in LOCAL:
        assert doors.check({"HTTP_ORIGIN": origin}) is None
    for origin in FOREIGN:
        error = doors.check({"HTTP_ORIGIN": origin})
        assert error is not None and error.status_code == 403


@pytest.mark.parametrize("allowed, origin, expected", [
    ("https://a.example", "https://a.example", True), ("https://a.example/", "https://A.example", True),
    ("https://a.example", "https://a.example.evil", False), ("https://a.example", "http://a.example", False),
    ("https://*.a.example", "https://b.a.example", True), ("https://*.a.example", "https://a.example", False),
    ("https://*.a.example", "https://evil/x.a.example", False), ("*", "https://anything", True),
    ("https://a-example", "https://aXexample", False),
])
def test_allowed_origins(allowed: str, origin: str, expected: bool) -> None:
    assert Doors([], [allowed]).allows(origin) is expected


def test_headers_of_a_reply() -> None:
    doors = Doors(["k"], ["https://a.example"])
    assert doors.headers({}) == []
    assert doors.headers({"HTTP_ORIGIN": "https://b.example"}) == [("Vary", "Origin")]
    found = dict(doors.headers({"HTTP_ORIGIN": "https://a.example"}))
    assert found["Access-Control-Allow-Origin"] == "https://a.example"


def test_preflight() -> None:
    doors = Doors()
    asked = {"HTTP_ORIGIN": "http://localhost", "HTTP_ACCESS_CONTROL_REQUEST_METHOD": "POST"}
    found = doors.preflight(asked)
    assert found is not None
    status, headers = found
    assert status == 200 and "Authorization" in dict(headers)["Access-Control-Allow-Headers"]
    refused = doors.preflight(dict(asked, HTTP_ORIGIN="http://evil.example"))
    assert refused is not None and refused[0] == 403
    assert doors.preflight({"HTTP_ORIGIN": "http://localhost"}) is None
    assert doors.preflight({"HTTP_ACCESS_CONTROL_REQUEST_METHOD": "POST"}) is None
