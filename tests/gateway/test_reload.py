"""SIGHUP: the configuration is read again, and what runs is not cut; and what tells beforehand whether it is good."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import pytest

from faces import LONG, ROOT, Process, ask, chat, children_of, running, until
from vllm_bridge.echo import EchoServer

CHAT = "/v1/chat/completions"
READ = "the configuration was read again: "
KEPT = "the configuration stays as it was: "

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP here")


@pytest.fixture
def echoes() -> Iterator[Tuple[EchoServer, EchoServer]]:
    with EchoServer() as one, EchoServer() as other:
        yield one, other


class Config:
    def __init__(self, path: Path) -> None:
        self.path = path / "config.json"

    def write(self, url: str, *api_keys: str, **client: Any) -> None:
        self.path.write_text(json.dumps({
            "client": {"api_keys": list(api_keys), "log_format": "json", **client},
            "providers": {"vllm": {"keys": [{"vllm_key_config": {"url": url}}]}},
        }))


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(tmp_path)


def reload(process: Process, text: str) -> str:
    """Send SIGHUP and return the line on standard error that holds the text, the first one after it."""
    until(lambda: process.out)
    before = len(process.errors)
    process.popen.send_signal(signal.SIGHUP)
    until(lambda: any(text in line for line in process.errors[before:]))
    return next(line for line in process.errors[before:] if text in line)


def bearer(key: str) -> Dict[str, str]:
    return {"Authorization": "Bearer %s" % key}


def status(process: Process, key: str) -> int:
    return ask(process.address, "POST", CHAT, chat("Hi"), bearer(key)).status


def servers(process: Process) -> List[str]:
    return [line["server"] for line in map(json.loads, process.out) if line.get("status") == 200]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_new_requests_go_by_the_new_configuration_and_running_ones_end_well(
    echoes: Tuple[EchoServer, EchoServer], config: Config, workers: str
) -> None:
    one, other = echoes
    config.write(one.url, "old")
    with running("--config", str(config.path), "--workers", workers) as process:
        address = process.address
        answers: List[Any] = []
        slow = chat("!slow 0.02 !count 100", stream=True)
        asking = threading.Thread(
            target=lambda: answers.append(ask(address, "POST", CHAT, slow, bearer("old"))))
        asking.start()
        until(lambda: one.running)
        config.write(other.url, "new", "newer")
        told = reload(process, READ)
        assert other.url in told and one.url not in told and "keys for clients: 2" in told
        until(lambda: {status(process, "old") for _ in range(8)} == {401})  # each worker a moment later
        asked = len(one.requests)
        assert {status(process, "new") for _ in range(8)} == {200}
        assert one.running
        if workers == "2":
            children = children_of(process.popen.pid)
            for child in children:
                os.kill(child, signal.SIGHUP)  # a group's hang-up reaches them too
        asking.join(LONG)
        assert answers[0].events()[-1] == "[DONE]"
        until(lambda: one.url in servers(process))  # the worker's log, before it is killed
        if workers == "2":
            os.kill(children[0], signal.SIGKILL)
            until(lambda: len(set(children_of(process.popen.pid)) - set(children)) == 1)
            assert {status(process, "newer") for _ in range(16)} == {200}
        assert process.stop() == 0
    assert set(servers(process)) == {one.url, other.url}
    assert len(one.requests) == asked
    assert sum(READ in line for line in process.errors) == 1


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("text, told", [
    ('{"providers": {', "Expecting"),
    ('{"providers": {"vllm": {"keys": [{"url": "ftp://gpu"}]}}}', "providers.vllm.keys[0].url: expected a URL"),
    ('{"client": {"max_body_mb": "much"}, "providers": {}}', "client.max_body_mb: expected"),
    (None, "cannot be read"),
])
def test_a_file_with_an_error_changes_nothing_and_says_where(
    echoes: Tuple[EchoServer, EchoServer], config: Config, workers: str, text: str, told: str
) -> None:
    config.write(echoes[0].url, "key")
    with running("--config", str(config.path), "--workers", workers) as process:
        assert status(process, "key") == 200
        if text is None:
            config.path.unlink()
        else:
            config.path.write_text(text)
        line = reload(process, KEPT)
        assert told in line
        assert {status(process, "key") for _ in range(4)} == {200}
        config.write(echoes[1].url, "other")  # and mended it is taken
        reload(process, READ)
        until(lambda: {status(process, "key") for _ in range(4)} == {401})
        assert process.stop() == 0
    assert sum(KEPT in line for line in process.errors) == 1


def test_keys_in_a_file_are_rotated(echoes: Tuple[EchoServer, EchoServer], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("first\n")
    with running("--upstream", echoes[0].url, "--api-key-file", str(keys)) as process:
        assert status(process, "first") == 200
        keys.write_text("first\nsecond\n")
        reload(process, READ)
        assert (status(process, "first"), status(process, "second")) == (200, 200)
        keys.write_text("second\n")
        reload(process, READ)
        assert (status(process, "first"), status(process, "second")) == (401, 200)
        keys.write_text("# none\n")
        assert "--api-key-file: there is no key in" in reload(process, KEPT)
        assert (status(process, "first"), status(process, "second")) == (401, 200)
        assert process.stop() == 0


def test_what_needs_a_new_start_is_told_and_the_rest_is_taken(
    echoes: Tuple[EchoServer, EchoServer], config: Config
) -> None:
    one, other = echoes
    config.write(one.url, "key", host="0.0.0.0")
    with running("--config", str(config.path)) as process:
        until(lambda: len(process.out) == 2)
        port = json.loads(process.out[0])["url"].rpartition(":")[2]
        config.write(other.url, "new", host="127.0.0.1", workers=3, log_format="text", keep_alive_timeout=1)
        before = len(process.errors)
        reload(process, READ)
        assert any("needs a new start to change: host, workers, log_format" in line for line in process.errors[before:])
        address = ("127.0.0.1", int(port))
        assert ask(address, "POST", CHAT, chat("Hi"), bearer("new")).status == 200
        config.write(other.url, host="127.0.0.1")  # it still listens where everybody comes in
        assert "can be reached from other machines" in reload(process, KEPT)
        assert ask(address, "POST", CHAT, chat("Hi")).status == 401
        assert process.stop() == 0


def test_numbers_go_on_over_a_change(echoes: Tuple[EchoServer, EchoServer], config: Config) -> None:
    config.write(echoes[0].url, "key")
    with running("--config", str(config.path)) as process:
        for url in (echoes[0].url, echoes[1].url, echoes[0].url):
            config.write(url, "key")
            reload(process, READ)
            assert status(process, "key") == 200
        text = ask(process.address, "GET", "/metrics", None, bearer("key")).body.decode()
        assert 'requests_total{operation="chat_completion",model="echo",status="200"} 3\n' in text
        assert process.stop() == 0


@pytest.mark.parametrize("program", [["-m", "vllm_bridge", "serve"], [str(ROOT / "scripts" / "gateway.py")]])
def test_check_config(config: Config, program: List[str]) -> None:
    def check(*flags: str) -> Any:
        return subprocess.run(
            [sys.executable, *program, "--check-config", "--config", str(config.path), *flags], cwd=str(ROOT),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=LONG,
            env={name: value for name, value in os.environ.items() if not name.startswith("VLLM_")},
        )

    config.write("http://127.0.0.1:9", "key", host="0.0.0.0")
    good = check()
    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout == "the configuration is good: servers: http://127.0.0.1:9; keys for clients: 1\n"
    config.write("http://127.0.0.1:9", host="0.0.0.0")
    bad = check()
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("vllm-bridge: host: '0.0.0.0' can be reached from other machines")
    config.write("http://127.0.0.1:9", "key", keep_alive_timeout="long")
    assert check().stderr.startswith("vllm-bridge: client.keep_alive_timeout: expected a number above 0")
    assert check("--port", "x").returncode == 2
