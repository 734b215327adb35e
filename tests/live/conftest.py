"""The servers that scripts/live started, the gateway before each of them, and the library before both."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time
from typing import Any, Callable, Dict, Iterator, List

import pytest

from vllm_bridge import VLLMProvider

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(ROOT / "scripts"))

from oracle import Target  # noqa: E402

FOUND: Dict[str, Any] = json.loads(os.environ.get("VLLM_BRIDGE_LIVE", "{}"))
ROLES = ["chat", "guarded", "embed", "rerank", "whisper"]


class Face:
    """One way to a server: the library alone, or the library through the gateway."""

    def __init__(self, kind: str, server: Target, front: Target) -> None:
        self.kind = kind
        self.server = server
        self.front = front
        self.model = front.model
        self.vllm = VLLMProvider(front.url, api_key=front.key)

    def without_key(self) -> VLLMProvider:
        return VLLMProvider(self.front.url)


def target(role: str) -> Target:
    """Give a server's place, or skip the test and say why."""
    if role not in FOUND:
        pytest.skip("no %s server: scripts/live starts one" % role)
    return Target(role, **FOUND[role])


def start_gateway(server: Target, *others: Target) -> "tuple[subprocess.Popen[bytes], Target]":
    """Start vllm-bridge serve before servers, as a user would, and wait until it listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm_bridge", "serve", "--host", "127.0.0.1", "--port", str(port),
               "--upstream", server.url]
    for other in others:
        command += ["--upstream", other.url]
    if server.key:
        command += ["--upstream-key", server.key]
    process = subprocess.Popen(command, cwd=str(ROOT), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    limit = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError:
            assert process.poll() is None, "the gateway ended with %s" % process.returncode
            assert time.monotonic() < limit, "the gateway does not listen"
            time.sleep(0.05)
    return process, Target(server.role, "http://127.0.0.1:%d" % port, "vllm/" + server.model, None, server.scripted)


@pytest.fixture(scope="session")
def faces() -> Iterator[Callable[[str, str], Face]]:
    """Make each face once; stop the gateways at the end."""
    made: Dict[Any, Face] = {}
    processes: List["subprocess.Popen[bytes]"] = []

    def face(kind: str, role: str) -> Face:
        if (kind, role) not in made:
            server = target(role)
            front = server
            if kind == "gateway":
                process, front = start_gateway(server)
                processes.append(process)
            made[kind, role] = Face(kind, server, front)
        return made[kind, role]

    try:
        yield face
    finally:
        for one in made.values():
            one.vllm.close()
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(timeout=30)


def _fixture(role: str) -> Any:
    @pytest.fixture(params=["library", "gateway"], name=role)
    def fixture(request: pytest.FixtureRequest, faces: Callable[[str, str], Face]) -> Face:
        return faces(request.param, role)
    return fixture


def _one_face(kind: str, role: str) -> Any:
    @pytest.fixture(name="%s_%s" % (role, kind))
    def fixture(faces: Callable[[str, str], Face]) -> Face:
        return faces(kind, role)
    return fixture


chat = _fixture("chat")
guarded = _fixture("guarded")
embed = _fixture("embed")
rerank = _fixture("rerank")
whisper = _fixture("whisper")
chat_gateway = _one_face("gateway", "chat")
guarded_library = _one_face("library", "guarded")
guarded_gateway = _one_face("gateway", "guarded")


@pytest.fixture
def scripted() -> Callable[[Face], None]:
    """Skip a test that needs the fixed texts of the tiny models."""
    def check(face: Face) -> None:
        if not face.server.scripted:
            pytest.skip("%s does not serve the tiny model with the fixed texts" % face.server.url)
    return check
