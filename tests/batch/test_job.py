"""``vllm-bridge batch`` against the stand-in: files in, files out, and every way to stop between."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vllm_bridge.batch import backlog, engine, job
from vllm_bridge.cli import main
from vllm_bridge.echo import EchoServer

ROOT = Path(__file__).resolve().parents[2]
LONG = 30.0  # seconds: no verdict hangs on it


def line(number, text=None, **more):
    text = "number %d" % number if text is None else text
    body = {"model": "echo", "messages": [{"role": "user", "content": text}]}
    return {"custom_id": "id-%d" % number, "method": "POST", "url": "/v1/chat/completions", "body": body, **more}


def text_of(found):
    return found["response"]["body"]["choices"][0]["message"]["content"]


class Place:
    """A folder with IN and OUT, and a server."""

    def __init__(self, path, server, capfd):
        self.path, self.server, self._capfd = path, server, capfd
        self.out = path / "out.jsonl"

    def given(self, *lines, ends="\n"):
        text = "".join((one if isinstance(one, str) else json.dumps(one)) + ends for one in lines)
        (self.path / "in.jsonl").write_bytes(text.encode())
        return self

    def run(self, *options, out="out.jsonl", requests="in.jsonl"):
        names = [name if name == "-" else str(self.path / name) for name in (requests, out)]
        code = main(["batch", *names, "--base-url", self.server.url, *map(str, options)])
        self.said = self._capfd.readouterr()
        return code

    @property
    def found(self):
        return [json.loads(line) for line in self.out.read_bytes().splitlines()]


@pytest.fixture
def place(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(engine, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(backlog, "_FIRST", 0.01)
    monkeypatch.setattr(engine, "_TICK", 0.01)
    monkeypatch.setattr(job, "_PAUSE", 0.01)
    before = set(threading.enumerate())
    with EchoServer() as server:
        yield Place(tmp_path, server, capfd)
    assert set(threading.enumerate()) <= before


def test_a_file_of_requests_becomes_a_file_of_answers(place):
    assert place.given(*map(line, range(50))).run("--concurrency", 4) == 0
    assert {found["custom_id"]: text_of(found) for found in place.found} == {
        "id-%d" % number: "You said: number %d" % number for number in range(50)}
    assert len({found["id"] for found in place.found}) == 50
    assert place.said.out == "" and "50 answered, 0 failed" in place.said.err and "(p99)" in place.said.err


def test_failures_are_answers_too_and_are_not_asked_again(place):
    place.given(line(0), line(1, "!error 400"), "nonsense", '{"x": 1}', line(4, url="/v1/audio/speech"))
    assert place.run("--quiet") == 1
    by_line = {int(found["id"].split("-")[1]): found for found in place.found}
    assert by_line[1]["error"] is None and by_line[2]["response"]["status_code"] == 400
    for number, said in ((3, "line 3 is no request"), (4, "line 4 holds neither"), (5, "not offered")):
        assert by_line[number]["response"] is None and said in by_line[number]["error"]["message"]
    assert by_line[3]["custom_id"] is None and by_line[5]["custom_id"] == "id-4"
    asked = len(place.server.requests)
    assert place.run() == 1 and len(place.found) == 5
    assert len(place.server.requests) == asked and "(5 before)" in place.said.err


def test_the_same_command_goes_on_where_it_stopped(place):
    place.given(*map(line, range(20)))
    assert place.run() == 0
    whole = place.out.read_bytes().splitlines(True)
    for keep, torn in ((20, b""), (7, whole[7][:30]), (0, b'{"id'), (19, b"\0" * 9), (3, b"")):
        place.out.write_bytes(b"".join(whole[:keep]) + torn)
        before = len(place.server.requests)
        assert place.run() == 0
        assert sorted(found["custom_id"] for found in place.found) == sorted("id-%d" % number for number in range(20))
        posts = [request for request in list(place.server.requests)[before:] if request.method == "POST"]
        assert len(posts) == 20 - keep


def test_lines_may_be_added_and_moved_where_they_have_an_id(place):
    place.given(*map(line, range(5))).run()
    place.given(line(9), *map(line, reversed(range(5))), line(7)).run()
    assert sorted(found["custom_id"] for found in place.found) == ["id-%d" % n for n in (0, 1, 2, 3, 4, 7, 9)]


def test_lines_without_an_id_are_known_by_their_place_and_text(place):
    bodies = [line(number)["body"] for number in range(4)]
    assert place.given(*bodies).run() == 0
    assert [found["custom_id"] for found in place.found] == [None] * 4
    assert place.given(*bodies, line(4)["body"]).run() == 0 and len(place.found) == 5
    place.given(bodies[0], line(99)["body"], *bodies[2:])
    assert place.run() == 2 and len(place.found) == 5
    assert "line 2 of" in place.said.err and "IN has changed" in place.said.err


def test_two_lines_with_one_id_are_said_before_anything_is_sent(place):
    place.given(line(1), line(2), line(1))
    assert place.run() == 2
    assert "the lines 1 and 3 have one custom_id, 'id-1'" in place.said.err
    assert not place.server.requests


def test_hashes_that_are_alike_are_compared(place, monkeypatch):
    from vllm_bridge.batch import source

    monkeypatch.setattr(source, "key_hash", lambda key: 5)
    assert place.given(line(1), line(2)).run() == 0 and len(place.found) == 2


def test_a_pipe_in_and_out(place, monkeypatch):
    place.given(line(0), line(1), line(0), ends="\r\n")
    with open(str(place.path / "in.jsonl"), "rb") as file:
        read, write = os.pipe()
        os.write(write, file.read())
        os.close(write)
    before = os.dup(0)
    os.dup2(read, 0)
    try:
        assert place.run(requests="-", out="-") == 1
    finally:
        os.dup2(before, 0)
        os.close(before)
        os.close(read)
    found = sorted((json.loads(one) for one in place.said.out.splitlines()), key=lambda one: one["id"])
    assert [one["custom_id"] for one in found] == ["id-0", "id-1", None]
    assert "line 3 has the custom_id 'id-0', which a line before it has" in found[2]["error"]["message"]


@pytest.mark.parametrize("data, numbers", [
    (b"\xef\xbb\xbf%s\r\n\r\n%s", [1, 3]),  # a BOM, Windows line ends, a blank line, no last line end
    (b"%s\n%s\n\n", [1, 2]),
])
def test_files_as_editors_leave_them(place, data, numbers):
    (place.path / "in.jsonl").write_bytes(data % (json.dumps(line(0)).encode(), json.dumps(line(1)).encode()))
    assert place.run("--ordered") == 0
    assert [int(found["id"].split("-")[1]) for found in place.found] == numbers


def test_what_is_no_text_fails_with_its_line(place):
    bad = [b"\xff\xfe", b'{"input": "\0"}', b'{"input": "\xff"}', b"[]", b"7"]
    (place.path / "in.jsonl").write_bytes(b"{}\n" + b"\n".join(bad))
    assert place.run("--ordered") == 1
    messages = [found["error"]["message"] for found in place.found]
    assert len(messages) == 6 and all(message.startswith("line %d " % (n + 1)) for n, message in enumerate(messages))
    (place.path / "utf16.jsonl").write_bytes("{}\n".encode("utf-16"))
    assert place.run(requests="utf16.jsonl", out="other") == 2 and "convert it to UTF-8" in place.said.err


def test_texts_in_and_out(place):
    place.given("one", "!error 400 two", "three")
    assert place.run("--text-in", "--text-out", "--errors", place.path / "errors", "--concurrency", 3) == 1
    assert place.found == ["You said: one", None, "You said: three"]
    assert json.loads((place.path / "errors").read_bytes())["id"].startswith("line-2-")
    place.given("one", "!error 400 two", "three", "four")
    assert place.run("--text-in", "--text-out") == 1
    assert place.found == ["You said: one", None, "You said: three", "You said: four"]
    assert place.given("a", "b").run("--text-in", "--url", "/v1/embeddings", "--text-out", "--join", 2, out="v") == 0
    assert [len(json.loads(one)) for one in (place.path / "v").read_bytes().splitlines()] == [8, 8]


def test_what_has_failed_is_asked_again_into_another_file(place):
    place.given(line(0), line(1), line(2))
    place.server.script("!count 1", "!error 400")  # the first is the list of models
    assert place.run("--ordered", "--concurrency", 1) == 1
    first = place.found
    assert [found["error"] is None for found in first] == [False, True, True]
    assert place.run("--retry-failed", place.out, out="second.jsonl") == 0
    second = [json.loads(one) for one in (place.path / "second.jsonl").read_bytes().splitlines()]
    assert [found["custom_id"] for found in second] == ["id-0"] and second[0]["error"] is None
    assert place.run("--retry-failed", place.out, "--text-out", out="third") == 2
    assert place.run("--retry-failed", place.path / "in.jsonl", out="third") in (0, 2)


def test_failures_apart_and_a_report(place):
    place.given(line(0), line(1, "!error 422"))
    errors, report = place.path / "errors.jsonl", place.path / "report.json"
    for done in (1, 0):
        assert place.run("--errors", errors, "--report", report) == 1
        assert [found["custom_id"] for found in place.found] == ["id-0"]
        assert json.loads(errors.read_bytes())["custom_id"] == "id-1"
        told = json.loads(report.read_bytes())
        assert (told["answered"], told["failed"]) == (done, done)
    assert set(told) >= {"latency_seconds", "tokens", "errors", "concurrency", "answered_before"}


def test_a_model_that_nobody_has_is_said_once(place):
    place.given(*[line(number) for number in range(3)])
    text = (place.path / "in.jsonl").read_text().replace('"echo"', '"gpt-4o"')
    (place.path / "in.jsonl").write_text(text)
    assert place.run() == 2
    assert place.said.err.count("no server has the model gpt-4o; there are: echo") == 1
    assert len([request for request in place.server.requests if request.method == "POST"]) == 1
    assert place.server.requests[-1].json["max_tokens"] == 1 and place.found == []
    with EchoServer(models=None) as generous:  # it lists one model, and has any
        place.server, before = generous, place.server
        assert place.run(out="all.jsonl") == 0 and "no server has" not in place.said.err
        place.server = before
    place.given(line(0), text.splitlines()[1], text.splitlines()[2])
    assert place.run() == 1  # some have another one: they are answered
    assert place.said.err.count("no server has the model gpt-4o") == 1 and len(place.found) == 3


def test_the_only_model_there_is_need_not_be_named(place):
    body = {"messages": [{"role": "user", "content": "a"}]}
    assert place.given(body).run() == 0
    assert place.given(body).run("--model", "vllm/echo", "-p", "seed=7", out="b") in (0, 1)
    assert place.server.requests[-1].json["seed"] == 7
    with EchoServer(models=("a", "b")) as place.server:
        assert place.run(out="c") == 2 and "name one with --model: a, b" in place.said.err


@pytest.mark.parametrize("requests, out, said", [
    ("nowhere", "out", "nowhere cannot be read: No such file"), ("folder", "out", "it is a directory"),
    ("in.jsonl", "folder", "folder cannot be written: Is a directory"),
    ("in.jsonl", "in.jsonl", "is IN"), ("in.jsonl", "no/where", "cannot be written"),
    ("in.jsonl", "link", "is IN"), ("in.jsonl", "other", "is there, and its line 1 is no answer"),
])
def test_files_that_will_not_do(place, requests, out, said):
    place.given(line(0))
    (place.path / "folder").mkdir()
    (place.path / "link").symlink_to(place.path / "in.jsonl")
    (place.path / "other").write_text("my diary\n")
    assert place.run(requests=requests, out=out) == 2
    assert said in place.said.err and not place.server.requests
    assert (place.path / "other").read_text() == "my diary\n" and len(place.path.joinpath("in.jsonl").read_text()) > 50


def test_files_must_differ(place):
    place.given(line(0))
    assert place.run("--errors", place.out) == 2 and "must be different files" in place.said.err


def test_an_empty_file_is_done(place):
    assert place.given().run() == 0 and place.found == []


def test_a_key_that_is_wrong_is_said_at_once(place):
    with EchoServer(api_key="secret") as place.server:
        assert place.given(line(0)).run() == 3
    assert "401" in place.said.err


def test_without_a_server_it_waits_as_long_as_it_is_told(place):
    place.given(line(0))
    place.server.stop()
    assert place.run("--patience", 0.2) == 3
    assert place.said.err.count("no server answers") == 1 and "cannot connect" in place.said.err


def test_a_full_disk_stops_it_and_it_goes_on(place, monkeypatch):
    place.given(*map(line, range(10)))
    write, room = os.write, [2000]

    def full(file, data):
        room[0] -= len(data)
        if room[0] < 0:
            raise OSError(28, "No space left on device")
        return write(file, data)

    monkeypatch.setattr("vllm_bridge.batch.journal.os.write", full)
    assert place.run("--concurrency", 2) == 3
    assert "No space left on device" in place.said.err and 0 < len(place.found) < 10
    monkeypatch.undo()
    assert place.run() == 0 and len(place.found) == 10


# ---------------------------------------------------------------- as a program


def program(place, *options, **more):
    command = [sys.executable, "-m", "vllm_bridge", "batch", "in.jsonl", "out.jsonl", "--base-url", place.server.url]
    return subprocess.Popen(command + list(options), cwd=str(place.path), env={**os.environ, "PYTHONPATH": str(ROOT)},
                            stderr=subprocess.PIPE, **more)


def wait_for(condition):
    for _ in range(3000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not come")


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 3)])
def test_a_signal_lets_what_is_under_way_finish(place, number, code):
    place.given(*[line(n, "!stall 0.5") for n in range(400)])
    process = program(place, "--concurrency", "2")
    wait_for(lambda: place.server.running)
    process.send_signal(number)
    err = process.communicate(timeout=LONG)[1].decode()
    assert process.returncode == code and "what is under way has 5 s" in err
    assert 1 <= len(place.found) <= 4 and all(found["error"] is None for found in place.found)


def test_a_second_ctrl_c_does_not_wait(place):
    place.given(line(0, "!stall 60"))
    process = program(place)
    wait_for(lambda: place.server.running)
    process.send_signal(signal.SIGINT)
    line_said = process.stderr.readline()
    assert b"stopping" in line_said
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=4.5)
    assert process.returncode == 130


@pytest.mark.skipif("VLLM_BRIDGE_LONG" not in os.environ, reason="long: VLLM_BRIDGE_LONG=1")
def test_killed_at_any_moment_nothing_is_lost_and_nothing_twice(place):
    place.given(*map(line, range(1500)))
    for number in range(20):
        process = program(place, "--concurrency", "8", "-q")
        threading.Event().wait(0.25 + 0.02 * number)
        process.kill()
        process.communicate()
    process = program(place, "--concurrency", "8", "-q")
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert sorted(found["custom_id"] for found in place.found) == sorted("id-%d" % n for n in range(1500))
    asked = [request.json["messages"][0]["content"] for request in place.server.requests if request.method == "POST"]
    assert len(asked) - len(set(asked)) <= 20 * 8


def test_progress_on_a_terminal(place, monkeypatch):
    from vllm_bridge.batch.progress import Line, _thousands, rate
    from vllm_bridge.batch.totals import span

    class Screen:
        shown = ""
        closed = False

        def isatty(self):
            return True

        def write(self, text):
            self.shown += text

        def flush(self):
            pass

    place.given(*map(line, range(5)))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "stderr", Screen())
    made = []
    monkeypatch.setattr(job, "Line", lambda *args: made.append(Line(*args)) or made[0])
    main(["batch", str(place.path / "in.jsonl"), str(place.out), "--base-url", place.server.url])
    shown = sys.stderr.shown
    monkeypatch.undo()
    assert re.search(r"\r5 of 5 \[#+\] 100 %, 0 failed, \S+ lines/s, \d+ \+ \d+ tokens/s, 0 s left", shown)
    assert (rate(1834.5), rate(12.34), rate(0.1234)) == ("1,834", "12.3", "0.123")
    assert (_thousands(1234567), span(5), span(300), span(9000)) == ("1,234,567", "5 s", "5 min", "2.5 h")
