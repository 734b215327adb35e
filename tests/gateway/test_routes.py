"""Every route of the gateway, of vLLM and of OpenAI's API, and what else a path may be."""

import pytest

from vllm_bridge.gateway.app import Gateway
from vllm_bridge.gateway.routes import ROUTES, find
from vllm_bridge.gateway.settings import read
from vllm_bridge.errors import UnsupportedOperationError
from vllm_bridge.provider import BaseOpenAIProvider

SERVED = {
    ("POST", "/v1/chat/completions"): "chat_completion",
    ("POST", "/v1/completions"): "text_completion",
    ("POST", "/v1/embeddings"): "embedding",
    ("POST", "/v1/rerank"): "rerank",
    ("POST", "/v1/responses"): "responses",
    ("POST", "/v1/audio/transcriptions"): "transcription",
    ("GET", "/v1/models"): "list_models",
}


@pytest.mark.parametrize("prefix", ["", "/openai", "/openai-short"])
def test_served_routes_also_under_openai(prefix: str) -> None:
    for (method, path), operation in SERVED.items():
        where = "/openai" + path[3:] if prefix == "/openai-short" else prefix + path
        route = find(method, where).route
        assert route is not None and route.operation == operation
        assert find(method, where + "/").route == route


def test_every_unsupported_route_has_its_operation() -> None:
    operations = [route.operation for route in ROUTES if route.handler == "unsupported"]
    assert len(operations) == len(set(operations)) > 25
    provider = BaseOpenAIProvider("http://localhost:1")
    for operation in set(operations) - {"count_tokens"}:  # of Responses; of Messages vLLM counts them
        with pytest.raises(UnsupportedOperationError, match="^%s is not supported by openai provider$" % operation):
            getattr(provider, operation)()


def test_every_handler_exists() -> None:
    gateway = Gateway(read({}, {}))
    try:
        assert {route.handler for route in ROUTES} <= set(gateway._handlers)
    finally:
        gateway.close()


@pytest.mark.parametrize("path, model", [
    ("/v1/models/vllm/Qwen/Qwen3-8B", "vllm/Qwen/Qwen3-8B"), ("/openai/models/a", "a"),
    ("/v1/models//data/x", "/data/x"),
])
def test_a_models_name_is_the_rest_of_the_path(path: str, model: str) -> None:
    found = find("GET", path)
    assert found.route is not None and found.route.handler == "model"
    assert found.rest == model


@pytest.mark.parametrize("path, model", [
    ("/v1/models//data/m/", "/data/m/"), ("/v1/models/vllm//data/m/", "vllm//data/m/"), ("/v1/models/a/", "a/"),
    ("/openai/models/a//", "a//"),
])
def test_a_models_name_may_end_in_a_slash(path: str, model: str) -> None:
    assert find("GET", path).rest == model


def test_head_is_get_and_other_methods_are_named() -> None:
    assert find("HEAD", "/health").route == find("GET", "/health").route
    assert find("PUT", "/v1/files").methods == ("GET", "HEAD", "OPTIONS", "POST")
    assert find("GET", "/v1/batches/x/cancel").methods == ("OPTIONS", "POST")
    assert find("HEAD", "/v1/chat/completions").route is None


@pytest.mark.parametrize("path", [
    "", "/", "//", "*", "/v1", "/openai", "/openai/", "/v1/chat", "/v1/chat/completions/x", "/V1/models", "/v1//models",
    "/openai/openai/v1/models", "/openai/health", "/v1/health", "/v1/load_lora_adapter", "/sleep", "/invocations",
    "/v1/files//content", "/v1/unload_lora_adapter", "/wake_up", "/start_profile", "/scale_elastic_ep",
    "/v1/models//", "/genai", "/anthropic", "/v1/batches/a/b",
])
def test_unknown_paths(path: str) -> None:
    assert find("GET", path).route is None and find("POST", path).route is None
    assert find("GET", path).methods == ()


def test_only_health_is_public() -> None:
    assert [route.path for route in ROUTES if route.public] == ["/health"]
