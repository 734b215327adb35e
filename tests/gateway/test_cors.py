"""Origins of web pages."""

import pytest

from vllm_bridge.errors import PermissionDeniedError
from vllm_bridge.gateway.cors import Cors
from vllm_bridge.server.request import Answer

LOCAL = [
    "http://localhost", "http://localhost:3000", "https://127.0.0.1:8443", "http://[::1]:5173", "HTTP://LocalHost:1",
    "http://127.0.0.2", "http://0.0.0.0:8080", "http://app.localhost:3000",
]
FOREIGN = [
    "http://localhost.evil.example", "http://evil.example", "null", "", "http://localhost:3000.evil.example",
    "http://127.0.0.1.evil.example", "http://localhost@evil.example", "file://localhost", "http://localhost:3000\n",
    "http://evil.example@localhost", "http://localhost/", "http://localhost:", "http://[::1", "http://::1",
]


def test_everybody_but_foreign_pages() -> None:
    cors = Cors()
    for origin in LOCAL:
        cors.check(origin)
    for origin in FOREIGN:
        with pytest.raises(PermissionDeniedError):
            cors.check(origin)


@pytest.mark.parametrize("allowed, origin, expected", [
    ("https://a.example", "https://a.example", True), ("https://a.example/", "https://A.example", True),
    ("https://a.example", "https://a.example.evil", False), ("https://a.example", "http://a.example", False),
    ("https://*.a.example", "https://b.a.example", True), ("https://*.a.example", "https://a.example", False),
    ("https://*.a.example", "https://evil/x.a.example", False), ("*", "https://anything", True),
    ("https://a-example", "https://aXexample", False), ("https://A.example", "https://a.example", True),
    ("https://*.a.*", "https://b.a.example", True), ("https://*.a.*", "https://b.c.example", False),
    ("https://*a*a", "https://a", False), ("https://*a*a", "https://aa", True),
    ("*://a.example", "app://a.example", True),
    ("https://*.a.example", "https://x.a.example/", False),
])
def test_allowed_origins(allowed: str, origin: str, expected: bool) -> None:
    assert Cors([allowed]).allows(origin) is expected


def test_headers_of_an_answer() -> None:
    cors = Cors(["https://a.example"])
    foreign, allowed = Answer(200, [("A", "b")]), Answer(200, [("A", "b")])
    cors.mark(foreign, "https://b.example")
    assert foreign.fields == [("A", "b"), ("Vary", "Origin")]
    cors.mark(allowed, "https://a.example")
    found = dict(allowed.fields)
    assert found["Access-Control-Allow-Origin"] == "https://a.example" and found["Vary"] == "Origin"


def test_preflight() -> None:
    cors = Cors()
    asked = {"origin": "http://localhost", "access-control-request-method": "POST"}
    found = cors.preflight(asked)
    assert found is not None and found.status == 200
    assert "Authorization" in dict(found.fields)["Access-Control-Allow-Headers"]
    refused = cors.preflight(dict(asked, origin="http://evil.example"))
    assert refused is not None and refused.status == 403
    assert cors.preflight({"origin": "http://localhost"}) is None
    assert cors.preflight({"access-control-request-method": "POST"}) is None
