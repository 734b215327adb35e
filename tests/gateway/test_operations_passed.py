"""Operations whose bytes only pass: a recorded reply of a vLLM server comes out as it went in."""

import json
from contextlib import contextmanager
from typing import Any, Dict, Iterator

import pytest
import requests

import wire
from faces import Address, ask, log_lines, own
from scripted import Scripted, answer
from vllm_bridge.config.settings import ProviderConfig
from vllm_bridge.echo import EchoServer
from vllm_bridge.gateway import Gateway
from vllm_bridge.gateway.settings import Settings

MISSING = answer({"detail": "Not Found"}, "404 Not Found")
# The path at the gateway, the transcript of the same path at a server.
PASSED = [
    ("/tokenize", "tokenize_prompt"), ("/tokenize", "tokenize_messages"), ("/tokenize", "tokenize_prompt_strs"),
    ("/detokenize", "detokenize"), ("/detokenize", "detokenize_empty"),
    ("/v1/score", "score_v1"), ("/score", "score_queries_documents"), ("/openai/v1/score", "score_data"),
    ("/classify", "rerank_classify"), ("/pooling", "embed_pooling"), ("/pooling", "embed_pooling_base64"),
    ("/pooling", "rerank_pooling_classify"), ("/v2/embed", "embed_cohere_v2_types"),
    ("/generative_scoring", "generative_scoring"), ("/v1/chat/completions/batch", "chat_batch"),
    ("/v1/messages", "messages_plain"), ("/v1/messages", "messages_tools"),
    ("/anthropic/v1/messages", "messages_stop_seq"),
    ("/v1/messages/count_tokens", "messages_count_tokens"), ("/v1/messages", "think_messages_plain"),
]
REFUSED = [
    ("/tokenize", "tokenize_unknown_model"), ("/detokenize", "detokenize_negative"), ("/v1/score", "score_mismatch"),
    ("/classify", "rerank_classify_missing"), ("/pooling", "embed_pooling_token_embed"),
    ("/v2/embed", "embed_cohere_v2"),
    ("/v1/systemone", "decision"), ("/v1/decisions", "decision_missing"),
    ("/generative_scoring", "generative_scoring_bad"), ("/v1/chat/completions/batch", "chat_batch_missing"),
]


@contextmanager
def gateway(*urls: str) -> Iterator[Address]:
    keys = [{"url": url, "name": "gpu-%d" % place} for place, url in enumerate(urls, 1)]
    config = {"keys": keys, "network_config": {"retry_backoff_initial_ms": 1}}
    with own(Gateway(Settings(ProviderConfig.from_dict(config, environ={}), log_format="json"))) as address:
        yield address


def replayed(transcript: wire.Transcript) -> bytes:
    return answer(transcript.body, transcript.status_line.partition(" ")[2], transcript.content_type)


@pytest.mark.parametrize("path, name", PASSED)
def test_a_reply_passes_as_it_is(path: str, name: str) -> None:
    recorded = wire.load(name)
    body = recorded.request["body"]
    with log_lines() as lines, Scripted(["request", replayed(recorded)]) as server, gateway(server.url) as address:
        sent = json.dumps({**body, "model": "vllm/" + body["model"]}, indent=1).encode()
        found = ask(address, "POST", path, sent)
        assert (found.status, found.body) == (200, recorded.body)
        assert found.headers["content-type"] == recorded.content_type
        assert server.requests[0].line == "POST %s HTTP/1.1" % _upstream(recorded)
        assert server.requests[0].body == json.dumps(body, indent=1).encode()
    usage = recorded.json.get("usage") or {}
    assert lines[-1]["tokens_in"] == usage.get("prompt_tokens", usage.get("input_tokens"))
    assert lines[-1]["model"] == body["model"]


def _upstream(recorded: wire.Transcript) -> str:
    return {"/score": "/v1/score"}.get(recorded.request["path"], str(recorded.request["path"]))


@pytest.mark.parametrize("path, name", REFUSED)
def test_an_error_is_the_servers(path: str, name: str) -> None:
    recorded = wire.load(name)
    with Scripted(["request", replayed(recorded), "again"]) as server, gateway(server.url) as address:
        found = ask(address, "POST", path, recorded.request["body"])
        theirs = recorded.json["error"]
        assert found.status == recorded.status
        assert (found.error["message"], found.error["type"]) == (theirs["message"], theirs["type"])


@pytest.mark.parametrize("path, name", [("/pooling", "embed_pooling_bytes"), ("/v1/embeddings", "embed_bytes")])
def test_plain_numbers_pass_with_what_says_what_they_are(path: str, name: str) -> None:
    recorded = wire.load(name)
    metadata = dict((name, value) for name, value in recorded.headers)["metadata"]
    numbers = bytes(range(256)) * 2  # the recording keeps no byte that is no UTF-8
    reply = answer(numbers, content_type="application/octet-stream", extra="metadata: %s\r\n" % metadata)
    with Scripted(["request", reply, "again"]) as server, gateway(server.url) as address:
        found = ask(address, "POST", path, recorded.request["body"])
        assert (found.status, found.body, found.headers["metadata"]) == (200, numbers, metadata)
        assert found.headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize("path, first, second", [
    ("/v1/score", "/v1/score", "/score"), ("/score", "/v1/score", "/score"), ("/v2/rerank", "/v1/rerank", "/rerank"),
    ("/v1/decisions", "/v1/systemone", "/v1/decisions"), ("/v1/systemone", "/v1/systemone", "/v1/decisions"),
])
def test_the_other_path_is_tried(path: str, first: str, second: str) -> None:
    results = {"model": "m", "results": [{"index": 0, "relevance_score": 0.5}], "data": []}
    with Scripted(["request", MISSING, "request", answer(results)]) as server, gateway(server.url) as address:
        body = {"model": "m", "query": "a", "documents": ["b"]}
        assert ask(address, "POST", path, body).status == 200
        assert [request.line.split()[1] for request in server.requests] == [first, second]


def test_what_a_server_lacks_is_said() -> None:
    listed = answer({"object": "list", "data": [{"id": "Qwen/Qwen3", "object": "model"}]})
    with Scripted(["request", MISSING, "request", listed, "again"]) as server, gateway(server.url) as address:
        for path, words in (
            ("/v1/messages", "POST /v1/messages is not there; vLLM has it since 0.11.1"),
            ("/classify", "does not offer classify"), ("/tokenizer_info", "--enable-tokenizer-info-endpoint"),
        ):
            method = "GET" if path == "/tokenizer_info" else "POST"
            found = ask(address, method, path + ("?model=m" if method == "GET" else ""), {"model": "m"})
            assert found.status == 404 and words in found.error["message"], path
            assert "its models are: Qwen/Qwen3" in found.error["message"]


@pytest.mark.parametrize("path, field", [("/v1/audio/speech", "input"), ("/v1/images/generations", "prompt")])
def test_speech_and_images_where_a_server_has_them(path: str, field: str) -> None:
    body = {"model": "m", field: "a cat"}
    sound = answer(b"RIFF\xff\x00", content_type="audio/wav")
    with Scripted(["request", sound, "request", MISSING, "again"]) as server, gateway(server.url) as address:
        found = ask(address, "POST", path, body)
        assert (found.status, found.body, found.headers["content-type"]) == (200, b"RIFF\xff\x00", "audio/wav")
        refused = ask(address, "POST", path, body)
        assert (refused.status, refused.error["code"]) == (400, "unsupported_operation")
        assert [request.json for request in server.requests] == [body, body]


def test_a_model_need_not_be_named_where_there_is_one() -> None:
    with EchoServer(models=("echo", "adapter")) as one, EchoServer(models=("echo",)) as same:
        with gateway(one.url) as address:
            assert ask(address, "POST", "/tokenize", {"prompt": "a b"}).json["count"] == 2
            assert ask(address, "GET", "/tokenizer_info").json["tokenizer_class"] == "EchoTokenizer"
            assert ask(address, "POST", "/v1/score", {"text_1": "a", "text_2": "b"}).status == 400
        with gateway(same.url, same.url + "/") as address:
            assert ask(address, "POST", "/detokenize", {"tokens": []}).json == {"prompt": ""}
        with gateway(one.url, same.url) as address:
            refused = ask(address, "POST", "/tokenize", {"prompt": "a"})
            assert (refused.status, refused.error["message"]) == (400, "model is required")


def test_each_server_says_how_busy_it_is_and_what_it_runs() -> None:
    with EchoServer() as server, gateway(server.url, "http://127.0.0.1:1") as address:
        load = ask(address, "GET", "/load").json["servers"]
        assert load["gpu-1"] == {"server_load": 0}
        assert "Connection refused" in load["gpu-2"]["error"]["message"] and "127.0.0.1:1" not in str(load)
        version = ask(address, "GET", "/version").json
        assert version["servers"]["gpu-1"] == {"version": "0.32.0"} and version["version"]


def test_a_translation_passes() -> None:
    with EchoServer() as server, gateway(server.url) as address:
        url, files = "http://%s:%d/v1/audio/translations" % address, {"file": ("a.wav", b"RIFFxxxx")}
        with requests.Session() as session:
            found = session.post(url, files=files, data={"model": "vllm/echo"})
            assert (found.status_code, found.json()) == (200, {"text": " I heard a.wav: 8 bytes."})
            found = session.post(url, files=files, data={"model": "echo", "stream": "true"})
        assert '"type":"transcript.text.done"' in found.text and found.text.endswith("data: [DONE]\n\n")
        assert server.requests[0].path == "/v1/audio/translations"
        assert dict(server.requests[0].form)["model"] == "echo"


def test_counted_and_limited_as_chat_is() -> None:
    with EchoServer() as server, gateway(server.url) as address:
        body: Dict[str, Any] = {"model": "echo", "prompt": "a"}
        assert ask(address, "POST", "/tokenize", body, {"Content-Encoding": "gzip"}).status == 415
        assert ask(address, "POST", "/tokenize", {**body, "model": 5}).error["message"] == "model must be a string"
        assert ask(address, "POST", "/tokenize", body).status == 200
        text = ask(address, "GET", "/metrics").body.decode()
        assert 'operation="tokenize"' in text
        fallen = ask(address, "POST", "/tokenize", {**body, "model": "none", "fallbacks": ["vllm/echo"]})
        assert fallen.status == 200
