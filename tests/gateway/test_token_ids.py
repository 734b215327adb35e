"""The warning of token ids that are another model's: who gets it, for what, and that it comes once."""

import logging

import pytest

from faces import ask, own
from vllm_bridge.config.settings import ProviderConfig
from vllm_bridge.echo import EchoServer
from vllm_bridge.gateway import Gateway, token_ids
from vllm_bridge.gateway.settings import Settings

OPENAI = {"User-Agent": "OpenAI/Python 1.109.1"}  # langchain-openai sends by the openai package


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(token_ids, "_warned", False)


@pytest.mark.parametrize("fields, body, warns", [
    ({"user-agent": "OpenAI/Python 1.109.1"}, {"model": "BAAI/bge-m3", "input": [[15496, 995]]}, True),
    ({"user-agent": "langchain/0.3"}, {"model": "BAAI/bge-m3", "input": [15496, 995]}, True),
    ({"user-agent": "AsyncOpenAI/Python 2.1"}, {"model": "vllm/bge", "input": [[1]]}, True),
    ({"user-agent": "OpenAI/Python 1.109.1"}, {"model": "BAAI/bge-m3", "input": ["Hello", "world"]}, False),
    ({"user-agent": "OpenAI/Python 1.109.1"}, {"model": "BAAI/bge-m3", "input": "Hello"}, False),
    ({"user-agent": "OpenAI/Python 1.109.1"}, {"model": "BAAI/bge-m3", "input": []}, False),
    ({"user-agent": "OpenAI/Python 1.109.1"}, {"model": "BAAI/bge-m3", "input": [[]]}, False),
    ({"user-agent": "OpenAI/Python 1.109.1"}, {"model": "BAAI/bge-m3", "input": ...}, False),
    ({"user-agent": "OpenAI/Python 1.109.1"}, {"model": "text-embedding-3-small", "input": [[15496]]}, False),
    ({"user-agent": "OpenAI/Python 1.109.1"}, {"model": "openai/text-embedding-3-small", "input": [[15496]]}, False),
    ({"user-agent": "curl/8"}, {"model": "BAAI/bge-m3", "input": [[15496]]}, False),
    ({}, {"model": "BAAI/bge-m3", "input": [[15496]]}, False),
])
def test_who_is_warned(caplog, fields, body, warns):
    for _ in range(2):
        token_ids.look(fields, body)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == warns
    if warns:
        assert body["model"] in messages[0] and "check_embedding_ctx_length=False" in messages[0]


def settings(server):
    return Settings(ProviderConfig.from_dict({"keys": [{"url": server.url}]}, environ={}), ())


def test_a_gateway_warns_once_and_answers_all_the_same(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("vllm_bridge.gateway"), "propagate", True)
    with EchoServer() as server, own(Gateway(settings(server))) as address:
        for _ in range(2):
            body = {"model": "echo", "input": [[15496, 995]]}
            assert ask(address, "POST", "/v1/embeddings", body, OPENAI).status == 200
    assert sum("check_embedding_ctx_length" in record.getMessage() for record in caplog.records) == 1
