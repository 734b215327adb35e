"""The gateway as OpenAI's own client sees it."""

import base64
from typing import Any, Iterator

import pytest

from faces import LONG, own
from vllm_bridge.config.settings import ProviderConfig
from vllm_bridge.echo import EchoServer
from vllm_bridge.gateway import Gateway
from vllm_bridge.gateway.settings import Settings

openai = pytest.importorskip("openai")

MESSAGES = [{"role": "user", "content": "Hello"}]
TOOLS = [{"type": "function", "function": {
    "name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}},
                                          "required": ["city"]}}}]


@pytest.fixture(scope="module")
def echo() -> Iterator[EchoServer]:
    with EchoServer() as server:
        yield server


@pytest.fixture(scope="module")
def client(echo: EchoServer) -> Iterator[Any]:
    provider = ProviderConfig(keys=[{"url": echo.url}], network_config={"max_retries": 0})
    with own(Gateway(Settings(provider, ("sk-mine",)))) as (host, port):
        with openai.OpenAI(base_url="http://%s:%d/v1" % (host, port), api_key="sk-mine", max_retries=0,
                           timeout=LONG) as found:
            yield found


def test_chat(client: Any) -> None:
    reply = client.chat.completions.create(model="vllm/echo", messages=MESSAGES, extra_body={"top_k": 5})
    assert reply.choices[0].message.content == "You said: Hello"
    assert reply.usage.completion_tokens == 3
    assert reply._request_id


def test_stream(client: Any) -> None:
    stream = client.chat.completions.create(
        model="vllm/echo", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "You said: Hello"
    assert chunks[-1].usage.completion_tokens == 3


def test_tools(client: Any) -> None:
    reply = client.chat.completions.create(model="vllm/echo", messages=MESSAGES, tools=TOOLS, tool_choice="required")
    assert reply.choices[0].message.tool_calls[0].function.name == "get_weather"
    with client.chat.completions.stream(model="vllm/echo", messages=MESSAGES, tools=TOOLS,
                                        tool_choice="required") as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.tool_calls[0].function.name == "get_weather"
    assert final.choices[0].finish_reason == "tool_calls"


def test_completions(client: Any) -> None:
    assert "Hello" in client.completions.create(model="vllm/echo", prompt="Hello").choices[0].text
    stream = client.completions.create(model="vllm/echo", prompt="Hello", stream=True)
    assert "Hello" in "".join(chunk.choices[0].text for chunk in stream)


def test_embeddings(client: Any) -> None:
    rows = client.embeddings.create(model="vllm/echo", input=["a", "b"]).data  # the client asks for base64
    plain = client.embeddings.create(model="vllm/echo", input=["a", "b"], encoding_format="float").data
    assert [row.embedding for row in rows] == [pytest.approx(row.embedding) for row in plain]
    coded = client.embeddings.create(model="vllm/echo", input="a", encoding_format="base64").data[0].embedding
    assert len(base64.b64decode(coded)) == 4 * len(plain[0].embedding)


def test_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["vllm/echo"]
    assert client.models.retrieve("vllm/echo").max_model_len == 32768


def test_transcription(client: Any) -> None:
    file = ("speech.wav", b"RIFF1234WAVE" + bytes(100))
    reply = client.audio.transcriptions.create(model="vllm/echo", file=file, language="en",
                                               timestamp_granularities=["word", "segment"])
    assert "speech.wav" in reply.text
    text = client.audio.transcriptions.create(model="vllm/echo", file=file, language="en", response_format="text")
    assert text == reply.text
    events = list(client.audio.transcriptions.create(model="vllm/echo", file=file, stream=True))
    assert events[-1].type == "transcript.text.done"
    assert "".join(event.delta for event in events[:-1]) == events[-1].text


def test_responses(client: Any) -> None:
    assert client.responses.create(model="vllm/echo", input="Hello").output_text == "You said: Hello"
    with client.responses.stream(model="vllm/echo", input="Hello") as stream:
        kinds = [event.type for event in stream]
        assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
        assert stream.get_final_response().output_text == "You said: Hello"


@pytest.mark.parametrize("status, name", [
    (400, "BadRequestError"), (401, "AuthenticationError"), (403, "PermissionDeniedError"), (404, "NotFoundError"),
    (409, "ConflictError"), (422, "UnprocessableEntityError"), (429, "RateLimitError"), (500, "InternalServerError"),
    (503, "InternalServerError"),
])
@pytest.mark.parametrize("stream", [False, True])
def test_every_status_raises_the_clients_own_class(client: Any, status: int, name: str, stream: bool) -> None:
    with pytest.raises(getattr(openai, name)) as caught:
        client.chat.completions.create(
            model="vllm/echo", messages=[{"role": "user", "content": "!error %d x" % status}], stream=stream
        )
    assert type(caught.value) is getattr(openai, name)
    assert caught.value.status_code == status
    assert caught.value.body["message"] in caught.value.message
    assert caught.value.request_id


def test_errors_of_the_gateway_itself(client: Any) -> None:
    with pytest.raises(openai.AuthenticationError) as caught:
        client.with_options(api_key="sk-wrong").models.list()
    assert caught.value.code == "invalid_api_key"
    with pytest.raises(openai.BadRequestError) as refused:
        client.audio.speech.create(model="vllm/echo", voice="alloy", input="x")
    assert refused.value.code == "unsupported_operation"
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("vllm/nobody")
    assert missing.value.param == "model"


def test_an_error_within_a_stream(client: Any) -> None:
    stream = client.chat.completions.create(
        model="vllm/echo", messages=[{"role": "user", "content": "!die-after 2 one two three"}], stream=True
    )
    with pytest.raises(openai.APIError, match="broke off"):
        list(stream)
