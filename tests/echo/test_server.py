"""The stand-in's connections and its directives, over real sockets."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import requests
import wire

from vllm_bridge.echo import EchoServer
from vllm_bridge.echo.__main__ import main

PATIENCE = 20.0


@pytest.fixture()
def server():
    with EchoServer() as running:
        yield running


def chat(text, **fields):
    return dict(fields, messages=[{"role": "user", "content": text}])


def post(server, body, path="/v1/chat/completions"):
    """Return the status, the headers and the body of one request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def raw(server, data):
    """Return all bytes that ``data`` is answered with until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as connection:
        connection.sendall(data)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def events(body):
    return [event for event in body.split(b"\n\n") if event]


def wait_until(true):
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


@pytest.mark.parametrize("name, status", [("err_queue_full", 503), ("kill_worker_keepalive_chat", 500)])
def test_an_error_on_demand_is_vllms(server, name, status):
    real = wire.load(name)
    assert real.status == status
    for stream in (False, True):
        got = post(server, chat("!error %d" % status, stream=stream))
        assert (got[0], got[2]) == (status, real.body)


def test_errors_on_demand_of_other_statuses(server):
    assert post(server, chat("!error 401"))[2] == b'{"error":"Unauthorized"}'
    for status, kind in ((400, "BadRequestError"), (404, "NotFoundError"), (429, "Too Many Requests"), (599, "Error")):
        got, headers, body = post(server, chat("!retry-after 7 !error %d" % status))
        error = json.loads(body)["error"]
        assert (got, error["type"], error["code"], headers["retry-after"]) == (status, kind, status, "7")


@pytest.mark.parametrize("path, body", [
    ("/v1/completions", {"prompt": "!error 503"}), ("/v1/completions", {"prompt": ["!error 503", "b"]}),
    ("/v1/embeddings", {"input": "!error 503"}), ("/v1/embeddings", {"messages": chat("!error 503")["messages"]}),
    ("/rerank", {"query": "!error 503", "documents": ["a"]}),
    ("/v1/chat/completions", chat([{"type": "text", "text": "!error 503"}]))])
def test_every_operation_reads_directives(server, path, body):
    assert post(server, body, path)[0] == 503


def test_a_transcription_reads_directives_from_its_prompt(server):
    reply = requests.post(server.url + "/v1/audio/transcriptions", data={"prompt": "!error 503"},
                          files={"file": ("a.wav", b"x")}, timeout=PATIENCE)
    assert reply.status_code == 503


def test_an_error_inside_a_200(server):
    real = wire.load("s_err_logit_bias_bad")
    status, _, body = post(server, chat("!error-in-200 400", stream=True))
    first, last = events(body)
    assert status == 200 and last == b"data: [DONE]"
    known = events(real.body)[0]
    assert first.startswith(b'data: {"error": {"message": ') and known.startswith(b'data: {"error": {"message": ')
    assert list(json.loads(first[6:])["error"]) == list(json.loads(known[6:])["error"])
    status, headers, body = post(server, chat("!error-in-200 400"))
    assert (status, headers["content-type"], json.loads(body)["error"]["code"]) == (200, "application/json", 400)


def test_an_error_after_some_events_ends_as_a_dead_engine_does(server):
    real = events(wire.load("kill_worker_keepalive_chat_stream").body)[-2:]
    got = events(post(server, chat("!error-after 3 500 a b c", stream=True))[2])
    assert len(got) == 5 and got[-2:] == real


def test_dying_without_and_within_an_answer(server):
    with pytest.raises(http.client.RemoteDisconnected):
        post(server, chat("!die"))
    for stream in (False, True):
        with pytest.raises(http.client.IncompleteRead) as caught:
            post(server, chat("!die-after 2 a b c", stream=stream))
        if stream:
            assert len(events(caught.value.partial)) == 2
    with pytest.raises(http.client.IncompleteRead):
        post(server, chat("!die-after 0", stream=True))


def test_a_cut_stream_ends_in_order_without_done(server):
    got = events(post(server, chat("!cut-after 3 a b c", stream=True))[2])
    assert len(got) == 3 and b"[DONE]" not in b"".join(got)


def test_comments_come_between_events(server):
    got = events(post(server, chat("!comments a", stream=True))[2])
    assert got[:-1:2] == [b": keep-alive"] * (len(got) // 2) and got[-1] == b"data: [DONE]"


@pytest.mark.parametrize("text, stream", [
    ("!stall 0.3 a", False), ("!stall 0.3 a", True), ("!stall-after 2 0.3 a", True), ("!stall-after 2 0.3 a", False),
    ("!slow 0.1 a", True), ("!slow 0.1 a", False), ("!stall-after 5 0.3 a", True)])
def test_silences_last_as_long_as_asked(server, text, stream):
    began = time.monotonic()
    assert post(server, chat(text, stream=stream))[0] == 200
    assert time.monotonic() - began >= 0.29


def test_a_delay_of_the_server_holds_for_every_token():
    with EchoServer(delay=0.1) as server:
        began = time.monotonic()
        post(server, chat("a"))
        assert time.monotonic() - began >= 0.29


def test_an_event_leaves_before_the_silence_that_follows_it(server):
    with requests.post(server.url + "/v1/chat/completions", json=chat("!stall-after 1 60 a", stream=True), stream=True,
                       timeout=PATIENCE) as response:
        pieces = response.iter_content(None)
        assert b'"role":"assistant"' in next(pieces)
        assert server.running == 1


@pytest.mark.parametrize("text", ["!bogus 5", "say !error 503", "! x"])
def test_what_is_no_directive_is_text(server, text):
    reply = json.loads(post(server, chat(text))[2])
    assert reply["choices"][0]["message"]["content"] == "You said: " + text


@pytest.mark.parametrize("text", ["!error", "!error many", "!stall-after 2"])
def test_a_directive_without_its_numbers_is_explained(server, text):
    status, _, body = post(server, chat(text))
    assert status == 400 and text.split()[0] + " takes" in json.loads(body)["error"]["message"]


def test_a_script_is_for_the_next_requests():
    with EchoServer(script=["!error 503"]) as server:
        server.script("", "!error 429")
        assert [post(server, chat("x"))[0] for _ in range(4)] == [503, 200, 429, 200]
        server.script("!error 500")
        assert requests.get(server.url + "/health", timeout=PATIENCE).status_code == 200
        assert requests.get(server.url + "/v1/models", timeout=PATIENCE).status_code == 500


@pytest.mark.parametrize("text, stream", [("!stall-after 2 600 a", True), ("!stall 600 a", False),
                                          ("!count 100000 !slow 0.01", True)])
def test_leaving_stops_the_generation(server, text, stream):
    body = json.dumps(chat(text, stream=stream)).encode()
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
    connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                       b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
    wait_until(lambda: server.running == 1)
    metrics = requests.get(server.url + "/metrics", timeout=PATIENCE).text
    assert metrics.splitlines()[-1].endswith(" 1.0")
    connection.close()
    wait_until(lambda: server.running == 0)


def test_leaving_is_noticed_behind_a_request_that_waits(server):
    """A pipelined request hides the end of the connection from a peek; the next write finds it."""
    body = json.dumps(chat("!slow 0.01 !count 10000", stream=True)).encode()
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
    connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                       b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
    wait_until(lambda: server.running == 1)
    connection.sendall(b"GET /health HTTP/1.1\r\n\r\n")
    assert connection.recv(10)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    connection.close()
    wait_until(lambda: server.running == 0)


def test_running_is_over_when_the_answer_is_there(server):
    for stream in (False, True):
        for _ in range(20):
            post(server, chat("a", stream=stream))
            assert server.running == 0


def test_connections_are_kept_and_closed_after_the_keep_alive_time():
    with EchoServer(keep_alive=0.2) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        for stream in (False, True):
            connection.request("POST", "/v1/chat/completions", json.dumps(chat("a", stream=stream)),
                               {"Content-Type": "application/json"})
            connection.getresponse().read()
        assert server.requests[0].client == server.requests[1].client
        began = time.monotonic()
        assert connection.sock.recv(1) == b""
        assert time.monotonic() - began >= 0.1
        connection.close()


def test_a_connection_that_never_spoke_is_not_timed_out():
    with EchoServer(keep_alive=0.05) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=0.3) as connection:
            with pytest.raises(socket.timeout):
                connection.recv(1)
            connection.settimeout(PATIENCE)
            connection.sendall(b"GET /health HTTP/1.1\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")


def test_chunked_request_bodies_are_read(server):
    parts = iter([json.dumps(chat("a")).encode(), b" "])
    reply = requests.post(server.url + "/v1/chat/completions", data=parts, timeout=PATIENCE,
                          headers={"Content-Type": "application/json"})
    assert reply.status_code == 200
    data = (b"POST /v1/completions HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
            b"Connection: close\r\n\r\n5;x=y\r\n{\"pro\r\nc\r\nmpt\": \"abc\"}\r\n0\r\nTrailer: x\r\n\r\n")
    assert b'"text_completion"' in raw(server, data)
    assert server.requests[-1].json == {"prompt": "abc"}


@pytest.mark.parametrize("data", [b"GET /v1/models with space HTTP/1.1\r\nHost: x\r\n\r\n",
                                  b"POST /v1/completions HTTP/1.1\r\nContent-Length: x\r\n\r\n"])
def test_what_is_no_http_is_refused_as_uvicorn_does(server, data):
    real = wire.load("err_bad_http")
    head, _, body = raw(server, data).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == real.status_line and body == real.body
    kept = [line for line in lines[1:] if not line.startswith("date")]
    assert kept == ["%s: %s" % (name, value) for name, value in real.headers if name != "date"]


def test_http_1_0_is_answered_until_the_end(server):
    body = json.dumps(chat("a", stream=True)).encode()
    got = raw(server, b"POST /v1/chat/completions HTTP/1.0\r\nContent-Type: application/json\r\n"
              b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
    head, _, rest = got.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head and rest.endswith(b"data: [DONE]\n\n")


def test_requests_are_recorded(server):
    assert requests.get(server.url + "/v1/models?x=1", headers={"X-One": "1"}, timeout=PATIENCE).status_code == 200
    requests.post(server.url + "/v1/audio/transcriptions", data=[("a", "1"), ("a", "2")],
                  files={"file": ("a.wav", b"ab\r\nc")}, timeout=PATIENCE)
    requests.post(server.url + "/nope", data=b"{", timeout=PATIENCE)
    raw(server, b"GET /health HTTP/1.1\r\nX-Two: 1\r\nX-Two: 2\r\nConnection: close\r\n\r\n")
    models, audio, junk, twice = server.requests
    assert (models.method, models.path, models.headers["x-one"], models.json) == ("GET", "/v1/models?x=1", "1", None)
    assert audio.form == [("a", "1"), ("a", "2")] and audio.files["file"].content == b"ab\r\nc"
    assert (junk.json, junk.body) == (None, b"{")
    assert twice.headers["x-two"] == "1, 2"
    assert repr(junk) == "<RecordedRequest POST /nope, 1 bytes>"


def test_stopping_closes_connections_and_leaves_no_thread():
    before = threading.active_count()
    server = EchoServer().start()
    assert server.start() is server
    idle = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
    stream = requests.post(server.url + "/v1/chat/completions", json=chat("!stall-after 1 600 a", stream=True),
                           stream=True, timeout=PATIENCE)
    wait_until(lambda: server.running == 1)
    url = server.url
    server.stop()
    assert threading.active_count() == before and server.running == 0
    assert idle.recv(1) == b""
    idle.close()
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        stream.content
    stream.close()
    assert server.url == url
    with pytest.raises(requests.exceptions.ConnectionError):
        requests.get(url + "/health", timeout=PATIENCE)
    server.stop()
    with server:
        assert requests.get(url + "/health", timeout=PATIENCE).content == b""


def test_many_clients_at_once(server):
    """As many as a pool of a gateway's size opens at the same moment."""
    statuses = []
    threads = [threading.Thread(target=lambda: statuses.append(post(server, chat("!slow 0.01 a", stream=True))[0]))
               for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert statuses == [200] * 40


def test_ipv6_is_listened_on():
    try:
        server = EchoServer(host="::1").start()
    except OSError:
        pytest.skip("no IPv6 here")
    with server:
        assert server.url.startswith("http://[::1]:")
        assert requests.get(server.url + "/health", timeout=PATIENCE).status_code == 200


def test_the_module_runs_until_interrupted():
    command = [sys.executable, "-m", "vllm_bridge.echo", "--port", "0", "--model", "m", "--api-key", "k"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, universal_newlines=True) as process:
        url = process.stdout.readline().strip()
        reply = requests.get(url + "/v1/models", headers={"Authorization": "Bearer k"}, timeout=PATIENCE)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
    assert [row["id"] for row in reply.json()["data"]] == ["m"]


def test_it_answers_to_any_name_unless_models_are_given():
    with EchoServer(models=None) as running:
        for path, body in (("/v1/chat/completions", chat("Hi")), ("/v1/completions", {"prompt": "Hi"}),
                           ("/v1/embeddings", {"input": "Hi"})):
            status, _, data = post(running, dict(body, model="Qwen/Qwen3-8B"), path)
            assert (status, json.loads(data)["model"]) == (200, "Qwen/Qwen3-8B")
        assert running.models == ("echo",)


def test_the_module_answers_to_any_name():
    with subprocess.Popen([sys.executable, "-m", "vllm_bridge.echo", "--port", "0"], stdout=subprocess.PIPE,
                          universal_newlines=True) as process:
        url = process.stdout.readline().strip()
        reply = requests.post(url + "/v1/chat/completions", json=chat("Hi", model="Qwen/Qwen3-8B"), timeout=PATIENCE)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
    assert reply.json()["choices"][0]["message"]["content"] == "You said: Hi"


def test_a_taken_port_is_one_line(server, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--port", str(server.port)])
    assert caught.value.code == 1
    assert capsys.readouterr().err.startswith("cannot listen on 127.0.0.1:%d: " % server.port)


def test_the_command_serves_until_the_keyboard_interrupts(monkeypatch, capsys):
    class Interrupted:
        def wait(self):
            raise KeyboardInterrupt
    monkeypatch.setattr("vllm_bridge.echo.__main__.Event", Interrupted)
    assert main(["--port", "0"]) == 130
    assert capsys.readouterr().out.startswith("http://127.0.0.1:")


def test_an_interrupt_while_the_url_is_printed_is_no_traceback(monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt
    monkeypatch.setattr("builtins.print", interrupted)
    assert main(["--port", "0"]) == 130
