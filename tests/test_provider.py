"""Every operation of the provider: what goes up, what comes back, and what is refused before it is sent."""

import abc
import inspect
import io
import json

import pytest
import responses

import wire
from scripted import LAST_CHUNK, SSE_HEAD, Scripted, answer, chunk, completion, delta, event, nobody
from vllm_bridge import (
    BadRequestError,
    BaseOpenAIProvider,
    ConfigError,
    IncompleteStreamError,
    InternalServerError,
    Key,
    NetworkConfig,
    ProviderConfig,
    ResponseDecodeError,
    Trace,
    UnsupportedOperationError,
    VLLMProvider,
)
from vllm_bridge.echo import EchoServer
from vllm_bridge.operations.unsupported import Unsupported

BASE = "http://gpu.example:8000"
WAV = b"RIFF\x24\x00\x00\x00WAVEfmt " + b"\x00" * 200
MESSAGES = [{"role": "user", "content": "Hi"}]
CHAT = wire.load("chat_plain").json

OPERATIONS = {
    # operation: (path, keywords, body of the reply)
    "chat_completion": ("/v1/chat/completions", {"messages": MESSAGES}, CHAT),
    "text_completion": ("/v1/completions", {"prompt": "Hi"}, {
        "id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "text": "!", "finish_reason": "length"}]}),
    "embedding": ("/v1/embeddings", {"input": "Hi", "encoding_format": "float"}, wire.load("embed_float").json),
    "rerank": ("/v1/rerank", {"query": "a", "documents": ["a", "b"]}, {
        "id": "score-1", "model": "m", "results": [{"index": 1, "relevance_score": 0.9, "odd": 1}]}),
}


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in ("VLLM_API_KEY", "VLLM_BASE_URL", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def mock():
    with responses.RequestsMock() as mock:
        yield mock


@pytest.fixture
def provider():
    with VLLMProvider(BASE, max_retries=0) as provider:
        yield provider


def sent(mock, number=0):
    return json.loads(mock.calls[number].request.body)


# ---------------------------------------------------------------- what goes up

@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_keyword_goes_up_in_both_spellings_and_none_does_not(mock, provider, operation):
    path, keywords, body = OPERATIONS[operation]
    mock.add("POST", BASE + path, json=body)
    getattr(provider, operation)(
        model="m", colour="blue", seed=None, extra_body={"top_k": 20, "nonsense": {"a": None}},
        extra_params={"priority": 1}, **keywords)
    body = sent(mock)
    assert "seed" not in body and "extra_body" not in body and "extra_params" not in body
    for name, value in {"model": "m", "colour": "blue", "top_k": 20, "nonsense": {"a": None}, "priority": 1}.items():
        assert body[name] == value
    for name, value in keywords.items():
        assert body[name] == value


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_model_may_be_left_out(mock, provider, operation):
    path, keywords, body = OPERATIONS[operation]
    mock.add("POST", BASE + path, json=body)
    getattr(provider, operation)(**keywords)
    assert "model" not in sent(mock)


def test_an_unknown_form_field_goes_up_and_none_does_not():
    with EchoServer() as server, VLLMProvider(server.url) as provider:
        extra = {"top_k": 5, "flag": True}
        provider.transcription(model="echo", file=WAV, language=None, nonsense="x", extra_body=extra)
        fields = dict(server.requests[0].form)
    assert fields == {"model": "echo", "nonsense": "x", "top_k": "5", "flag": "true"}


def test_two_objects_of_one_name_are_merged(mock, provider):
    mock.add("POST", BASE + "/v1/chat/completions", json=CHAT)
    provider.chat_completion(
        messages=MESSAGES, chat_template_kwargs={"enable_thinking": False, "a": 1},
        extra_body={"chat_template_kwargs": {"a": 2, "b": 3}, "temperature": 0})
    assert sent(mock)["chat_template_kwargs"] == {"enable_thinking": False, "a": 2, "b": 3}


@pytest.mark.parametrize("given, expected", [
    ({}, {"include_usage": True}),
    ({"stream_options": {"include_usage": False}}, {"include_usage": False}),
    ({"stream_options": {"continuous_usage_stats": True}}, {"include_usage": True, "continuous_usage_stats": True}),
    ({"stream_options": "odd"}, "odd"),
    ({"extra_body": {"stream_options": {"x": 1}}}, {"include_usage": True, "x": 1}),
])
@pytest.mark.parametrize("operation", ["chat_completion_stream", "text_completion_stream"])
def test_a_stream_asks_for_usage_unless_told_otherwise(operation, given, expected):
    done = ["request", SSE_HEAD, event("[DONE]"), LAST_CHUNK]
    with Scripted(done) as server, VLLMProvider(server.url) as provider:
        list(getattr(provider, operation)(prompt="a", messages=MESSAGES, **given))
        assert server.requests[0].json["stream"] is True
        assert server.requests[0].json["stream_options"] == expected


@pytest.mark.parametrize("operation", ["chat_completion", "text_completion", "transcription", "responses"])
def test_a_plain_operation_does_not_stream(provider, operation):
    with pytest.raises(BadRequestError, match="call %s_stream" % operation) as caught:
        getattr(provider, operation)(file=WAV, messages=[], prompt="", input="", stream=True)
    assert caught.value.param == "stream"
    assert caught.value.status_code == 400


def test_stream_goes_up_where_it_has_no_meaning(mock, provider):
    """vLLM ignores it for embeddings; nothing a caller sends is dropped."""
    path, keywords, body = OPERATIONS["embedding"]
    mock.add("POST", BASE + path, json=body)
    provider.embedding(stream=True, **keywords)
    assert sent(mock)["stream"] is True


@pytest.mark.parametrize("value", [{1, 2}, object(), float("nan")])
def test_what_has_no_json_form_is_named(provider, value):
    with pytest.raises(BadRequestError, match="seed"):
        provider.chat_completion(messages=MESSAGES, seed=value)


def test_extra_body_has_to_be_an_object(provider):
    with pytest.raises(BadRequestError, match="extra_body must be an object"):
        provider.chat_completion(messages=MESSAGES, extra_body=[1])


def test_the_callers_own_objects_are_left_alone(mock, provider):
    mock.add("POST", BASE + "/v1/chat/completions", json=CHAT)
    wire_body = {"messages": [dict(MESSAGES[0])], "extra_body": {"a": {"b": 1}}, "a": {"c": 2}}
    before = json.dumps(wire_body)
    provider.chat_completion(**wire_body)
    assert json.dumps(wire_body) == before


# ---------------------------------------------------------------- what comes back

@pytest.mark.parametrize("operation", ["embedding", "text_completion"])
def test_every_field_comes_back(mock, provider, operation):
    path, keywords, body = OPERATIONS[operation]
    mock.add("POST", BASE + path, json=dict(body, odd={"x": None}))
    reply = getattr(provider, operation)(**keywords)
    assert json.loads(json.dumps(reply)) == dict(body, odd={"x": None})


def test_a_chat_reply_keeps_all_and_gains_the_other_name_of_reasoning(mock, provider):
    recorded = wire.load("think_cached_tokens_2").json
    mock.add("POST", BASE + "/v1/chat/completions", json=recorded)
    reply = provider.chat_completion(messages=MESSAGES)
    said = recorded["choices"][0]["message"]["reasoning"]
    assert reply.choices[0].message.reasoning == reply.choices[0].message.reasoning_content == said
    for name, value in recorded.items():
        if name != "choices":
            assert reply[name] == value


def test_raw_request_and_response_come_along_where_asked(mock):
    mock.add("POST", BASE + "/v1/chat/completions", json=CHAT)
    mock.add("POST", BASE + "/v1/audio/transcriptions", json={"text": "hi"})
    mock.add("POST", BASE + "/v1/rerank", json=dict(OPERATIONS["rerank"][2], extra_fields="the server's own"))
    config = ProviderConfig(NetworkConfig(BASE), send_back_raw_request=True, send_back_raw_response=True)
    with VLLMProvider(config=config) as provider:
        reply = provider.chat_completion(messages=MESSAGES, top_k=5)
        assert reply["extra_fields"]["raw_request"] == {"messages": MESSAGES, "top_k": 5}
        assert json.loads(reply["extra_fields"]["raw_response"]) == CHAT
        words = provider.transcription(model="m", file=WAV)
        assert words["extra_fields"]["raw_request"] == {"model": "m"}
        assert json.loads(words["extra_fields"]["raw_response"]) == {"text": "hi"}
        provider.rerank(query="a", documents=["a", "b"])
    mock.reset()
    mock.add("POST", BASE + "/v1/chat/completions", json=CHAT)
    with VLLMProvider(config=config.replace(send_back_raw_request=False)) as provider:
        assert list(provider.chat_completion(messages=MESSAGES)["extra_fields"]) == ["raw_response"]


def is_plain_transcription(name):
    recorded = wire.load(name)
    return recorded.status == 200 and not recorded.streams and "translat" not in name


@pytest.mark.parametrize("name", [name for name in wire.names("audio_") if is_plain_transcription(name)])
def test_recorded_transcriptions(name):
    recorded = wire.load(name)
    with Scripted(["request", answer(recorded.body, content_type=recorded.content_type)]) as server:
        with VLLMProvider(server.url) as provider:
            assert dict(provider.transcription(model="m", file=WAV)) == recorded.json


def test_a_recorded_transcription_stream_of_three_segments_is_whole():
    recorded = wire.load("audio_65s_stream")
    parts = [one["choices"][0]["delta"].get("content") or "" for one in recorded.payloads if one["choices"]]
    with Scripted(["request", SSE_HEAD, chunk(recorded.body), LAST_CHUNK]) as server:
        with VLLMProvider(server.url) as provider:
            events = list(provider.transcription_stream(model="m", file=WAV))
            assert dict(server.requests[0].headers)["content-type"].startswith("multipart/form-data; boundary=")
            assert b'name="stream"\r\n\r\ntrue\r\n' in server.requests[0].body
    assert [one.type for one in events].count("transcript.text.done") == 1
    assert events[-1].text == "".join(parts)


@pytest.mark.parametrize("events, ends", [
    ([{"type": "transcript.text.delta", "delta": "a"}, {"type": "transcript.text.done", "text": "a"}], True),
    ([{"object": "transcription.chunk", "choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}]}], False),
    ([{"object": "transcription.chunk", "choices": [{"delta": {"content": "a"}}]},
      {"object": "transcription.chunk", "choices": [], "usage": {"prompt_tokens": 1}}], True),
])
def test_a_transcription_stream_without_the_end_mark(events, ends):
    """OpenAI's done event and vLLM's usage chunk come at the end; a finish reason may be that of a segment."""
    with Scripted(["request", SSE_HEAD] + [event(one) for one in events] + [LAST_CHUNK]) as server:
        with VLLMProvider(server.url) as provider:
            if ends:
                assert [one.type for one in provider.transcription_stream(file=WAV)][-1] == "transcript.text.done"
            else:
                with pytest.raises(IncompleteStreamError) as caught:
                    list(provider.transcription_stream(file=WAV))
                assert caught.value.partial["text"] == "a"


def test_an_error_inside_the_200_of_a_transcription():
    with Scripted(["request", answer({"error": {"message": "too long", "code": 500}})]) as server:
        with VLLMProvider(server.url) as provider:
            with pytest.raises(InternalServerError, match="too long"):
                provider.transcription(file=WAV)


# ---------------------------------------------------------------- files

def test_every_kind_of_file(tmp_path):
    path = tmp_path / "speech.wav"
    path.write_bytes(WAV)
    with EchoServer() as server, VLLMProvider(server.url) as provider:
        with open(str(path), "rb") as opened:
            opened.read(10)
            given = [str(path), path, WAV, bytearray(WAV), io.BytesIO(WAV), opened, ("b.wav", WAV), ("c.wav", opened)]
            for file in given:
                provider.transcription(model="echo", file=file)
            assert not opened.closed, "the caller's file stays open"
        names = []
        for request in server.requests:
            assert request.files["file"].content == WAV
            names.append(request.files["file"].filename)
    assert names == ["speech.wav", "speech.wav", "audio.wav", "audio.wav", "audio.wav", "speech.wav", "b.wav", "c.wav"]


def closed_file():
    file = io.BytesIO(WAV)
    file.close()
    return file


@pytest.mark.parametrize("operation", ["transcription", "transcription_stream"])
@pytest.mark.parametrize("make, words", [
    (lambda folder: str(folder / "missing.wav"), "No such file"),
    (lambda folder: str(folder), "directory"),
    (lambda folder: "a\0b.wav", "null"),
    (lambda folder: closed_file(), "closed"),
    (lambda folder: None, "required"),
    (lambda folder: 5, "int"),
    (lambda folder: io.StringIO("text"), "binary"),
    (lambda folder: ("a.wav",), "tuple"),
])
def test_a_file_that_cannot_be_sent_is_named(provider, tmp_path, operation, make, words):
    with pytest.raises(BadRequestError, match=words) as caught:
        getattr(provider, operation)(model="m", file=make(tmp_path))
    assert caught.value.param == "file"


def test_a_form_that_cannot_be_made_leaves_no_file_open(provider, tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(WAV)
    with pytest.raises(BadRequestError):
        provider.transcription(file=str(path), prompt="\ud800")  # an open file would be a ResourceWarning


# ---------------------------------------------------------------- what there is not

UNSUPPORTED = """
speech_stream image_generation_stream image_edit image_edit_stream image_variation
video_generation video_retrieve video_download video_delete video_list video_remix ocr
file_upload file_list file_retrieve file_delete file_content
batch_create batch_list batch_retrieve batch_cancel batch_delete batch_results
container_create container_list container_retrieve container_delete
container_file_create container_file_list container_file_retrieve container_file_content container_file_delete
compaction passthrough passthrough_stream
"""


def test_unsupported_operations_touch_no_network():
    names = [name for name, value in vars(Unsupported).items() if not name.startswith("_")]
    assert all(getattr(VLLMProvider, name).__doc__ == "Raise `UnsupportedOperationError`." for name in names)
    assert sorted(names) == sorted(UNSUPPORTED.split())
    with VLLMProvider("http://127.0.0.1:1") as provider:
        for offered in (provider, VLLMProvider, BaseOpenAIProvider):
            assert not set(names) & set(dir(offered)) and "chat_completion" in dir(offered)
        for name in names:
            with pytest.raises(UnsupportedOperationError) as caught:
                getattr(provider, name)("anything", model="m")
            assert caught.value.message.startswith("%s is not supported by vllm provider" % name)
            assert ("request(" in caught.value.message) is name.startswith("passthrough")
            assert caught.value.code == "unsupported_operation"
            assert caught.value.status_code is None
            assert isinstance(caught.value, NotImplementedError)


def test_a_subclass_may_be_abstract_and_have_what_its_base_has_not():
    class Mine(VLLMProvider, abc.ABC):
        def ocr(self, /, **wire):
            """Read a picture."""
            return "read"

    with Mine("http://127.0.0.1:1") as provider:
        assert provider.ocr() == "read" and "ocr" in dir(Mine) and "ocr" in dir(provider)


def test_operations_reserve_no_keyword():
    for name in list(OPERATIONS) + ["transcription", "responses", "chat_completion_stream", "speech"]:
        parameters = inspect.signature(getattr(VLLMProvider, name)).parameters
        kinds = [parameter.kind for parameter in parameters.values()]
        assert kinds[0] is inspect.Parameter.POSITIONAL_ONLY, name
        assert kinds[-1] is inspect.Parameter.VAR_KEYWORD, name


# ---------------------------------------------------------------- forwarding bytes

def test_forwarded_bytes_are_the_servers_own():
    odd = b'{"choices": [ {"index":0,"message":{"content":"\\u00e9"},"finish_reason":"stop"} ],  "x":1.0}'
    with Scripted(["request", answer(odd), "again"]) as server, VLLMProvider(server.url) as provider:
        assert provider.forward("chat_completion", {"messages": []}).body == odd
        assert provider.forward("text_completion", {"prompt": "a"}).body == odd
        assert provider.forward("embedding", {"input": "a"}).body == odd


def test_a_forwarded_reply_changes_only_where_it_has_to():
    with Scripted(["request", answer(wire.load("think_cached_tokens_2").body)]) as server:
        provider = VLLMProvider(server.url)
        changed = json.loads(provider.forward("chat_completion", {"messages": []}).body)
        provider.close()
    message = changed["choices"][0]["message"]
    assert message["reasoning_content"] == message["reasoning"] is not None
    with Scripted(["request", answer(b"\n" + json.dumps(completion()).encode())]) as server:
        with VLLMProvider(server.url) as provider:
            assert provider.forward("chat_completion", {"messages": []}).body.startswith(b"\n")


@pytest.mark.parametrize("body, expected", [
    (b"<html>", ResponseDecodeError), (b"[1]", ResponseDecodeError),
    (json.dumps(dict(completion(), choices=[{"index": 0, "message": {}, "finish_reason": "abort"}]),
                separators=(",", ":")).encode(), Exception),
])
def test_what_cannot_be_forwarded_is_an_error(body, expected):
    with Scripted(["request", answer(body)]) as server, VLLMProvider(server.url) as provider:
        with pytest.raises(expected) as caught:
            provider.forward("chat_completion", {"messages": []})
        assert caught.value.url == server.url + "/v1/chat/completions"


@pytest.mark.parametrize("asked, sees", [
    (None, False), ({"include_usage": True}, True), ({"include_usage": False}, False), ("odd", False),
])
def test_a_forwarded_stream_counts_tokens_and_shows_usage_to_who_asked(asked, sees):
    usage = {"id": "1", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}
    steps = ["request", SSE_HEAD, event(delta("a")), event(delta("", "stop")), event(usage), event("[DONE]")]
    body = {"messages": []}
    if asked is not None:
        body["stream_options"] = asked
    with Scripted(steps) as server, VLLMProvider(server.url) as provider:
        trace = Trace()
        frames = b"".join(provider.with_options(trace=trace).forward_stream("chat_completion", body))
        options = server.requests[0].json["stream_options"]
    assert frames.endswith(b"data: [DONE]\n\n")
    assert (b'"usage"' in frames) is sees
    assert options == ({"include_usage": True} if asked != "odd" else "odd")
    assert (trace.prompt_tokens, trace.completion_tokens) == (3, 4)


# ---------------------------------------------------------------- making one

def test_the_short_form_and_the_environment(monkeypatch):
    assert repr(VLLMProvider()) == "VLLMProvider(http://localhost:8000)"
    assert repr(VLLMProvider("http://gpu:8000/v1/", api_key="sk-secret")) == "VLLMProvider(http://gpu:8000)"
    monkeypatch.setenv("VLLM_BASE_URL", "http://env:9")
    monkeypatch.setenv("VLLM_API_KEY", "sk-env")
    provider = VLLMProvider()
    assert repr(provider) == "VLLMProvider(http://env:9)"
    assert provider._caller.fleet.keys[0].value == "sk-env"
    options = VLLMProvider("http://gpu:8000", timeout=(2, 60), max_retries=7, headers={"X": "y"})._options
    assert (options.timeout, options.headers, options.max_retries) == ((2.0, 60.0), {"X": "y"}, 7)
    assert VLLMProvider("http://gpu:8000")._options.timeout == (5, 300)
    assert VLLMProvider("http://gpu:8000")._options.stream_idle_timeout == 120
    assert VLLMProvider("http://gpu:8000", timeout=None)._options.timeout == (5, None)


def test_the_long_form_shows_every_server_and_no_key():
    keys = [Key("sk-one-secret", url="http://b"), Key("sk-two-secret", url="http://a"), Key(url="http://a")]
    provider = VLLMProvider(config=ProviderConfig(keys=keys))
    assert repr(provider) == "VLLMProvider(http://a, http://b)"


@pytest.mark.parametrize("settings", [{"base_url": "http://x"}, {"api_key": "k"}])
def test_both_forms_at_once_are_refused(settings):
    with pytest.raises(ConfigError, match="not both"):
        VLLMProvider(config=ProviderConfig(), **settings)


def test_a_provider_of_another_name_uses_its_own():
    class Other(BaseOpenAIProvider):
        name = "other"

    with Scripted(["request", answer(completion("plain")), "again"]) as server, Other(server.url) as provider:
        assert provider.chat_completion(messages=[]).choices[0].message.content == "plain"
        assert json.loads(provider.forward("chat_completion", {"messages": []}).body) == completion("plain")
        with pytest.raises(UnsupportedOperationError, match="by other provider"):
            provider.speech()


def test_servers_that_are_down_are_told():
    with VLLMProvider(nobody(), max_retries=0) as provider:
        assert provider.cooling() == []
        with pytest.raises(ConnectionError):
            provider.chat_completion(messages=[])
        assert [key.url for key in provider.cooling()] == [provider._caller.fleet.keys[0].url]


@pytest.mark.parametrize("operation, field, more", [
    ("text_completion", "prompt", {}), ("text_completion_stream", "prompt", {}), ("chat_completion", "messages", {}),
    ("chat_completion_stream", "messages", {}), ("embedding", "input", {}), ("rerank", "documents", {"query": "q"}),
    ("responses", "input", {}), ("responses_stream", "input", {}), ("chat_completion", "tools", {"messages": []}),
])
@pytest.mark.parametrize("make", [lambda: (word for word in "ab"), lambda: iter(["a"]), lambda: map(str, [1]), set])
def test_what_is_no_list_is_named(provider, operation, field, more, make):
    with pytest.raises(BadRequestError) as caught:
        getattr(provider, operation)(model="m", **{field: make()}, **more)
    assert caught.value.param == field and field in caught.value.message


@pytest.mark.parametrize("prompts", [("one", "two"), ["one", "two"], ([1, 2], [3]), ((1, 2), (3, 4))])
def test_every_prompt_has_its_answer(prompts):
    with EchoServer() as server, VLLMProvider(server.url) as vllm:
        for number in (1, 2):
            chunks = list(vllm.text_completion_stream(model="echo", prompt=prompts, n=number))
            ended = {choice.index for chunk in chunks for choice in chunk.choices if choice.finish_reason}
            assert ended == set(range(2 * number))


@pytest.mark.parametrize(
    "odd", [b"[" * depth + b"]" * depth for depth in (400, 700, 900, 2000)] + [b"NaN"], ids=range(5))
def test_an_answer_that_cannot_be_printed_again(odd):
    message = b'{"role":"assistant","content":"x","reasoning":"r","odd":%s}' % odd
    body = b'{"choices":[{"index":0,"message":%s,"finish_reason":"stop"}]}' % message
    with Scripted(["request", answer(body)]) as server, VLLMProvider(server.url) as vllm:
        try:
            assert b'"reasoning_content":"r"' in vllm.forward("chat_completion", {"messages": []}).body
        except ResponseDecodeError as error:
            assert error.url == server.url + "/v1/chat/completions"
