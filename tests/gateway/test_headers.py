"""Header fields that pass the gateway, and those that stay."""

from typing import Dict

import pytest

from vllm_bridge.errors import BadRequestError
from vllm_bridge.gateway.headers import Headers


def up(headers: Headers, **fields: str) -> Dict[str, str]:
    found: Dict[str, str] = {}
    for _ in range(2):  # names that stay are remembered
        found = {}
        headers.up({name.replace("_", "-"): value for name, value in fields.items()}, found)
    return found


TRACING = ["traceparent", "tracestate", "baggage", "b3", "x-b3-traceid", "uber-trace-id", "x-cloud-trace-context"]
VLLM = ["x-session-id", "x-vllm-priority", "x-data-parallel-rank", "endpoint-load-metrics-format", "anthropic-version"]
OURS = [
    "authorization", "proxy-authorization", "connection", "content-length", "content-type", "content-encoding", "te",
    "transfer-encoding", "upgrade", "host", "expect", "accept", "accept-encoding", "keep-alive", "trailer",
    "x-request-id", "http2-settings", "x-bf-api-key", "x-bf-vk", "x-api-key", "api-key",
]
CREDENTIALS = [
    "cookie", "cookie2", "set-cookie", "x-goog-api-key", "x-auth-token",
    "ocp-apim-subscription-key",
    "cf-access-client-secret", "x-amz-security-token", "x-csrf-token", "x-password", "x-signature", "x-user-session",
]
IDENTITY = [
    "x-forwarded-for", "x-forwarded-user", "forwarded", "x-real-ip", "true-client-ip", "cf-connecting-ip", "via",
    "x-client-ip", "x-envoy-external-address", "x-method-override", "if-none-match", "range", "x-original-host",
    "x-original-url", "x-rewrite-url", "x-http-method-override", "origin", "referer", "sec-fetch-site", "if-match",
]


@pytest.mark.parametrize("name", TRACING + VLLM)
def test_tracing_and_vllms_own_go_up(name: str) -> None:
    assert up(Headers(), **{name: "1"}) == {name: "1"}
    assert up(Headers(), **{"x-bf-eh-" + name: "1"}) == {name: "1"}
    assert up(Headers([name.upper()]), **{name: "1", "x-bf-eh-" + name: "2"}) == {}


@pytest.mark.parametrize("name", ["x-team", "x-tenant", "user-agent", "x-author", "priority"])
def test_others_go_up_where_the_client_or_the_operator_says_so(name: str) -> None:
    assert up(Headers(), **{name: "1"}) == {}
    assert up(Headers(), **{"x-bf-eh-" + name: "1"}) == {name: "1"}
    assert up(Headers((), [name]), **{name: "1"}) == {name: "1"}
    assert up(Headers((), [name[:3] + "*"]), **{name: "1"}) == {name: "1"}
    assert up(Headers([name.title()], [name]), **{name: "1", "x-bf-eh-" + name: "2"}) == {}


@pytest.mark.parametrize("name", CREDENTIALS + IDENTITY)
def test_credentials_and_identities_stay_unless_the_operator_names_them(name: str) -> None:
    assert up(Headers(), **{name: "1", "x-bf-eh-" + name: "1"}) == {}
    assert up(Headers((), [name]), **{"x-bf-eh-" + name: "1"}) == {name: "1"}


@pytest.mark.parametrize("name", OURS)
def test_what_is_the_gateways_own_stays(name: str) -> None:
    assert up(Headers((), ["*", name]), **{name: "1", "x-bf-eh-" + name: "1"}) == {}


@pytest.mark.parametrize("value", ["Bearer abc", "bearer\tabc", "Basic YTpi", "sk-abcdefghijkl", "hf_abcdefghijkl"])
def test_what_looks_like_a_credential_stays_whatever_its_name(value: str) -> None:
    headers = Headers()
    assert up(headers, **{"x-bf-eh-x-team": value, "traceparent": value}) == {}
    assert up(headers, **{"x-bf-eh-x-team": "red", "traceparent": "1"}) == {"x-team": "red", "traceparent": "1"}


@pytest.mark.parametrize("name, value", [("", "1"), ("x team", "1"), ("x:y", "1"), ("x\n", "1"), ("x-a", "1\r\nX: y"),
                                         ("x-a", "1\0"), ("x-\xe9", "1")])
def test_what_no_header_can_be_stays(name: str, value: str) -> None:
    assert up(Headers((), ["*"]), **{"x-bf-eh-" + name: value}) == {}


def test_a_name_that_some_servers_read_as_another_stays() -> None:
    found: Dict[str, str] = {}
    Headers((), ["*"]).up({"x-bf-eh-x_team": "1", "x_b3_traceid": "1", "x-bf-eh-content_length": "1"}, found)
    assert found == {}


def test_one_that_is_there_twice_is_refused() -> None:
    with pytest.raises(BadRequestError, match="x-session-id is there twice"):
        Headers().up({"x-session-id": "1", "x-bf-eh-x-session-id": "1"}, {})


def test_names_without_end_are_not_all_remembered() -> None:
    headers = Headers()
    for number in range(5000):
        headers.up({"x-%d" % number: "1"}, {})
        headers.down([("x-%d" % number, "1")])
    assert len(headers._staying) <= 1000 and len(headers._going_down) <= 1000
    headers = Headers()
    for number in range(5):
        headers.up({"x" * 50000 + str(number): "1"}, {})
        headers.down([("x" * 50000 + str(number), "1")])
    assert not headers._staying and not headers._going_down
    assert up(headers, traceparent="1") == {"traceparent": "1"}


@pytest.mark.parametrize("name", [
    "x-ratelimit-remaining-tokens", "ratelimit", "ratelimit-policy", "retry-after", "openai-processing-ms",
    "openai-organization", "x-vllm-anything", "endpoint-load-metrics",
])
def test_what_goes_down(name: str) -> None:
    for _ in range(2):
        assert Headers().down([(name, "1")]) == [("Content-Type", "application/json"), (name, "1")]


@pytest.mark.parametrize("name", [
    "connection", "keep-alive", "transfer-encoding", "upgrade", "alt-svc", "strict-transport-security", "set-cookie",
    "x-debug-request", "x-powered-by", "server", "via", "date", "location", "link", "refresh", "clear-site-data",
    "x-request-id", "access-control-allow-origin", "content-encoding", "content-security-policy", "x-internal-host",
    "www-authenticate", "proxy-authenticate", "x-envoy-upstream-service-time", "x-served-by", "nel", "report-to",
])
def test_what_stays_with_the_server(name: str) -> None:
    assert Headers().down([("content-type", "text/csv"), (name, "1")]) == [("Content-Type", "text/csv")]


def test_the_operator_lets_more_down() -> None:
    headers = Headers((), (), ["x-served-by", "x-debug-*"])
    given = [("x-served-by", "a"), ("x-debug-1", "b"), ("x-debug", "c"), ("connection", "d"), ("x-served-by", "a\nb")]
    assert headers.down(given)[1:] == [("x-served-by", "a"), ("x-debug-1", "b")]
    assert Headers((), (), ["*"]).down([("connection", "d"), ("x-request-id", "e"), ("content-length", "3")])[1:] == []
