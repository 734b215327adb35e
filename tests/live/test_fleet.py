"""Servers of four kinds behind one gateway, and behind one provider: no request goes to the wrong one.

Those that are not running stand-ins take the places of: a machine may not carry all of them at once.
"""

import io
import random
import wave
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from conftest import FOUND, start_gateway
from oracle import Target

from vllm_bridge import NotFoundError, VLLMProvider
from vllm_bridge.echo import EchoServer

ROLES = ("chat", "embed", "rerank", "whisper")
REQUESTS = 400
AT_ONCE = 8
HELLO = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "temperature": 0}


def silence():
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", "not compressed"))
        file.writeframes(bytes(2 * 8000))
    return ("silence.wav", out.getvalue())


SOUND = silence()


def streamed(stream):
    with stream:
        return list(stream)


KINDS = [
    ("chat", lambda vllm, model: vllm.chat_completion(model=model, **HELLO).choices),
    ("chat", lambda vllm, model: streamed(vllm.chat_completion_stream(model=model, **HELLO))),
    ("embed", lambda vllm, model: vllm.embedding(model=model, input="hello").data),
    ("rerank", lambda vllm, model: vllm.rerank(model=model, query="what is paris", documents=["a", "b"]).results),
    ("whisper", lambda vllm, model: vllm.transcription(model=model, file=SOUND, language="en")),
]
OFTEN = [8, 8, 8, 8, 1]  # a transcription takes as long as all the others


@pytest.fixture(scope="module")
def fleet():
    real = {role: Target(role, **FOUND[role]) for role in ROLES if role in FOUND}
    if len(real) < 2:
        pytest.skip("fewer than two of %s are running" % ", ".join(ROLES))
    with ExitStack() as stack:
        for role in set(ROLES) - set(real):
            url = stack.enter_context(EchoServer(models=("stand-in-" + role,))).url
            real[role] = Target(role, url, "stand-in-" + role)
        yield real


@pytest.fixture(params=["library", "gateway"])
def front(request, fleet):
    """A provider for all of them at once."""
    if request.param == "library":
        with VLLMProvider(*(server.url for server in fleet.values())) as vllm:
            yield vllm
        return
    process, gateway = start_gateway(*fleet.values())
    try:
        with VLLMProvider(gateway.url) as vllm:
            yield vllm
    finally:
        process.terminate()
        process.wait(timeout=30)


def test_no_request_of_many_kinds_fails(front, fleet):
    plan = random.Random(7).choices(KINDS, OFTEN, k=REQUESTS)
    front.wait_ready(fleet["chat"].model, timeout=60)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(lambda each: each[1](front, fleet[each[0]].model), plan))
    assert len(answers) == REQUESTS and all(answers)


def test_what_nobody_has_is_one_404_with_what_there_is(front, fleet):
    with pytest.raises(NotFoundError) as caught:
        front.chat_completion(model="nope", **HELLO)
    assert all(server.model in str(caught.value) for server in fleet.values())


def test_every_server_says_how_much_it_has_to_do(fleet):
    with VLLMProvider(*(server.url for server in fleet.values())) as vllm:
        loads = vllm.loads()
    assert all(sorted(loads[fleet[role].url]) == ["queued", "running"] for role in ROLES if role in FOUND)
