"""``/ready``: one server of every configured model, and the names of those that lack one."""

from typing import Any, Dict, Iterator, List

import pytest

from faces import ask, own
from scripted import nobody
from vllm_bridge.config.settings import ProviderConfig
from vllm_bridge.echo import EchoServer
from vllm_bridge.gateway import Gateway
from vllm_bridge.gateway.settings import Settings


@pytest.fixture
def chats() -> Iterator[EchoServer]:
    with EchoServer(models=("chat",)) as server:
        yield server


def ready(keys: List[Dict[str, Any]]) -> Any:
    with own(Gateway(Settings(ProviderConfig(keys=keys)))) as address:
        return ask(address, "GET", "/ready")


def test_ready_while_one_server_of_every_model_is_there(chats: EchoServer) -> None:
    with EchoServer(models=("embed",)) as other:
        keys = [{"url": chats.url, "models": ["chat"]}, {"url": nobody(), "models": ["chat"]},
                {"url": other.url, "models": ["embed"], "aliases": {"ada": "embed"}}]
        assert (ready(keys).status, ready(keys).json) == (200, {"status": "ready"})


def test_what_is_missing_is_named(chats: EchoServer) -> None:
    gone = nobody()
    keys = [{"url": chats.url, "models": ["chat", "big"]}, {"url": gone, "models": ["embed"]}]
    answer = ready(keys)
    assert answer.status == 503
    assert (answer.json["status"], answer.json["missing"]) == ("unavailable", ["big", "embed"])
    assert answer.error["message"] == "no server has: big, embed"
    assert gone.rpartition(":")[2] not in answer.body.decode()


def test_without_configured_models_one_server_is_enough(chats: EchoServer) -> None:
    assert ready([{"url": chats.url}, {"url": nobody()}]).status == 200
    assert ready([{"url": nobody()}]).json["missing"] == []
    assert ready([{"url": nobody()}]).status == 503


def test_keys_that_are_all_disabled() -> None:
    assert ready([{"url": nobody(), "enabled": False}]).error["message"] == "all keys are disabled"
