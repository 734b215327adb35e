"""What the command line adds to a chat: attachments, a schema, the conversation that is kept, what is cut out."""

import io
import json
import os
import stat
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, NamedTuple

import pytest

from vllm_bridge.cli import parser as cli
from vllm_bridge.cli import terminal as console
from vllm_bridge.echo import EchoServer

ROOT = Path(__file__).resolve().parents[2]
LONG = 30.0  # seconds: no verdict hangs on it
PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def echo() -> Iterator[EchoServer]:
    with EchoServer(models=None) as server:
        yield server


@pytest.fixture
def run(
    echo: EchoServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Ran]:
    monkeypatch.setenv("VLLM_BASE_URL", echo.url)
    monkeypatch.setenv("VLLM_BRIDGE_CONVERSATION", str(tmp_path / "state" / "kept.json"))
    for name in ("VLLM_API_KEY", "VLLM_MODEL"):
        monkeypatch.delenv(name, raising=False)

    def run_it(*argv: str, stdin: bytes = b"") -> Ran:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        code = cli.main(argv)
        return Ran(code, *capsys.readouterr())

    return run_it


def asked(echo: EchoServer) -> Dict[str, Any]:
    return echo.requests[-1].json  # type: ignore[return-value]


# ---------------------------------------------------------------- attachments, schema


def test_what_is_attached_stands_before_the_prompt(run: Callable[..., Ran], echo: EchoServer, tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(PNG)
    (tmp_path / "notes.txt").write_bytes(b"\xef\xbb\xbfOne \xc3\xa9\n")
    with wave.open(str(tmp_path / "talk.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", "not compressed"))
        file.writeframes(bytes(16))
    names = [str(tmp_path / name) for name in ("cat.png", "notes.txt", "talk.wav")]
    assert run("chat", "-a", names[0], "--attach", names[1], "-a", names[2], "What is this?").code == 0
    parts = asked(echo)["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["image_url", "text", "input_audio", "text"]
    assert parts[0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert parts[1]["text"] == "notes.txt:\nOne \u00e9\n"
    assert parts[2]["input_audio"]["format"] == "wav"
    assert parts[3] == {"type": "text", "text": "What is this?"}


@pytest.mark.parametrize("data, message", [
    (None, "No such file"), (b"\xff\x00words", "is no image, no sound and no UTF-8 text"),
])
def test_what_cannot_be_attached(
    data: Any, message: str, run: Callable[..., Ran], echo: EchoServer, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    if data is not None:
        path.write_bytes(data)
    ran = run("chat", "-a", str(path), "Hi")
    assert ran.code == 2 and message in ran.err and str(path) in ran.err and not echo.requests


def test_a_schema(run: Callable[..., Ran], echo: EchoServer, tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    ran = run("chat", "--schema", str(path), "Where?")
    assert asked(echo)["response_format"] == {
        "type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
    assert list(json.loads(ran.out)) == ["city"]
    assert list(json.loads(run("responses", "--schema", str(path), "Where?").out)) == ["city"]


@pytest.mark.parametrize("text, message", [
    (None, "No such file"), ("{", "schema.json: "), ("[]", "must be a JSON object"), ("\ud800", "schema.json: "),
])
def test_what_is_no_schema(text: Any, message: str, run: Callable[..., Ran], echo: EchoServer, tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    if text is not None:
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
    ran = run("chat", "--schema", str(path), "Hi")
    assert ran.code == 2 and message in ran.err and not echo.requests


# ---------------------------------------------------------------- the answer


ANSWER = "Here:\n\n```python\nprint(1)\n```\n\nand\n\n```\nno\n```\n"


@pytest.mark.parametrize("text, code", [
    (ANSWER, "print(1)\n"),
    ("~~~ sh\necho\n~~~\n", "echo\n"),
    ("````\n```\ninside\n```\n````\n", "```\ninside\n```\n"),
    ("```\nnot closed\n", "not closed\n"),
    ("  ```\nindented\n  ```\n", "indented\n"),
    ("no code", "no code\n"),
])
def test_the_first_block_of_code(text: str, code: str, run: Callable[..., Ran], echo: EchoServer) -> None:
    for extra in ([], ["--no-stream"]):
        ran = run("chat", "-x", *extra, "Say this:\n" + text)
        expected = code if code != "no code\n" else "You said: Say this:\nno code\n"
        assert (ran.code, ran.out, ran.err) == (0, expected, "")


def test_no_stream(run: Callable[..., Ran], echo: EchoServer) -> None:
    for command in ("chat", "responses", "complete"):
        ran = run(command, "--no-stream", "Hi")
        assert (ran.code, ran.out.lstrip(" "), ran.err) == (0, "You said: Hi\n", "")
        assert not asked(echo).get("stream")


@pytest.mark.parametrize("command", ["chat", "responses", "complete"])
@pytest.mark.parametrize("more", [[], ["--no-stream"], ["--json"]])
def test_usage(command: str, more: Any, run: Callable[..., Ran]) -> None:
    ran = run(command, "--usage", *more, "one two three")
    assert ran.code == 0
    assert ran.err == "3 tokens in, 5 out\n"  # a token is a word: "You said: one two three"


def test_one_write_where_nobody_watches(run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    class File(io.StringIO):
        writes = 0

        def write(self, text: str) -> int:
            self.writes += 1
            return super().write(text)

    for argv in (["chat", "!count 50 x"], ["rerank", "a", "a", "b"], ["embed", "a", "b"], ["models"]):
        out = File()
        monkeypatch.setattr(sys, "stdout", out)
        assert cli.main(argv) == 0
        assert out.writes == 1 and out.getvalue().endswith("\n")


def test_what_had_come_is_shown_before_the_complaint(run: Callable[..., Ran]) -> None:
    ran = run("chat", "!error-after 4 500 one two three four")
    assert ran.code == 1 and ran.out == "You said: one\n" and ran.err.startswith("vllm-bridge: ")


# ---------------------------------------------------------------- going on with a conversation


def test_a_conversation_goes_on(run: Callable[..., Ran], echo: EchoServer, tmp_path: Path) -> None:
    assert run("chat", "-m", "first", "--system", "Be brief", "My name is Ada").code == 0
    path = tmp_path / "state" / "kept.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and os.listdir(str(path.parent)) == ["kept.json"]
    assert run("chat", "-c", "My name?").out == "You said: My name?\n"
    assert asked(echo)["model"] == "first"
    assert asked(echo)["messages"] == [
        {"role": "system", "content": "Be brief"}, {"role": "user", "content": "My name is Ada"},
        {"role": "assistant", "content": "You said: My name is Ada"}, {"role": "user", "content": "My name?"}]
    run("chat", "--continue", "-m", "second", "--system", "Be long", "Again")
    assert asked(echo)["model"] == "second" and len(asked(echo)["messages"]) == 6
    assert asked(echo)["messages"][0] == {"role": "system", "content": "Be long"}
    run("chat", "Anew")
    assert run("chat", "-c", "--json", "More").code == 0
    assert [message["content"] for message in asked(echo)["messages"]] == ["Anew", "You said: Anew", "More"]


def test_a_failure_keeps_the_conversation_as_it_was(run: Callable[..., Ran], echo: EchoServer) -> None:
    run("chat", "One")
    assert run("chat", "-c", "!error 400 x").code == 1
    run("chat", "-c", "Two")
    assert [message["content"] for message in asked(echo)["messages"]] == ["One", "You said: One", "Two"]


@pytest.mark.parametrize("text, message", [
    (None, "there is no conversation to continue"), ("{", "cannot be read"), ("{}", "cannot be read"),
    ('{"model": "m", "messages": [1]}', "cannot be read"), ('{"model": 5, "messages": []}', "cannot be read"),
])
def test_nothing_to_go_on_with(
    text: Any, message: str, run: Callable[..., Ran], echo: EchoServer, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "state").mkdir()
        (tmp_path / "state" / "kept.json").write_text(text)
    ran = run("chat", "-c", "Hi")
    assert ran.code == 2 and message in ran.err and "kept.json" in ran.err and not echo.requests


def test_none_is_kept_where_that_is_asked_or_cannot_be(
    run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for path in ("", str(tmp_path / "file" / "below")):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("VLLM_BRIDGE_CONVERSATION", path)
        ran = run("chat", "Hi")
        assert (ran.code, ran.out, ran.err) == (0, "You said: Hi\n", "")
    assert os.listdir(str(tmp_path)) == ["file"]
    monkeypatch.setenv("VLLM_BRIDGE_CONVERSATION", "")
    assert "no conversation is kept" in run("chat", "-c", "Hi").err


def test_where_it_is_kept(run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VLLM_BRIDGE_CONVERSATION")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    run("chat", "Hi")
    assert (tmp_path / "xdg" / "vllm-bridge" / "conversation.json").exists()
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    run("chat", "Hi")
    assert (tmp_path / "home" / ".local" / "state" / "vllm-bridge" / "conversation.json").exists()


# ---------------------------------------------------------------- typing


def typed(echo: EchoServer, lines: str, monkeypatch: pytest.MonkeyPatch, *argv: str) -> str:
    """Return what standard output shows of a conversation."""
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    monkeypatch.setattr(console, "stdin_is_terminal", lambda: True)
    monkeypatch.setattr(sys, "stdout", out)
    assert cli.main(["chat", "-m", "echo", *argv]) == 0
    return out.getvalue()


@pytest.mark.parametrize("word", ["exit", "/exit", " exit "])
def test_words_that_end_it(word: str, run: Any, echo: EchoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert typed(echo, "Hi\n%s\nMore\n" % word, monkeypatch) == "You said: Hi\n"


def test_help_is_not_asked(run: Any, echo: EchoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert typed(echo, "/help\nhelp me\n", monkeypatch) == "You said: help me\n"


def test_an_attachment_belongs_to_the_first_line(
    run: Any, echo: EchoServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cat.png").write_bytes(PNG)
    typed(echo, "See?\nMore\n", monkeypatch, "-a", str(tmp_path / "cat.png"))
    contents = [message["content"] for message in asked(echo)["messages"]]
    assert [part["type"] for part in contents[0]] == ["image_url", "text"] and contents[2] == "More"


def test_a_typed_conversation_can_be_continued(
    run: Callable[..., Ran], echo: EchoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed(echo, "One\nTwo\n", monkeypatch)
    typed(echo, "Three\n", monkeypatch, "-c")
    assert [message["content"] for message in asked(echo)["messages"]] == [
        "One", "You said: One", "Two", "You said: Two", "Three"]


# ---------------------------------------------------------------- around it


def test_the_model_of_the_environment(
    run: Callable[..., Ran], echo: EchoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_MODEL", "of-the-environment")
    run("chat", "Hi")
    assert asked(echo)["model"] == "of-the-environment"
    run("chat", "-m", "given", "Hi")
    assert asked(echo)["model"] == "given"
    run("embed", "-p", "model=parameter", "Hi")
    assert asked(echo)["model"] == "parameter"


def test_json_may_stand_before_the_command(run: Callable[..., Ran]) -> None:
    for argv in (["--json", "chat", "Hi"], ["chat", "--json", "Hi"]):
        assert json.loads(run(*argv).out)["object"] == "chat.completion"
    assert run("chat", "Hi").out == "You said: Hi\n"


def test_help_is_a_command(run: Callable[..., Ran]) -> None:
    assert run("help").out == run("--help").out != ""
    assert run("help", "chat").out == run("chat", "--help").out != ""
    assert run("help", "chta").code == 2


def test_a_refused_key_names_the_variable(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    with EchoServer(api_key="secret") as server:
        assert cli.main(["chat", "-m", "echo", "Hi", "--base-url", server.url]) == 1
    told = capsys.readouterr().err
    assert "VLLM_API_KEY" in told and "--api-key" in told and told.count("\n") == 1


@pytest.mark.parametrize("environ, dimmed", [
    ({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False),
])
def test_colours_are_left_out_where_they_are_not_wanted(
    environ: Dict[str, str], dimmed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Watched(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", Watched())
    screen = console.Terminal()
    screen.think("hm")
    screen.hint("so")
    told = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert ("\033[" in told) is dimmed and "hm" in told and "so" in told


def test_programs_side_by_side_do_not_mix_their_lines(echo: EchoServer, tmp_path: Path) -> None:
    out = tmp_path / "out"
    environ = dict(os.environ, VLLM_BASE_URL=echo.url, PYTHONPATH=str(ROOT))
    with out.open("ab") as file:
        running = [subprocess.Popen([sys.executable, "-m", "vllm_bridge", "chat", "!slow 0.002 word%d " % number * 20],
                                    env=environ, stdin=subprocess.DEVNULL, stdout=file) for number in range(4)]
        assert [process.wait(LONG) for process in running] == [0] * 4
    lines = out.read_text().splitlines()
    assert len(lines) == 4 and all(len(set(line.split()[2:])) <= 3 for line in lines)
