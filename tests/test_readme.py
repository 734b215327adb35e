"""Every code block of the README and of the pages it leads to is run; their addresses become those of stand-ins."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
import urllib.request
import wave
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional

import pytest

from certificates import OPENSSL
from vllm_bridge import VLLMProvider, errors
from vllm_bridge.echo import EchoServer

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "vllm_bridge/README.md", "vllm_bridge/gateway/README.md")
OTHER_PAGES = ("CHANGELOG.md", "scripts/README.md", "tests/README.md", ".github/CONTRIBUTING.md", ".github/SECURITY.md")
TEXT = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES + OTHER_PAGES}
PEERS = ("celery", "dask", "flask", "pyspark", "tqdm")
LONG = 30.0  # seconds: no verdict hangs on it
MODELS = ("Qwen/Qwen3-8B", "BAAI/bge-m3", "BAAI/bge-reranker-v2-m3", "openai/whisper-large-v3")
SERVERS = re.compile(r"^(vllm-bridge serve|python3? -m vllm_bridge\.echo|gunicorn|waitress-serve)\b", re.M)
# Run by tests of their own, which build and install: test_scripts.py and test_packaging.py.
ELSEWHERE = ("./scripts/", "pip install .", "pip wheel ", "./scripts/live", "./scripts/record", "./scripts/bench")


class Block(NamedTuple):
    page: str
    line: int
    language: str
    code: str


def blocks(page: str) -> List[Block]:
    found = []
    for match in re.finditer(r"^```([^\n]*)\n(.*?)^```$", TEXT[page], re.M | re.S):
        line = TEXT[page].count("\n", 0, match.start()) + 2
        found.append(Block(page, line, match.group(1).strip(), match.group(2)))
    return found


BLOCKS = [block for page in PAGES for block in blocks(page)]


def named(*languages: str) -> List[Any]:
    chosen = [block for block in BLOCKS if block.language in languages]
    return [pytest.param(block, id="%s:%d" % (block.page, block.line)) for block in chosen]


def is_elsewhere(block: Block) -> bool:
    commands = [line for line in block.code.splitlines() if line.strip()]
    return all(line.startswith(ELSEWHERE) for line in commands)


class Stage(NamedTuple):
    """What the examples find around them."""

    folder: Path
    many: EchoServer
    one: EchoServer
    gateway: str

    def placed(self, code: str) -> str:
        """Return an example with the addresses of the stand-ins."""
        for address, url in (
            ("http://localhost:8080", self.gateway), ("http://127.0.0.1:8080", self.gateway),
            ("http://localhost:8000", self.many.url), ("http://127.0.0.1:8000", self.many.url),
            ("http://gpu-1:8000", self.many.url), ("http://gpu-2:8000", self.one.url),
        ):
            code = code.replace(address, url)
        return code

    def environ(self, url: str) -> Dict[str, str]:
        path = "%s%s%s" % (self.folder / "bin", os.pathsep, os.environ.get("PATH", ""))
        return dict(os.environ, PATH=path, PYTHONPATH=str(ROOT), VLLM_BASE_URL=url, GPU_KEY="secret",
                    VLLM_BRIDGE_CONVERSATION=str(self.folder / "kept.json"))


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("readme")
    (folder / "notes.txt").write_text("A prime has two divisors.\n", encoding="utf-8")
    with wave.open(str(folder / "talk.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", "not compressed"))
        file.writeframes(bytes(16000))
    (folder / "scripts").symlink_to(ROOT / "scripts")
    (folder / "bin").mkdir()
    for name, module in (("vllm-bridge", "vllm_bridge"), ("gunicorn", "gunicorn"), ("waitress-serve", "waitress"),
                         ("python", ""), ("python3", "")):
        program = folder / "bin" / name
        program.write_text('#!/bin/sh\nexec "%s" %s "$@"\n' % (sys.executable, "-m " + module if module else ""))
        program.chmod(0o755)
    with EchoServer(models=MODELS) as many, EchoServer() as one:
        stage = Stage(folder, many, one, "")
        for block in BLOCKS:
            if block.language == "json" and '"providers"' in block.code:
                (folder / "config.json").write_text(stage.placed(block.code), encoding="utf-8")
        with serving(stage, "vllm-bridge serve --port 0 --upstream %s" % many.url) as url:
            yield stage._replace(gateway=url)


@contextlib.contextmanager
def serving(stage: Stage, command: str) -> Iterator[str]:
    """Run a server until the end of the block; yield the URL that it says it listens on."""
    process = subprocess.Popen(
        ["sh", "-c", "exec " + command.strip()], cwd=str(stage.folder), env=stage.environ(stage.many.url),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    said: List[str] = []
    killer = threading.Timer(LONG, os.killpg, (process.pid, signal.SIGKILL))
    killer.start()
    try:
        url: Optional[str] = None
        for line in process.stdout:
            said.append(line)
            found = re.search(r"(?:(?:listens|Listening|Serving) (?:on|at:?) |^)(http://[^\s/,]+)", line)
            if found:
                url = found.group(1)
                break
        assert url is not None, "".join(said)
        drain = threading.Thread(target=process.stdout.read)
        drain.start()
        killer.cancel()
        yield url
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(LONG) in (0, -signal.SIGTERM, 128 + signal.SIGTERM)
    finally:
        killer.cancel()
        killer.join()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if url is not None:
            drain.join()
        process.stdout.close()


def test_every_block_says_what_it_is() -> None:
    assert {block.language for block in BLOCKS} <= {"python", "sh", "json", "text", "ini", "yaml", "nginx", "toml"}
    assert len(named("python")) >= 8 and len(named("sh")) >= 4


def test_the_readme_is_short() -> None:
    assert len(TEXT["README.md"].splitlines()) <= 200


@pytest.mark.parametrize("page", sorted(TEXT))
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", TEXT[page]):
        if not target.startswith(("http://", "https://")):
            assert (ROOT / page).parent.joinpath(target).resolve().exists(), target


@pytest.mark.parametrize("block", named("json"))
def test_json(block: Block) -> None:
    from vllm_bridge.config.file import loads

    if "providers" in json.loads(block.code):
        assert loads(block.code, environ={"GPU_KEY": "secret"}).provider.keys


@pytest.mark.parametrize("block", named("python"))
def test_python(
    block: Block, stage: Stage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.chdir(stage.folder)
    monkeypatch.setenv("VLLM_BASE_URL", stage.many.url)
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    if ".pem" in block.code:
        with_certificates(stage.folder, request)
    before = set(threading.enumerate())
    if "Write a novel" in block.code:
        stage.many.script("!slow 0.05 !count 100000")
    module = types.ModuleType("example")
    monkeypatch.setitem(sys.modules, "example", module)  # where Python 3.8 looks up the types of a dataclass
    space = vars(module)
    code = compile(stage.placed(block.code), block.page, "exec")
    try:
        exec(code, space)
    except ModuleNotFoundError as error:
        if error.name not in PEERS:
            raise
        pytest.skip("there is no %s" % error.name)
    out, err = capsys.readouterr()
    assert err == ""
    if "print(" in block.code:
        assert out.strip()
    if "Write a novel" in block.code:
        assert out.startswith("stopped")
    if "no-such-model" in block.code:
        assert out.startswith("404 ")
    try_out(block, space)
    for value in space.values():
        if isinstance(value, VLLMProvider):
            value.close()
    end = time.monotonic() + LONG
    while [thread for thread in threading.enumerate() if thread not in before and "echo" not in thread.name]:
        assert time.monotonic() < end, threading.enumerate()
        time.sleep(0.01)


def try_out(block: Block, space: Dict[str, Any]) -> None:
    """Call what an example has defined."""
    if "from flask" in block.code:
        with space["app"].test_client() as client:
            answer = client.post("/ask", json={"messages": [{"role": "user", "content": "Hi"}]})
            assert (answer.status_code, answer.data) == (200, b"You said: Hi")
            assert client.post("/ask", json={"messages": "none"}).status_code == 400
    if "from celery" in block.code:
        assert space["summarise"]("Once upon a time").startswith("You said: Summarise")


def with_certificates(folder: Path, request: pytest.FixtureRequest) -> None:
    """Put there the certificates that an example names."""
    if OPENSSL is None:
        pytest.skip("no openssl command to make certificates with")
    made = Path(request.getfixturevalue("authority")[0]).parent
    for there, here in (("ca.pem", "internal-ca.pem"), ("server.pem", "client.pem"), ("server.key", "client.key")):
        shutil.copy(str(made / there), str(folder / here))


@pytest.mark.parametrize("block", [param for param in named("sh") if not is_elsewhere(param.values[0])])
def test_shell(block: Block, stage: Stage) -> None:
    if SERVERS.search(block.code):
        check_server(block, stage)
        return
    if "curl " in block.code and shutil.which("curl") is None:
        pytest.skip("there is no curl")
    code = stage.placed(block.code).replace("curl ", "curl -fsS ")
    for command in re.sub(r"\\\n", "", code).splitlines():
        ran = subprocess.run(
            ["sh", "-c", command], cwd=str(stage.folder), env=stage.environ(stage.one.url), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=LONG,
        )
        assert (ran.returncode, ran.stderr) == (0, ""), command
        assert ran.stdout.strip(), command


def check_server(block: Block, stage: Stage) -> None:
    """Run a command that serves, on a port of its own, and ask it whether it lives."""
    command = re.sub(r"\\\n", "", stage.placed(block.code)).strip()
    assert "\n" not in command, "one server to a block"
    if re.match("gunicorn|waitress", command):
        module = "gunicorn" if command.startswith("gunicorn") else "waitress"
        pytest.importorskip(module)
        command = command.replace(":8080", ":0")
    elif "--port" in command:
        command = re.sub(r"--port \d+", "--port 0", command)
    else:
        command += " --port 0"
    with serving(stage, command) as url:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url + "/health", timeout=LONG) as reply:
            assert reply.status == 200


def test_the_other_commands_are_there() -> None:
    for block in [param.values[0] for param in named("sh") if is_elsewhere(param.values[0])]:
        for line in block.code.splitlines():
            if line.startswith("./"):
                assert os.access(str(ROOT / line.split()[0]), os.X_OK), line


def test_the_error_tree_is_the_one_in_the_code() -> None:
    tree = next(block.code for block in BLOCKS if block.language == "text" and block.code.startswith("BridgeError"))
    assert errors.__doc__ is not None and tree.strip() in errors.__doc__


def test_the_command_line_is_described_as_it_is() -> None:
    from vllm_bridge import cli

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert cli.main(["--help"]) == 0
    commands = set(re.findall(r"^    ([a-z]+)\b", out.getvalue(), re.M))
    assert commands == set(re.findall(r"(?:^`?|\| )vllm-bridge ([a-z]+)", "".join(TEXT.values()), re.M))
