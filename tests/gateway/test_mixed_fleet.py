"""Servers for chat, embeddings, rerank and transcription behind one address: nothing goes to the wrong one."""

import io
import random
import wave
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, Callable, Dict, Iterator, List

import pytest

from faces import ask, own
from vllm_bridge import VLLMProvider
from vllm_bridge.echo import EchoServer
from vllm_bridge.gateway import Gateway
from vllm_bridge.gateway.settings import read

REQUESTS = 400
AT_ONCE = 16
# The model of each server, the operations whose routes it has, and the paths of the requests that are for it.
SERVERS = {
    "chat": (("chat_completion", "text_completion"), {"/v1/chat/completions", "/v1/completions"}),
    "embed": (("embedding",), {"/v1/embeddings"}),
    "rerank": (("rerank",), {"/v1/rerank"}),
    "whisper": (("transcription",), {"/v1/audio/transcriptions"}),
}


def speech() -> bytes:
    sound = io.BytesIO()
    with wave.open(sound, "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", "not compressed"))
        file.writeframes(bytes(2 * 1600))
    return sound.getvalue()


def consumed(stream: Any) -> Any:
    with stream:
        return list(stream)


MESSAGES = [{"role": "user", "content": "Hi"}]
SOUND = ("speech.wav", speech())
KINDS: List[Callable[[VLLMProvider, str], Any]] = [
    lambda vllm, prefix: vllm.chat_completion(model=prefix + "chat", messages=MESSAGES).choices[0],
    lambda vllm, prefix: consumed(vllm.chat_completion_stream(model=prefix + "chat", messages=MESSAGES)),
    lambda vllm, prefix: vllm.text_completion(model=prefix + "chat", prompt="2, 3").choices[0],
    lambda vllm, prefix: vllm.responses(model=prefix + "chat", input="Hi").output[0],
    lambda vllm, prefix: vllm.embedding(model=prefix + "embed", input=["a", "b"]).data[1],
    lambda vllm, prefix: vllm.rerank(model=prefix + "rerank", query="q", documents=["a", "b"]).results[1],
    lambda vllm, prefix: vllm.transcription(model=prefix + "whisper", file=SOUND).text,
    lambda vllm, prefix: consumed(vllm.transcription_stream(model=prefix + "whisper", file=SOUND)),
]


@pytest.fixture
def fleet() -> Iterator[Dict[str, EchoServer]]:
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(EchoServer(models=(name,), operations=(*operations, "list_models")))
            for name, (operations, _) in SERVERS.items()
        }


@contextmanager
def provider(way: str, urls: List[str]) -> Iterator[VLLMProvider]:
    """The library alone in front of the servers, or before a gateway that is."""
    if way == "library":
        with VLLMProvider(*urls) as vllm:
            yield vllm
        return
    with own(Gateway(read({"upstream": urls}, {}))) as address:
        with VLLMProvider("http://%s:%d" % address) as vllm:
            yield vllm


@pytest.mark.parametrize("way", ["gateway", "library"])
def test_no_request_fails_for_the_wrong_server(way: str, fleet: Dict[str, EchoServer]) -> None:
    draw = random.Random(7)
    plan = [(draw.choice(KINDS), draw.choice(["", "vllm/"])) for _ in range(REQUESTS)]
    with provider(way, [server.url for server in fleet.values()]) as vllm, ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(lambda each: each[0](vllm, each[1]), plan))
    assert len(answers) == REQUESTS and all(answers)
    for name, server in fleet.items():
        posted = [request for request in server.requests if request.method == "POST"]
        assert posted and {request.path for request in posted} <= SERVERS[name][1]
    asked = sum(request.method == "POST" for server in fleet.values() for request in server.requests)
    assert asked == REQUESTS  # none of them was sent twice


def test_all_of_them_are_in_one_list_and_nobody_has_another(fleet: Dict[str, EchoServer]) -> None:
    with own(Gateway(read({"upstream": [server.url for server in fleet.values()]}, {}))) as address:
        listed = ask(address, "GET", "/v1/models").json["data"]
        assert [model["id"] for model in listed] == ["vllm/" + name for name in SERVERS]
        missing = ask(address, "POST", "/v1/chat/completions", {"model": "big", "messages": MESSAGES})
    assert (missing.status, missing.error["code"]) == (404, "model_not_found")
    assert all(name in missing.error["message"] for name in SERVERS)
    assert not any(request.method == "POST" for server in fleet.values() for request in server.requests)
