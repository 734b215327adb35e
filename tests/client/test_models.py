"""The models of all servers in one list."""

import time

import pytest

import wire
from scripted import Scripted, answer, completion, nobody
from vllm_bridge import (
    APIConnectionError,
    AuthenticationError,
    BadRequestError,
    NetworkConfig,
    NotFoundError,
    ProviderConfig,
    ResponseDecodeError,
    Trace,
    VLLMProvider,
)
from vllm_bridge.client import models
from vllm_bridge.echo import EchoServer


def served(*names):
    models = [{"id": name, "object": "model", "owned_by": "vllm", "max_model_len": 1024, "root": "/r/" + name}
              for name in names]
    return ["request", answer({"object": "list", "data": models}), "again"]


def provider_for(*keys, **network):
    network.setdefault("max_retries", 0)
    return VLLMProvider(config=ProviderConfig(NetworkConfig(**network), keys=list(keys)))


def lists(server):
    return [request.line for request in server.requests].count("GET /v1/models HTTP/1.1")


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
        {"key_id": "one", "provider": "vllm", "status": "success", "state": "ready"},
        {"key_id": "two", "provider": "vllm", "status": "success", "state": "ready"},
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
            assert (lists(one), lists(two)) == (1, 1)
            with pytest.raises(BadRequestError, match="third"):
                ids(provider.with_options(key_name="third"))


def test_keys_that_are_disabled_are_not_asked():
    with Scripted(served("a")) as one:
        with provider_for({"url": one.url}, {"url": nobody(), "enabled": False}) as provider:
            assert ids(provider) == ["a"]
        with provider_for({"url": one.url, "enabled": False}, {"url": one.url, "enabled": False}) as provider:
            with pytest.raises(BadRequestError, match="disabled"):
                provider.list_models()
        assert lists(one) == 1


def test_the_stand_in_is_listed():
    with EchoServer(models=("x", "y")) as server, VLLMProvider(server.url) as provider:
        assert ids(provider) == ["x", "y"]


# ---------------------------------------------------------------- several servers, each with models of its own


def text(provider, model, **wire):
    return provider.chat_completion(model=model, messages=[{"role": "user", "content": "hi"}], **wire).text


def server_of(provider, model):
    trace = Trace()
    text(provider.with_options(trace=trace), model)
    assert trace.attempts == 1
    return trace.server


def test_each_request_goes_to_a_server_that_has_its_model():
    with EchoServer(models=("a", "both")) as one, EchoServer(models=("b", "both")) as two:
        with VLLMProvider(one.url, two.url, max_retries=0) as provider:
            for _ in range(10):
                assert (server_of(provider, "a"), server_of(provider, "b")) == (one.url, two.url)
            assert {server_of(provider, "both") for _ in range(20)} == {one.url, two.url}
            stream = provider.chat_completion_stream(model="b", messages=[{"role": "user", "content": "hi"}])
            assert "".join(chunk.text or "" for chunk in stream)


def test_with_one_server_nothing_is_asked():
    with Scripted(["request", answer(completion("good")), "again"]) as server:
        with VLLMProvider(server.url, server.url + "/") as provider:  # given twice it is still one
            assert text(provider, "whatever") == "good"
        assert [request.line for request in server.requests] == ["POST /v1/chat/completions HTTP/1.1"]


def test_a_model_that_nobody_has_is_one_404_that_lists_those_there_are():
    with Scripted(served("a", "shared")) as one, Scripted(served("b", "shared")) as two:
        with provider_for({"url": one.url, "aliases": {"small": "a"}}, {"url": two.url}, max_retries=2) as provider:
            with pytest.raises(NotFoundError) as caught:
                text(provider, "nope")
            assert caught.value.code == "model_not_found" and caught.value.param == "model"
            assert caught.value.message == "The model `nope` does not exist; there are: a, b, shared, small"
            for _ in range(20):
                with pytest.raises(NotFoundError):
                    text(provider, "nope")
            assert lists(one) <= 2 and not one.posts and not two.posts, "they are not asked for each such request"


@pytest.mark.parametrize("count", [1, 2])
def test_the_prefix_of_the_providers_name_may_stand_before_a_model(count):
    with EchoServer(models=("a",)) as one, EchoServer(models=("b", "vllm/c", "c")) as two:
        with VLLMProvider(*(one.url, two.url)[:count], max_retries=0) as provider:
            for _ in range(3):
                assert text(provider, "vllm/a") == text(provider, "a")
            if count == 2:
                assert provider.chat_completion(
                    model="vllm/c", messages=[{"role": "user", "content": "hi"}]).model == "vllm/c"
            with pytest.raises(NotFoundError, match="`vllm/nope`"):
                text(provider, "vllm/nope")


def test_a_server_that_lost_a_model_is_corrected_and_the_request_goes_on():
    with EchoServer(models=("a", "b")) as one, EchoServer(models=("a", "b")) as two:
        with VLLMProvider(one.url, two.url, max_retries=0) as provider:
            assert text(provider, "a")
            one.models = ("b",)
            for _ in range(20):
                assert text(provider, "a")
            changes = provider._caller.fleet.changes
            assert changes[one.url, "lost"] == 1
            two.models = ("b",)
            with pytest.raises(NotFoundError, match="there are: b"):
                text(provider, "a")


def test_a_model_that_is_new_is_found_when_it_is_asked_for(monkeypatch):
    monkeypatch.setattr("vllm_bridge.client.models._AGAIN", 0.0)
    with EchoServer(models=("a",)) as one, EchoServer(models=("b",)) as two:
        with VLLMProvider(one.url, two.url, max_retries=0) as provider:
            assert text(provider, "a")
            two.models = ("b", "adapter")
            assert server_of(provider, "adapter") == two.url


def test_a_server_that_is_silent_or_away_holds_nobody_up(monkeypatch):
    assert models.WITHIN < 2.0
    monkeypatch.setattr("vllm_bridge.client.models.WITHIN", 0.5)
    with EchoServer(models=("a",)) as one, Scripted(["hold"]) as silent:
        keys = [{"url": one.url}, {"url": silent.url}, {"url": nobody()}]
        with provider_for(*keys) as provider:
            start = time.monotonic()
            assert text(provider, "a")
            listed = provider.list_models()
            assert time.monotonic() - start < 5.0, "twice half a second"
            assert [model.id for model in listed.data] == ["a"]
            assert [status["state"] for status in listed["key_statuses"]] == ["ready", "away", "away"]
            with pytest.raises(NotFoundError, match="not known, for there is no answer"):
                text(provider, "nope")


def test_a_server_that_does_not_answer_keeps_what_it_was_known_to_have():
    with EchoServer(models=("a",)) as one:
        two = EchoServer(models=("b",))
        two.start()
        try:
            provider = provider_for({"url": one.url}, {"url": two.url})
            assert ids(provider) == ["a", "b"]
        finally:
            two.stop()
        with provider:
            listed = provider.list_models()
            assert [model.id for model in listed.data] == ["a", "b"]
            assert [status["state"] for status in listed["key_statuses"]] == ["ready", "away"]
            with pytest.raises(APIConnectionError):
                text(provider, "b")


def test_what_is_done_to_a_list_does_not_change_what_is_known():
    with EchoServer(models=("a",)) as first, EchoServer(models=("b",)) as second:
        with VLLMProvider(first.url, second.url, max_retries=0) as vllm:
            for _ in range(2):
                listed = vllm.list_models()
                assert [model["id"] for model in listed["data"]] == ["a", "b"]
                for model in listed["data"]:  # as the gateway puts a prefix before each
                    model["id"] = "vllm/" + model["id"]
                second.stop()  # it is listed by what is known of it


def test_a_list_that_is_no_list_does_not_keep_a_server_from_being_used():
    page = answer(b"<html>hello</html>", content_type="text/html")
    odd = ["request", page, "request", answer(completion("good")), "again"]
    with EchoServer(models=("a",)) as one, Scripted(odd) as other:
        with VLLMProvider(one.url, other.url, max_retries=0) as provider:
            assert text(provider, "a")
            assert [request.line for request in other.requests] == ["GET /v1/models HTTP/1.1"]
            assert text(provider, "z") == "good", "whoever has not said what it has may have it"


def test_settings_that_name_a_model_rule():
    with EchoServer(models=("a",)) as one, EchoServer(models=None) as two:
        keys = [{"url": one.url, "blacklisted_models": ["b"]}, {"url": two.url, "models": ["b", "hidden"]}]
        with provider_for(*keys) as provider:
            assert server_of(provider, "a") == one.url
            assert server_of(provider, "b") == server_of(provider, "hidden") == two.url
            with pytest.raises(NotFoundError):
                text(provider, "c")


def test_of_two_lengths_of_one_model_the_smaller_is_listed():
    def of(length):
        return ["request", answer({"object": "list", "data": [{"id": "m", "max_model_len": length}]}), "again"]

    with Scripted(of(32768)) as one, Scripted(of(4096)) as two, VLLMProvider(one.url, two.url) as provider:
        (model,) = provider.list_models().data
        assert (model.max_model_len, model["context_length"]) == (4096, 4096)


def test_ten_thousand_models():
    many = ["m%d" % number for number in range(10000)]
    with Scripted(served(*many)) as one, Scripted(served("a")) as two, VLLMProvider(one.url, two.url) as provider:
        assert len(ids(provider)) == 10001
        with pytest.raises(NotFoundError, match="and 9991 more"):
            text(provider, "nope")


def test_an_adapter_that_comes_and_goes_is_told_in_the_log(caplog):
    caplog.set_level("INFO", "vllm_bridge.fleet")
    with EchoServer(models=("a",)) as one, EchoServer(models=("b",)) as two:
        with VLLMProvider(one.url, two.url) as provider:
            ids(provider)
            caplog.clear()
            two.models = ("b", "adapter")
            ids(provider)
            two.models = ("b",)
            ids(provider)
    assert [record.message for record in caplog.records] == [
        "%s: gained (it has now: adapter)" % two.url, "%s: lost (it has no longer: adapter)" % two.url]
