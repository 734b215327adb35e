"""requests is the backbone: whatever stands in its way of sending is in use, and a caller's own session is as it is."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import requests
import responses
from requests.adapters import HTTPAdapter

from certificates import needs_openssl, tls
from scripted import LAST_CHUNK, SSE_HEAD, Scripted, answer, completion, delta, event, nobody
from vllm_bridge import (
    APIConnectionError,
    APITimeoutError,
    AuthenticationError,
    Cancellation,
    NetworkConfig,
    ProviderConfig,
    RequestCancelledError,
    VLLMProvider,
)

ASK = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
GOOD = ["request", answer(completion("good")), "again"]
GO_OD = [event(delta("go")), event(delta("od", "stop")), event("[DONE]"), LAST_CHUNK]
GOOD_STREAM = ["request", SSE_HEAD] + GO_OD + ["again"]
URL = "http://gpu.example:8000"
CHAT = URL + "/v1/chat/completions"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in "http_proxy https_proxy all_proxy no_proxy REQUESTS_CA_BUNDLE CURL_CA_BUNDLE VLLM_API_KEY".split():
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def session():
    with requests.Session() as made:
        yield made


def text_of(provider):
    return provider.chat_completion(**ASK).choices[0].message.content


def stream_of(provider):
    with provider.chat_completion_stream(**ASK) as chunks:
        return "".join(chunk.text for chunk in chunks)


def provider_for(url, session=None, **settings):
    settings.setdefault("max_retries", 0)
    return VLLMProvider(url, session=session, **settings)


def sse(*texts):
    events = [delta(text) for text in texts] + [delta("", "stop"), "[DONE]"]
    return b"".join(event(one).split(b"\r\n", 1)[1][:-2] for one in events)


# ---------------------------------------------------------------- what puts itself below our session

def test_responses_answers_in_the_place_of_the_server():
    with provider_for(URL, api_key="k") as provider:
        with responses.RequestsMock() as mock:
            mock.add("POST", CHAT, json=completion("mocked"))
            mock.add("POST", CHAT, body=sse("a", "b"), content_type="text/event-stream")
            assert text_of(provider) == "mocked"
            assert stream_of(provider) == "ab"
            assert [call.request.headers["authorization"] for call in mock.calls] == ["Bearer k"] * 2
        with Scripted(GOOD) as server:
            assert text_of(provider_for(server.url)) == "good"


def test_requests_mock_answers_in_the_place_of_the_server():
    requests_mock = pytest.importorskip("requests_mock")
    with provider_for(URL, api_key="k") as provider, requests_mock.Mocker() as mock:
        mock.post(CHAT, [
            {"json": completion("mocked")},
            {"content": sse("a", "b"), "headers": {"Content-Type": "text/event-stream"}},
            {"status_code": 401, "json": {"error": {"message": "no", "code": 401}}},
            {"exc": requests.exceptions.ConnectTimeout},
        ])
        assert text_of(provider) == "mocked"
        assert stream_of(provider) == "ab"
        with pytest.raises(AuthenticationError):
            text_of(provider)
        with pytest.raises(APITimeoutError) as caught:
            text_of(provider)
        assert caught.value.code == "connection_not_made"
        assert mock.request_history[0].headers["AUTHORIZATION"] == "Bearer k"
        assert mock.request_history[0].json()["model"] == "m"


@pytest.mark.parametrize("operation, script", [(text_of, GOOD), (stream_of, GOOD_STREAM)])
def test_vcr_records_and_replays(tmp_path, operation, script):
    vcr = pytest.importorskip("vcr")
    cassette = str(tmp_path / "cassette.yaml")
    with Scripted(script) as server, vcr.use_cassette(cassette) as tape:
        assert operation(provider_for(server.url)) == "good"
        assert len(server.requests) == 1 and tape.play_count == 0
        url = server.url
    with vcr.use_cassette(cassette, record_mode="none") as tape:
        assert operation(provider_for(url)) == "good"  # nobody listens any more
        assert tape.play_count == 1


_TRACED = r"""
import sys
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
kind, when, url = sys.argv[1:]
if kind == "requests":
    from opentelemetry.instrumentation.requests import RequestsInstrumentor as Instrumentor
else:
    from opentelemetry.instrumentation.urllib3 import URLLib3Instrumentor as Instrumentor
spans = InMemorySpanExporter()
tracing = TracerProvider()
tracing.add_span_processor(SimpleSpanProcessor(spans))
if when == "before":
    Instrumentor().instrument(tracer_provider=tracing)
from vllm_bridge import VLLMProvider
if when == "after":
    Instrumentor().instrument(tracer_provider=tracing)
ask = {"model": "m", "messages": []}
provider = VLLMProvider(url)
print(provider.chat_completion(**ask).text, "".join(chunk.text for chunk in provider.chat_completion_stream(**ask)))
print(len(spans.get_finished_spans()))
Instrumentor().uninstrument()
print(provider.chat_completion(**ask).text, len(spans.get_finished_spans()))
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", ["requests", "urllib3"])
def test_instrumentation_sees_each_request(kind, when):
    pytest.importorskip("opentelemetry.instrumentation." + kind)
    pytest.importorskip("opentelemetry.sdk")
    script = GOOD[:-1] + GOOD_STREAM[:-1] + GOOD
    with Scripted(script, script) as server:
        done = subprocess.run(
            [sys.executable, "-c", _TRACED, kind, when, server.url], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            timeout=60, cwd=str(Path(__file__).resolve().parents[2]))
        assert (done.stdout.decode(), done.stderr.decode()) == ("good good\n2\ngood 2\n", "")
        assert ["traceparent" in request.headers for request in server.requests] == [True, True, False]


# ---------------------------------------------------------------- a caller's own session

class Mine(requests.Session):
    """A session that counts, as a company's own does that signs or logs."""

    def __init__(self):
        super().__init__()
        self.sent = []

    def send(self, request, **kwargs):
        request.headers["X-Signed"] = "yes"
        self.sent.append(request.url)
        return super().send(request, **kwargs)


def test_a_subclass_of_session_sends():
    with Mine() as mine, Scripted(GOOD[:-1] + GOOD_STREAM) as server:
        provider = provider_for(server.url, mine, api_key="k")
        assert text_of(provider) == "good"
        assert stream_of(provider) == "good"
        assert mine.sent == [server.url + "/v1/chat/completions"] * 2
        assert [request.headers["x-signed"] for request in server.requests] == ["yes"] * 2
        assert [request.headers["authorization"] for request in server.requests] == ["Bearer k"] * 2
        assert server.connections == 1, "its pool is in use"


def test_the_session_is_an_option_of_a_call():
    with Mine() as mine, Scripted(GOOD, GOOD) as server, provider_for(server.url) as provider:
        assert text_of(provider) == "good" and mine.sent == []
        assert text_of(provider.with_options(session=mine)) == "good" and len(mine.sent) == 1
        assert text_of(provider) == "good" and len(mine.sent) == 1


def test_an_adapter_mounted_for_the_servers_prefix_sends(session):
    class Counting(HTTPAdapter):
        sent = 0

        def send(self, *args, **kwargs):
            self.sent += 1
            return super().send(*args, **kwargs)

    adapter = Counting()
    with Scripted(GOOD) as server:
        session.mount(server.url, adapter)
        assert text_of(provider_for(server.url, session)) == "good"
    assert adapter.sent == 1


def test_headers_cookies_auth_and_hooks_are_the_sessions(session):
    seen = []
    session.headers.update({"X-Team": "blue", "User-Agent": "mine/1"})
    session.cookies.set("route", "7")
    session.auth = ("user", "pass")
    session.hooks["response"].append(lambda response, **kwargs: seen.append(response.json()))  # reads the body
    with Scripted(GOOD) as server:
        assert text_of(provider_for(server.url, session, api_key="k")) == "good"
        headers = server.requests[0].headers
    assert headers["x-team"] == "blue" and headers["user-agent"] == "mine/1" and headers["cookie"] == "route=7"
    assert headers["authorization"] == "Basic dXNlcjpwYXNz"
    assert headers["accept-encoding"] == "identity"
    assert seen[0]["choices"][0]["message"]["content"] == "good"


def test_netrc_does_not_replace_the_key(session, monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with Scripted(GOOD) as server:
        text_of(provider_for(server.url, session, api_key="k"))
        text_of(provider_for(server.url, session))
        assert [request.headers["authorization"] for request in server.requests] == ["Bearer k", "Basic YTpi"]


def test_a_hook_that_raises_for_the_status(session):
    session.hooks["response"].append(lambda response, **kwargs: response.raise_for_status())
    refused = answer({"error": {"message": "who?", "code": 401}}, "401 Unauthorized")
    with Scripted(["request", refused, "again"]) as server:
        with pytest.raises(AuthenticationError, match="who"):
            text_of(provider_for(server.url, session))


def test_its_proxies_are_used(session):
    with Scripted(["request", answer(completion("by proxy")), "again"]) as proxy:
        session.proxies = {"http": proxy.url}
        assert text_of(provider_for(URL, session)) == "by proxy"
        assert proxy.requests[0].line == "POST %s HTTP/1.1" % CHAT


@needs_openssl
def test_its_certificates_are_used(session, authority):
    path, context = authority
    with Scripted([("tls", context)] + GOOD[:-1] + ["hold"]) as server:
        with pytest.raises(APIConnectionError) as caught:
            text_of(provider_for(tls(server), session))
        assert caught.value.code == "tls_error"
        session.verify = path
        assert text_of(provider_for(tls(server), session)) == "good"


def test_its_read_timeout_bounds_each_wait(session):
    with Scripted(["request", "hold"]) as server:
        with pytest.raises(APITimeoutError, match="read timeout"):
            text_of(provider_for(server.url, session, timeout=(5, 0.2)))
    with Scripted(["request", SSE_HEAD, event(delta("x")), "hold"]) as server:
        with pytest.raises(APITimeoutError):
            stream_of(provider_for(server.url, session).with_options(stream_idle_timeout=0.2))
    with pytest.raises(APIConnectionError) as caught:
        text_of(provider_for(nobody(), session))
    assert caught.value.code == "connection_not_made"


def test_a_deadline_is_looked_at_between_two_reads(session):
    with Scripted(["request", SSE_HEAD, ("repeat", event(delta("x")), 0.01)]) as server:
        with pytest.raises(APITimeoutError) as caught:
            stream_of(provider_for(server.url, session).with_options(deadline=0.3))
        assert caught.value.code == "deadline"


def test_a_cancellation_takes_hold_at_the_next_byte(session):
    cancel = Cancellation()
    with Scripted(["request", SSE_HEAD, event(delta("x")), "hold"]) as server:
        provider = provider_for(server.url, session).with_options(cancel=cancel)
        chunks = provider.chat_completion_stream(**ASK)
        assert next(chunks).text == "x"
        threading.Timer(0.1, cancel.cancel).start()
        with pytest.raises(RequestCancelledError):
            list(chunks)
        server.until("eof")


def test_its_retries_multiply_with_ours(session):
    from urllib3.util.retry import Retry

    session.mount("http://", HTTPAdapter(max_retries=Retry(
        1, status_forcelist=[503], backoff_factor=0, raise_on_status=False, allowed_methods=None)))
    with Scripted(["request", answer(b"", "503 Busy"), "again"]) as server:
        config = ProviderConfig(NetworkConfig(server.url, max_retries=1, retry_backoff_initial_ms=1))
        with pytest.raises(Exception):
            text_of(VLLMProvider(config=config, session=session))
        assert len(server.requests) == 4


def test_a_file_that_cannot_be_read_is_not_blamed_on_the_server(session):
    class Broken:
        name = "a.wav"

        def __init__(self):
            self.position = 0

        def read(self, size=-1):
            if self.position > 100000:
                raise OSError(5, "the disk is broken")
            data = b"RIFF" + b"x" * 65532
            self.position += len(data)
            return data[:size] if size >= 0 else data

        def seek(self, offset, whence=0):
            self.position = offset if whence == 0 else 1000000
            return self.position

        def tell(self):
            return self.position

    for way in (session, None):
        with Scripted(["head", "hold"]) as server:
            with pytest.raises(OSError, match="the disk is broken") as caught:
                provider_for(server.url, way).transcription(model="m", file=Broken())
            assert type(caught.value) is OSError
            server.until("eof")


def test_time_passes_for_all_that_a_proxy_drips(monkeypatch):
    """By a proxy, where urllib3 reads: the deadline holds between two bytes."""
    with Scripted(["request", SSE_HEAD, ("repeat", event(delta("x")), 0.01)]) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        start = time.monotonic()
        with pytest.raises(APITimeoutError) as caught:
            stream_of(provider_for(URL).with_options(deadline=0.3))
        assert caught.value.code == "deadline" and time.monotonic() - start < 5
