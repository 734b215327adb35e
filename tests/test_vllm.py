"""What vLLM does differently: missing routes, rerank's second path, aborts, its own Responses."""

import warnings

import pytest

import wire
from scripted import LAST_CHUNK, SSE_HEAD, Scripted, answer, chunk, completion, delta, event
from vllm_bridge import (
    APIStatusError,
    BadRequestError,
    BridgeError,
    IncompleteStreamError,
    InternalServerError,
    NetworkConfig,
    NotFoundError,
    ProviderConfig,
    VLLMProvider,
)
from vllm_bridge.echo import EchoServer

MESSAGES = [{"role": "user", "content": "Hi"}]
NO_ROUTE = answer({"detail": "Not Found"}, "404 Not Found")
NO_METHOD = answer({"detail": "Method Not Allowed"}, "405 Method Not Allowed")
NO_MODEL = answer(wire.load("rerank_err_unknown_model").body, "404 Not Found")
RANKED = answer({"id": "score-1", "results": [{"index": 0, "relevance_score": 0.5}]})
MODELS = answer({"object": "list", "data": [{"id": "bge"}, {"id": "bge-lora"}]})


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    monkeypatch.delenv("VLLM_BASE_URL", raising=False)


def each(*replies):
    """Return a script that answers request after request."""
    steps = []
    for reply in replies:
        steps += ["request", reply]
    return steps + ["hold"]


def lines(server):
    return [request.line.split()[1] for request in server.requests]


# ---------------------------------------------------------------- rerank's second path

@pytest.mark.parametrize("first", [NO_ROUTE, NO_METHOD, answer({}, "501 Not Implemented")])
def test_rerank_tries_the_other_path_where_the_first_is_missing(first):
    with Scripted(each(first, RANKED)) as server, VLLMProvider(server.url) as provider:
        assert provider.rerank(query="a", documents=["x"]).results[0].relevance_score == 0.5
        assert lines(server) == ["/v1/rerank", "/rerank"]
        assert server.requests[0].body == server.requests[1].body
        assert server.connections == 1


def test_an_unknown_model_costs_one_request():
    with Scripted(each(NO_MODEL)) as server, VLLMProvider(server.url) as provider:
        with pytest.raises(NotFoundError) as caught:
            provider.rerank(model="nope", query="a", documents=["x"])
        assert lines(server) == ["/v1/rerank"]
        assert caught.value.type == "NotFoundError"


def test_where_neither_path_is_there_the_first_error_stands_and_is_explained():
    with Scripted(each(NO_ROUTE, NO_METHOD, MODELS)) as server, VLLMProvider(server.url) as provider:
        with pytest.raises(NotFoundError) as caught:
            provider.rerank(query="a", documents=["x"])
        assert lines(server) == ["/v1/rerank", "/rerank", "/v1/models"]
    assert caught.value.message == (
        "this server does not offer rerank (POST /v1/rerank is not there); its models are: bge, bge-lora")


def test_an_error_of_the_other_path_is_that_paths_own():
    bad = answer({"error": {"message": "top_n is odd", "code": 400}}, "400 Bad Request")
    with Scripted(each(NO_ROUTE, bad)) as server, VLLMProvider(server.url) as provider:
        with pytest.raises(BadRequestError, match="top_n is odd"):
            provider.rerank(query="a", documents=["x"])


# ---------------------------------------------------------------- routes that are missing

@pytest.mark.parametrize("operation, keywords, path", [
    ("embedding", {"input": "a"}, "/v1/embeddings"),
    ("chat_completion", {"messages": MESSAGES}, "/v1/chat/completions"),
    ("chat_completion_stream", {"messages": MESSAGES}, "/v1/chat/completions"),
    ("text_completion_stream", {"prompt": "a"}, "/v1/completions"),
    ("transcription", {"file": b"x"}, "/v1/audio/transcriptions"),
    ("transcription_stream", {"file": b"x"}, "/v1/audio/transcriptions"),
])
def test_a_missing_route_is_explained(operation, keywords, path):
    with Scripted(each(NO_ROUTE, MODELS)) as server, VLLMProvider(server.url, api_key="k") as provider:
        with pytest.raises(NotFoundError) as caught:
            getattr(provider, operation)(**keywords)
        assert lines(server) == [path, "/v1/models"]
        assert server.requests[1].headers["authorization"] == "Bearer k"
    error = caught.value
    assert "does not offer %s" % operation.replace("_stream", "") in error.message
    assert "POST %s" % path in error.message and "bge, bge-lora" in error.message
    assert (error.status_code, error.type, error.payload) == (404, "NotFoundError", {"detail": "Not Found"})
    assert error.url == server.url + path


@pytest.mark.parametrize("models", [
    answer({"error": "no"}, "500 Oops"), answer(b"junk"), answer({"data": 5}), answer({"data": [5]}), answer({}),
    answer({"data": []}),
])
def test_a_missing_route_is_explained_also_without_the_models(models):
    with Scripted(each(NO_ROUTE, models)) as server, VLLMProvider(server.url) as provider:
        with pytest.raises(NotFoundError) as caught:
            provider.embedding(input="a", encoding_format="float")
    assert caught.value.message == "this server does not offer embedding (POST /v1/embeddings is not there)"


def test_an_unknown_model_is_not_taken_for_a_missing_route():
    body = wire.load("err_unknown_model").body if "err_unknown_model" in wire.names() else wire.load(
        "audio_err_unknown_model").body
    with Scripted(each(answer(body, "404 Not Found"))) as server, VLLMProvider(server.url) as provider:
        with pytest.raises(NotFoundError, match="does not exist"):
            provider.chat_completion(messages=MESSAGES)
        assert len(server.requests) == 1


def test_the_models_of_the_server_that_answered_are_named():
    with Scripted(each(NO_ROUTE, MODELS)) as server, EchoServer(models=("other",)) as other:
        config = ProviderConfig(NetworkConfig(), keys=[{"id": "a", "url": other.url}, {"id": "b", "url": server.url}])
        with VLLMProvider(config=config) as provider:
            with pytest.raises(NotFoundError, match="bge-lora"):
                provider.with_options(key_id="b").chat_completion(messages=MESSAGES)


def test_an_error_from_nowhere_has_no_models():
    assert VLLMProvider("http://127.0.0.1:1")._models_at(None) == []
    assert VLLMProvider("http://127.0.0.1:1")._models_at("http://elsewhere/v1/x") == []


# ---------------------------------------------------------------- what vLLM reports in its own way

def test_an_abort_is_an_error():
    aborted = dict(completion("half"))
    aborted["choices"] = [dict(aborted["choices"][0], finish_reason="abort")]
    with Scripted(each(answer(aborted))) as server, VLLMProvider(server.url, max_retries=0) as provider:
        with pytest.raises(BridgeError) as caught:
            provider.chat_completion(messages=MESSAGES)
        assert "abort" in caught.value.message
    steps = ["request", SSE_HEAD, event(delta("half")), event(delta("", "abort")), event("[DONE]"), LAST_CHUNK]
    with Scripted(steps) as server, VLLMProvider(server.url) as provider:
        with pytest.raises(IncompleteStreamError) as caught:
            list(provider.chat_completion_stream(messages=MESSAGES))
        assert caught.value.partial.choices[0].message.content == "half"


def test_guided_parameters_are_renamed_with_a_warning():
    with Scripted(each(answer(completion()), answer({"choices": []}))) as server:
        with VLLMProvider(server.url) as provider:
            with pytest.warns(DeprecationWarning, match="guided_regex"):
                provider.chat_completion(messages=MESSAGES, guided_regex="a+")
            with pytest.warns(DeprecationWarning, match="guided_choice"):
                provider.text_completion(prompt="a", guided_choice=["a", "b"])
        assert server.requests[0].json["structured_outputs"] == {"regex": "a+"}
        assert server.requests[1].json["structured_outputs"] == {"choice": ["a", "b"]}


def streamed(name):
    """Return a script that replays a recorded stream, cut as it came."""
    recorded = wire.load(name)
    assert recorded.streams, name
    return ["request", SSE_HEAD] + [chunk(frame) for frame in recorded.frames if frame] + [LAST_CHUNK, "hold"]


STREAM_ERRORS = [name for name in wire.names("s_err") if b'data: {"error"' == wire.load(name).body[:14]]


def test_there_are_recorded_stream_errors():
    assert len(STREAM_ERRORS) >= 5


@pytest.mark.parametrize("name", STREAM_ERRORS)
def test_an_error_inside_the_200_of_a_stream_is_raised_when_it_is_opened(name):
    recorded = wire.load(name)
    error = recorded.payloads[0]["error"]
    with Scripted(streamed(name)) as server, VLLMProvider(server.url, max_retries=0) as provider:
        with pytest.raises(APIStatusError) as caught:
            if "/completions" in recorded.request["path"] and "chat" not in recorded.request["path"]:
                provider.text_completion_stream(prompt="a")
            else:
                provider.chat_completion_stream(messages=MESSAGES)
    assert caught.value.status_code == error["code"]
    assert (caught.value.message, caught.value.type) == (error["message"], error["type"])


@pytest.mark.parametrize("name", ["chat_stream_count", "chat_stream_length", "chat_stream_logprobs"])
def test_a_recorded_stream_has_a_choice_in_every_chunk(name):
    recorded = wire.load(name)
    text = "".join(choice["delta"].get("content") or "" for one in recorded.payloads for choice in one["choices"])
    usage = [one["usage"] for one in recorded.payloads if one.get("usage")]
    with Scripted(streamed(name)) as server, VLLMProvider(server.url) as provider:
        chunks = list(provider.chat_completion_stream(messages=MESSAGES))
    assert all(one.choices for one in chunks)
    assert "".join(one.text for one in chunks) == text
    if usage:
        assert chunks[-1].usage == usage[-1]


# ---------------------------------------------------------------- Responses

def native(url, value):
    return VLLMProvider(config=ProviderConfig(NetworkConfig(url, max_retries=0), native_responses=value))


def test_responses_go_over_chat():
    with Scripted(each(answer(completion("hello")))) as server, VLLMProvider(server.url) as provider:
        reply = provider.responses(model="m", input="Hi", instructions="Be short", top_k=3)
        assert lines(server) == ["/v1/chat/completions"]
        sent = server.requests[0].json
    assert [message["role"] for message in sent["messages"]] == ["system", "user"]
    assert sent["top_k"] == 3
    assert reply.output[0].content[0].text == "hello"
    assert reply.status == "completed"


def test_a_responses_stream_goes_over_chat():
    steps = ["request", SSE_HEAD, event(delta("hel")), event(delta("lo", "stop")), event("[DONE]"), LAST_CHUNK]
    with Scripted(steps) as server, VLLMProvider(server.url) as provider:
        with provider.responses_stream(model="m", input="Hi", stream=True) as stream:
            events = list(stream)
        assert server.requests[0].json["stream"] is True
    kinds = [one.type for one in events]
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    assert "".join(one.delta for one in events if one.type == "response.output_text.delta") == "hello"
    assert [one.sequence_number for one in events] == list(range(len(events)))


def test_a_responses_stream_that_fails_at_once_is_an_error_and_later_an_event():
    failure = event({"error": {"message": "dead", "code": 500}})
    with Scripted(["request", SSE_HEAD, failure]) as server, VLLMProvider(server.url, max_retries=0) as provider:
        with pytest.raises(InternalServerError):
            provider.responses_stream(input="Hi")
    with Scripted(["request", SSE_HEAD, event(delta("a")), failure]) as server, VLLMProvider(server.url) as provider:
        assert [one.type for one in provider.responses_stream(input="Hi")][-1] == "response.failed"


def test_what_has_no_place_in_a_chat_request_is_logged(caplog):
    with Scripted(each(answer(completion()))) as server, VLLMProvider(server.url) as provider:
        provider.responses(input="Hi", tools=[{"type": "web_search"}])
    assert "web_search" in caplog.text


RESPONSE = {"id": "resp_1", "object": "response", "status": "completed", "output": [], "model": "m"}


def test_native_responses_are_the_servers_own():
    done = dict(RESPONSE, error=None)
    with Scripted(each(answer(done))) as server, native(server.url, True) as provider:
        assert provider.responses(input="Hi") == done
        assert lines(server) == ["/v1/responses"]
        assert server.requests[0].json == {"input": "Hi"}
    created = {"type": "response.created", "sequence_number": 0, "response": RESPONSE}
    completed = {"type": "response.completed", "sequence_number": 1, "response": RESPONSE}
    with Scripted(["request", SSE_HEAD, event(created), event(completed), LAST_CHUNK]) as server:
        with native(server.url, True) as provider:
            assert list(provider.responses_stream(input="Hi")) == [created, completed]
            assert server.requests[0].json == {"input": "Hi", "stream": True}


@pytest.mark.parametrize("missing", [NO_ROUTE, NO_METHOD])
def test_native_where_it_is_there_else_over_chat_from_then_on(missing):
    with Scripted(each(missing, answer(completion("a")), answer(completion("b")))) as server:
        with native(server.url, "auto") as provider:
            assert provider.responses(input="Hi").output[0].content[0].text == "a"
            assert provider.with_options(timeout=9).responses(input="Hi").output[0].content[0].text == "b"
            assert lines(server) == ["/v1/responses", "/v1/chat/completions", "/v1/chat/completions"]
    steps = ["request", missing, "request", SSE_HEAD, event(delta("a", "stop")), event("[DONE]"), LAST_CHUNK]
    with Scripted(steps) as server, native(server.url, "auto") as provider:
        assert [one.type for one in provider.responses_stream(input="Hi")][-1] == "response.completed"


@pytest.mark.parametrize("value", [True, "auto"])
@pytest.mark.parametrize("operation", ["responses", "responses_stream"])
def test_an_error_of_the_native_way_is_raised(value, operation):
    refused = answer({"error": {"message": "no", "code": 400}}, "400 Bad Request")
    with Scripted(each(refused)) as server, native(server.url, value) as provider:
        with pytest.raises(BadRequestError):
            getattr(provider, operation)(input="Hi")
    if value is True:
        with Scripted(each(NO_METHOD, MODELS)) as server, native(server.url, True) as provider:
            with pytest.raises(APIStatusError):
                getattr(provider, operation)(input="Hi")
            assert "/v1/chat/completions" not in lines(server)


# ---------------------------------------------------------------- against the stand-in

def test_everything_against_the_stand_in():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with EchoServer(api_key="k") as server, VLLMProvider(server.url, api_key="k") as provider:
            assert provider.chat_completion(messages=MESSAGES).choices[0].message.content == "You said: Hi"
            assert "".join(one.text for one in provider.chat_completion_stream(messages=MESSAGES)) == "You said: Hi"
            assert provider.text_completion(prompt="Hi").choices[0].text
            assert "".join(one.choices[0].text for one in provider.text_completion_stream(prompt="Hi"))
            assert len(provider.embedding(input=["a", "b"]).data) == 2
            assert provider.rerank(query="a", documents=["b", "a"]).results[0].index == 1
            assert provider.transcription(file=b"RIFF0000WAVE").text
            assert [one.type for one in provider.transcription_stream(file=b"RIFF0000WAVE")][-1].endswith("done")
            assert provider.list_models().data[0].id == "echo"
            assert provider.responses(input="Hi").output[0].content[0].text == "You said: Hi"
        assert len({request.client for request in server.requests}) == 1
