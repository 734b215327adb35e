"""Whatever comes in: never an exception outside our own classes, never more memory than the limits say.

What reads one format is fuzzed in its own test file: event streams in test_sse, error bodies in test_errors, request
and response heads in test_http1, chunked bodies in test_chunked, forms in test_multipart, settings as objects in
test_config. Here are the rooms that take what those hand on. The seeds are fixed (``derandomize``), so a failure here
fails again everywhere; ``VLLM_BRIDGE_LONG=1`` in the environment searches longer, ``FUZZ=20`` longer still.
"""

import copy
import io
import json
import logging
import os
import pickle

import pytest

import wire
from vllm_bridge import errors
from vllm_bridge.api import audio as transcription
from vllm_bridge.api import chat, completions as text, rerank
from vllm_bridge.config import file as config_file
from vllm_bridge.api.decoding import ChatChunks, CompletionChunks, ResponsesReader, TranscriptionReader
from vllm_bridge.config.settings import ProviderConfig
from vllm_bridge.api.forwarding import Forwarding, TokenUsage
from vllm_bridge.gateway import Gateway
from vllm_bridge.gateway import settings as gateway_settings
from vllm_bridge.gateway.routes import ROUTES
from vllm_bridge.gateway.settings import Settings
from vllm_bridge.http1.head import field_block
from vllm_bridge.client.reply import Reply
from vllm_bridge.api.responses import ResponseEvents, from_chat, iter_events, to_chat
from vllm_bridge.client.retry import parse_retry_after
from vllm_bridge.client.stream import Limits, Progress, Stream, items_of
from vllm_bridge.vllm import VLLMProvider
from vllm_bridge.api.body import object_of, to_json

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")

pytestmark = [
    pytest.mark.filterwarnings("default::hypothesis.errors.HypothesisWarning"),
    pytest.mark.filterwarnings("ignore:guided_:DeprecationWarning"),
]


TIMES = float(os.environ.get("FUZZ", "2" if os.environ.get("VLLM_BRIDGE_LONG") else "0.25"))


def cases(count):
    return hypothesis.settings(
        max_examples=int(count * TIMES), deadline=None, derandomize=True, database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


# ---------------------------------------------------------------- what comes in


WORDS = sorted((
    "model messages input prompt query documents content text role type id index choices delta message finish_reason "
    "usage prompt_tokens completion_tokens total_tokens prompt_tokens_details logprobs top_logprobs bytes token tools "
    "tool_calls tool_choice function name arguments call_id output status reasoning reasoning_content summary error "
    "code param detail object loc msg results relevance_score score document top_n return_documents params extra_body "
    "stream_options include_usage n stop response_format json_schema schema structured_outputs guided_json include "
    "instructions previous_response_id metadata format annotations refusal encrypted_content image_url file_data url "
    "item item_id output_index content_index part sequence_number response namespace custom input_text output_text "
    "fallbacks stream effort max_tokens segments words duration language seconds created created_at headers"
).split())
STRINGS = st.one_of(
    st.sampled_from(WORDS),
    st.sampled_from(["", "user", "assistant", "function_call", "function_call_output", "custom_tool_call", "required",
                     "auto", "reasoning", "input_image", "stop", "length", "abort", "{", "{}", "[]", "null", "\ud800",
                     "\u0000", "\r\n", "é\U0001F600", "data: [DONE]", "[DONE]", "9" * 40, "-1", "NaN", "x" * 3000]),
    st.text(st.characters(), max_size=6),
)
NUMBERS = st.one_of(
    st.integers(-3, 3), st.floats(), st.sampled_from([10 ** 400, -10 ** 30, 2 ** 63, 404, 429, 503, 599, 600, 0.5]),
)
JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, STRINGS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(STRINGS, inner, max_size=3)),
    max_leaves=6,
)
OBJECTS = st.dictionaries(STRINGS, JUNK, max_size=5)
DEEP = json.loads("[" * 900 + "]" * 900)


def places(value):
    """Every (container, key) within a JSON value."""
    found, left = [], [value]
    while left:
        inner = left.pop()
        pairs = inner.items() if isinstance(inner, dict) else enumerate(inner) if isinstance(inner, list) else ()
        for key, item in list(pairs):
            found.append((inner, key))
            left.append(item)
    return found


@st.composite
def spoilt(draw, good):
    """One of the good values with some of its parts replaced, left out or added to."""
    value = copy.deepcopy(draw(st.sampled_from(good)))
    for _ in range(draw(st.integers(1, 3))):
        spots = places(value)
        if not spots:
            break
        container, key = draw(st.sampled_from(spots))
        how = draw(st.integers(0, 5))
        if how == 0:
            del container[key]
        elif how == 1 and isinstance(container, dict):
            container[draw(STRINGS)] = draw(JUNK)
        elif how == 2 and isinstance(container, list):
            container.append(draw(JUNK))
        else:
            container[key] = draw(JUNK)
    return value


@st.composite
def cut(draw, data):
    """Bytes in pieces."""
    pieces, at = [], 0
    while at < len(data):
        size = draw(st.integers(1, max(1, len(data) // 2)))
        pieces.append(data[at:at + size])
        at += size
    return pieces


def replies(*names):
    return [wire.load(name).json for name in names]


CHATS = replies("chat_plain", "chat_n2", "chat_logprobs", "chat_reasoning_then_tool") + [{
    "id": "c", "choices": [{"message": {"role": "assistant", "content": None, "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}}]}]
CHUNKS = wire.load("chat_stream_logprobs").payloads[:6] + wire.load("chat_stream_count").payloads[-3:] + [
    {"id": "c", "choices": [{"index": 0, "delta": {"tool_calls": [
        {"index": 0, "id": "1", "type": "function", "function": {"name": "f", "arguments": "{"}}]}}]},
    {"id": "c", "choices": [{"index": 0, "delta": {"reasoning": "hm"}}]},
    {"id": "c", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}},
]
TOOLS = [
    {"type": "function", "name": "f", "parameters": {"type": "object"}},
    {"type": "custom", "name": "shell", "description": "d", "format": {"type": "text"}},
    {"type": "namespace", "name": "crm", "description": "d", "tools": [{"type": "function", "name": "find"}]},
    {"type": "web_search"},
]
REQUESTS = [
    {"model": "m", "input": "Hi", "instructions": "Be brief", "reasoning": {"effort": "low", "summary": "auto"},
     "text": {"format": {"type": "json_schema", "name": "a", "schema": {}}, "verbosity": "low"}, "tools": TOOLS,
     "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
     "include": ["message.output_text.logprobs"], "top_logprobs": 2, "max_output_tokens": 9, "metadata": {"a": "b"}},
    {"model": "m", "tools": TOOLS, "tool_choice": {"type": "custom", "name": "shell"}, "input": [
        {"role": "developer", "content": "d"},
        {"type": "message", "role": "user", "content": [
            {"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": "data:,", "detail": "low"},
            {"type": "input_file", "filename": "a", "file_data": "data:,"},
            {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]},
        {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "s"}],
         "content": [{"type": "reasoning_text", "text": "t"}], "encrypted_content": None},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_text", "text": "o"}]},
        {"type": "custom_tool_call", "call_id": "2", "name": "shell", "input": "ls"},
        {"type": "custom_tool_call_output", "call_id": "2", "output": "o"},
        {"type": "message", "role": "assistant", "id": "m", "status": "completed", "content": [
            {"type": "output_text", "text": "a", "annotations": [], "logprobs": []},
            {"type": "refusal", "refusal": "no"}]},
        {"type": "item_reference", "id": "m"}]},
]


def responses():
    made = [from_chat(copy.deepcopy(reply), to_chat(REQUESTS[0])[1]) for reply in CHATS]
    return made + [dict(made[0], status="failed", error={"code": "server_error", "message": "m"})]


RESPONSES = responses()
EVENTS = list(iter_events(copy.deepcopy(CHUNKS), to_chat(REQUESTS[0])[1])) + [
    {"type": "error", "message": "m", "code": "c"},
    {"type": "response.failed", "response": {"error": {"message": "m", "code": "server_error"}}},
]
AS_JSON = dict(separators=(",", ":"))


# ---------------------------------------------------------------- streams


LINES = st.one_of(
    st.binary(max_size=12),
    st.sampled_from([b"data: [DONE]\n\n", b"data:", b"data: {", b"}", b"\n", b"\r", b"\r\n", b"\n\n", b"event: error\n",
                     b"id: \0\n", b"retry: 1\n", b": comment\n", b"\xef\xbb\xbf", b"data: [1]\n\n", b"data: {}\n\n",
                     b'data: {"error": "x"}\n\n', b'data: {"choices": 1}\n\n', b"\xf0\x9f", b"\xe2\x80\xa8"]),
    st.one_of(st.sampled_from(CHUNKS), spoilt(CHUNKS)).map(
        lambda chunk: b"data: %s\n\n" % json.dumps(chunk, **AS_JSON).encode()),
)
READERS = {
    "chat": ChatChunks, "text": CompletionChunks, "responses": ResponsesReader, "transcription": TranscriptionReader,
    "forwarding": lambda: Forwarding(1, False, TokenUsage()),
}


class Source:
    """The bytes of a reply, without a socket."""

    url = "http://server/v1"
    request_id = None
    headers = {"content-type": "text/event-stream"}
    resumes = True

    def __init__(self, pieces):
        self.pieces = list(pieces)

    def read(self):
        return self.pieces.pop(0) if self.pieces else b""

    def set_timeout(self, seconds):
        pass

    def finish(self):
        pass

    def close(self):
        pass


def streamed(pieces, reader):
    progress = Progress()
    return Stream(progress, items_of(Source(pieces), reader, Limits(None, None), progress, lambda error: None))


@pytest.mark.parametrize("name", sorted(READERS))
@cases(150)
@hypothesis.given(data=st.data())
def test_a_stream_ends_or_raises_an_error_of_ours(name, data):
    whole = b"".join(data.draw(st.lists(LINES, max_size=8)))
    try:
        items = list(streamed(data.draw(cut(whole)), READERS[name]()))
    except errors.BridgeError as error:
        assert_tellable(error)
    else:
        for item in items:
            assert isinstance(item, bytes) or json.dumps(item)


def assert_tellable(error):
    """An error can be printed, handed on as JSON and sent to another process."""
    assert 400 <= errors.http_status(error) <= 599
    payload = json.loads(json.dumps(errors.error_to_payload(error), allow_nan=False))
    assert isinstance(payload["error"]["message"], str) and payload["error"]["message"]
    str(error), repr(error)
    assert type(pickle.loads(pickle.dumps(error))) is type(error)


@cases(100)
@hypothesis.given(st.one_of(st.none(), st.text(max_size=12), NUMBERS.map(str)), st.none() | NUMBERS.map(str))
def test_any_retry_after(value, milliseconds):
    seconds = parse_retry_after(value, 0.0, milliseconds)
    assert seconds is None or seconds >= 0


# ---------------------------------------------------------------- replies and requests of the operations


BODIES = st.one_of(OBJECTS, spoilt(REQUESTS), spoilt([
    {"model": "m", "messages": [{"role": "assistant", "reasoning": "r", "content": "c"}], "guided_json": {},
     "structured_outputs": {}, "stream_options": {"include_usage": True}, "n": 2},
    {"model": "m", "prompt": ["a", "b"], "n": 2, "best_of": 2, "stop": "a"},
    {"model": "m", "query": "q", "documents": ["a", {"text": "b", "id": "1", "meta": {}}], "top_n": 1,
     "params": {"return_documents": True}},
]))


@pytest.mark.parametrize("prepare", [chat.prepare, text.prepare, rerank.prepare, to_chat, text.expected_choices])
@cases(150)
@hypothesis.given(body=BODIES)
def test_any_request(prepare, body):
    before = copy.deepcopy(body)
    try:
        made = prepare(body)
        if prepare is to_chat:
            made = made[0]
        if isinstance(made, dict):
            to_json(made)
    except errors.BadRequestError as error:
        assert_tellable(error)
    assert repr(body) == repr(before)


@pytest.mark.parametrize("normalise", [chat.normalise, text.normalise, from_chat])
@cases(150)
@hypothesis.given(reply=st.one_of(OBJECTS, spoilt(CHATS), spoilt(RESPONSES)))
def test_any_reply(normalise, reply):
    try:
        json.dumps(normalise(reply))
    except errors.BridgeError as error:
        assert_tellable(error)


@cases(150)
@hypothesis.given(st.one_of(OBJECTS, spoilt(replies("rerank_many"))), BODIES)
def test_any_rerank_reply(reply, given):
    try:
        rerank.prepare(given)
        json.dumps(rerank.convert(reply, given))
    except errors.BridgeError as error:
        assert_tellable(error)


@cases(150)
@hypothesis.given(st.one_of(JUNK, spoilt(replies("audio_json", "audio_verbose_segment"))).map(
    lambda reply: json.dumps(reply).encode()) | st.binary(max_size=20), st.none() | STRINGS)
def test_any_transcription_reply(body, response_format):
    try:
        json.dumps(transcription.result(body, "application/json", response_format))
    except errors.BridgeError as error:
        assert_tellable(error)


@cases(150)
@hypothesis.given(st.one_of(st.binary(max_size=40), st.sampled_from([
    b"[" * 100000, b'{"a":' * 100000, b"9" * 5000, b"NaN", b'"\\ud800"', b"\xef\xbb\xbf{}", b'{"a":1,"a":2}'])))
def test_any_json(body):
    try:
        assert isinstance(object_of(body), dict)
    except errors.ResponseDecodeError as error:
        assert_tellable(error)


# ---------------------------------------------------------------- the Responses converter, both ways


@cases(200)
@hypothesis.given(st.lists(st.one_of(st.sampled_from(CHUNKS), spoilt(CHUNKS), OBJECTS), max_size=8), BODIES)
def test_any_chunks_give_events_with_one_end(chunks, body):
    chunks = copy.deepcopy(chunks)
    try:
        context = to_chat(body)[1]
    except errors.BadRequestError:
        context = None
    try:
        events = list(iter_events(chunks, context))
    except errors.BridgeError as error:
        assert_tellable(error)
        return
    json.dumps(events)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    ends = [event for event in events
            if event["type"] in ("response.completed", "response.incomplete", "response.failed", "error")]
    assert ends == events[-1:]


@cases(100)
@hypothesis.given(st.lists(spoilt(CHUNKS), max_size=8))
def test_a_stream_can_be_broken_off_anywhere(chunks):
    machine = ResponseEvents()
    try:
        for chunk in chunks:
            machine.feed(chunk)
    except errors.BridgeError as error:
        assert_tellable(error)
    if machine.opened:
        json.dumps(machine.fail(errors.APIConnectionError("gone")))


# ---------------------------------------------------------------- the config reader


FILE = {
    "client": {"host": "127.0.0.1", "port": 1, "api_keys": ["k"], "allowed_origins": ["*"], "max_body_mb": 1},
    "providers": {"vllm": {"keys": [{"name": "a", "value": "env.A", "models": ["*"], "weight": 1.0,
                                     "vllm_key_config": {"url": "http://h:8000"}}], "network_config": {}}},
}


@cases(200)
@hypothesis.given(st.one_of(
    st.text(max_size=40), spoilt([FILE]).map(json.dumps), OBJECTS.map(json.dumps),
    st.sampled_from(["[" * 100000, '{"client":' * 50000, "NaN", "9" * 5000, '{"a":1,"a":2}',
                     '{"client": {"port": 1e400}}']),
))
def test_any_config_file(content):
    try:
        repr(config_file.loads(content, "file", {"A": "secret"}))
    except errors.ConfigError as error:
        assert error.message.startswith(("file", "client", "providers", "the whole file"))
        assert "secret" not in error.message


NAMES = [setting.name for setting in gateway_settings.SETTINGS if setting.name not in ("config", "api_key_file")]


@cases(200)
@hypothesis.given(
    st.dictionaries(st.sampled_from(NAMES), STRINGS | st.lists(STRINGS, max_size=2), max_size=3),
    st.dictionaries(st.sampled_from(NAMES).map(lambda name: "VLLM_BRIDGE_" + name.upper()), STRINGS, max_size=3),
)
def test_any_flags_and_variables(flags, environ):
    try:
        repr(gateway_settings.read(flags, environ))
    except errors.ConfigError as error:
        assert_tellable(error)


def test_nesting_costs_no_stack():
    for call in (chat.prepare, text.prepare, rerank.prepare, to_chat):
        try:
            call({"model": "m", "input": "i", "messages": DEEP, "query": "q", "documents": ["d"], "metadata": DEEP,
                  "tools": [{"type": "function", "name": "f", "parameters": {"a": DEEP}}]})
        except errors.BadRequestError:
            pass
    for call in (chat.normalise, from_chat):
        call({"id": "i", "choices": [{"message": {"content": DEEP, "tool_calls": [{"function": DEEP}]}}],
              "output": [{"type": "message", "content": [{"type": "output_text", "text": DEEP}]}]})


# ---------------------------------------------------------------- the gateway as a function


class Upstream(VLLMProvider):
    """A provider whose servers answer what the test wants, without a network."""

    def __init__(self):
        super().__init__("http://127.0.0.1:1", max_retries=0)  # lists of models: nobody is there
        self.body = b"{}"
        self.pieces = []

    def with_options(self, **options):
        copied = super().with_options(**options)
        copied.__dict__["_origin"] = self
        return copied

    def _reply(self, operation, body, model):
        origin = self.__dict__.get("_origin", self)
        to_json(body) if isinstance(body, dict) else body.read()
        reply = Reply(200, {"Content-Type": "application/json"}, origin.body, "http://server.example/v1", None)
        error = errors.payload_error(json.loads(origin.body)) if b'"error"' in origin.body else None
        if error is not None:
            raise error
        return reply

    def _stream(self, operation, body, model, reader):
        origin = self.__dict__.get("_origin", self)
        to_json(body) if isinstance(body, dict) else body.read()
        return streamed(origin.pieces, reader())


@pytest.fixture(scope="module")
def gateway():
    made = Gateway(Settings(ProviderConfig.from_dict({}, environ={}), max_body_mb=1), Upstream())
    yield made
    made.close()


def called(gateway, method, path, body, **more):
    """Call the application as a server would, and hold it to PEP 3333."""
    heads = []

    def start_response(status, headers, exc_info=None):
        heads.append((status, headers))
        return lambda data: None

    environ = {"CONTENT_LENGTH": str(len(body)), "SERVER_NAME": "a", "SERVER_PORT": "1", "wsgi.input": io.BytesIO(body),
               "REQUEST_METHOD": method, "PATH_INFO": path, "SCRIPT_NAME": "", "QUERY_STRING": ""}
    answer = gateway(dict(environ, **more), start_response)
    try:
        data = b"".join(answer)
    finally:
        getattr(answer, "close", lambda: None)()
    ((status, headers),) = heads
    field_block(headers)  # what no header may hold raises
    code = int(status[:3])
    assert status[3:4] == " " and (200 <= code < 500 or code in (500, 502)), (status, data)
    assert b"internal_error" not in data and b"Traceback" not in data
    if code >= 400 and method != "HEAD":
        assert json.loads(data)["error"]["message"]


PATHS = sorted({route.path.replace("{*}", "m").replace("{}", "x") for route in ROUTES if route.operation != "ready"})
METHODS = ["GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE", "x"]
HEADERS = st.sampled_from([
    "CONTENT_TYPE", "HTTP_ORIGIN", "HTTP_X_REQUEST_ID", "HTTP_X_BF_EH_A", "HTTP_X_BF_EH_", "HTTP_X_BF_API_KEY",
    "HTTP_TRACEPARENT", "HTTP_AUTHORIZATION", "HTTP_ACCESS_CONTROL_REQUEST_METHOD",
    "HTTP_ACCESS_CONTROL_REQUEST_HEADERS", "HTTP_X_SESSION_ID", "HTTP_X_BF_API_KEY_ID",
])
HEADER_VALUES = st.one_of(  # what the head reader lets through
    st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, blacklist_categories=["Cc"]), max_size=9),
    st.sampled_from(["multipart/form-data; boundary=b", "http://localhost:1", "http://evil.example", "Bearer x"]),
)


@cases(300)
@hypothesis.given(
    st.sampled_from(METHODS), st.sampled_from(PATHS) | st.text(st.characters(max_codepoint=0xFF), max_size=9),
    st.one_of(st.binary(max_size=30), BODIES.map(lambda body: json.dumps(body).encode())),
    st.dictionaries(HEADERS, HEADER_VALUES, max_size=3),
)
def test_any_call(gateway, caplog, method, path, body, headers):
    gateway.provider.body = json.dumps(CHATS[0]).encode()
    called(gateway, method, path, body, **headers)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


POSTS = sorted(route.path for route in ROUTES if route.handler == "operation")


@cases(300)
@hypothesis.given(st.sampled_from(POSTS), BODIES, st.booleans(), st.one_of(
    JUNK, OBJECTS, spoilt(CHATS), spoilt(RESPONSES), spoilt(replies("rerank_many", "embed_float"))), st.data())
def test_any_request_met_by_any_reply(gateway, caplog, path, body, stream, reply, data):
    gateway.provider.body = json.dumps(reply).encode()
    gateway.provider.pieces = data.draw(cut(b"".join(data.draw(st.lists(LINES, max_size=5)))))
    body = dict(body, model="m", stream=stream)
    for name, value in (("messages", [{}]), ("prompt", "p"), ("input", "i"), ("query", "q"), ("documents", ["d"])):
        body.setdefault(name, value)
    called(gateway, "POST", path, json.dumps(body).encode())
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
