"""One operation carried out: which key, which headers, what is tried again and where."""

import copy
import functools
import json
import multiprocessing
import os
import pickle
import signal
import socket
import threading
import time

import pytest
import requests

from certificates import needs_openssl, tls
from scripted import LAST_CHUNK, SSE_HEAD, Scripted, answer, chunk, completion, delta, event, nobody
from vllm_bridge import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    BadRequestError,
    Cancellation,
    ConfigError,
    IncompleteStreamError,
    InternalServerError,
    NetworkConfig,
    ProviderConfig,
    RateLimitError,
    RequestCancelledError,
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


@pytest.mark.parametrize("how", ["cancel", "socket", "function"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_pause_ends_when_nobody_waits_any_more(how, stream):
    busy = ["request", status(429, "Retry-After: 30\r\n"), "again"]
    ours, theirs = socket.socketpair()
    with Scripted(busy) as server, provider_for(server.url) as provider, ours, theirs:
        cancel = Cancellation()
        options = {"cancel": cancel} if how == "cancel" else {
            "client": theirs if how == "socket" else lambda: bool(server.log.count("send"))}
        provider = provider.with_options(**options)

        def leave():
            server.until("send")
            cancel.cancel()
            ours.close()

        thread = threading.Thread(target=leave)
        thread.start()
        start = time.monotonic()
        with pytest.raises(RequestCancelledError):
            provider.chat_completion_stream(**ASK) if stream else text_of(provider)
        thread.join()
        assert time.monotonic() - start < 15 and len(server.requests) == 1


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
def test_what_a_signals_handler_raises_ends_a_pause():
    class TimeIsUp(Exception):
        pass

    def handler(number, frame):
        raise TimeIsUp

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with Scripted(["request", status(429, "Retry-After: 30\r\n"), "again"]) as server:
            with provider_for(server.url) as provider:
                signal.setitimer(signal.ITIMER_REAL, 0.3)
                with pytest.raises(TimeIsUp):
                    text_of(provider)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


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
        assert attempts == [1] * 12, "it was asked for its models, and was not there"
        assert [key.url for key in provider.cooling()] == [dead]


@needs_openssl
def test_a_handshake_that_fails_is_failed_over_and_not_tried_again(authority):
    _, context = authority
    busy = ["request", status(429, "Retry-After: 70\r\n"), "again"]
    with Scripted([("tls", context), "hold"]) as stranger, Scripted(GOOD) as good, Scripted(busy) as full:
        with provider_for(tls(stranger), good.url) as provider:
            assert [text_of(provider) for _ in range(8)] == ["good"] * 8
            assert stranger.connections <= 1 and len(provider.cooling()) == stranger.connections
        with provider_for(tls(stranger), full.url) as provider:
            for _ in range(4):
                with pytest.raises(RateLimitError):
                    text_of(provider)
        before = stranger.connections
        with provider_for(tls(stranger), tls(stranger)) as provider:
            with pytest.raises(APIConnectionError, match="TLS") as caught:
                text_of(provider)
        assert caught.value.code == "tls_error" and stranger.connections == before + 1


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
        assert (len(one.posts), len(two.posts)) == (1, 1)
    busy = ["request", status(429)] + ["request", status(503)] + GOOD
    with Scripted(["request", late, "again"]) as one, Scripted(busy) as two:
        with provider_for(one.url, two.url, max_retries=9) as provider:
            for _ in range(6):
                assert text_of(provider) == "good"
        assert len(one.posts) <= 6, "no call came back to it"


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
        assert (len(one.posts), len(two.posts)) == (2, 2), "each round asks both"
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


@pytest.mark.parametrize("name", ["Authorization", "X-Team", "Content-Type", "Accept", "User-Agent", "X-Request-Id",
                                  "Cache-Control", "Accept-Encoding", "Host"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_header_given_twice_in_different_case_goes_up_once_and_the_later_wins(name, stream):
    extra = {name.upper(): "2", "X-Other": "a"}
    streamed = ["request", SSE_HEAD, event(delta("good", "stop")), event("[DONE]"), LAST_CHUNK, "again"]
    with Scripted(streamed if stream else GOOD) as server:
        keys = [{"value": KEY, "url": server.url}]
        config = ProviderConfig(NetworkConfig(extra_headers=extra), keys=keys)
        with VLLMProvider(config=config, headers={name.lower(): "3"}) as provider:
            again = provider.with_options(headers={name.swapcase(): "4", "x-other": "b"})
            third = again.with_options(headers={name.upper(): "5"}).with_options(headers={name: "6"})
            for each in (provider, again, third):
                list(each.chat_completion_stream(**ASK)) if stream else text_of(each)
    for request, value in zip(server.requests, "346"):
        assert [given for each, given in request.pairs if each == name.lower()] == [value]
        assert [given for each, given in request.pairs if each == "x-other"] == ["a" if value == "3" else "b"]


def test_an_alias_becomes_the_real_name_only_on_the_wire():
    with Scripted(GOOD) as server:
        keys = [{"url": server.url, "aliases": {"small": "Qwen/Qwen3-0.6B"}}]
        with VLLMProvider(config=ProviderConfig(keys=keys)) as provider:
            asked = dict(ASK, model="small")
            provider.chat_completion(**asked)
            assert server.requests[0].json["model"] == "Qwen/Qwen3-0.6B"
            assert asked["model"] == "small"


def test_aliases_hold_for_a_transcription_at_each_key_it_tries():
    fine = answer({"text": "fine"})
    with Scripted(["request", status(503), "again"]) as busy, Scripted(["request", fine, "again"]) as good:
        keys = [{"url": busy.url, "aliases": {"ear": "openai/whisper-small"}, "models": ["ear"]},
                {"url": good.url, "aliases": {"ear": "openai/whisper-large-v3"}, "models": ["ear"]}]
        with VLLMProvider(config=ProviderConfig(keys=keys)) as provider:
            for _ in range(100):  # by lot: until both have been asked
                assert provider.transcription(file=b"RIFF0000WAVEfmt 0", model="ear", language="en").text == "fine"
                if busy.posts and good.posts:
                    break
    assert busy.posts and all(b"\r\n\r\nopenai/whisper-small\r\n" in request.body for request in busy.posts)
    for request in good.posts:
        assert b"\r\n\r\nopenai/whisper-large-v3\r\n" in request.body and b"RIFF0000WAVEfmt 0" in request.body
        assert b'name="language"\r\n\r\nen\r\n' in request.body and b"ear\r\n" not in request.body


@pytest.mark.parametrize("operation, wire", [
    ("chat_completion", {"messages": []}), ("embedding", {"input": "a"}), ("transcription", {"file": b"x"}),
])
def test_a_call_without_a_model_goes_to_a_key_with_aliases(operation, wire):
    replies = {"chat_completion": completion("good"), "embedding": {"object": "list", "data": []},
               "transcription": {"text": "x"}}
    with Scripted(["request", answer(replies[operation]), "again"]) as server:
        keys = [{"url": server.url, "aliases": {"small": "big"}, "models": ["small"]}]
        with VLLMProvider(config=ProviderConfig(keys=keys)) as provider:
            getattr(provider, operation)(**wire)
            assert b"model" not in server.requests[0].body
            getattr(provider, operation)(model="small", **wire)
            assert b"big" in server.requests[1].body


def test_extra_body_is_merged_before_the_model_is_looked_at():
    with Scripted(GOOD) as server:
        keys = [{"url": server.url, "aliases": {"small": "big"}, "blacklisted_models": ["secret"]}]
        with VLLMProvider(config=ProviderConfig(keys=keys)) as provider:
            for model, extra, sent in (("m", "small", "big"), ("m", None, "m"), ("small", None, "big")):
                provider.chat_completion(messages=[], model=model, extra_body={"model": extra})
                assert server.requests[-1].json == {"messages": [], "model": sent}
            for extra in ("secret", ["secret"], 5, {"a": 1}):
                for call in (provider.chat_completion, provider.chat_completion_stream, provider.responses):
                    with pytest.raises(BadRequestError) as caught:
                        call(messages=[], input="a", model="m", extra_body={"model": extra})
                    assert caught.value.param == "model"
            assert len(server.requests) == 3


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


@pytest.mark.parametrize("before", range(0, 2200, 44))
@pytest.mark.parametrize("leak", ["text", "json", "unreadable", "stream", "event", "detail"])
def test_where_a_message_is_cut_no_part_of_a_key_is_left(before, leak):
    said = "x" * before + " " + KEY + "0 " + "y" * 3000
    script = {
        "text": answer(said.encode(), "500 Bad", "text/plain"), "json": status(400, "", {"error": {"message": said}}),
        "unreadable": answer(said.encode(), content_type="text/plain"), "stream": SSE_HEAD + event(said) + LAST_CHUNK,
        "event": answer(said.encode(), content_type="text/plain"), "detail": status(400, "", {"odd": said}),
    }
    with Scripted(["request", script[leak]]) as server, provider_for(server.url, max_retries=0) as provider:
        with pytest.raises(Exception) as caught:
            list(getattr(provider, "chat_completion" + "_stream" * (leak in ("stream", "event")))(**ASK))
    error = caught.value
    shown = error.message + str(error) + repr(error.args) + json.dumps(error.payload)
    assert not any(KEY[:end] in shown for end in range(6, len(KEY)))
    assert len(error.message) <= 2001


# ---------------------------------------------------------------- what became of a call

def test_a_trace_is_filled_after_every_call():
    usage = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
    known = "X-Request-Id: from-server\r\n"
    stream = [SSE_HEAD[:-2] + known.encode() + b"\r\n", event(delta("a")), event(delta("b", "stop")),
              event({"choices": [], "usage": usage}), event("[DONE]"), LAST_CHUNK]
    operations = {
        "chat_completion": (ASK, dict(completion(), usage=usage)),
        "text_completion": ({"prompt": "a"}, {"choices": [], "usage": usage}),
        "embedding": ({"input": "a"}, {"object": "list", "data": [], "usage": usage}),
        "rerank": ({"query": "a", "documents": ["b"]},
                   {"results": [{"index": 0, "relevance_score": 1.0}], "usage": {"prompt_tokens": 5}}),
        "responses": ({"input": "a"}, dict(completion(), usage=usage)),
        "transcription": ({"file": b"x"}, {"text": "a", "usage": {"input_tokens": 5, "output_tokens": 7}}),
        "list_models": ({}, {"object": "list", "data": []}),
    }
    for operation, (wire, reply) in operations.items():
        with Scripted(["request", answer(reply, extra=known)]) as server, provider_for(server.url) as provider:
            trace = Trace()
            getattr(provider.with_options(trace=trace), operation)(**wire)
            assert (trace.status, trace.attempts, trace.server) == (200, 1, server.url), operation
            assert trace.request_id == "from-server"
            tokens = {"list_models": (0, 0), "rerank": (5, 0)}.get(operation, (5, 7))
            assert (trace.prompt_tokens, trace.completion_tokens) == tokens, operation
    for operation in ("chat_completion_stream", "responses_stream", "forward_stream"):
        with Scripted(["request"] + stream) as server, provider_for(server.url) as provider:
            trace = Trace()
            wire = {"operation": "chat_completion", "body": ASK} if operation == "forward_stream" else \
                {"input": "a"} if operation == "responses_stream" else ASK
            list(getattr(provider.with_options(trace=trace), operation)(**wire))
            assert (trace.status, trace.attempts, trace.server) == (200, 1, server.url), operation
            assert (trace.request_id, trace.events >= 2) == ("from-server", True)
            assert (trace.prompt_tokens, trace.completion_tokens) == (5, 7), operation


def test_a_trace_counts_the_tokens_of_a_native_stream_of_responses():
    usage = {"input_tokens": 5, "output_tokens": 7, "total_tokens": 12}
    events = [event({"type": "response.created", "response": {"id": "r"}}),
              event({"type": "response.completed", "response": {"id": "r", "output": [], "usage": usage}})]
    with Scripted(["request", SSE_HEAD] + events + [LAST_CHUNK]) as server:
        config = ProviderConfig(NetworkConfig(server.url), native_responses=True)
        with VLLMProvider(config=config) as provider:
            trace = Trace()
            assert len(list(provider.with_options(trace=trace).responses_stream(input="a"))) == 2
    assert (trace.prompt_tokens, trace.completion_tokens, trace.events) == (5, 7, 2)


def test_a_trace_tells_of_a_call_that_failed():
    with Scripted(["request", status(429, "X-Request-Id: r9\r\n"), "again"]) as server:
        with provider_for(server.url, max_retries=1) as provider:
            trace = Trace()
            with pytest.raises(RateLimitError):
                text_of(provider.with_options(trace=trace))
            assert (trace.status, trace.attempts, trace.server, trace.request_id) == (429, 2, server.url, "r9")
    with provider_for(nobody(), max_retries=0) as provider:
        trace = Trace()
        with pytest.raises(APIConnectionError):
            text_of(provider.with_options(trace=trace))
        assert (trace.status, trace.attempts) == (None, 1)
    with Scripted(["request", SSE_HEAD, event(delta("a")), event(delta("b")), "hold"]) as server:
        with provider_for(server.url) as provider:
            trace = Trace()
            with provider.with_options(trace=trace).chat_completion_stream(**ASK) as stream:
                next(stream), next(stream)
            assert (trace.status, trace.events) == (200, 2)


# ---------------------------------------------------------------- comments, for whoever hands a stream on

LAST = [event(delta("good", "stop")), event("[DONE]"), LAST_CHUNK]
COMMENT = chunk(b": server\n\n")


def passing(provider, operation, interval=0):
    wire = {"forward_stream": ("chat_completion", ASK)}.get(operation, ())
    keywords = {} if wire else {"input": "a"} if operation == "responses_stream" else ASK
    return getattr(provider.with_options(keep_alive_interval=interval), operation)(*wire, **keywords)


@pytest.mark.parametrize("operation", ["forward_stream", "chat_completion_stream", "responses_stream"])
def test_comments_come_at_once_and_attempts_go_on_behind_them(operation):
    broken = ["request", SSE_HEAD, COMMENT, event({"error": {"message": "busy", "code": 503}}), LAST_CHUNK]
    fine = ["request", SSE_HEAD, COMMENT, event(delta("a")), COMMENT] + LAST
    with Scripted(broken, fine) as server, provider_for(server.url) as provider:
        stream = passing(provider, operation)
        assert not stream.begun and next(stream) == b": server\n\n"
        items = list(stream)
        assert stream.begun and len(server.requests) == 2
    passed = b"".join(item for item in items if isinstance(item, bytes))
    assert passed.count(b": server\n\n") == 2
    if operation != "forward_stream":
        assert passed.count(b"\n") == 4 and any(isinstance(item, dict) for item in items)


@pytest.mark.parametrize("operation", ["forward_stream", "chat_completion_stream", "responses_stream"])
def test_what_fails_behind_a_comment_is_raised_by_the_stream(operation):
    broken = ["request", SSE_HEAD, COMMENT, event({"error": {"message": "no", "code": 400}}), LAST_CHUNK]
    with Scripted(broken) as server, provider_for(server.url) as provider:
        stream = passing(provider, operation)
        with pytest.raises(BadRequestError, match="no"):
            list(stream)
        assert not stream.begun


@pytest.mark.parametrize("silence", ["head", "event", "pause", "between"])
def test_comments_of_our_own_fill_every_silence(silence):
    first = event(delta("a"))
    scripts = {
        "head": [["request", ("sleep", 0.5), SSE_HEAD, first] + LAST],
        "event": [["request", SSE_HEAD, ("sleep", 0.5), first] + LAST],
        "between": [["request", SSE_HEAD, first, ("sleep", 0.5)] + LAST],
        "pause": [["request", status(503, "Retry-After: 0.5\r\n")], ["request", SSE_HEAD, first] + LAST],
    }[silence]
    with Scripted(*scripts) as server, provider_for(server.url) as provider:
        items = list(passing(provider, "forward_stream", 0.1))
    at = [item.startswith(b":") for item in items]
    assert 3 <= sum(at) <= 6
    assert items[-1].endswith(b"data: [DONE]\n\n")
    assert at[0] is (silence != "between")


def test_where_a_read_cannot_be_tried_again_a_silence_breaks_nothing():
    with Scripted(["request", SSE_HEAD, ("sleep", 0.3), event(delta("a")), ("sleep", 0.3)] + LAST) as server:
        with provider_for(server.url) as provider, requests.Session() as session:
            items = list(passing(provider.with_options(session=session), "forward_stream", 0.1))
    assert b"".join(items).endswith(b"data: [DONE]\n\n")


def test_a_stream_that_is_left_while_its_head_is_waited_for_is_closed():
    with Scripted(["request", ("sleep", 0.3), SSE_HEAD, ("repeat", event(delta("x")), 0.01)]) as server:
        with provider_for(server.url) as provider:
            with passing(provider, "forward_stream", 0.05) as stream:
                assert next(stream) == b": keep-alive\n\n"
            server.until("eof")


# ---------------------------------------------------------------- other processes

def restored(provider):
    yield pickle.loads(pickle.dumps(provider))
    yield copy.deepcopy(provider)
    yield copy.copy(provider)


def test_a_provider_is_pickled_and_copied_with_its_settings():
    with Scripted(GOOD) as server, provider_for(server.url, max_retries=7) as provider:
        text_of(provider)
        changed = provider.with_options(timeout=(3, 4), headers={"X-A": "b"}, deadline=9, key_name="name0")
        for number, other in enumerate(restored(changed), 1):
            with other:
                assert type(other) is VLLMProvider and other.config == provider.config
                assert other._options.__dict__ == changed._options.__dict__
                assert text_of(other) == "good"
                assert server.requests[-1].headers["x-a"] == "b"
        assert text_of(provider) == "good"


def test_what_breaks_a_call_off_stays_in_its_process():
    cancel = Cancellation()
    with VLLMProvider("http://127.0.0.1:1").with_options(cancel=cancel, trace=Trace()) as provider:
        other = pickle.loads(pickle.dumps(provider))
        cancel.cancel()
        assert not other._options.cancel.cancelled and other._options.trace.attempts == 0


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_providers_work_in_a_pool_of_processes(method):
    with EchoServer() as server, VLLMProvider(server.url) as provider:
        ask = functools.partial(provider.chat_completion, model="echo", messages=ASK["messages"])
        assert ask().text
        with multiprocessing.get_context(method).Pool(2) as pool:
            replies = [pool.apply_async(ask) for _ in range(4)]
            assert [reply.get(60).text for reply in replies] == [ask().text] * 4
            pool.close()
            pool.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_does_not_wait_for_a_lock_that_a_thread_of_its_parent_held():
    with Scripted(GOOD) as server, provider_for(server.url, nobody()) as provider:
        fleet = provider._caller.fleet
        fleet.failed(fleet.keys[1])
        with fleet._lock:
            pid = os.fork()
            if not pid:
                os._exit(0 if text_of(provider) == "good" else 1)
        assert os.waitpid(pid, 0)[1] == 0


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
