"""One operation carried out: which key, which headers, what is tried again and where."""

import json
import time

import pytest

from scripted import LAST_CHUNK, SSE_HEAD, Scripted, answer, completion, delta, event, nobody
from vllm_bridge import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    BadRequestError,
    ConfigError,
    IncompleteStreamError,
    InternalServerError,
    NetworkConfig,
    ProviderConfig,
    RateLimitError,
    ResponseDecodeError,
    Trace,
    VLLMProvider,
)
from vllm_bridge.client.options import Options
from vllm_bridge.echo import EchoServer

ASK = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
KEY = "sk-very-secret-0123456789"
GOOD = ["request", answer(completion("good")), "again"]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    monkeypatch.delenv("VLLM_BASE_URL", raising=False)


def provider_for(*urls, **network):
    network.setdefault("retry_backoff_initial_ms", 1)
    keys = [{"id": "key%d" % number, "name": "name%d" % number, "value": KEY + str(number), "url": url}
            for number, url in enumerate(urls)]
    return VLLMProvider(config=ProviderConfig(NetworkConfig(**network), keys=keys))


def text_of(provider):
    return provider.chat_completion(**ASK).choices[0].message.content


def status(number, headers="", body=None):
    body = {"error": {"message": "no", "code": number}} if body is None else body
    return answer(body, "%d Whatever" % number, extra=headers)


# ---------------------------------------------------------------- tried again

@pytest.mark.parametrize("number", [429, 502, 503])
@pytest.mark.parametrize("inside", [False, True], ids=["status", "inside a 200"])
def test_what_a_busy_server_answers_is_tried_again(number, inside):
    first = answer({"error": {"message": "busy", "code": number}}) if inside else status(number)
    with Scripted(["request", first] + GOOD) as server, provider_for(server.url) as provider:
        trace = Trace()
        assert text_of(provider.with_options(trace=trace)) == "good"
        assert len(server.requests) == trace.attempts == 2


@pytest.mark.parametrize("number", [400, 401, 403, 404, 409, 422, 500, 501, 504])
def test_what_another_try_cannot_change_is_not_tried_again(number):
    with Scripted(["request", status(number)] + GOOD) as server, provider_for(server.url) as provider:
        with pytest.raises(APIStatusError) as caught:
            text_of(provider)
        assert caught.value.status_code == number
        assert len(server.requests) == 1


def test_retries_come_to_an_end():
    with Scripted(["request", status(503), "again"]) as server, provider_for(server.url, max_retries=3) as provider:
        with pytest.raises(InternalServerError):
            text_of(provider)
        assert len(server.requests) == 4
        with pytest.raises(InternalServerError):
            text_of(provider.with_options(max_retries=0))
        assert len(server.requests) == 5


def test_a_stream_is_tried_again_before_its_first_byte_only():
    busy = event({"error": {"message": "busy", "code": 503}})
    fine = [SSE_HEAD, event(delta("good", "stop")), event("[DONE]"), LAST_CHUNK]
    with Scripted(["request", status(503)], ["request", SSE_HEAD, busy], ["request"] + fine) as server:
        with provider_for(server.url) as provider:
            assert [chunk.text for chunk in provider.chat_completion_stream(**ASK)] == ["good"]
            assert len(server.requests) == 3
    with Scripted(["request", SSE_HEAD, event(delta("good")), busy], ["request"] + fine) as server:
        with provider_for(server.url) as provider:
            with pytest.raises(InternalServerError):
                list(provider.chat_completion_stream(**ASK))
            assert len(server.requests) == 1


def test_a_stream_that_broke_off_is_not_tried_again():
    with Scripted(["request", SSE_HEAD, event(delta("a"))]) as server, provider_for(server.url) as provider:
        with pytest.raises(IncompleteStreamError):
            list(provider.chat_completion_stream(**ASK))
        assert len(server.requests) == 1


@pytest.mark.parametrize("inside", [False, True], ids=["status", "inside a 200"])
def test_retry_after_is_waited_for_with_one_key(inside):
    busy = {"error": {"message": "busy", "code": 429}}
    first = answer(busy, extra="Retry-After: 0.4\r\n") if inside else status(429, "Retry-After: 0.4\r\n")
    with Scripted(["request", first] + GOOD) as server, provider_for(server.url) as provider:
        start = time.monotonic()
        assert text_of(provider) == "good"
        assert time.monotonic() - start >= 0.4


def test_with_another_key_nobody_waits_for_retry_after():
    with Scripted(["request", status(429, "Retry-After: 30\r\n"), "again"]) as busy, Scripted(GOOD) as other:
        with provider_for(busy.url, other.url) as provider:
            for _ in range(8):
                start = time.monotonic()
                assert text_of(provider) == "good"
                assert time.monotonic() - start < 15


def test_a_deadline_that_ends_before_the_pause_raises_the_error_itself():
    with Scripted(["request", status(429, "Retry-After: 20\r\n"), "again"]) as server:
        with provider_for(server.url) as provider:
            start = time.monotonic()
            with pytest.raises(RateLimitError) as caught:
                text_of(provider.with_options(deadline=10))
            assert time.monotonic() - start < 8
            assert caught.value.retry_after == 20


def test_a_500_goes_to_another_key_and_to_the_same_not():
    with Scripted(["request", status(500), "again"]) as bad, Scripted(GOOD) as good:
        with provider_for(bad.url, good.url) as provider:
            assert [text_of(provider) for _ in range(6)] == ["good"] * 6
        with provider_for(bad.url, bad.url, bad.url, max_retries=5) as provider:
            before = len(bad.requests)
            with pytest.raises(InternalServerError):
                text_of(provider)
            assert len(bad.requests) - before == 3, "once with each key"


def test_a_server_that_is_down_is_left_for_another_and_cools_off(monkeypatch):
    monkeypatch.setattr("vllm_bridge.client.fleet.FIRST_COOL_OFF", 1000.0)
    dead = nobody()
    with Scripted(GOOD) as server, provider_for(dead, server.url) as provider:
        attempts = []
        for _ in range(12):
            trace = Trace()
            assert text_of(provider.with_options(trace=trace)) == "good"
            assert trace.server == server.url
            attempts.append(trace.attempts)
        assert attempts.count(2) <= 1
        assert len(provider.cooling()) == attempts.count(2)


def test_two_keys_of_one_dead_server_are_not_tried_in_a_hurry():
    dead = nobody()
    with provider_for(dead, dead, retry_backoff_initial_ms=250, max_retries=1) as provider:
        start = time.monotonic()
        with pytest.raises(APIConnectionError, match="cannot connect"):
            text_of(provider)
        assert time.monotonic() - start >= 0.2, "the other key leads to the same server"


@pytest.mark.parametrize("inside", [False, True], ids=["status", "inside a 200"])
def test_who_says_504_is_never_asked_again_and_another_server_once(inside):
    late = answer({"error": {"message": "late", "code": 504}}) if inside else status(504)
    with Scripted(["request", late, "again"]) as one, Scripted(["request", late, "again"]) as two:
        with provider_for(one.url, two.url, one.url, max_retries=9) as provider:
            with pytest.raises(InternalServerError, match="no|late"):
                text_of(provider)
        assert (len(one.requests), len(two.requests)) == (1, 1)
    busy = ["request", status(429)] + ["request", status(503)] + GOOD
    with Scripted(["request", late, "again"]) as one, Scripted(busy) as two:
        with provider_for(one.url, two.url, max_retries=9) as provider:
            for _ in range(6):
                assert text_of(provider) == "good"
        assert len(one.requests) <= 6, "no call came back to it"


@pytest.mark.parametrize("number", [429, 503])
@pytest.mark.parametrize("retries", [0, 1, 2, 3])
def test_beside_a_server_that_is_down_the_answer_of_the_other_counts(number, retries):
    busy = status(number, "Retry-After: 70\r\n")
    with Scripted(["request", busy, "again"]) as server:
        with provider_for(nobody(), server.url, max_retries=retries) as provider:
            seen = set()
            for _ in range(8):
                start = time.monotonic()
                with pytest.raises((APIStatusError, APIConnectionError)) as caught:
                    text_of(provider)
                assert time.monotonic() - start < 15
                seen.add((caught.value.status_code, caught.value.retry_after))
            assert (number, 70.0) in seen
            assert retries == 0 or seen == {(number, 70.0)}


def test_the_second_round_over_two_busy_keys_goes_to_the_other_key_before_it_waits():
    busy = ["request", status(429), "again"]
    with Scripted(busy) as one, Scripted(busy) as two:
        with provider_for(one.url, two.url, max_retries=3, retry_backoff_initial_ms=300) as provider:
            start = time.monotonic()
            with pytest.raises(RateLimitError):
                text_of(provider)
            took = time.monotonic() - start
        assert (len(one.requests), len(two.requests)) == (2, 2), "each round asks both"
        assert took >= 0.2, "between the rounds there is a pause"


def test_a_pinned_key_is_kept_to():
    with Scripted(GOOD) as one, Scripted(["request", status(503), "again"]) as two:
        with provider_for(one.url, two.url, max_retries=1) as provider:
            with pytest.raises(InternalServerError):
                text_of(provider.with_options(key_id="key1"))
            assert (len(one.requests), len(two.requests)) == (0, 2)
            assert text_of(provider.with_options(key_name="name0")) == "good"
            with pytest.raises(BadRequestError, match="nobody"):
                text_of(provider.with_options(key_id="nobody"))
            assert text_of(provider.with_options(key_id="key1").with_options(key_id=None, key_name="name0")) == "good"


def test_a_form_is_sent_whole_every_time():
    with EchoServer(script=["!error 503", "!error 429"]) as server:
        with VLLMProvider(server.url, max_retries=2) as provider:
            provider._caller.network.__dict__["retry_backoff_initial_ms"] = 1
            provider.transcription(model="echo", file=("a.wav", b"RIFF0000WAVEfmt " + b"0" * 5000))
        assert len(server.requests) == 3
        bodies = [request.files["file"].content for request in server.requests]
        assert bodies[0] == bodies[1] == bodies[2] and len(bodies[0]) == 5016


# ---------------------------------------------------------------- headers and bodies

def test_the_headers_of_a_call_and_of_a_stream():
    with Scripted(GOOD) as server, provider_for(server.url) as provider:
        text_of(provider)
        with pytest.raises(ResponseDecodeError):
            provider.chat_completion_stream(**ASK)
        call, stream = server.requests
    assert call.headers["content-type"] == stream.headers["content-type"] == "application/json"
    assert call.headers["authorization"] == stream.headers["authorization"] == "Bearer %s0" % KEY
    assert call.headers["accept"] == "application/json"
    assert stream.headers["accept"] == "text/event-stream"
    assert stream.headers["cache-control"] == "no-cache"
    assert call.headers["x-request-id"] != stream.headers["x-request-id"]
    for request in (call, stream):
        names = [name for name, _ in request.pairs]
        assert len(names) == len(set(names)), "a header is there twice"
        assert "cookie" not in names


def test_no_key_means_no_header():
    with Scripted(GOOD) as server, VLLMProvider(server.url) as provider:
        text_of(provider)
        assert "authorization" not in server.requests[0].headers


@pytest.mark.parametrize("with_key", [True, False])
def test_netrc_neither_replaces_the_key_nor_adds_one(tmp_path, monkeypatch, with_key):
    (tmp_path / ".netrc").write_text("default login someone password stolen\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    import requests.utils

    assert requests.utils.get_netrc_auth("http://127.0.0.1:1/") == ("someone", "stolen")
    with Scripted(GOOD) as server, VLLMProvider(server.url, api_key=KEY if with_key else None) as provider:
        text_of(provider)
        assert server.requests[0].headers.get("authorization") == ("Bearer " + KEY if with_key else None)


def test_extra_headers_fill_in_and_a_calls_own_win():
    extra = {"X-Team": "a", "authorization": "Bearer other", "ACCEPT": "text/plain", "x-request-id": "fixed"}
    with Scripted(GOOD) as server, provider_for(server.url, extra_headers=extra) as provider:
        text_of(provider)
        text_of(provider.with_options(headers={"x-team": "b", "Authorization": "Bearer mine", "X-REQUEST-ID": "r1"}))
        trace = Trace()
        text_of(provider.with_options(headers={"x-one": "1"}).with_options(headers={"x-two": "2"}, trace=trace))
        first, second, third = (request.headers for request in server.requests)
    assert (first["x-team"], first["accept"]) == ("a", "application/json")
    assert first["authorization"] == "Bearer %s0" % KEY
    assert first["x-request-id"] == "fixed"
    assert (second["x-team"], second["authorization"], second["x-request-id"]) == ("b", "Bearer mine", "r1")
    assert (third["x-one"], third["x-two"]) == ("1", "2")
    assert trace.request_id == "fixed"
    assert all(len(set(request.headers)) == len(request.pairs) for request in server.requests)


def test_an_alias_becomes_the_real_name_only_on_the_wire():
    with Scripted(GOOD) as server:
        keys = [{"url": server.url, "aliases": {"small": "Qwen/Qwen3-0.6B"}}]
        with VLLMProvider(config=ProviderConfig(keys=keys)) as provider:
            asked = dict(ASK, model="small")
            provider.chat_completion(**asked)
            assert server.requests[0].json["model"] == "Qwen/Qwen3-0.6B"
            assert asked["model"] == "small"


def test_the_servers_request_id_is_told_with_an_error():
    headers = "X-Request-Id: from-server\r\n"
    with Scripted(["request", status(400, headers)]) as server, provider_for(server.url) as provider:
        with pytest.raises(BadRequestError) as caught:
            text_of(provider)
    assert caught.value.request_id == "from-server"


def test_options_do_not_show_their_headers():
    options = Options(timeout=(1, 2), headers={"Authorization": KEY}, max_retries=0, stream_idle_timeout=None)
    assert KEY not in repr(options)


# ---------------------------------------------------------------- no key anywhere

ECHOING = "you sent Bearer %s0" % KEY
LEAKS = {
    "error body": [status(401, "", {"error": {"message": ECHOING, "code": 401, ECHOING: [ECHOING]}})],
    "text": [answer(ECHOING.encode(), "403 Forbidden", "text/plain")],
    "HTML": [answer(b"<html><title>%s</title></html>" % ECHOING.encode(), "502 Bad", "text/html")],
    "error in a 200": [answer({"error": {"message": ECHOING, "code": 400, "param": ECHOING, "type": ECHOING}})],
    "page with 200": [answer(b"<html>%s</html>" % ECHOING.encode(), content_type="text/html")],
    "list with 200": [answer([ECHOING])],
    "redirect": [answer(b"", "302 Found", extra="Location: http://x/?key=%s\r\n" % ECHOING.replace(" ", ""))],
    "request id": [status(400, "X-Request-Id: %s\r\n" % ECHOING)],
    "no HTTP": [ECHOING.encode() + b"\r\n\r\n"],
    "stream's first event": [SSE_HEAD, event({"error": {"message": ECHOING, "code": 400}})],
    "stream's later event": [SSE_HEAD, event(delta("a")), event({"error": {"message": ECHOING, "code": 400}})],
    "stream's junk": [SSE_HEAD, event(ECHOING)],
    "stream's later junk": [SSE_HEAD, event(delta("a")), event(ECHOING)],
}


@pytest.mark.parametrize("operation", ["chat_completion", "chat_completion_stream", "embedding", "rerank",
                                       "list_models", "transcription", "responses", "forward"])
@pytest.mark.parametrize("leak", LEAKS)
def test_a_key_that_a_server_repeats_is_masked(leak, operation, caplog):
    import traceback

    caplog.set_level("DEBUG")
    wire = {"chat_completion": ASK, "chat_completion_stream": ASK, "embedding": {"input": "a"}, "list_models": {},
            "rerank": {"query": "a", "documents": ["b"]}, "transcription": {"file": b"x"}, "responses": {"input": "a"}}
    with Scripted(["request"] + LEAKS[leak]) as server, provider_for(server.url, max_retries=0) as provider:
        with pytest.raises(Exception) as caught:
            if operation == "forward":
                provider.forward("chat_completion", ASK)
            else:
                list(getattr(provider, operation)(**wire[operation]))
    error = caught.value
    assert type(error).__module__ == "vllm_bridge.errors"
    shown = [str(error), repr(error), repr(error.__dict__), repr(error.args), repr(provider), repr(provider._options),
             repr(provider.config), json.dumps(error.payload, default=str), caplog.text]
    shown += traceback.format_exception(type(error), error, caught.tb)
    assert KEY not in "".join(shown)


def test_a_short_key_is_masked_as_a_word_only():
    words = {"error": {"message": "bad key EMPTY; EMPTYness is no key", "code": 401}}
    with Scripted(["request", status(401, "", words)]) as server:
        with VLLMProvider(server.url, api_key="EMPTY") as provider:
            with pytest.raises(APIStatusError) as caught:
                text_of(provider)
    assert caught.value.message == "bad key [api key]; EMPTYness is no key"


def test_a_reply_that_quotes_the_key_is_left_as_it_is():
    with Scripted(["request", answer(completion("your key is %s0" % KEY))]) as server:
        with provider_for(server.url) as provider:
            assert text_of(provider) == "your key is %s0" % KEY


# ---------------------------------------------------------------- settings of a call

@pytest.mark.parametrize("options, path", [
    ({"timeout": -1}, "timeout"), ({"timeout": "5"}, "timeout"), ({"timeout": (1, 2, 3)}, "timeout"),
    ({"deadline": 0}, "deadline"), ({"deadline": "soon"}, "deadline"), ({"stream_idle_timeout": True}, "stream_idle"),
    ({"max_retries": -1}, "max_retries"), ({"max_retries": 1.5}, "max_retries"), ({"headers": "X: y"}, "headers"),
    ({"headers": {"X": "a\r\nY: b"}}, "headers.X"), ({"headers": {"Content-Length": "3"}}, "headers.Content-Length"),
    ({"cancel": True}, "cancel"), ({"trace": {}}, "trace"), ({"key_id": 5}, "key_id"), ({"colour": 1}, "colour"),
])
def test_a_wrong_setting_is_named(options, path):
    with VLLMProvider("http://127.0.0.1:1") as provider:
        with pytest.raises(ConfigError, match=path):
            provider.with_options(**options)


def test_copies_share_connections_and_keep_their_own_settings():
    with Scripted(GOOD) as server, provider_for(server.url, max_retries=4) as provider:
        quick = provider.with_options(timeout=(1, 2), max_retries=1, deadline=9, stream_idle_timeout=7)
        options = quick._options
        assert (options.timeout, options.headers, options.max_retries) == ((1.0, 2.0), {}, 1)
        assert (options.stream_idle_timeout, options.deadline) == (7, 9)
        assert provider._options.max_retries == 4 and provider._options.deadline is None
        assert quick.with_options(timeout=0.5)._options.timeout == (0.5, 0.5)
        assert quick.with_options(timeout=None)._options.timeout == (1.0, None)
        back = quick.with_options(deadline=None, stream_idle_timeout=None, max_retries=None, headers=None)
        assert (back._options.deadline, back._options.stream_idle_timeout, back._options.max_retries) == (None, None, 1)
        text_of(quick)
        text_of(provider)
        assert server.connections == 1


def test_a_timeout_of_none_waits():
    with Scripted(["request", ("sleep", 0.3), answer(completion("good"))]) as server:
        with VLLMProvider(server.url, timeout=None) as provider:
            assert text_of(provider) == "good"


def test_one_certain_server_is_asked_once():
    with Scripted(["request", ("sleep", 5)]) as server, provider_for(server.url) as provider:
        options = provider._options.changed(deadline=0.2)
        with pytest.raises(APITimeoutError):
            provider._caller.get("/v1/models", provider._caller.fleet.keys[0], options)
        assert len(server.requests) <= 1
