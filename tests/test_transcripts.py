"""Every transcript of a real server replayed through the library over a socket; every stream cut at every byte."""

import json
import os
import re

import pytest
import requests
import wire
from scripted import Scripted, answer, steps

from vllm_bridge import (
    APIConnectionError,
    APITimeoutError,
    BadRequestError,
    BridgeError,
    IncompleteStreamError,
    NetworkConfig,
    ProviderConfig,
    ResponseDecodeError,
    VLLMProvider,
)
from vllm_bridge.api.chat import ChatAccumulator, normalise
from vllm_bridge.api.decoding import ChatChunks, CompletionChunks, ResponsesReader, TranscriptionReader
from vllm_bridge.api.messages import MessageReader
from vllm_bridge.errors import class_for_status, payload_error
from vllm_bridge.sse import EventDecoder, iter_events
from vllm_bridge.api.completions import CompletionAccumulator

LONG = bool(os.environ.get("VLLM_BRIDGE_LONG"))
OPERATIONS = {
    "/v1/chat/completions": "chat_completion",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embedding",
    "/v1/rerank": "rerank",
    "/v2/rerank": "rerank",
    "/rerank": "rerank",
    "/v1/audio/transcriptions": "transcription",
    "/v1/responses": "responses",
    "/v1/messages": "messages",
    "/v1/messages/count_tokens": "count_tokens",
    "/v1/chat/completions/batch": "chat_completion_batch",
    "/tokenize": "tokenize",
    "/detokenize": "detokenize",
    "/score": "score",
    "/v1/score": "score",
    "/classify": "classify",
    "/pooling": "pooling",
    "/v2/embed": "embed",
    "/generative_scoring": "generative_scoring",
    "/v1/audio/translations": "translation",
    "/v1/models": "list_models",
}
STREAMED = ("chat_completion", "text_completion", "transcription", "translation", "responses", "messages")
ALL = {name: wire.load(name) for name in wire.names()}


def operation_of(transcript):
    """Return the operation that meets this reply: its own, or a chat for routes and methods that are an error."""
    request = transcript.request
    right = request["method"] == ("GET" if request["path"] == "/v1/models" else "POST")
    operation = OPERATIONS.get(request["path"]) if right else None
    failed = transcript.status_line and transcript.status >= 300 and request["method"] not in ("HEAD", "OPTIONS")
    return operation or ("chat_completion" if failed else None)


def fields_of(transcript, operation):
    """Return the keywords that make the recorded request, as far as keywords can."""
    body = transcript.request["body"]
    if operation == "list_models":
        return {}
    if not isinstance(body, dict) or (
            operation in ("transcription", "translation") and "multipart_fields" not in body):
        body = {"model": "m"}
    if operation in ("transcription", "translation"):
        body = dict(body.get("multipart_fields") or ())
        body["file"] = b"RIFF"
    fields = {name: value for name, value in body.items() if name not in ("stream", "stream_options")}
    if operation == "rerank":
        fields.setdefault("documents", ["a"])
        fields.setdefault("query", "q")
    return fields


def streams(transcript, operation):
    body = transcript.request["body"]
    asked = body.get("stream") if isinstance(body, dict) else None
    form = dict(body.get("multipart_fields") or ()) if isinstance(body, dict) else {}
    return operation in STREAMED and bool(transcript.streams or asked or form.get("stream") == "true")


def replay(transcript, operation, session):
    """Call the operation; return (what it returned or yielded, the error that it raised)."""
    given, items = fields_of(transcript, operation), []
    with Scripted(steps(transcript)) as server:
        config = ProviderConfig(NetworkConfig(server.url, max_retries=0), native_responses=True)
        patience = 0.4 if transcript.end == "recorder timeout" else 20
        with VLLMProvider(config=config, session=session, timeout=(5, patience)) as vllm:
            try:
                if streams(transcript, operation):
                    with getattr(vllm, operation + "_stream")(**given) as stream:
                        items.extend(stream)
                    return items, None
                return getattr(vllm, operation)(**given), None
            except BridgeError as error:
                return items, error


# What the library itself refuses, before anything is sent.
REFUSED = {"rerank_err_empty_doc", "rerank_err_empty_query", "rerank_top_n_negative", "rerank_top_n_string",
           "rerank_top_n_zero"}
REPLAYED = [name for name, transcript in ALL.items() if operation_of(transcript)]


def framing(name):
    """Return all of a recording that the way of sending sees: it hands bodies on unread."""
    transcript = ALL[name]
    seen = ("content-type", "transfer-encoding", "location")
    fields = tuple(tuple(pair) for pair in transcript.headers if pair[0].lower() in seen)
    return operation_of(transcript), transcript.status_line, transcript.end, bool(transcript.frames), fields


# Every recording over our own connections; over a caller's session, and urllib3's, one of each framing.
FRAMINGS = {framing(name): name for name in REPLAYED}
REPLAYS = [(name, True) for name in REPLAYED] + [
    (name, False) for name in REPLAYED if LONG or name == FRAMINGS[framing(name)]]


@pytest.mark.filterwarnings("ignore:guided_:DeprecationWarning")
@pytest.mark.parametrize("name, own", REPLAYS, ids=["%s-%s" % (name, "own" if own else "session")
                                                    for name, own in REPLAYS])
def test_replay(name, own):
    transcript = ALL[name]
    operation = operation_of(transcript)
    with requests.Session() as session:
        result, error = replay(transcript, operation, None if own else session)
    if name in REFUSED:
        assert type(error) is BadRequestError and error.url is None
    elif not transcript.status_line:
        expected = APITimeoutError if transcript.end == "recorder timeout" else APIConnectionError
        assert type(error) is expected
    elif transcript.status >= 300:
        check_error(transcript, error)
    elif transcript.streams:
        check_stream(transcript, operation, result, error)
    else:
        assert error is None
        check_reply(transcript, operation, result)


def check_error(transcript, error):
    assert type(error) is class_for_status(transcript.status), error
    assert error.status_code == transcript.status and error.request_id and error.url.startswith("http://127.0.0.1:")
    if transcript.status < 400:
        assert "redirects to" in error.message
        return
    body = transcript.body.decode()
    if body == '{"detail":"Not Found"}':
        assert "this server does not offer" in error.message
    elif transcript.content_type.startswith("application/json"):
        told = json.loads(body)
        inner = told["error"] if isinstance(told.get("error"), dict) else told
        assert error.message == (inner.get("message") or inner.get("error") or inner.get("detail"))
        assert (error.code, error.param) == (inner.get("code"), inner.get("param"))
    else:
        assert body in error.message


def check_reply(transcript, operation, result):
    if "json" not in transcript.content_type:
        assert operation in ("transcription", "embedding", "pooling") and result
        return
    sent = transcript.json
    if operation == "list_models":
        assert [(model.id, model.max_model_len) for model in result.data] == [
            (model["id"], model["max_model_len"]) for model in sent["data"]]
    elif operation == "rerank":
        assert {item.index: item.relevance_score for item in result.results} == {
            item["index"]: item["relevance_score"] for item in sent["results"]}
        scores = [item.relevance_score for item in result.results]
        assert scores == sorted(scores, reverse=True)
        assert {**result.usage, **sent["usage"]} == result.usage  # counts that are not there are added
    elif operation == "chat_completion":
        assert result == normalise(sent)
        assert result.text == (transcript.json["choices"][0]["message"]["content"] or "")
    else:
        assert result == sent


def check_stream(transcript, operation, items, error):
    payloads = transcript.payloads
    failed = [payload for payload in payloads if payload_error(payload)]
    aborted = [payload for payload in payloads if '"finish_reason": "abort"' in json.dumps(payload)]
    if failed:
        told = failed[0]["error"]
        assert type(error) is class_for_status(told.get("code", 500))  # Anthropic's errors have none
        assert (error.message, error.code, error.param) == (told["message"], told.get("code"), told.get("param"))
        assert error.request_id and error.url
        assert bool(items) is (payloads.index(failed[0]) > 0)  # an error that comes first is the call's own
    elif transcript.end == "recorder timeout":
        assert type(error) is APITimeoutError and items
    elif aborted or transcript.end != "chunked terminator":
        assert type(error) is IncompleteStreamError, error
        assert error.request_id and error.url
    else:
        assert error is None, error
    if operation in ("chat_completion", "text_completion"):
        assert all(item.choices for item in items)
        if error is None:
            text = "".join(
                (choice.get("delta") or choice).get("content" if operation == "chat_completion" else "text") or ""
                for payload in payloads for choice in payload["choices"] if not choice["index"])
            assert "".join(item.text for item in items) == text
            assert items[-1].usage == next((sent["usage"] for sent in payloads[::-1] if sent.get("usage")), None)
    elif operation in ("responses", "messages"):
        assert items == payloads[:len(items)] and (error or len(items) == len(payloads))
    elif error is None:
        text = "".join(choice["delta"].get("content") or "" for sent in payloads for choice in sent["choices"])
        assert items[-1].type == "transcript.text.done" and items[-1].text == text


def test_what_is_replayed_covers_every_operation_and_every_kind_of_reply():
    kinds = set()
    for name in REPLAYED:
        transcript = ALL[name]
        kinds.add((operation_of(transcript), transcript.status_line.split()[1:2] == ["200"], transcript.streams))
    for operation in set(OPERATIONS.values()):
        assert (operation, True, False) in kinds
        assert operation in ("list_models", "translation") or (operation, False, False) in kinds
    for operation in STREAMED:
        assert (operation, True, True) in kinds
    left = {transcript.request["path"].split("?")[0] for name, transcript in ALL.items() if name not in REPLAYED}
    assert not left & set(OPERATIONS) - {"/v1/chat/completions", "/v1/models"}  # OPTIONS and HEAD


# ---------------------------------------------------------------- cuts

READERS = {"chat_completion": ChatChunks, "text_completion": CompletionChunks, "responses": ResponsesReader,
           "transcription": TranscriptionReader, "translation": TranscriptionReader, "messages": MessageReader}
STREAMS = [name for name, transcript in ALL.items() if transcript.streams]


def pairs_of(events):
    return [(event.event, event.data) for event in events]


@pytest.mark.no_cover
@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_cut_at_every_byte_gives_the_same_events_and_items(name):
    body = ALL[name].body
    whole = list(iter_events([body]))
    assert list(iter_events(body[at:at + 1] for at in range(len(body)))) == whole
    expected = items_of(name, [whole])
    # In two pieces: the decoder is at rest between events, so each is cut alone; and it looks at no letter of a value,
    # so events that differ in letters and digits alone are cut once.
    done, shapes = 0, set()
    for event in re.findall(rb".*?\n\n|.+", body, re.DOTALL):
        here = whole[done:done + len(EventDecoder().feed(event))]
        shape = re.sub(rb"[A-Za-z0-9]+", b"a", event)
        for at in range(0 if shape in shapes and not LONG else len(event) + 1):
            decoder = EventDecoder()
            assert decoder.feed(event[:at]) + decoder.feed(event[at:]) == here, at
        shapes.add(shape)
        done += len(here)
    assert done == len(whole)
    assert items_of(name, [[event] for event in whole]) == expected


def items_of(name, batches):
    reader = READERS.get(operation_of(ALL[name]), ResponsesReader)()
    items = []
    try:
        for events in batches:
            for event in events:
                items.extend(() if event.data == "[DONE]" else reader.feed(event))
        items.extend(reader.finish())
    except BridgeError as error:
        items.append((type(error), error.message))
    return items


# ---------------------------------------------------------------- the same request, streamed and not

ACCUMULATORS = {"/v1/chat/completions": ChatAccumulator, "/v1/completions": CompletionAccumulator}

# Where vLLM 0.32.0 itself answers otherwise in a stream (tests/data/vllm-0.32.0/NAME).
BROKEN_CALLS = {
    "chat_stream_tools_bad_json": ("get_weather", '{"city":', "tool_calls", "stop"),
    "chat_stream_tools_truncated": ("get_weather", "", "length", "length"),
}


def asked(name):
    """Return what was asked of which server, streaming apart."""
    transcript = ALL[name]
    server = name.partition("_")[0] if name.startswith(("think", "notool")) else "chat"
    body = {key: value for key, value in transcript.request["body"].items() if key not in ("stream", "stream_options")}
    return json.dumps([server, transcript.request["path"], body], sort_keys=True)


def same_requests():
    whole, pairs = {}, []
    fit = [name for name, t in ALL.items() if t.request["path"] in ACCUMULATORS and isinstance(t.request["body"], dict)
           and t.status_line and t.status == 200 and b'{"error"' not in t.body
           and t.end in ("chunked terminator", "content-length reached")]
    for name in fit:
        if not ALL[name].streams:
            whole.setdefault(asked(name), name)
    for name in fit:
        if ALL[name].streams and asked(name) in whole:
            pairs.append((name, whole[asked(name)]))
    return pairs


def told(value):
    """Return what a reply says: without what differs by call, and without nulls, which streams leave out."""
    if isinstance(value, dict):
        kept = {key: told(item) for key, item in value.items() if key not in ("id", "created", "system_fingerprint")}
        if isinstance(kept.get("content"), str) and not kept["content"].strip():
            kept["content"] = None  # "" or line ends beside calls and reasoning, in vLLM 0.32.0
        return {key: item for key, item in kept.items() if item is not None}
    return [told(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("streamed, whole", same_requests())
def test_chunks_fold_into_what_the_same_request_gave_without_streaming(streamed, whole):
    transcript = ALL[streamed]
    accumulator = ACCUMULATORS[transcript.request["path"]]()
    for payload in transcript.payloads:
        accumulator.feed(payload)
    folded, expected = accumulator.completion(), normalise(ALL[whole].json)
    if streamed in BROKEN_CALLS:
        [choice], [other] = folded["choices"], expected["choices"]
        [call] = choice["message"]["tool_calls"]
        assert (call["function"]["name"], call["function"]["arguments"], choice["finish_reason"],
                other["finish_reason"]) == BROKEN_CALLS[streamed]
        assert call["arguments_error"] and other["message"]["content"].startswith("<tool_call>")
        return
    if "usage" not in folded:
        del expected["usage"]
    assert told(folded) == told(expected)


def test_enough_requests_were_recorded_both_ways():
    streamed = dict(same_requests())
    assert len(streamed) > 25 and set(BROKEN_CALLS) < set(streamed)
    assert {"chat_stream_plain", "chat_stream_n2", "think_stream_reasoning", "completions_stream"} < set(streamed)


def test_a_reply_that_is_no_event_stream_is_shown():
    with Scripted(["request", answer(b"hello", content_type="text/plain")]) as server:
        with VLLMProvider(server.url, max_retries=0) as vllm:
            with pytest.raises(ResponseDecodeError, match="text/plain instead of text/event-stream: hello"):
                vllm.chat_completion_stream(messages=[])
