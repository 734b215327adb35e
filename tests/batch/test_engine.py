"""A batch from Python against the stand-in, and against servers that follow a script."""

import json
import pickle
import subprocess
import sys
import threading
from contextlib import closing
from itertools import count

import pytest

from scripted import Scripted, answer, completion
from serving import MOST, serving
import vllm_bridge
from vllm_bridge import ConfigError, RateLimitError, VLLMProvider, batch
from vllm_bridge.batch import backlog, engine as rooms
from vllm_bridge.batch.backlog import pause
from vllm_bridge.echo import EchoServer
from vllm_bridge.errors import APIConnectionError, APITimeoutError, BridgeError
from vllm_bridge.server.request import Answer

JSON = [("Content-Type", "application/json")]
LONG = 30.0  # seconds: no verdict hangs on it


def chat(text, **more):
    return {"model": "m", "messages": [{"role": "user", "content": text}], **more}


@pytest.fixture(autouse=True)
def nothing_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.fixture
def server():
    with EchoServer(models=None) as server:
        yield server


@pytest.fixture
def quick(monkeypatch):
    """Let pauses be short."""
    monkeypatch.setattr(rooms, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(backlog, "_FIRST", 0.01)
    monkeypatch.setattr(rooms, "_LONGEST_PAUSE", 0.02)
    monkeypatch.setattr(rooms, "_TICK", 0.01)


def ran(requests, server, **options):
    with VLLMProvider(server.url) as provider:
        return list(batch.run(requests, provider, **options))


def test_every_request_has_its_result(server):
    requests = [chat(str(number), custom_id="id-%d" % number) for number in range(50)]
    results = ran(requests, server, concurrency=7)
    assert sorted(result.number for result in results) == list(range(1, 51))
    for result in results:
        said = "You said: %d" % (result.number - 1)
        assert result.reply.choices[0].message.content == said and result.error is None
        assert result.request is requests[result.number - 1] and result.custom_id == "id-%d" % (result.number - 1)
        assert result.attempts == 1 and result.seconds > 0 and result.status_code == 200
    assert pickle.loads(pickle.dumps(results[0])).reply == results[0].reply


def test_all_operations_and_defaults(server):
    requests = [
        chat("a"), "b", {"prompt": "c"}, {"input": "d"}, {"query": "q e", "documents": ["e", "f"]},
        {"url": "/v1/responses", "method": "POST", "body": {"input": "g"}},
        {"url": "/v1/score", "body": {"text_1": "a", "text_2": "b"}}, {"url": "/classify", "body": {"input": "h"}},
        {"url": "/pooling", "body": {"input": "i"}},
        {"url": "/v1/messages", "body": {"messages": [{"role": "user", "content": "j"}], "max_tokens": 9}},
    ]
    results = ran(requests, server, model="m", parameters={"user": "me"}, ordered=True)
    assert [type(result.reply).__name__ for result in results] == [
        "ChatCompletion", "ChatCompletion", "Completion", "EmbeddingList", "Rerank", "Response"] + ["Record"] * 4
    assert [result.error for result in results] == [None] * 10
    assert results[1].reply.choices[0].message.content == "You said: b"
    assert {request.json["model"] for request in server.requests} == {"m"}
    assert all(request.json["user"] == "me" for request in server.requests if request.path.startswith("/v1"))


def test_one_that_is_wrong_fails_alone(server):
    results = ran([chat("a"), chat("!error 400 b"), {"x": 1}, 7, chat("!error 404"), chat("c", stream=True)], server,
                  ordered=True)
    assert [None if result.error is None else type(result.error).__name__ for result in results] == [
        None, "BadRequestError", "BadRequestError", "BadRequestError", "NotFoundError", "BadRequestError"]
    assert [result.attempts for result in results] == [1, 1, 0, 0, 1, 1]
    assert results[2].reply is None and "line 3 holds neither" in results[2].error.message


@pytest.mark.parametrize("trouble", ["!error 500", "!error 429", "!error 503", "!die", "!error 401", "!die-after 1"])
def test_what_fails_by_no_fault_of_its_own_is_asked_again(server, quick, trouble):
    server.script(trouble, trouble)
    results = ran([chat("a")], server, concurrency=1)
    assert results[0].reply.choices[0].message.content == "You said: a"
    assert results[0].attempts == 3 == len(server.requests)


@pytest.mark.parametrize("garbage", [
    answer(b"<html>"), answer({"choices": "x"}), answer([]), answer({"object": "list", "data": []}), answer(b"{}"),
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{", b"rubbish\r\n\r\n",
])
def test_garbage_is_no_answer(quick, garbage):
    with Scripted(["request", garbage], ["request", answer(completion("good"))]) as server:
        results = ran([chat("a")], server, concurrency=1)
    assert results[0].reply.choices[0].message.content == "good" and results[0].attempts == 2


def test_a_stall_is_given_up_and_asked_again(quick):
    with Scripted(["request", "hold"], ["request", answer(completion("good"))]) as server:
        with VLLMProvider(server.url, timeout=0.1) as provider:
            results = list(batch.run([chat("a")], provider, concurrency=1))
    assert results[0].attempts == 2 and results[0].error is None


@pytest.mark.parametrize("trouble, asked", [
    ("!error 429", 2), ("!error 503", 2), ("!die", 1), ("!error 500", 1), ("!error 502", 1)])
def test_at_most_once_asks_again_only_what_no_server_has_begun(server, quick, trouble, asked):
    server.script(trouble)
    results = ran([chat("a")], server, concurrency=1, at_most_once=True)
    assert len(server.requests) == asked == results[0].attempts
    assert (results[0].error is None) == (asked == 2)


def test_after_patience_a_request_fails_and_says_why(server, quick):
    results = ran([chat("!error 500 a"), chat("b")], server, concurrency=2, patience=0.3)
    failed = [result for result in results if result.error is not None]
    assert len(results) == 2 and len(failed) == 1
    assert failed[0].error.status_code == 500 and failed[0].attempts > 2


def test_where_no_server_answers_for_too_long_the_error_is_raised(quick, caplog):
    with EchoServer() as gone:
        url = gone.url
    with VLLMProvider(url) as provider, pytest.raises(APIConnectionError, match="cannot connect"):
        list(batch.run([chat("a")] * 20, provider, concurrency=4, patience=0.3))
    assert caplog.text.count("no server answers: cannot connect") == 1


def test_a_server_that_goes_away_and_comes_back(quick, caplog):
    away = threading.Event()

    def requests():
        for number in range(60):
            if number == 30:
                servers.pop().stop()
                away.set()
            yield chat(str(number))

    def comes_back():
        away.wait(LONG)
        while "no server answers" not in caplog.text:
            threading.Event().wait(0.01)
        servers.append(EchoServer(port=port, models=None).start())

    servers = [EchoServer(models=None).start()]
    port = servers[0].port
    thread = threading.Thread(target=comes_back)
    thread.start()
    with VLLMProvider(servers[0].url) as provider:
        results = list(batch.run(requests(), provider, concurrency=4))
    thread.join()
    servers.pop().stop()
    assert sorted(result.number for result in results) == list(range(1, 61))
    assert not [result for result in results if result.error is not None]
    assert caplog.text.count("no server answers") == 1 == caplog.text.count("a server answers again, after")


def test_results_come_as_they_are_there(server):
    seen = threading.Event()

    def requests():
        yield chat("first")
        assert seen.wait(LONG)
        yield chat("second")

    with VLLMProvider(server.url) as provider:
        for result in batch.run(requests(), provider, concurrency=2):
            seen.set()
    assert result.number == 2


def test_no_more_is_read_than_is_taken(server):
    numbers = count()
    with VLLMProvider(server.url) as provider:
        with closing(batch.run((chat(str(number)) for number in numbers), provider, concurrency=3)) as results:
            for _ in range(5):
                next(results)
            while len(server.requests) < 9:  # three are answered and wait, three wait to be let in
                threading.Event().wait(0.01)
            threading.Event().wait(0.2)
            assert next(numbers) <= 5 + 3 + 3


def test_closing_breaks_off_what_is_under_way(server):
    with VLLMProvider(server.url) as provider:
        results = batch.run([chat("a")] + [chat("!stall 60")] * 10, provider, concurrency=3)
        assert next(results).number == 1
        results.close()
    assert len(server.requests) <= 4


def test_a_batch_that_is_never_begun_does_nothing(server):
    batch.run([chat("a")], VLLMProvider(server.url))
    assert not server.requests


def test_what_reading_raises_comes_after_the_results_that_there_are(server):
    def requests():
        yield chat("a")
        raise LookupError("no more")

    found = []
    with VLLMProvider(server.url) as provider, pytest.raises(LookupError, match="no more"):
        for result in batch.run(requests(), provider, concurrency=2):
            found.append(result.number)
    assert found == [1]


def test_the_order_is_kept_where_it_is_asked_for(server, quick):
    server.script("!error 500", "!stall 0.05")
    results = ran([chat(str(number)) for number in range(40)], server, concurrency=8, ordered=True)
    assert [result.number for result in results] == list(range(1, 41))


def test_embeddings_go_joined_and_a_bad_one_fails_alone():
    sizes = []

    def embed(request):
        texts = json.loads(request.body.read(MOST))["input"]
        texts = [texts] if isinstance(texts, str) else texts
        sizes.append(len(texts))
        if "bad" in texts:
            error = {"error": {"message": "too long", "type": "BadRequestError", "param": None, "code": 400}}
            return Answer(400, JSON, json.dumps(error).encode())
        rows = [{"object": "embedding", "index": index, "embedding": [float(text)]} for index, text in enumerate(texts)]
        return Answer(200, JSON, json.dumps({"object": "list", "model": "m", "data": rows}).encode())

    requests = [{"input": str(number)} for number in range(20)]
    requests[7] = {"input": "bad"}
    with serving(embed) as server, VLLMProvider("http://127.0.0.1:%d" % server.server_address[1]) as provider:
        results = list(batch.run(requests, provider, model="m", join=16, concurrency=1, ordered=True))
    assert [result.number for result in results if result.error is not None] == [8]
    for result in results[:7] + results[8:]:
        assert [row.embedding for row in result.reply.data] == [[result.number - 1.0]]
    assert sizes == [16, 8, 4, 4, 2, 2, 1, 1, 8, 4]


def test_reranks_go_joined(server):
    requests = [{"query": "fox", "documents": ["a fox", "a dog %d" % number]} for number in range(4)]
    results = ran(requests, server, model="m", join=4, concurrency=1, ordered=True)
    assert [len(result.reply.results) for result in results] == [2] * 4 and len(server.requests) == 1
    assert results[2].reply.results[0].index == 0


def test_concurrency_is_found(server):
    assert len(ran([chat(str(number)) for number in range(100)], server)) == 100


def test_a_retry_after_is_heeded():
    error = RateLimitError("slow down")
    error.retry_after = 7.0
    assert pause(error, 1) == 7.0
    error.retry_after = 10000.0
    assert pause(error, 1) == 60.0 and pause(BridgeError("x"), 99) <= 60.0
    assert pause(APITimeoutError("x"), 1) < pause(APITimeoutError("x"), 4)


@pytest.mark.parametrize("options, said", [
    ({"concurrency": 0}, "concurrency"), ({"concurrency": 2000}, "concurrency"), ({"concurrency": "x"}, "concurrency"),
    ({"join": 0}, "join"), ({"patience": -1}, "patience"), ({"url": "/v1/audio/speech"}, "url"),
])
def test_wrong_settings_are_said_at_once(options, said):
    with pytest.raises(ConfigError, match=said):
        batch.run([], **options)


def test_it_is_there_without_an_import_of_its_own():
    code = "import vllm_bridge, sys; assert 'vllm_bridge.batch' not in sys.modules; print(vllm_bridge.batch.run)"
    assert b"function run" in subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True).stdout
    with pytest.raises(AttributeError, match="no attribute 'bathc'"):
        vllm_bridge.bathc


def test_nothing_to_do():
    assert list(batch.run([])) == []


def test_progress_is_shown_on_standard_error(server, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tqdm.auto", None)
    assert len(ran([chat("a")] * 3, server, progress=True)) == 3
    assert capsys.readouterr().out == ""
