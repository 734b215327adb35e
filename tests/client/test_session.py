"""HTTP over requests: time limits, connections kept and dropped, proxies, certificates, errors; over real sockets."""

import gc
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import requests
import responses
import urllib3

from certificates import needs_openssl, tls
from scripted import LAST_CHUNK, SSE_HEAD, Scripted, answer, completion, delta, event, nobody, threads_settle
from vllm_bridge import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    BridgeError,
    Cancellation,
    ConfigError,
    NetworkConfig,
    ProviderConfig,
    ProxyConfig,
    RequestCancelledError,
    ResponseDecodeError,
    VLLMProvider,
)
from vllm_bridge.client import session as transport
from vllm_bridge.echo import EchoServer

ASK = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
KEY = "sk-very-secret-0123456789"
GOOD = ["request", answer(completion("good")), "again"]
GOOD_STREAM = ["request", SSE_HEAD, event(delta("good", "stop")), event("[DONE]"), LAST_CHUNK, "again"]
ENDLESS = ["request", SSE_HEAD, ("repeat", event(delta("x")), 0.01)]
VARIABLES = "http_proxy https_proxy all_proxy no_proxy REQUESTS_CA_BUNDLE CURL_CA_BUNDLE VLLM_API_KEY VLLM_BASE_URL"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in VARIABLES.split():
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def provider_for(url, proxy=None, **network):
    network.setdefault("max_retries", 0)
    config = ProviderConfig(NetworkConfig(url, **network), proxy, keys=[{"value": KEY}])
    return VLLMProvider(config=config)


def text_of(provider):
    return provider.chat_completion(**ASK).choices[0].message.content


# ---------------------------------------------------------------- time limits

def test_a_read_timeout_names_the_limit_and_is_never_retried():
    with Scripted(["request", "hold"]) as server, provider_for(server.url, max_retries=3) as provider:
        with pytest.raises(APITimeoutError, match=r"nothing for 0\.2 s \(read timeout\).*timeout=") as caught:
            provider.with_options(timeout=(5, 0.2)).chat_completion(**ASK)
        assert server.connections == 1
        assert caught.value.code is None
        assert isinstance(caught.value, TimeoutError) and isinstance(caught.value, ConnectionError)


def test_a_connect_timeout_names_the_limit_and_is_retried():
    with Scripted(accept=False) as server:
        with provider_for(server.url, max_retries=2, retry_backoff_initial_ms=1) as provider:
            start = time.monotonic()
            with pytest.raises(APITimeoutError, match=r"within 0\.2 s \(connect timeout\)") as caught:
                provider.with_options(timeout=(0.2, 10)).chat_completion(**ASK)
            assert 0.55 <= time.monotonic() - start < 9  # three of them, and none of the read timeout's
            assert caught.value.code == "connection_not_made"


def test_a_refused_connection_says_so():
    with provider_for(nobody()) as provider:
        with pytest.raises(APIConnectionError, match="cannot connect to http://127.*refused; is the server") as caught:
            text_of(provider)
        assert caught.value.code == "connection_not_made"
        assert not isinstance(caught.value, APITimeoutError)


def test_a_host_without_address_says_so(monkeypatch):
    def unknown(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with provider_for("http://no.such.host.invalid:8000") as provider:
        with pytest.raises(APIConnectionError, match="Name or service not known") as caught:
            text_of(provider)
    assert caught.value.code == "connection_not_made"


def test_what_the_caller_was_handling_is_not_taken_for_the_cause():
    with provider_for(nobody()) as provider:
        try:
            raise socket.timeout("of something else")
        except socket.timeout:
            with pytest.raises(APIConnectionError) as caught:
                text_of(provider)
    assert not isinstance(caught.value, APITimeoutError)


def test_sending_has_the_read_timeout_and_not_the_one_for_connecting():
    """urllib3 leaves the connect timeout on the socket, which a long body on a slow line would break."""
    body = "x" * 4000000
    with Scripted(["head", ("sleep", 0.3), "drain"]) as server, provider_for(server.url) as provider:
        start = time.monotonic()
        with pytest.raises(APITimeoutError):
            provider.with_options(timeout=(0.1, 0.6)).chat_completion(model="m", messages=body)
        assert time.monotonic() - start > 0.5


def test_a_deadline_ends_a_call_in_all():
    drip = ["request", ("drip", b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000, 0.01)]
    with Scripted(drip) as server, provider_for(server.url, max_retries=2) as provider:
        threads = threading.active_count()
        with pytest.raises(APITimeoutError, match="total time.*deadline") as caught:
            provider.with_options(deadline=0.3).chat_completion(**ASK)
        assert caught.value.code == "deadline"
        assert server.connections == 1
        assert threads_settle(threads)


def test_a_deadline_ends_a_stream_too():
    with Scripted(ENDLESS) as server, provider_for(server.url) as provider:
        with pytest.raises(APITimeoutError) as caught:
            for _ in provider.with_options(deadline=0.3).chat_completion_stream(**ASK):
                pass
        assert caught.value.code == "deadline"


def test_a_deadline_covers_connecting_and_waiting_for_a_retry():
    with Scripted(accept=False) as server, provider_for(server.url, max_retries=5) as provider:
        start = time.monotonic()
        with pytest.raises(APITimeoutError):
            provider.with_options(deadline=0.3).chat_completion(**ASK)
        assert time.monotonic() - start < 4


# ---------------------------------------------------------------- connections

def test_requests_one_after_another_share_a_connection():
    with Scripted(GOOD) as server, provider_for(server.url) as provider:
        assert [text_of(provider) for _ in range(3)] == ["good"] * 3
        assert text_of(provider.with_options(timeout=9)) == "good"
        assert server.connections == 1


def test_a_stream_read_to_its_end_gives_its_connection_back():
    with Scripted(GOOD_STREAM) as server, provider_for(server.url) as provider:
        for _ in range(3):
            assert [chunk.text for chunk in provider.chat_completion_stream(**ASK)] == ["good"]
        assert server.connections == 1


def test_a_stream_whose_last_chunk_is_late_gives_its_connection_up():
    late = ["request", SSE_HEAD, event(delta("good", "stop")), event("[DONE]"), "hold"]
    with Scripted(late, GOOD_STREAM) as server, provider_for(server.url) as provider:
        for _ in range(2):
            assert [chunk.text for chunk in provider.chat_completion_stream(**ASK)] == ["good"]
        assert server.connections == 2
        server.until("eof")


def test_the_short_patience_for_a_streams_end_does_not_stay_on_the_connection():
    """10 ms are enough for the end of a stream, not for sending the next request."""
    slow = GOOD_STREAM[:-1] + ["head", ("sleep", 0.3), "drain_request", answer(completion("good"))]
    with Scripted(slow) as server, provider_for(server.url) as provider:
        list(provider.chat_completion_stream(**ASK))
        reply = provider.chat_completion(model="m", messages="x" * 8000000)
        assert reply.choices[0].message.content == "good"
        assert server.connections == 1


def test_a_connection_idle_for_too_long_is_not_used(monkeypatch):
    clock, ahead = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock() + ahead[0])
    with Scripted(GOOD) as server, provider_for(server.url) as provider:
        for step, connections in (0.0, 1), (2.5, 1), (4.1, 2), (2.5, 2):
            ahead[0] += step
            text_of(provider)
            assert server.connections == connections


def test_connections_are_dropped_before_a_vllm_server_drops_them():
    assert NetworkConfig().keep_alive_timeout_in_seconds == 4.0  # uvicorn, in vLLM, closes after 5.0 s


def test_an_error_status_keeps_the_connection():
    bad = answer({"error": {"message": "no", "code": 400}}, "400 Bad Request")
    with Scripted(["request", bad] + GOOD) as server, provider_for(server.url) as provider:
        with pytest.raises(APIStatusError):
            text_of(provider)
        assert text_of(provider) == "good"
        assert server.connections == 1


def test_many_threads_share_a_provider():
    with EchoServer() as server, provider_for(server.url) as provider:
        failures = []

        def work(number):
            try:
                for turn in range(20):
                    said = "thread %d turn %d" % (number, turn)
                    reply = provider.chat_completion(model="echo", messages=[{"role": "user", "content": said}])
                    assert reply.choices[0].message.content == "You said: " + said
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert len(server.requests) == 640
        assert len({request.client for request in server.requests}) <= 64


def test_a_closed_stream_does_not_break_off_the_call_that_uses_its_connection_now():
    """A body with a length is over before its events are: its connection is back in the pool while they are read."""
    body = b"".join(b"data: %s\n\n" % data for data in (b'{"choices":[{"index":0,"delta":{"content":"a"}}]}',) * 3)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n" % len(body)
    slow = ["request", head + body, "request", ("sleep", 0.4), answer(completion("good"))]
    with Scripted(slow, slow[2:]) as server, provider_for(server.url) as provider:
        stream = provider.chat_completion_stream(**ASK)
        result = []
        thread = threading.Thread(target=lambda: result.append(text_of(provider)))
        thread.start()
        server.until("request", 2)
        stream.close()
        thread.join(10)
        assert result == ["good"]


def test_a_forked_child_uses_connections_of_its_own(tmp_path):
    with Scripted(GOOD) as server, provider_for(server.url) as provider:
        assert text_of(provider) == "good"
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = 0 if text_of(provider) == "good" else 2
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert text_of(provider) == "good"
        assert server.connections == 2


def test_a_closed_provider_opens_new_connections():
    with Scripted(GOOD) as server, provider_for(server.url) as provider:
        text_of(provider)
        provider.close()
        server.until("eof")
        assert text_of(provider) == "good"
        assert server.connections == 2


# ---------------------------------------------------------------- breaking off

@pytest.mark.parametrize("operation", ["chat_completion", "chat_completion_stream"])
def test_cancelling_reaches_a_call_that_waits_for_its_first_byte(operation):
    with Scripted(["request", "hold"]) as server, provider_for(server.url, max_retries=3) as provider:
        cancel = Cancellation()
        failures = []

        def work():
            try:
                getattr(provider.with_options(cancel=cancel), operation)(**ASK)
            except Exception as error:
                failures.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        server.until("request")
        cancel.cancel("enough")
        thread.join(10)
        server.until("eof")
        assert [type(error) for error in failures] == [RequestCancelledError]
        assert failures[0].message == "enough"
        assert cancel.cancelled
        assert server.connections == 1


def test_a_cancelled_handle_lets_no_call_out():
    with Scripted(GOOD) as server, provider_for(server.url) as provider:
        cancel = Cancellation()
        cancel.cancel()
        with pytest.raises(RequestCancelledError):
            text_of(provider.with_options(cancel=cancel))
        assert server.connections == 0
        assert text_of(provider) == "good"


def test_cancelling_wakes_a_call_that_waits_to_try_again():
    busy = ["request", answer(b"", "503 Busy"), "again"]
    with Scripted(busy) as server:
        with provider_for(server.url, max_retries=1, retry_backoff_initial_ms=5000) as provider:
            cancel = Cancellation()
            threading.Timer(0.2, cancel.cancel).start()
            start = time.monotonic()
            with pytest.raises(RequestCancelledError):
                text_of(provider.with_options(cancel=cancel))
            assert time.monotonic() - start < 3.9  # the pause is 4 s at the least
            assert len(server.requests) == 1


@pytest.mark.parametrize("streams", [False, True], ids=["call", "stream"])
def test_ctrl_c_stops_the_generation(streams, tmp_path):
    script = "\n".join((
        "import sys",
        "from vllm_bridge import VLLMProvider, ProviderConfig, NetworkConfig",
        "network = NetworkConfig(sys.argv[1])",
        "vllm = VLLMProvider(config=ProviderConfig(network))",
        "ask = dict(model='m', messages=[])",
        "try:",
        "    for chunk in vllm.chat_completion_stream(**ask): pass" if streams else "    vllm.chat_completion(**ask)",
        "except KeyboardInterrupt as error:",
        "    print('interrupted', error.__cause__)",
        "    sys.stdin.read()",
    ))
    steps = ["request"] + ([SSE_HEAD, event(delta("x"))] if streams else []) + ["hold"]
    with Scripted(steps) as server:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", script, server.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, cwd=str(Path(__file__).resolve().parents[2]))
        try:
            server.until("send" if streams else "request", 2 if streams else 1, 30)
            time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            server.until("eof", 1, 10)  # while the process lives on
            out, err = process.communicate(b"", 30)
        finally:
            process.kill()
            process.wait()
        assert out == b"interrupted None\n"
        assert err == b""


# ---------------------------------------------------------------- proxies

PROXY = ["request", answer(completion("by proxy")), "again"]


def test_a_loopback_server_is_not_asked_through_the_environments_proxy(monkeypatch):
    monkeypatch.setenv("http_proxy", nobody())
    with Scripted(GOOD) as server, provider_for(server.url) as provider:
        assert text_of(provider) == "good"


def test_another_server_is_asked_through_the_environments_proxy_unless_no_proxy_names_it(monkeypatch):
    with Scripted(PROXY) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        with provider_for("http://gpu.example:8000") as provider:
            assert text_of(provider) == "by proxy"
            assert proxy.requests[0].line == "POST http://gpu.example:8000/v1/chat/completions HTTP/1.1"
            assert proxy.requests[0].headers["authorization"] == "Bearer " + KEY
        monkeypatch.setenv("no_proxy", "gpu.example")
        looked_up = []
        monkeypatch.setattr(socket, "getaddrinfo", lambda host, *args, **kwargs: looked_up.append(host) or [])
        with provider_for("http://gpu.example:8000") as provider:
            with pytest.raises(APIConnectionError):
                text_of(provider)
        assert looked_up == ["gpu.example"]
        assert len(proxy.requests) == 1


def test_a_configured_proxy_is_used_for_loopback_too_with_its_credentials():
    with Scripted(PROXY) as proxy:
        settings = ProxyConfig("http", proxy.url, "user", "pass word")
        with provider_for("http://127.0.0.1:1", settings) as provider:
            assert text_of(provider) == "by proxy"
            assert text_of(provider) == "by proxy"
        assert proxy.connections == 1
        assert proxy.requests[0].headers["proxy-authorization"] == "Basic dXNlcjpwYXNzIHdvcmQ="


def test_no_proxy_at_all_is_a_setting(monkeypatch):
    monkeypatch.setenv("http_proxy", nobody())
    monkeypatch.setattr(transport, "is_this_machine", lambda host: False)
    with Scripted(GOOD) as server:
        with provider_for(server.url, ProxyConfig("none")) as provider:
            assert text_of(provider) == "good"
        with provider_for(server.url) as provider:
            with pytest.raises(APIConnectionError, match="through the proxy") as caught:
                text_of(provider)
    assert caught.value.code == "connection_not_made"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # http.client of 3.8 leaves a socket
def test_a_proxy_that_refuses_to_connect_through():
    with Scripted(["head", b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"]) as proxy:
        with provider_for("https://gpu.example", ProxyConfig("http", proxy.url)) as provider:
            with pytest.raises(APIConnectionError, match="cannot connect to https://gpu.example.*403") as caught:
                text_of(provider)
    assert caught.value.code == "connection_not_made"
    del caught, provider
    gc.collect()  # here, where its warning is expected


@pytest.mark.parametrize("host", "127.0.0.1 localhost LOCALHOST 0.0.0.0 [::ffff:127.0.0.1] 127.1".split())
def test_no_spelling_of_this_machine_goes_to_the_environments_proxy(monkeypatch, host):
    monkeypatch.setenv("http_proxy", nobody())
    with Scripted(GOOD) as server:
        port = server.url.rpartition(":")[2]
        with provider_for("http://%s:%s" % (host, port)) as provider:
            assert text_of(provider) == "good"


@pytest.mark.parametrize("no_proxy", ["gpu.example:8000", "10.0.0.0/8", "[::1]:80,.example", "10.1.2.3"])
def test_no_proxy_is_asked_whatever_its_form(monkeypatch, no_proxy):
    monkeypatch.setenv("http_proxy", nobody())
    monkeypatch.setenv("no_proxy", no_proxy)
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *args, **kwargs: [])
    host = "10.1.2.3" if no_proxy[0] == "1" else "gpu.example"
    with provider_for("http://%s:8000" % host) as provider:
        with pytest.raises(APIConnectionError) as caught:
            text_of(provider)
    assert "proxy" not in caught.value.message


@pytest.mark.parametrize("no_proxy, name", [
    ("[fd00::1]:81,[::1/8]x", "http_proxy"), ("[", "all_proxy"), ("gpu.example:81", "http_proxy"),
])
def test_an_odd_no_proxy_and_other_schemes_are_no_matter(monkeypatch, no_proxy, name):
    with Scripted(PROXY) as proxy:
        monkeypatch.setenv(name, proxy.url)
        monkeypatch.setenv("no_proxy", no_proxy)
        monkeypatch.setenv("ftp_proxy", "http://[::1")
        with provider_for("http://gpu.example:8000") as provider:
            assert text_of(provider) == "by proxy"


@pytest.mark.parametrize("url", ["http://gpu.example", "https://gpu.example"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # http.client of 3.8 leaves a socket
def test_a_proxy_that_wants_to_know_who_asks(url):
    wants = b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n"
    with Scripted(["head", wants, "hold"]) as proxy:
        with provider_for(url, ProxyConfig("http", proxy.url)) as provider:
            with pytest.raises(APIConnectionError, match="proxy.*407") as caught:
                text_of(provider)
    assert caught.value.code == "connection_not_made" and caught.value.status_code is None
    del caught, provider
    gc.collect()


@pytest.mark.parametrize("value", ["http://user:hun:ter2@[::1", "socks5://user:hunter2@proxy:1080", "http://:hunter2@"])
def test_a_proxy_of_the_environment_that_cannot_be_used_is_named_without_its_password(monkeypatch, value):
    import traceback

    monkeypatch.setenv("http_proxy", value)
    with provider_for("http://gpu.example") as provider:
        with pytest.raises(ConfigError, match="proxy: the proxy for http://gpu.example") as caught:
            text_of(provider)
    shown = "".join(traceback.format_exception(type(caught.value), caught.value, caught.tb))
    assert "ter2" not in shown


# ---------------------------------------------------------------- certificates

@needs_openssl
@pytest.mark.parametrize("form", ["text", "path", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_a_private_authority_is_trusted(authority, monkeypatch, form):
    path, context = authority
    settings = {}
    if form == "text":
        with open(path) as file:
            settings["ca_cert_pem"] = file.read()
    elif form == "path":
        settings["ca_cert_pem"] = path
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere/at/all.pem")  # does not win over the setting
    else:
        monkeypatch.setenv(form, path)
    with Scripted([("tls", context)] + GOOD[:-1] + GOOD) as server, provider_for(tls(server), **settings) as provider:
        assert text_of(provider) == "good"
        assert text_of(provider) == "good"
        assert server.connections == 1
        kept = provider._caller.transport._verify
        assert os.path.exists(kept)
    del provider
    assert os.path.exists(kept) is (form != "text"), "a temporary bundle is removed with its provider"


@needs_openssl
def test_a_forked_child_does_not_take_the_temporary_bundle_along(authority):
    with open(authority[0]) as file:
        provider = provider_for("https://127.0.0.1:1", ca_cert_pem=file.read())
    bundle = provider._caller.transport._verify
    child = os.fork()
    if child == 0:
        transport._remove(bundle, os.getppid())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.path.exists(bundle)
    transport._remove(bundle, os.getpid())
    assert not os.path.exists(bundle)
    transport._remove(bundle, os.getpid())  # gone already


@needs_openssl
def test_an_unknown_authority_is_refused_and_the_bundle_named(authority, monkeypatch):
    path, context = authority
    with Scripted([("tls", context), "hold"]) as server:
        with provider_for(tls(server), max_retries=2) as provider:
            with pytest.raises(APIConnectionError, match="certificate verify failed.*own CA bundle") as caught:
                text_of(provider)
        assert caught.value.code == "tls_error"
        assert server.connections == 1, "not retried"
        bundle = requests.certs.where()
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", bundle)
        with provider_for(tls(server)) as provider:
            with pytest.raises(APIConnectionError) as caught:
                text_of(provider)
        assert bundle in caught.value.message


@needs_openssl
def test_verification_can_be_left_out_without_a_warning(authority):
    with Scripted([("tls", authority[1])] + GOOD[:-1] + GOOD) as server:
        with provider_for(tls(server), insecure_skip_verify=True) as provider:  # warnings are errors here
            assert text_of(provider) == "good"
            assert text_of(provider) == "good"


def test_a_bundle_of_the_environment_that_is_not_there(monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere/at/all.pem")
    with provider_for("https://127.0.0.1:1", max_retries=2) as provider:
        with pytest.raises(APIConnectionError, match="the CA bundle /nowhere/at/all.pem is not there") as caught:
            text_of(provider)
    assert caught.value.code == "tls_error"
    with Scripted(GOOD) as server, provider_for(server.url) as provider:
        assert text_of(provider) == "good"  # which needs none


def test_a_server_without_tls_behind_https():
    with Scripted(["wait", b"HTTP/1.1 400 Bad Request\r\n\r\n"]) as server, provider_for(tls(server)) as provider:
        with pytest.raises(APIConnectionError, match="TLS with https://127.0.0.1:[0-9]+ failed"):
            text_of(provider)


def test_a_server_that_leaves_the_handshake_unanswered_is_a_connect_timeout():
    with Scripted(["wait", "hold"]) as server, provider_for(tls(server)) as provider:
        with pytest.raises(APITimeoutError, match="connect timeout") as caught:
            provider.with_options(timeout=(0.3, 20)).chat_completion(**ASK)
    assert caught.value.code == "connection_not_made"


@needs_openssl
def test_https_through_a_proxy_by_connect(authority):
    path, context = authority
    through = ["head", b"HTTP/1.1 200 Connection established\r\n\r\n", ("tls", context)] + GOOD[:-1] + GOOD[:-1]
    with Scripted(through) as proxy:
        with provider_for("https://gpu.example", ProxyConfig("http", proxy.url), ca_cert_pem=path) as provider:
            assert text_of(provider) == "good"
            assert text_of(provider) == "good"
        assert proxy.connections == 1
        assert [request.line for request in proxy.requests] == ["POST /v1/chat/completions HTTP/1.1"] * 2


@needs_openssl
@pytest.mark.parametrize("first", [True, False], ids=["before the first byte", "in the middle"])
def test_closing_reaches_the_server_through_tls(authority, first):
    path, context = authority
    steps = [("tls", context), "request"] + ([] if first else [SSE_HEAD, event(delta("x"))]) + ["hold"]
    with Scripted(steps) as server, provider_for(tls(server), ca_cert_pem=path) as provider:
        cancel = Cancellation()
        failures = []

        def work():
            try:
                list(provider.with_options(cancel=cancel).chat_completion_stream(**ASK))
            except Exception as error:
                failures.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        server.until("request" if first else "send", 1 if first else 2)
        time.sleep(0.1)
        cancel.cancel()
        thread.join(10)
        assert [type(error) for error in failures] == [RequestCancelledError]
        end = time.monotonic() + 5
        while not server.ends and time.monotonic() < end:
            time.sleep(0.01)
        assert server.ends


# ---------------------------------------------------------------- errors that requests and urllib3 raise

@pytest.mark.parametrize("raised, expected", [
    (requests.exceptions.ReadTimeout("slow"), APITimeoutError),
    (requests.exceptions.ConnectTimeout("slow"), APITimeoutError),
    (requests.exceptions.ConnectionError(urllib3.exceptions.ProtocolError("gone")), APIConnectionError),
    (requests.exceptions.SSLError("bad certificate"), APIConnectionError),
    (requests.exceptions.ProxyError("no way"), APIConnectionError),
    (requests.exceptions.InvalidURL("odd"), ConfigError),
    (OSError("odd"), APIConnectionError),
])
def test_every_error_of_requests_becomes_one_of_ours(raised, expected):
    with responses.RequestsMock() as mock, provider_for("http://gpu.example") as provider:
        mock.add("POST", "http://gpu.example/v1/chat/completions", body=raised)
        with pytest.raises(expected):
            text_of(provider)


def test_a_cause_that_quotes_the_key_is_not_shown():
    import traceback

    with responses.RequestsMock() as mock, provider_for("http://gpu.example") as provider:
        raised = requests.exceptions.ConnectionError(http.client.BadStatusLine("Authorization: Bearer " + KEY))
        mock.add("POST", "http://gpu.example/v1/chat/completions", body=raised)
        with pytest.raises(BridgeError) as caught:
            text_of(provider)
    assert KEY not in "".join(traceback.format_exception(type(caught.value), caught.value, caught.tb))


@pytest.mark.parametrize("status", [300, 302, 399])
def test_a_session_follows_no_redirect(status):
    reply = b"HTTP/1.1 %d Elsewhere\r\nLocation: http://[bad\r\nContent-Length: 0\r\n\r\n" % status
    with Scripted(["request", reply]) as server:
        with provider_for(server.url) as provider:
            with pytest.raises(APIStatusError, match=r"redirects to http://\[bad"):
                text_of(provider)


def test_a_body_that_cannot_be_read_while_it_is_sent_is_not_blamed_on_the_server(tmp_path):
    from vllm_bridge import BadRequestError

    path = tmp_path / "a.wav"
    path.write_bytes(b"RIFF" + b"x" * 1000000)

    class Shrinking:
        name = "a.wav"

        def __init__(self):
            self.file = open(str(path), "rb")

        def read(self, size=-1):
            return b"" if self.file.tell() > 500000 else self.file.read(size)

        def seek(self, *args):
            return self.file.seek(*args)

        def tell(self):
            return self.file.tell()

    with Scripted(["hold"]) as server, provider_for(server.url) as provider:
        file = Shrinking()
        with pytest.raises(BadRequestError, match="shorter"):
            provider.transcription(model="m", file=file)
        file.file.close()


def test_a_reply_that_is_too_long_says_so(monkeypatch):
    monkeypatch.setattr("vllm_bridge.client.reply.MAX_BODY", 100)
    with Scripted(GOOD) as server, provider_for(server.url) as provider:
        with pytest.raises(ResponseDecodeError, match="longer than 100 bytes"):
            text_of(provider)
