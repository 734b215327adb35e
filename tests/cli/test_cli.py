"""The command line against the stand-in: in this process where that will do, as a program where it must be one."""

import fcntl
import io
import json
import os
import pty
import re
import runpy
import select
import signal
import subprocess
import sys
import termios
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator, List, NamedTuple, Optional, Sequence

import pytest

from scripted import LAST_CHUNK, SSE_HEAD, Scripted, answer, completion, event
from vllm_bridge.cli import parser as cli
from vllm_bridge.cli import commands, terminal
from vllm_bridge.echo import EchoServer

ROOT = Path(__file__).resolve().parents[2]
LONG = 30.0  # seconds: no verdict hangs on it
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}]


class Screen(io.TextIOWrapper):
    """A stream that says it is a terminal."""

    def __init__(self, typed: str = "") -> None:
        super().__init__(io.BytesIO(typed.encode("utf-8")), encoding="utf-8", write_through=True)

    def isatty(self) -> bool:
        return True

    @property
    def shown(self) -> str:
        return self.buffer.getvalue().decode("utf-8")  # type: ignore[attr-defined]


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def echo() -> Iterator[EchoServer]:
    with EchoServer() as server:
        yield server


@pytest.fixture
def run(echo: EchoServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run the command line in this process against the stand-in."""
    monkeypatch.setenv("VLLM_BASE_URL", echo.url)
    monkeypatch.delenv("VLLM_API_KEY", raising=False)

    def run_it(*argv: str, stdin: bytes = b"") -> Ran:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        code = cli.main(argv)
        out, err = capsys.readouterr()
        return Ran(code, out, err)

    return run_it


def complaint(ran: Ran, code: int = 1) -> str:
    """The one line that a failure leaves on standard error."""
    assert ran.code == code
    assert re.fullmatch(r"vllm-bridge: [^\n]+\n", ran.err), ran.err
    return ran.err


# ---------------------------------------------------------------- chat


def test_chat_takes_the_prompt_from_the_arguments(run: Callable[..., Ran], echo: EchoServer) -> None:
    assert run("chat", "Hello", "there") == (0, "You said: Hello there\n", "")
    body = echo.requests[-1].json
    assert body["model"] == "echo" and body["stream"] is True
    assert body["messages"] == [{"role": "user", "content": "Hello there"}]


def test_chat_takes_the_prompt_from_standard_input(run: Callable[..., Ran], echo: EchoServer) -> None:
    assert run("chat", stdin="\ufeffGrüße\n\nzwei\n".encode("utf-8")).out == "You said: Grüße\n\nzwei\n"
    assert run("chat", "Repeat:", "-", "!", stdin=b"this\n").out == "You said: Repeat: this !\n"


@pytest.mark.parametrize("argv, stdin", [
    (["chat"], b""), (["chat", ""], b""), (["chat", " "], b""), (["complete"], b""), (["responses"], b""),
    (["embed"], b"\n\n"), (["rerank", "q"], b""), (["transcribe", "-"], b""),
])
def test_nothing_to_send_is_wrong_usage(
    argv: List[str], stdin: bytes, run: Callable[..., Ran], echo: EchoServer
) -> None:
    complaint(run(*argv, "-m", "echo", stdin=stdin), 2)
    assert not [request for request in echo.requests if request.method == "POST"]


def test_bytes_that_are_no_text_are_wrong_usage(run: Callable[..., Ran]) -> None:
    assert "byte 2" in complaint(run("chat", stdin=b"ab\xff"), 2)
    for argv in (["chat", "\udcff"], ["chat", "-s", "\udcff", "x"], ["embed", "\udcff"], ["rerank", "\udcff", "x"],
                 ["chat", "-p", "x=\udcff", "x"]):
        assert "UTF-8" in complaint(run(*argv), 2)


def test_the_system_message_goes_first(run: Callable[..., Ran], echo: EchoServer) -> None:
    run("chat", "--system", "Be brief", "Hi")
    assert [message["role"] for message in echo.requests[-1].json["messages"]] == ["system", "user"]


@pytest.mark.parametrize("text, name, value", [
    ("top_k=20", "top_k", 20),
    ("min_p=0.5", "min_p", 0.5),
    ('stop=["a","b"]', "stop", ["a", "b"]),
    ("stop=END", "stop", "END"),
    ("stop=a=b", "stop", "a=b"),
    ("stop=NaN", "stop", "NaN"),
    ('user="123"', "user", "123"),
    ("user=", "user", ""),
    ("skip_special_tokens=true", "skip_special_tokens", True),
    ('chat_template_kwargs={"enable_thinking": false}', "chat_template_kwargs", {"enable_thinking": False}),
    ("no_such_parameter_yet=1", "no_such_parameter_yet", 1),
])
def test_parameters_are_json_or_strings(
    text: str, name: str, value: Any, run: Callable[..., Ran], echo: EchoServer
) -> None:
    assert run("chat", "-p", text, "Hi").code == 0
    assert echo.requests[-1].json[name] == value


@pytest.mark.parametrize("text", [
    'tools=[{"type"', "messages=[{", "chat_template_kwargs={a: 1}", "chat_template_kwargs={'a': 1}", 'stop=["a", "b"',
    'stop="a', 'x={"a": NaN}', 'x={"a": 1}}', "x=[1, 2", "x=[1,]", "x={", 'x= {"a"',
])
def test_broken_json_is_not_sent_as_a_string(text: str, run: Callable[..., Ran], echo: EchoServer) -> None:
    assert "-p %s: is broken JSON: " % text.partition("=")[0] in complaint(run("chat", "-m", "echo", "-p", text, "Hi"))
    assert not echo.requests


@pytest.mark.parametrize("value", [
    "[a-z]+", "[0-9]{3}", "[[:alpha:]]", "{{ messages }}", "{% for m in messages %}", '"', "[", "[END]", "(a|b)",
    "None", "True", "-", "[1]x",
])
def test_a_string_that_only_begins_like_json_is_one(value: str, run: Callable[..., Ran], echo: EchoServer) -> None:
    assert run("chat", "-p", "colour=" + value, "Hi").code == 0
    assert echo.requests[-1].json["colour"] == value


# What a server may answer to a command: (its words, the answer).
MESSAGE = {"role": "assistant", "content": "Hi"}
ONLY_DONE = [SSE_HEAD, event("[DONE]"), LAST_CHUNK]
ODD = [
    (["chat", "x"], ONLY_DONE),
    (["complete", "x"], ONLY_DONE),
    (["responses", "x"], ONLY_DONE),
    (["chat", "x"], [SSE_HEAD, event({"choices": [5]}), LAST_CHUNK]),
    (["chat", "x"], [SSE_HEAD, event({"choices": [{"index": 0, "delta": "x"}]}), LAST_CHUNK]),
    (["complete", "x"], [SSE_HEAD, event({"choices": 5}), LAST_CHUNK]),
    (["chat", "x"], [answer({"choices": []})]),
    (["models"], [answer({"data": None})]),
    (["models"], [answer([])]),
    (["embed", "x"], [answer({"id": "x"})]),
    (["embed", "x"], [answer({"data": [None]})]),
    (["embed", "x"], [answer({"data": 5})]),
    (["rerank", "x", "y"], [answer({"results": [{"index": 7, "relevance_score": 0.5}]})]),
    (["rerank", "x", "y"], [answer({"results": [{"index": 0, "relevance_score": "high"}]})]),
    (["rerank", "x", "y"], [answer({"results": None})]),
    (["transcribe", "-p", "response_format=json", __file__], [answer({"id": "x"})]),
] + [
    (["chat", *more, "x"], [answer(body)])
    for more in (["-p", "n=2"], ["--json"])
    for body in (
        {"id": "x"}, {"choices": None}, {"choices": []}, {"choices": 5}, {"choices": {"0": MESSAGE}}, [], 5, None, "x",
        {"choices": [None]}, {"choices": ["Hi"]}, {"choices": [{"index": 0}]},
    )
] + [
    (["chat", "-p", "n=2", "x"], [answer({"choices": [{"index": 0, "message": message}]})])
    for message in (
        None, "Hi", [], {}, {"content": 5}, {"content": ["Hi"]}, {"role": "assistant", "content": None},
        {"content": None, "tool_calls": []}, {"content": None, "tool_calls": [None]},
        {"content": None, "tool_calls": [{"function": None}]}, {"content": "x", "tool_calls": [{"id": "x"}]},
        {"content": None, "tool_calls": {"0": 1}}, {"content": "x", "tool_calls": 5},
    )
] + [
    (["complete", *more, "x"], [answer(body)])
    for more in (["-p", "n=2"], ["--json"])
    for body in ({"id": "x"}, {"choices": []}, {"choices": None}, {"choices": "x"}, [])
] + [
    (["complete", "-p", "n=2", "x"], [answer({"choices": [choice]})]) for choice in (None, "x", {}, {"text": 5})
]


@pytest.mark.parametrize("argv, reply", ODD)
def test_an_odd_reply_is_one_line(
    argv: List[str], reply: List[Any], run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Scripted(["request", *reply]) as server:
        monkeypatch.setenv("VLLM_BASE_URL", server.url)
        complaint(run(argv[0], *(["-m", "m"] if argv[0] != "models" else []), *argv[1:]))


def test_what_is_only_unusual_is_shown(run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    for message, shown in (
        ({"content": None, "reasoning": "Hm"}, ""),
        ({"content": ""}, ""),
        ({"content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}, 'f({"a": 1})\n'),
        ({"content": None, "tool_calls": [{"function": {"name": "f", "arguments": None}}]}, "f()\n"),
    ):
        with Scripted(["request", answer({"choices": [{"index": 0, "message": message}]})]) as server:
            monkeypatch.setenv("VLLM_BASE_URL", server.url)
            assert run("chat", "-m", "m", "-p", "n=2", "x") == (0, shown, "")


def test_messages_given_as_a_parameter_need_no_prompt(run: Callable[..., Ran]) -> None:
    assert run("chat", "-p", 'messages=[{"role": "user", "content": "Hi"}]').out == "You said: Hi\n"


def test_several_choices_come_one_after_another(run: Callable[..., Ran]) -> None:
    assert run("chat", "-p", "n=2", "Hi").out == "You said: Hi\n\nYou said: Hi (2)\n"


def test_json_prints_the_whole_reply(run: Callable[..., Ran], echo: EchoServer) -> None:
    ran = run("chat", "--json", "é")
    reply = json.loads(ran.out)
    assert reply["choices"][0]["message"]["content"] == "You said: é" and reply["usage"]["total_tokens"] > 0
    assert ran.out.count("\n") == 1 and "stream" not in echo.requests[-1].json


def test_tool_calls_are_shown(run: Callable[..., Ran]) -> None:
    for extra in ([], ["-p", "n=2"]):
        ran = run("chat", "-p", "tools=" + json.dumps(TOOLS), *extra, "!call 1 x")
        assert ran.code == 0 and 'get_weather({"city": ' in ran.out


def test_reasoning_stays_out_of_the_answer(run: Callable[..., Ran]) -> None:
    assert run("chat", "!think Hi") == (0, "You said: Hi\n", "")


# ---------------------------------------------------------------- the other operations


def test_complete_continues_the_text(run: Callable[..., Ran], echo: EchoServer) -> None:
    assert run("complete", "Once").out == " You said: Once\n"
    assert echo.requests[-1].json["prompt"] == "Once"
    assert run("complete", "-p", 'prompt=["a", "b"]').out == " You said: a\n\n You said: b\n"
    assert json.loads(run("complete", "--json", stdin=b"Once").out)["object"] == "text_completion"


def test_responses_answers(run: Callable[..., Ran], echo: EchoServer) -> None:
    assert run("responses", "-s", "Be brief", "!think Hi").out.strip() == "You said: Hi"
    assert [message["role"] for message in echo.requests[-1].json["messages"]] == ["system", "user"]
    assert json.loads(run("responses", "--json", "Hi").out)["object"] == "response"
    tools = json.dumps([dict(TOOLS[0]["function"], type="function")])  # type: ignore[call-overload]
    assert 'get_weather({"city": ' in run("responses", "-p", "tools=" + tools, "!call 1 x").out


def test_a_response_that_fails_on_its_way_is_a_failure(run: Callable[..., Ran]) -> None:
    ran = run("responses", "!error-after 2 500 Hello there, all of you")
    assert ran.out and "EngineCore" in complaint(ran)


def test_embed_prints_a_vector_a_line(run: Callable[..., Ran], echo: EchoServer) -> None:
    ran = run("embed", "a", "b")
    assert [len(json.loads(line)) for line in ran.out.splitlines()] == [8, 8]
    assert run("embed", stdin=b"a\r\n\nb\n").out == ran.out == run("embed", "-", stdin=b"a\nb").out
    assert echo.requests[-1].json["input"] == ["a", "b"]
    assert run("embed", "-p", "input=a").out == ran.out.splitlines(True)[0]
    assert json.loads(run("embed", "--json", "a").out)["object"] == "list"


def test_rerank_prints_the_best_first(run: Callable[..., Ran]) -> None:
    ran = run("rerank", "red fox", "blue fox", "dog", "the red fox")
    rows = [line.split("\t") for line in ran.out.splitlines()]
    assert [(row[1], row[2]) for row in rows] == [("2", "the red fox"), ("0", "blue fox"), ("1", "dog")]
    assert [float(row[0]) for row in rows] == sorted((float(row[0]) for row in rows), reverse=True)
    assert run("rerank", "red fox", stdin=b"blue fox\ndog\nthe red fox\n").out == ran.out
    given = 'documents=[{"text": "blue fox"}, "dog", "the red fox"]'
    assert run("rerank", "red fox", "-p", given).out == ran.out
    best = json.loads(run("rerank", "--json", "red fox", "dog", "fox", "-p", "top_n=1").out)["results"]
    assert [result["index"] for result in best] == [1]


def test_tokens_scores_and_classes(run: Callable[..., Ran], echo: EchoServer, tmp_path: Path) -> None:
    ids = run("tokenize", "Hello", "there").out
    assert len(ids.split()) == 2 and run("detokenize", *ids.split()).out == "Hello there\n"
    assert run("detokenize", stdin=ids.encode()).out == "Hello there\n"
    assert json.loads(run("tokenize", "--json", "-p", "return_token_strs=true", "a b").out)["token_strs"] == ["a", " b"]
    assert len(run("tokenize", "-p", 'messages=[{"role": "user", "content": "a b c"}]').out.split()) == 3
    assert "a token is a number" in complaint(run("detokenize", "x"), 2)
    assert run("score", "the cat", "a cat", "the cat").out == "0.333333\ta cat\n1.000000\tthe cat\n"
    assert json.loads(run("score", "--json", "a", "b").out)["data"][0]["score"] == 0.0
    label, probability, text = run("classify", "Win a prize").out.rstrip("\n").split("\t")
    assert label.startswith("LABEL_") and float(probability) >= 0.5 and text == "Win a prize"
    assert json.loads(run("classify", "--json", stdin=b"a\nb\n").out)["data"][1]["num_classes"] == 2
    audio = tmp_path / "a.wav"
    audio.write_bytes(b"RIFFxxxxWAVE")
    assert "I heard a.wav" in run("translate", str(audio)).out and echo.requests[-1].path.endswith("/translations")
    assert json.loads(run("translate", "--json", str(audio)).out) == {"text": " I heard a.wav: 12 bytes."}


def test_transcribe_prints_what_was_said(run: Callable[..., Ran], echo: EchoServer, tmp_path: Path) -> None:
    audio = tmp_path / "talk.mp3"
    audio.write_bytes(b"ID3abc")
    said = run("transcribe", str(audio)).out
    assert said.startswith("I heard talk.mp3") and said.endswith("\n")
    assert dict(echo.requests[-1].form)["stream"] == "true"
    assert run("transcribe", "-", stdin=b"ID3abc").code == 0
    assert run("transcribe", str(audio), "-p", "response_format=text").out.lstrip() == said
    assert "text" in json.loads(run("transcribe", "--json", str(audio)).out)
    assert "No such file" in complaint(run("transcribe", str(tmp_path / "none.wav")))


def test_models_prints_the_names(run: Callable[..., Ran]) -> None:
    assert run("models").out == "echo\n"
    assert json.loads(run("models", "--json").out)["data"][0]["max_model_len"] == 32768


# ---------------------------------------------------------------- which server, which model


def test_flags_choose_the_server_and_the_key(run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_BASE_URL", "http://127.0.0.1:9")
    with EchoServer(api_key="right-key") as other:
        for early in (True, False):
            flags = ["--base-url", other.url + "/v1", "--api-key", "right-key"]
            argv = flags + ["models"] if early else ["models"] + flags
            assert run(*argv).out == "echo\n"
        ran = run("models", "--base-url", other.url, "--api-key", "wrong-key")
        assert "401" in complaint(ran) and "wrong-key" not in ran.err
        monkeypatch.setenv("VLLM_API_KEY", "right-key")
        assert run("models", "--base-url", other.url).code == 0


def test_the_model_may_be_left_out_where_there_is_one(
    run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    with EchoServer(models=("one", "two")) as other:
        monkeypatch.setenv("VLLM_BASE_URL", other.url)
        assert "--model: one, two" in complaint(run("chat", "Hi"), 2)
        for argv in (["-m", "two"], ["--model", "two"], ["-p", "model=two"]):
            assert run("chat", *argv, "Hi").code == 0
            assert other.requests[-1].json["model"] == "two"


def test_a_server_without_models_is_told_of(run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm_bridge.api.records import ModelList
    from vllm_bridge.vllm import VLLMProvider

    monkeypatch.setattr(VLLMProvider, "list_models", lambda self: ModelList({"object": "list", "data": []}))
    assert "lists no model" in complaint(run("chat", "Hi"), 2)
    assert "lists no model" in complaint(run("check")._replace(out=""))


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("prompt, word", [
    ("!error 400 x", "[400 from"),
    ("!error-in-200 503 x", "busy"),
    ("!error-after 2 500 x y z", "EngineCore"),
    ("!cut-after 2 x y z", "without a finish reason"),
    ("!abort x", "abort"),
])
def test_a_failed_call_is_one_line(prompt: str, word: str, run: Callable[..., Ran]) -> None:
    ran = run("chat", "-m", "echo", prompt)
    assert word in complaint(ran)
    assert not ran.out or ran.out.endswith("\n")


def test_a_message_of_several_lines_becomes_one(run: Callable[..., Ran]) -> None:
    # pydantic's complaints have line ends in them (err_chat_missing_messages)
    assert "validation error" in complaint(run("chat", "-m", "echo", "-p", "messages=null"))


def test_a_server_that_is_not_there(run: Callable[..., Ran]) -> None:
    for command in (["models"], ["check"]):
        assert "cannot connect to http://127.0.0.1:9" in complaint(run(*command, "--base-url", "http://127.0.0.1:9"))


def test_silence_says_how_to_wait_longer(run: Callable[..., Ran]) -> None:
    assert "--timeout SECONDS" in complaint(run("chat", "-m", "echo", "--timeout", "0.2", "!stall 20 x"))
    assert "--timeout SECONDS" in complaint(run("--timeout", "0.2", "chat", "-m", "echo", "!stall-after 2 20 x y"))


@pytest.mark.parametrize("argv, words", [
    ([], ["usage:", "COMMAND"]),
    (["chatt", "x"], ["no command 'chatt'", "did you mean chat?"]),
    (["no-such-thing"], ["no command 'no-such-thing'"]),
    (["chat", "--modle", "x", "Hi"], ["--modle", "did you mean --model?"]),
    (["chat", "--tmeout=3", "Hi"], ["did you mean --timeout?"]),
    (["chat", "--xyzzy", "Hi"], ["unrecognized arguments: --xyzzy"]),
    (["chat", "-p", "top_k", "Hi"], ["expected NAME=VALUE, got 'top_k'"]),
    (["chat", "--timeout", "soon", "Hi"], ["--timeout"]),
    (["chat", "--timeout", "0", "Hi"], ["timeout: expected a number above 0"]),
    (["chat", "--base-url", "ftp://x", "Hi"], ["--base-url"]),
    (["chat", "--base-url", "http://me:secret@x", "Hi"], ["--base-url"]),
    (["models", "x"], ["unrecognized arguments: x"]),
    (["transcribe", "a", "b"], ["unrecognized arguments: b"]),
    (["rerank"], ["QUERY"]),
    (["--api-key", "x", "serve"], ["--api-key must stand behind serve"]),
    (["serve", "--port", "high"], ["--port"]),
    (["serve", "--prot", "1"], ["did you mean --port?"]),
])
def test_wrong_usage(argv: List[str], words: List[str], run: Callable[..., Ran], echo: EchoServer) -> None:
    ran = run(*argv)
    assert (ran.code, ran.out) == (2, "")
    assert all(word in ran.err for word in words), ran.err
    assert "Traceback" not in ran.err and "secret" not in ran.err
    assert not echo.requests


def test_words_may_stand_behind_options(run: Callable[..., Ran]) -> None:
    assert run("chat", "One", "-p", "top_k=2", "two").out == "You said: One two\n"


def test_help_and_version(run: Callable[..., Ran]) -> None:
    assert run("--version").out == "vllm-bridge %s\n" % cli.__version__
    text = run("--help").out
    for command in ("chat", "responses", "complete", "embed", "rerank", "score", "classify", "tokenize",
                    "detokenize", "transcribe", "translate", "models", "check", "serve"):
        assert re.search(r"^    %s\b" % command, text, re.M)
        assert run(command, "--help").code == 0
    assert "upstream" in run("serve", "--help").out


def test_serve_runs_the_gateway(run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm_bridge.gateway import run as gateway_run

    seen: List[Any] = []
    monkeypatch.setattr(gateway_run, "main", lambda asked: seen.append(asked) or 7)
    assert run("serve", "--port", "0", "--upstream", "http://gpu:8000", "--timeout", "3").code == 7
    assert (seen[0].port, seen[0].upstream, seen[0].timeout) == ("0", ["http://gpu:8000"], "3")


# ---------------------------------------------------------------- check


def test_check_measures_the_first_token(run: Callable[..., Ran], echo: EchoServer) -> None:
    ran = run("check")
    assert ran.code == 0 and ran.err == ""
    assert re.fullmatch(
        r"http://127\.0\.0\.1:\d+ is there, it listed its models in [\d.]+ m?s\n"
        r"echo \(32768 tokens\) answers chat: first token after [\d.]+ m?s, 3 tokens in [\d.]+ m?s \(vllm-[^)]+\)\n"
        r"ok\n", ran.out), ran.out
    report = json.loads(run("check", "--json").out)
    assert report["ok"] and report["models"][0]["operation"] == "chat"
    assert 0 < report["models"][0]["first_token_seconds"] <= report["models"][0]["seconds"]


@pytest.mark.parametrize("operation, words", [
    ("text_completion", "answers completions: first token after"),
    ("embedding", "answers embeddings in"),
    ("rerank", "answers rerank in"),
    ("transcription", "answers transcription in"),
])
def test_check_finds_what_a_model_is_for(
    operation: str, words: str, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    with EchoServer(operations=["list_models", operation]) as other:
        monkeypatch.setenv("VLLM_BASE_URL", other.url)
        ran = run("check")
    assert ran.code == 0 and words in ran.out and ran.out.endswith("\nok\n")


def test_check_goes_on_where_a_model_has_no_chat_template(run: Callable[..., Ran], echo: EchoServer) -> None:
    echo.script("", "!error 400")  # the first one meets the list of models
    assert "answers completions" in run("check").out
    echo.script("", "!error 400", "!error 400")
    assert run("check").code == 1


def test_check_says_what_is_wrong(run: Callable[..., Ran], echo: EchoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = run("check", "--model", "nope")
    assert ran.code == 1 and "nope does not answer: The model `nope` does not exist" in ran.out
    assert ran.out.endswith("\nnot ok: nope\n")
    echo.script("", "!stall 20")
    ran = run("check", "--timeout", "0.2")
    assert ran.code == 1 and "does not answer" in ran.out
    echo.script("", "!error 503")
    before = len(echo.requests)
    assert json.loads(run("check", "--json").out)["ok"] is False
    assert len(echo.requests) == before + 2  # asked once, not again and again
    with EchoServer(operations=["list_models"]) as other:
        monkeypatch.setenv("VLLM_BASE_URL", other.url)
        assert "does not answer" in run("check").out


@pytest.mark.parametrize("listed, code, words", [
    ({"id": "echo", "max_model_len": "4k"}, 0, "echo (4k tokens) answers chat"),
    ({"id": "echo", "max_model_len": None}, 0, "echo answers chat"),
    ({"object": "model"}, 1, "None does not answer"),
    (None, 1, ""), ("echo", 1, ""),
])
def test_check_reads_odd_lists(
    listed: Any, code: int, words: str, run: Callable[..., Ran], echo: EchoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm_bridge.api.records import ModelList
    from vllm_bridge.vllm import VLLMProvider

    monkeypatch.setattr(VLLMProvider, "list_models", lambda self: ModelList({"object": "list", "data": [listed]}))
    ran = run("check")
    assert ran.code == code and words in ran.out and ran.err.count("\n") == (not words)


def test_check_finds_an_odd_answer(run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    models = answer({"data": [{"id": "m"}]})
    with Scripted(["request", models, "request", SSE_HEAD, event({"choices": ["x"]}), LAST_CHUNK]) as server:
        monkeypatch.setenv("VLLM_BASE_URL", server.url)
        ran = run("check")
    assert ran.code == 1 and "m does not answer: " in ran.out and ran.out.endswith("not ok: m\n")


def test_check_counts_an_empty_answer_as_one(run: Callable[..., Ran], echo: EchoServer) -> None:
    echo.script("", "!empty")
    ran = run("check")
    assert ran.code == 0 and "answers chat in" in ran.out


# ---------------------------------------------------------------- terminals


@pytest.fixture
def screens(monkeypatch: pytest.MonkeyPatch, echo: EchoServer) -> Callable[..., Any]:
    """Run the command line in this process with terminals on all three streams."""
    monkeypatch.setenv("VLLM_BASE_URL", echo.url)

    def run_it(*argv: str, typed: str = "", out: Optional[Any] = None) -> Ran:
        stdin, stdout, stderr = Screen(typed), out or Screen(), Screen()
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setattr(sys, "stderr", stderr)
        code = cli.main(argv)
        return Ran(code, stdout.shown if out is None else "", stderr.shown)

    return run_it


def test_a_conversation_keeps_its_history(screens: Callable[..., Ran], echo: EchoServer) -> None:
    ran = screens("chat", "-s", "Be brief", typed="Hello\n\nAgain\n")
    assert ran.code == 0
    assert ran.out.replace("> ", "") == "You said: Hello\nYou said: Again\n"
    assert echo.requests[-1].json["messages"] == [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "You said: Hello"},
        {"role": "user", "content": "Again"},
    ]
    assert "echo; Ctrl-C stops" in ran.err


def test_a_conversation_survives_a_failed_call(screens: Callable[..., Ran], echo: EchoServer) -> None:
    ran = screens("chat", "-m", "echo", typed="!error 400\nGo on\n")
    assert ran.code == 0 and "[400 from" in ran.err and "You said: Go on" in ran.out
    assert [message["content"] for message in echo.requests[-1].json["messages"]] == ["Go on"]


def test_a_conversation_survives_an_odd_answer(screens: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    odd, good = answer({"choices": [{"index": 0, "message": {"content": 5}}]}), answer(completion("Fine"))
    with Scripted(["request", odd, "request", good]) as server:
        monkeypatch.setenv("VLLM_BASE_URL", server.url)
        ran = screens("chat", "-m", "m", "-p", "n=2", typed="One\nTwo\n")
    assert ran.code == 0 and "vllm-bridge: the server's answer is not" in ran.err and "Fine" in ran.out


def test_a_conversation_as_json_is_indented(screens: Callable[..., Ran], echo: EchoServer) -> None:
    ran = screens("chat", "--json", typed="One\nTwo\n")
    assert '\n  "choices": [' in ran.out
    assert [message["content"] for message in echo.requests[-1].json["messages"]] == ["One", "You said: One", "Two"]


def test_the_prompt_sign_does_not_get_into_the_answer(screens: Callable[..., Ran], tmp_path: Path) -> None:
    with open(str(tmp_path / "out"), "w+", encoding="utf-8") as out:
        ran = screens("chat", typed="Hello\n", out=out)
        out.seek(0)
        assert out.read() == "You said: Hello\n"
    assert "> " in ran.err


def test_reasoning_is_dimmed_on_a_terminal(screens: Callable[..., Ran]) -> None:
    ran = screens("chat", "!think Hi")
    assert ran.out == "You said: Hi\n"
    assert "\033[2m" in ran.err and "wants" in ran.err and ran.err.endswith("\n")


def test_an_answer_that_was_cut_off_is_marked(screens: Callable[..., Ran]) -> None:
    assert "max_tokens=N" in screens("chat", "-p", "max_tokens=2", "one two three").err
    assert "max_tokens=N" in screens("complete", "-p", "max_tokens=2", "one two three").err
    assert "max_output_tokens=N" in screens("responses", "-p", "max_output_tokens=2", "one two three").err


def test_a_terminal_gets_no_control_characters(screens: Callable[..., Ran]) -> None:
    ran = screens("chat", "-m", "echo", "a\033]0;title\007b\tc\r\nd\x9b")
    assert ran.out == "You said: a\ufffd]0;title\ufffdb\tc\nd\ufffd\n"
    assert "\033" not in terminal.one_line("a\033[1mb\nc") and "\n" not in terminal.one_line("a\033[1mb\nc")


def test_a_command_that_needs_texts_does_not_wait_for_somebody_to_type(screens: Callable[..., Ran]) -> None:
    for argv in (["embed"], ["rerank", "q"], ["complete"], ["responses"]):
        assert screens(*argv).code == 2


def test_closed_streams_are_no_traceback(echo: EchoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_BASE_URL", echo.url)
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert cli.main(["chat", "Hi"]) == 1  # the answer is lost
    assert cli.main(["chat"]) == 2
    assert cli.main(["chat", "-m", "nope", "Hi"]) == 1
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stdin", closed)
    assert not terminal.stdin_is_terminal()


class Broken(Screen):
    """A terminal whose writes fail."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.parametrize("error, code, said", [
    (BrokenPipeError(32, "Broken pipe"), 1, "vllm-bridge: Broken pipe\n"),
    (OSError(28, "No space left on device"), 1, "vllm-bridge: No space left on device\n"),
])
def test_output_that_cannot_be_written(
    error: OSError, code: int, said: str, echo: EchoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_BASE_URL", echo.url)
    monkeypatch.setattr(sys, "stdout", Broken(error))
    errors = io.StringIO()
    monkeypatch.setattr(sys, "stderr", errors)
    assert cli.main(["chat", "-m", "echo", "Hi"]) == code
    assert errors.getvalue() == said


def test_ctrl_c_is_130_also_when_nothing_can_be_written(echo: EchoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any) -> int:
        args[2].write("half a line")
        raise KeyboardInterrupt

    monkeypatch.setenv("VLLM_BASE_URL", echo.url)
    monkeypatch.setattr(sys, "stderr", Screen())
    monkeypatch.setitem(commands.COMMANDS, "models", interrupted)
    for out in (Screen(), Broken(OSError(5, "gone"))):
        monkeypatch.setattr(sys, "stdout", out)
        assert cli.main(["models"]) == (130 if type(out) is Screen else 1)
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    assert cli.main(["models"]) == 130 and screen.shown == "half a line\n"


# ---------------------------------------------------------------- as a program


def program(echo: EchoServer, *argv: str, through: Sequence[str] = (), **options: Any) -> "subprocess.Popen[bytes]":
    environ = dict(os.environ, VLLM_BASE_URL=echo.url, PYTHONPATH=str(ROOT), TERM="dumb")
    return subprocess.Popen([*through, sys.executable, "-m", "vllm_bridge", *argv], env=environ, **options)


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def test_python_m_is_the_same_program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["vllm_bridge", "--version"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("vllm_bridge", run_name="__main__")
    assert end.value.code == 0 and capsys.readouterr().out.startswith("vllm-bridge ")


def test_a_closed_pipe_is_one_line_and_stops_the_generation(echo: EchoServer) -> None:
    process = program(echo, "chat", "-m", "echo", "!slow 0.01 !count 100000 x",
                      stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    until(lambda: echo.running)
    process.stdout.close()
    assert process.stderr.read() == b"vllm-bridge: Broken pipe\n"
    process.stderr.close()
    assert process.wait(LONG) == 1
    until(lambda: echo.running == 0)


@pytest.mark.parametrize("closed, argv, code, said", [
    (["out"], ["models"], 1, b"vllm-bridge: Broken pipe\n"),
    (["out"], ["chat", "-m", "nope", "Hi"], 1, None),
    (["out"], ["check"], 1, b"vllm-bridge: Broken pipe\n"),
    (["err"], ["models"], 0, b"echo\n"),
    (["err"], ["chat", "-m", "nope", "Hi"], 1, b""),
    (["err"], ["chat", "-p", "n={", "Hi"], 1, b""),
    (["err"], ["chat", "-m", "echo", " "], 2, b""),
    (["err"], ["chat", "--nope"], 2, b""),
    (["out", "err"], ["models"], 1, None),
    (["out", "err"], ["chat", "-m", "nope", "Hi"], 1, None),
])
def test_a_pipe_closed_from_the_beginning(
    closed: List[str], argv: List[str], code: int, said: Optional[bytes], echo: EchoServer
) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        streams = {name: write if name[3:] in closed else subprocess.PIPE for name in ("stdout", "stderr")}
        process = program(echo, *argv, stdin=subprocess.DEVNULL, **streams)
        told = b"".join(text or b"" for text in process.communicate(timeout=LONG))
        assert process.returncode == code
    finally:
        os.close(write)
    assert told == said or (said is None and told.count(b"\n") == (len(closed) == 1))


@pytest.mark.parametrize("redirect, argv, code", [
    (">&-", ["models"], 1), ("2>&-", ["models"], 0), ("2>&-", ["chat", "-m", "nope", "x"], 1),
    (">&- 2>&-", ["models"], 1), ("<&-", ["chat", "-m", "echo"], 2), ("<&- >&- 2>&-", ["chat", "-m", "nope", "x"], 1),
])
def test_a_closed_descriptor(redirect: str, argv: List[str], code: int, echo: EchoServer) -> None:
    process = program(echo, *argv, through=["sh", "-c", 'exec "$@" ' + redirect, "sh"],
                      stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    told = process.communicate(timeout=LONG)
    assert process.returncode == code and b"Traceback" not in told[1]
    assert told[1].count(b"\n") == (code != 0 and "2>" not in redirect)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full device")
def test_a_full_disk_is_one_line(echo: EchoServer) -> None:
    with open("/dev/full", "wb") as full:
        process = program(echo, "models", stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE)
        assert process.communicate(timeout=LONG)[1] == b"vllm-bridge: No space left on device\n"
    assert process.returncode == 1


@contextmanager
def at_terminal(echo: EchoServer, *argv: str) -> Iterator[Any]:
    """Run the program at a terminal of its own; yields (process, read_until, type_in)."""
    master, slave = pty.openpty()
    settings = termios.tcgetattr(slave)
    settings[3] &= ~termios.ECHO
    termios.tcsetattr(slave, termios.TCSANOW, settings)

    def take_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = program(echo, *argv, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
                      preexec_fn=take_terminal)
    os.close(slave)
    seen = bytearray()

    def read_until(text: str) -> str:
        end = time.monotonic() + LONG
        while text.encode("utf-8") not in seen:
            assert time.monotonic() < end, seen
            if select.select([master], [], [], 0.1)[0]:
                try:
                    seen.extend(os.read(master, 65536))
                except OSError:  # nobody holds the other end any more
                    break
        assert text.encode("utf-8") in seen, seen
        end_of_it = seen.index(text.encode("utf-8")) + len(text.encode("utf-8"))
        shown = seen[:end_of_it].decode("utf-8", "replace")
        del seen[:end_of_it]
        return shown

    try:
        yield process, read_until, lambda text: os.write(master, text.encode("utf-8"))
    finally:
        process.kill()
        process.wait()
        os.close(master)


def test_ctrl_c_stops_the_generation(echo: EchoServer) -> None:
    with at_terminal(echo, "chat", "-m", "echo", "!slow 0.02 !count 100000 x") as (process, read_until, type_in):
        read_until("1 2 3")
        assert echo.running == 1
        type_in("\x03")
        assert process.wait(LONG) == 130
        until(lambda: echo.running == 0)
        assert "Traceback" not in read_until("\n")


@pytest.mark.parametrize("argv", [
    ["chat", "!stall 600 x"], ["chat", "--json", "!stall 600 x"], ["complete", "!stall 600 x"],
    ["responses", "!stall 600 x"], ["embed", "!stall 600 x"], ["rerank", "!stall 600 x", "y"], ["check"],
])
def test_ctrl_c_before_the_first_byte(argv: List[str], echo: EchoServer) -> None:
    if argv == ["check"]:
        echo.script("", "!stall 600")  # the first one meets the list of models
    process = program(echo, argv[0], "-m", "echo", *argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                      stderr=subprocess.PIPE)
    until(lambda: any(request.method == "POST" for request in echo.requests))
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=LONG)[1] == b"" and process.returncode == 130


def test_a_conversation_at_a_terminal(echo: EchoServer) -> None:
    with at_terminal(echo, "chat") as (process, read_until, type_in):
        read_until("> ")
        type_in("Hello\n")
        read_until("You said: Hello")
        read_until("> ")
        type_in("!slow 0.02 !count 100000 x\n")
        read_until("1 2 3")
        type_in("\x03")  # stops the answer, not the program
        read_until("(stopped)")
        until(lambda: echo.running == 0)
        read_until("> ")
        type_in("Go on\n")
        read_until("You said: Go on")
        history: List[Any] = echo.requests[-1].json["messages"]
        assert [message["role"] for message in history] == ["user", "assistant"] * 2 + ["user"]
        assert history[3]["content"].startswith("1 2 3")
        read_until("> ")
        type_in("\x04")
        assert process.wait(LONG) == 0


def test_ctrl_c_at_the_prompt_ends_a_conversation(echo: EchoServer) -> None:
    with at_terminal(echo, "chat") as (process, read_until, type_in):
        read_until("> ")
        end = time.monotonic() + LONG
        while process.poll() is None and time.monotonic() < end:
            type_in("\x03")  # readline loses one that comes just before it begins to wait
            time.sleep(0.2)
        assert process.wait(LONG) == 130
