"""What the events of a stream mean: chunks with a choice each, usage on the last, errors raised."""

import json

import pytest
import wire
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_bridge.api import decoding
from vllm_bridge.api.decoding import (
    ChatChunks,
    CompletionChunks,
    ResponsesReader,
    TokenUsage,
    TranscriptionReader,
    aborted,
    payload_of,
)
from vllm_bridge.errors import (
    BadRequestError,
    BridgeError,
    IncompleteStreamError,
    InternalServerError,
    ResponseDecodeError,
)
from vllm_bridge.api.records import ChatCompletion, ChatCompletionChunk, Completion, ResponseEvent, TranscriptionEvent
from vllm_bridge.sse import Event, iter_events


def event(payload, kind="message"):
    return Event(kind, payload if isinstance(payload, str) else json.dumps(payload))


def read(reader, *payloads):
    """Feed a reader and return (items of each event, items at the end)."""
    return [list(reader.feed(event(payload))) for payload in payloads], list(reader.finish())


def chunk(content="", index=0, reason=None, **more):
    choice = {"index": index, "delta": {"content": content} if content else {}, "finish_reason": reason}
    return dict({"id": "c", "object": "chat.completion.chunk", "choices": [choice]}, **more)


USAGE = {"id": "c", "choices": [], "usage": {"total_tokens": 5}, "system_fingerprint": "f"}


# ---------------------------------------------------------------- one event


def test_payload_of_an_event():
    assert payload_of(event({"choices": [1]})) == {"choices": [1]}
    assert payload_of(event({"any": "thing"})) == {"any": "thing"}
    assert payload_of(event({"choices": [], "error": None})) == {"choices": [], "error": None}
    assert payload_of(event('{"choices": [], "a": "\\ud800", "b": NaN}'))["a"] == "\ud800"


@pytest.mark.parametrize(
    "data, cls, message",
    [
        ("{", ResponseDecodeError, "the server sent no valid JSON"),
        ("hello", ResponseDecodeError, "hello"),
        ("[" * 100000, ResponseDecodeError, "nested too deeply"),
        ("[1]", ResponseDecodeError, r"an event of the stream is no JSON object: \[1\]"),
        ("null", ResponseDecodeError, "no JSON object: null"),
        ('"text"', ResponseDecodeError, "no JSON object"),
        ('{"choices": 5}', ResponseDecodeError, "the choices of a chunk are no list"),
        ('{"choices": 5, "error": null}', ResponseDecodeError, "the choices of a chunk are no list"),
        ('{"choices": {"0": {}}}', ResponseDecodeError, "the choices of a chunk are no list"),
        ('{"error": {"message": "no", "code": 400}}', BadRequestError, "no"),
        ('{"choices": [], "error": {"message": "no", "code": 400}}', BadRequestError, "no"),
        ('{"error": "no"}', InternalServerError, "no"),
        ('{"object": "error", "message": "no", "code": 503}', InternalServerError, "no"),
        ('{"detail": "no"}', InternalServerError, "no"),
    ],
)
def test_what_is_no_chunk(data, cls, message):
    with pytest.raises(cls, match=message):
        payload_of(event(data))


def test_an_error_event_is_an_error_whatever_it_says():
    with pytest.raises(InternalServerError, match="busy") as raised:
        payload_of(event({"message": "busy", "code": 503}, "error"))
    assert raised.value.status_code == 503


# ---------------------------------------------------------------- chat and text chunks


def test_usage_is_folded_onto_the_last_chunk():
    items, rest = read(ChatChunks(), chunk("a"), chunk("b"), chunk(reason="stop"), USAGE)
    assert [len(batch) for batch in items] == [1, 1, 0, 0]  # a text is handed on at once
    [last] = rest
    assert type(last) is ChatCompletionChunk
    assert last == {**chunk(reason="stop"), "usage": {"total_tokens": 5}, "system_fingerprint": "f"}
    assert last.usage.total_tokens == 5 and last.choices[0].finish_reason == "stop"


def test_without_usage_the_last_chunk_comes_at_the_end():
    assert read(ChatChunks(), chunk("a"), chunk("b", reason="length")) == (
        [[chunk("a")], []], [chunk("b", reason="length")])
    assert read(ChatChunks()) == ([], [])


def test_usage_on_every_chunk_stays_there():
    payloads = [chunk("a", usage={"total_tokens": 1}), chunk(reason="stop", usage={"total_tokens": 2}), USAGE]
    items, rest = read(ChatChunks(), *payloads)
    assert [item["usage"] for batch in items + [rest] for item in batch] == [{"total_tokens": 1}, {"total_tokens": 5}]


def test_usage_that_is_null_takes_nothing_away():
    late = {"id": None, "choices": [], "usage": {"total_tokens": 3}, "model": None}
    [last] = read(ChatChunks(), chunk(reason="stop"), late)[1]
    assert last == {**chunk(reason="stop"), "usage": {"total_tokens": 3}, "model": None}


def test_several_choices_end_one_by_one():
    reader = ChatChunks(2)
    items, rest = read(reader, chunk("a"), chunk("b", 1), chunk("", 1, "stop"))
    assert items == [[chunk("a")], [chunk("b", 1)], []] and rest == [chunk("", 1, "stop")]
    reader = ChatChunks(2)
    seen = []
    for payload in (chunk("", 1, "stop"), chunk("a"), chunk("", 0, "length"), USAGE):
        seen.append((list(reader.feed(event(payload))), reader.finished))
    assert seen == [([], False), ([chunk("", 1, "stop"), chunk("a")], False), ([], True), ([], True)]
    assert [item.choices[0].finish_reason for item in reader.finish()] == ["length"]
    assert reader.finish() == ()


def test_two_finishes_in_a_row_are_both_handed_out():
    items, rest = read(ChatChunks(2), chunk("", 0, "stop"), chunk("", 1, "stop"), USAGE)
    assert items == [[], [chunk("", 0, "stop")], []] and [item.usage for item in rest] == [{"total_tokens": 5}]


def test_a_choice_that_ends_twice_is_one_choice():
    reader = ChatChunks(2)
    read(reader, chunk("", 0, "stop"), chunk("", 0, "stop"))
    assert not reader.finished


@pytest.mark.parametrize("make", [ChatChunks, CompletionChunks])
def test_an_empty_finish_reason_is_no_finish(make):
    reader = make()
    going_on = chunk("x", reason="")
    going_on["choices"][0]["stop_reason"] = ""
    [item] = reader.feed(event(going_on))
    assert not reader.finished and item.choices[0].finish_reason is None and item.choices[0].stop_reason is None
    assert reader.partial().choices[0].finish_reason is None
    reader.feed(event(chunk(reason="stop")))
    assert reader.finished


@pytest.mark.parametrize("reader, empty", [
    (ChatChunks, {"index": 0, "delta": {}, "finish_reason": None}),
    (CompletionChunks, {"index": 0, "text": "", "finish_reason": None}),
])
@pytest.mark.parametrize(
    "payload", [{"choices": []}, {}, {"choices": None}, {"choices": [], "usage": {"prompt_tokens": 1}}, {"odd": "ping"}]
)
def test_every_chunk_has_a_choice(reader, empty, payload):
    first = reader()
    [item] = first.feed(event(payload))
    assert item == {**payload, "choices": [empty]} and item.text == ""
    item["choices"][0].setdefault("delta", {})["content"] = "changed by the caller"
    assert first.feed(event(payload)) == ({**payload, "choices": [empty]},)


def test_an_event_without_data_is_no_chunk():
    for reader in (ChatChunks(), CompletionChunks(), TranscriptionReader(), ResponsesReader()):
        assert list(reader.feed(Event("ping", ""))) == []


@pytest.mark.parametrize("reason", ["abort", "error"])
@pytest.mark.parametrize("make, object_", [(ChatChunks, "chat.completion"), (CompletionChunks, "text_completion")])
def test_an_aborted_generation_raises_with_what_arrived(reason, make, object_):
    reader = make()
    base = {"id": "c", "object": object_ + ("" if make is CompletionChunks else ".chunk")}
    reader.feed(event({**base, "choices": [{"index": 0, "text": "so ", "delta": {"content": "so "}}]}))
    last = {**base, "choices": [{"index": 0, "text": "far", "delta": {"content": "far"}, "finish_reason": reason}]}
    with pytest.raises(IncompleteStreamError, match="aborted the generation .finish_reason '%s'" % reason) as raised:
        reader.feed(event(last))
    error = raised.value
    assert (error.code, error.type, error.payload) == ("abort", "aborted", last)
    assert error.partial.text == "so far" and error.partial.object == object_


def test_partial_is_a_completion_of_what_arrived():
    reader = ChatChunks()
    assert reader.partial() == {"object": "chat.completion", "choices": []}
    read(reader, chunk("a"), chunk("b"))
    assert type(reader.partial()) is ChatCompletion and reader.partial().text == "ab"
    reader.feed(event(chunk("c")))
    assert reader.partial().choices[0].message.content == "abc"
    text = CompletionChunks()
    text.feed(event({"choices": [{"index": 0, "text": "x"}]}))
    assert type(text.partial()) is Completion and text.partial().text == "x"


def test_partial_is_not_touched_by_what_callers_do_to_their_chunks():
    reader = ChatChunks()
    [item] = reader.feed(event(chunk("a")))
    item.choices[0].delta["content"] = "changed"
    assert reader.partial().text == "a"


def test_a_long_stream_is_not_kept_whole(monkeypatch):
    """The text of events is ten times what they say; a stream without end must not be kept as it came."""
    monkeypatch.setattr(decoding, "_FOLDED_AT", 1000)
    reader = ChatChunks()
    for _ in range(500):
        reader.feed(event(chunk("a")))
        assert sum(map(len, reader._seen)) <= 1000
    assert reader.partial().text == "a" * 500


def test_what_can_no_longer_be_read_is_left_out_of_partial():
    """The stack may be deeper when what arrived is asked for than when it was read."""
    reader = ChatChunks()
    reader.feed(event(chunk("a")))
    reader._seen.append('{"choices": ' + "[" * 100000)
    reader.feed(event(chunk("b")))
    assert reader.partial().text == "ab"


def test_reasoning_has_both_names():
    reader = ChatChunks()
    [item] = reader.feed(event({"choices": [{"index": 0, "delta": {"reasoning": "r"}}]}))
    assert item.choices[0].delta.reasoning == item.choices[0].delta.reasoning_content == "r"


@pytest.mark.parametrize("choices", [[None], [5], ["x"], [[]], [{}], [{"index": [], "finish_reason": {}}],
                                     [{"index": 0, "delta": 5}], [None, {"index": 0, "delta": {"content": "a"}}]])
@pytest.mark.parametrize("reader", [ChatChunks, CompletionChunks])
def test_odd_choices_pass(reader, choices):
    items, rest = read(reader(), {"choices": choices})
    assert (items[0] + rest)[0] == {"choices": choices}


READERS = {"/v1/chat/completions": ChatChunks, "/v1/completions": CompletionChunks}
STREAMS = [name for name in wire.names() if wire.load(name).streams and wire.load(name).request["path"] in READERS]


@pytest.mark.parametrize("name", STREAMS)
def test_recorded_streams(name):
    """Every payload comes out, changed only by added names of reasoning and by usage that moved up."""
    transcript = wire.load(name)
    payloads = transcript.payloads
    reader = READERS[transcript.request["path"]](
        len({choice.get("index") for sent in payloads for choice in sent.get("choices") or ()})
    )
    items = []
    try:
        for one in iter_events([transcript.body]):
            if one.data != "[DONE]":
                items.extend(reader.feed(one))
    except BridgeError as error:
        ends = ["error" in sent or '"finish_reason": "abort"' in json.dumps(sent) for sent in payloads]
        end = ends.index(True)
        assert error.message == payloads[end]["error"]["message"] if "error" in payloads[end] else error.code == "abort"
        del payloads[end:]
    items.extend(reader.finish())
    assert all(item.choices for item in items)
    expected = [sent for sent in payloads if sent["choices"]]
    for sent in payloads:
        if sent.get("usage") and not sent["choices"]:
            expected[-1] = {**expected[-1], **{key: sent[key] for key in sent if key != "choices"}}
            assert items[-1].usage == sent["usage"]
    for sent in expected:
        for choice in sent["choices"]:
            if (choice.get("delta") or {}).get("reasoning") is not None:
                choice["delta"]["reasoning_content"] = choice["delta"]["reasoning"]
    assert items == expected
    ended = b"[DONE]" in transcript.body and b'"error"' not in transcript.body and b'"abort"' not in transcript.body
    assert reader.finished is ended


# ---------------------------------------------------------------- transcription streams


def transcribed(chunks):
    machine = TranscriptionReader()
    events = [item for chunk in chunks for item in machine.feed(event(chunk))]
    return machine, events, list(machine.finish())


def recorded_text(payloads):
    return "".join(choice["delta"]["content"] for payload in payloads for choice in payload["choices"])


@pytest.mark.parametrize("name", [name for name in wire.names("audio_") if wire.load(name).streams
                                  and wire.load(name).status == 200])
def test_recorded_transcriptions(name):
    payloads = wire.load(name).payloads
    if not all("choices" in payload for payload in payloads):
        pytest.skip("an error stream")
    machine, events, done = transcribed(payloads)
    assert {item.type for item in events} <= {"transcript.text.delta"}
    assert "".join(item.delta for item in events) == recorded_text(payloads) == done[0]["text"]
    assert [item.type for item in done] == ["transcript.text.done"]
    assert done[0].get("usage") == payloads[-1].get("usage")
    assert done[0]["id"] == payloads[0]["id"] and done[0]["model"] == "whisper"
    assert machine.finish() == ()


def test_a_stop_ends_only_its_segment():
    payloads = wire.load("audio_65s_stream").payloads
    assert sum(choice.get("finish_reason") == "stop" for p in payloads for choice in p["choices"]) == 3
    machine, _, done = transcribed(payloads)
    assert done[0]["text"].count("Goodbye.") == 3
    assert done[0]["usage"] == {"prompt_tokens": 6504, "total_tokens": 6522, "completion_tokens": 18}
    assert done[0]["finish_reason"] == "stop" and machine.finished
    assert not transcribed(payloads[:-1])[0].finished


def test_every_field_of_a_chunk_stands_on_its_event():
    first = wire.load("audio_stream_continuous").payloads[0]
    (item,) = TranscriptionReader().feed(event(first))
    assert item == {"type": "transcript.text.delta", "delta": " Hello", "id": first["id"], "model": "whisper",
                    "created": first["created"], "usage": first["usage"]}
    machine = TranscriptionReader()
    choice = {"index": 0, "delta": {"content": "a", "role": "assistant"}, "logprobs": [1]}
    (item,) = machine.feed(event({"choices": [choice], "own": 2}))
    assert item == {"type": "transcript.text.delta", "delta": "a", "role": "assistant", "logprobs": [1], "own": 2}
    choice = {"delta": {"content": None}, "finish_reason": "stop", "stop_reason": None, "odd": 3}
    machine.feed(event({"choices": [choice]}))
    (item,) = machine.finish()
    assert item == {"type": "transcript.text.done", "text": "a", "finish_reason": "stop", "stop_reason": None, "own": 2,
                    "odd": 3}


def test_a_cut_segment_is_not_hidden_by_the_next():
    chunks = [{"choices": [{"delta": {"content": text}, "finish_reason": reason}]}
              for text, reason in (("a", "stop"), ("b", "length"), ("c", "stop"))]
    assert transcribed(chunks)[2] == [{"type": "transcript.text.done", "text": "abc", "finish_reason": "length"}]


def test_openai_s_events_are_taken_as_they_are():
    segment = {"type": "transcript.text.segment", "id": "s", "text": "Hi"}
    delta = {"type": "transcript.text.delta", "delta": "Hi", "logprobs": []}
    last = {"type": "transcript.text.done", "text": "Hi.", "usage": {"x": 1}}
    machine, events, done = transcribed([segment, delta, last])
    assert events == [segment, delta] and machine.finished and done == [last]


@pytest.mark.parametrize("chunks, text", [
    ([{"type": "transcript.text.done", "text": "a"}, {"type": "transcript.text.done", "text": "b"}], "ab"),
    ([{"type": "transcript.text.delta", "delta": "a"}, {"type": "transcript.text.delta", "delta": "b"},
      {"type": "transcript.text.done", "text": "a"}, {"type": "transcript.text.done", "text": "b"}], "ab"),
    ([{"type": "transcript.text.delta", "delta": "a"}, {"type": "transcript.text.done"}], "a"),
    ([{"choices": [{"delta": {}}]}, {"choices": [{}]}, {"choices": None}, {}], ""),
    ([], ""),
])
def test_exactly_one_done(chunks, text):
    assert transcribed(chunks)[2] == [{"type": "transcript.text.done", "text": text}]


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_an_abort_raises_with_what_arrived(reason):
    machine = TranscriptionReader()
    machine.feed(event({"choices": [{"delta": {"content": "half"}}]}))
    with pytest.raises(IncompleteStreamError) as caught:
        machine.feed(event({"choices": [{"delta": {"content": " a"}, "finish_reason": reason}]}))
    assert caught.value.partial == {"text": "half a"}
    assert machine.partial().text == "half a"


@pytest.mark.parametrize("chunk", [
    [], "x", None, {"choices": {}}, {"choices": [1]}, {"choices": [{"delta": 5}]},
    {"choices": [{"delta": {"content": 5}}]}, {"type": "transcript.text.delta", "delta": 5},
    {"type": "transcript.text.done", "text": []}])
def test_a_transcriptions_chunks_of_another_shape(chunk):
    with pytest.raises(ResponseDecodeError):
        TranscriptionReader().feed(event(chunk))


def test_an_empty_finish_reason_ends_no_segment_and_halves_of_a_character_are_one():
    machine = TranscriptionReader()
    events = []
    for text in ("\ud83d", "\ude00"):
        choice = {"delta": {"content": text}, "finish_reason": "", "stop_reason": ""}
        events += machine.feed(event({"choices": [choice]}))
    assert [item["finish_reason"] for item in events] == [None, None] and events[0]["stop_reason"] is None
    [done] = machine.finish()
    assert done["text"] == "\U0001f600" and "finish_reason" not in done


# ---------------------------------------------------------------- transcription, Responses


def test_a_long_transcription():
    transcript = wire.load("audio_65s_stream")
    reader = TranscriptionReader()
    items = []
    for sent in transcript.payloads:
        assert not reader.finished  # a finish reason ends a segment: three of them here
        items.extend(reader.feed(event(sent)))
    assert reader.finished is (not transcript.payloads[-1]["choices"])  # the usage chunk comes last
    text = "".join(choice["delta"].get("content") or "" for sent in transcript.payloads for choice in sent["choices"])
    usage = {"usage": transcript.payloads[-1]["usage"]} if transcript.payloads[-1].get("usage") else {}
    assert reader.partial() == {"text": text, **usage} and reader.partial().text == text
    [last] = reader.finish()
    assert {type(item) for item in items + [last]} == {TranscriptionEvent}
    assert (last.type, last.text) == ("transcript.text.done", text)
    assert "".join(item.delta or "" for item in items) == text


def test_a_transcription_error():
    with pytest.raises(BadRequestError):
        TranscriptionReader().feed(event({"error": {"message": "no", "code": 400}}))


def test_a_servers_own_responses_stream():
    transcript = wire.load("think_responses_stream")
    reader = ResponsesReader()
    assert reader.partial() is None and reader.finish() == ()
    for number, sent in enumerate(transcript.payloads):
        assert not reader.finished
        [item] = reader.feed(event(sent, sent["type"]))
        assert type(item) is ResponseEvent and item == sent and item.sequence_number == number
    assert reader.finished
    assert reader.partial().status == "completed" == transcript.payloads[-1]["response"]["status"]


def test_an_error_in_a_servers_own_responses_stream():
    with pytest.raises(InternalServerError, match="died"):
        ResponsesReader().feed(event({"type": "error", "message": "died", "code": "server_error"}, "error"))


def test_the_error_of_an_abort():
    error = aborted({"finish_reason": "abort"}, {"a": 1}, "so far")
    assert (error.partial, error.payload, error.code) == ("so far", {"a": 1}, "abort")


# ---------------------------------------------------------------- anything at all

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=3) | st.just("stop"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["id", "index", "delta", "choices", "tool_calls", "function", "arguments", "content", "text",
                         "type", "reasoning", "finish_reason", "error", "message", "code", "usage", "response"]),
        inner, max_size=4),
    max_leaves=12,
)
DATA = (JSON | st.fixed_dictionaries({"choices": JSON | st.lists(JSON)})).map(json.dumps) | st.text(max_size=10)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(DATA, st.sampled_from(["message", "error", "ping"])), max_size=5), st.integers(0, 3))
def test_any_events_give_items_or_our_own_errors(events, count):
    for make in (lambda: ChatChunks(count), lambda: CompletionChunks(count), TranscriptionReader, ResponsesReader):
        reader = make()
        items = []
        try:
            for data, kind in events:
                items.extend(reader.feed(Event(kind, data)))
            items.extend(reader.finish())
        except BridgeError as error:
            assert str(error)
        json.dumps(reader.partial())
        assert all(type(item.text) is str for item in items if isinstance(item, (ChatCompletionChunk, Completion)))


def test_usage_is_read_from_the_bytes_of_a_recorded_reply() -> None:
    recorded = wire.load("chat_plain")
    tokens = TokenUsage()
    tokens.read(json.dumps(recorded.json, separators=(",", ":")).encode())
    usage = recorded.json["usage"]
    assert (tokens.prompt_tokens, tokens.completion_tokens) == (usage["prompt_tokens"], usage["completion_tokens"])


@pytest.mark.parametrize("body", [
    b"", b"{}", b'{"usage":null}', b'{"content":"\\"usage\\":{\\"prompt_tokens\\":5}"}', b'{"usage":{}}',
])
def test_a_reply_without_usage(body: bytes) -> None:
    tokens = TokenUsage()
    tokens.read(body)
    assert (tokens.prompt_tokens, tokens.completion_tokens) == (0, 0)
