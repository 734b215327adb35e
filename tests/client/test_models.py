"""The models of all servers in one list."""

import pytest

import wire
from scripted import Scripted, answer, nobody
from vllm_bridge import (
    APIConnectionError,
    AuthenticationError,
    BadRequestError,
    NetworkConfig,
    ProviderConfig,
    ResponseDecodeError,
    VLLMProvider,
)
from vllm_bridge.echo import EchoServer


def served(*names):
    models = [{"id": name, "object": "model", "owned_by": "vllm", "max_model_len": 1024, "root": "/r/" + name}
              for name in names]
    return ["request", answer({"object": "list", "data": models}), "again"]


def provider_for(*keys, **network):
    network.setdefault("max_retries", 0)
    return VLLMProvider(config=ProviderConfig(NetworkConfig(**network), keys=list(keys)))


def ids(provider):
    return [model.id for model in provider.list_models().data]


def test_one_servers_list_comes_back_with_every_field():
    recorded = wire.load(wire.names("models")[0]) if wire.names("models") else wire.load("auth_ok")
    assert recorded.json["object"] == "list"
    with Scripted(["request", answer(recorded.body)]) as server, VLLMProvider(server.url) as provider:
        listed = provider.list_models()
        expected = recorded.json
        for model in expected["data"]:
            model["context_length"] = model["max_model_len"]  # the name that other servers and clients know it by
        assert listed == expected
        assert listed.data[0].max_model_len == recorded.json["data"][0]["max_model_len"]
        assert server.requests[0].line == "GET /v1/models HTTP/1.1"
        assert "content-type" not in server.requests[0].headers


def test_several_servers_are_merged_by_id_and_sorted():
    with Scripted(served("b", "shared")) as one, Scripted(served("a", "shared")) as two:
        with provider_for({"id": "one", "url": one.url}, {"name": "two", "url": two.url}) as provider:
            listed = provider.list_models()
    assert [model.id for model in listed.data] == ["a", "b", "shared"]
    assert listed["object"] == "list"
    assert listed["key_statuses"] == [
        {"key_id": "one", "provider": "vllm", "status": "success"},
        {"key_id": "two", "provider": "vllm", "status": "success"},
    ]


def test_a_server_that_fails_is_told_of_and_the_others_are_listed():
    with Scripted(served("a")) as one:
        with provider_for({"url": one.url}, {"url": nobody()}) as provider:
            listed = provider.list_models()
    assert [model.id for model in listed.data] == ["a"]
    assert [status["status"] for status in listed["key_statuses"]] == ["success", "list_models_failed"]
    assert listed["key_statuses"][1]["key_id"] == "1"
    assert "cannot connect" in listed["key_statuses"][1]["error"]["message"]


def test_when_all_fail_the_last_error_is_raised():
    refused = ["request", answer({"error": "Unauthorized"}, "401 Unauthorized"), "again"]
    with Scripted(refused) as one:
        with provider_for({"url": nobody()}, {"url": one.url}) as provider:
            with pytest.raises(AuthenticationError):
                provider.list_models()
        with provider_for({"url": one.url}, {"url": nobody()}) as provider:
            with pytest.raises(APIConnectionError):
                provider.list_models()


@pytest.mark.parametrize("settings, expected", [
    ({}, ["A", "b", "c"]),
    ({"models": ["a", "C"]}, ["A", "c"]),
    ({"models": []}, []),
    ({"blacklisted_models": ["a"]}, ["b", "c"]),
    ({"models": ["a"], "blacklisted_models": ["A"]}, []),
    ({"model_name": "b"}, ["b"]),
    ({"aliases": {"small": "b"}}, ["A", "b", "small", "c"]),
    ({"aliases": {"small": "b"}, "model_name": "b"}, ["b", "small"]),
    ({"aliases": {"small": "b"}, "models": ["c"]}, ["small", "c"]),
    ({"aliases": {"small": "b"}, "blacklisted_models": ["b"]}, ["A", "c"]),
])
def test_a_key_lists_what_it_lets_through(settings, expected):
    with Scripted(served("A", "b", "c")) as server:
        with provider_for(dict(settings, url=server.url)) as provider:
            listed = provider.list_models()
            assert [model.id for model in listed.data] == expected
            for model in listed.data:
                # What is listed can be asked for: the same rules choose the key of a call.
                assert provider._caller.fleet.select(model.id)
                assert model.get("alias", model.id) in ("A", "b", "c")
                assert model.root == "/r/" + model.get("alias", model.id)


@pytest.mark.parametrize("body", [b"[]", b'{"object": "list"}', b'{"data": {}}', b"null", b"<html>"])
@pytest.mark.parametrize("count", [1, 2])
def test_what_is_no_list_is_refused(body, count):
    with Scripted(["request", answer(body), "again"]) as server:
        with provider_for(*[{"url": server.url}] * count) as provider:
            with pytest.raises(ResponseDecodeError) as caught:
                provider.list_models()
            assert caught.value.url == server.url + "/v1/models"


def test_what_is_no_model_is_left_out():
    with Scripted(["request", answer({"data": [{"id": "a"}, "b", None, {"name": "no id"}]})]) as server:
        with VLLMProvider(server.url) as provider:
            assert [model.get("id") for model in provider.list_models().data] == ["a", None]


def test_a_pinned_key_is_the_only_one_asked():
    with Scripted(served("a")) as one, Scripted(served("b")) as two:
        keys = [{"id": "1", "name": "first", "url": one.url}, {"id": "2", "name": "second", "url": two.url}]
        with provider_for(*keys) as provider:
            assert ids(provider.with_options(key_id="1")) == ["a"]
            assert ids(provider.with_options(key_name="second")) == ["b"]
            assert (len(one.requests), len(two.requests)) == (1, 1)
            with pytest.raises(BadRequestError, match="third"):
                ids(provider.with_options(key_name="third"))


def test_keys_that_are_disabled_are_not_asked():
    with Scripted(served("a")) as one:
        with provider_for({"url": one.url}, {"url": nobody(), "enabled": False}) as provider:
            assert ids(provider) == ["a"]
        with provider_for({"url": one.url, "enabled": False}, {"url": one.url, "enabled": False}) as provider:
            with pytest.raises(BadRequestError, match="disabled"):
                provider.list_models()
        assert len(one.requests) == 1


def test_the_stand_in_is_listed():
    with EchoServer(models=("x", "y")) as server, VLLMProvider(server.url) as provider:
        assert ids(provider) == ["x", "y"]
