"""Whether the servers are there, and waiting for them, over real sockets."""

import threading
import time
from typing import Any, Dict, Iterator, List

import pytest

from scripted import Scripted, address_of_nobody, answer, nobody
from vllm_bridge import (
    APITimeoutError, AuthenticationError, Cancellation, ConfigError, Key, ProviderConfig, RequestCancelledError,
    VLLMProvider,
)
from vllm_bridge.client import readiness
from vllm_bridge.client.readiness import missing_models
from vllm_bridge.echo import EchoServer


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "_PAUSE", 0.02)


@pytest.fixture
def echo() -> Iterator[EchoServer]:
    with EchoServer(models=("chat", "lora")) as server:
        yield server


def state(has: Any, error: Any = None, state: str = "ready", **key: Any) -> Dict[str, Any]:
    listed = None if has is None else [{"id": name} for name in has]
    return {"key": Key(url="http://gpu:8000", **key), "state": state, "models": listed, "error": error}


@pytest.mark.parametrize("states, missing", [
    ([state(["a"])], []),
    ([state(["a"], models=["a", "b"])], ["b"]),
    ([state(["A"], models=["a"])], []),
    ([state(["a"], models=["a"]), state(["b"], error=OSError(), models=["b"])], ["b"]),
    ([state(["a"], models=["a"]), state(None, error=OSError(), models=["a"])], []),
    ([state(["a", "b"], models=["a"], blacklisted_models=["b"])], []),
    ([state(None, model_name="x")], ["x"]),
    ([state(["a", "gpt"], aliases={"gpt": "a", "claude-*": "a"})], []),
    ([state(["a"], aliases={"gpt": "b"})], ["gpt"]),
    ([state(["a"], state="sleeping", models=["a"])], ["a"]),
    ([state(["a"], state="sleeping", models=["a"], wake=True)], []),
])
def test_models_that_keys_name_and_nobody_has(states: List[Dict[str, Any]], missing: List[str]) -> None:
    assert missing_models(states) == missing


def test_a_server_that_is_there_is_not_waited_for(echo: EchoServer) -> None:
    told: List[str] = []
    with VLLMProvider(echo.url) as vllm:
        assert [model.id for model in vllm.wait_ready(tell=told.append).data] == ["chat", "lora"]
        assert vllm.wait_ready("lora", timeout=None).data
        assert vllm.wait_ready("chat", timeout=0).data
    assert told == []


def test_a_server_that_comes_late_is_waited_for() -> None:
    host, port = address_of_nobody()
    told: List[str] = []
    servers: List[EchoServer] = []

    def tell(text: str) -> None:
        told.append(text)
        if not servers:
            servers.append(EchoServer(port, models=("chat",)))
            servers[0].start()

    with VLLMProvider("http://%s:%d" % (host, port)) as vllm:
        try:
            assert vllm.wait_ready("chat", timeout=30, tell=tell).data[0].id == "chat"
        finally:
            servers[0].stop()
    assert told[0].startswith("no server has the model chat; cannot connect to http://127.0.0.1:%d" % port)
    assert len(told) == 1


def test_every_server_is_waited_for_and_one_of_them_for_a_model(echo: EchoServer) -> None:
    gone = nobody()
    with VLLMProvider(echo.url, gone) as vllm:
        assert vllm.wait_ready("chat", timeout=0.1).data
        with pytest.raises(APITimeoutError, match="^not ready after 0.1 seconds: .*%s" % gone):
            vllm.wait_ready(timeout=0.1)
        with pytest.raises(APITimeoutError, match="no server has the model big; %s has chat, lora; .*%s" % (
                echo.url, gone)):
            vllm.wait_ready("big", timeout=0.1)


def test_the_models_of_the_keys_are_waited_for(echo: EchoServer) -> None:
    config = ProviderConfig(keys=[Key(url=echo.url, models=["chat", "big"])])
    with VLLMProvider(config=config) as vllm:
        with pytest.raises(APITimeoutError, match="no server has the model big$"):
            vllm.wait_ready(timeout=0.05)


def test_behind_a_gateway_a_model_has_a_prefix() -> None:
    with EchoServer(models=("vllm/chat",)) as gateway, VLLMProvider(gateway.url) as vllm:
        assert vllm.wait_ready("chat", timeout=0).data


def test_a_server_that_takes_connections_and_says_nothing_takes_no_longer_than_there_is_time() -> None:
    with Scripted(["request", "hold"]) as server, VLLMProvider(server.url) as vllm:
        started = time.monotonic()
        with pytest.raises(APITimeoutError, match="has not named its models in time|timed out|no answer"):
            vllm.wait_ready(timeout=0.3)
        assert time.monotonic() - started < 10


@pytest.mark.parametrize("body, told", [
    (b"<html>", "not ready after"), (b'{"object":"list","data":[]}', "has no model"), (b"[]", "not ready after"),
])
def test_what_is_no_list_of_models_is_waited_for(body: bytes, told: str) -> None:
    with Scripted(["request", answer(body), "again"]) as server, VLLMProvider(server.url) as vllm:
        with pytest.raises(APITimeoutError, match=told):
            vllm.wait_ready(timeout=0.05)


def test_a_wrong_key_is_not_waited_for() -> None:
    with EchoServer(api_key="sk-1") as server, VLLMProvider(server.url, api_key="sk-2") as vllm:
        with pytest.raises(AuthenticationError):
            vllm.wait_ready()


def test_waiting_can_be_cancelled() -> None:
    cancel = Cancellation()
    with VLLMProvider(nobody()).with_options(cancel=cancel) as vllm:
        threading.Timer(0.05, cancel.cancel).start()
        with pytest.raises(RequestCancelledError):
            vllm.wait_ready()


@pytest.mark.parametrize("timeout", [-1, "long", float("nan")])
def test_a_wrong_time_is_refused(timeout: Any) -> None:
    with pytest.raises(ConfigError, match="^wait_ready: timeout: expected a number"):
        VLLMProvider("http://gpu:8000").wait_ready(timeout=timeout)
