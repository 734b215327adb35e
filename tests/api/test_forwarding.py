"""Forwarded events: the server's own bytes, but where something has to change."""

import json

import pytest
import wire
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_bridge.errors import BadRequestError, BridgeError, IncompleteStreamError, ResponseDecodeError
from vllm_bridge.api.forwarding import DONE, Frames, Tally
from vllm_bridge.sse import Event, encode, iter_events

PATHS = ("/v1/chat/completions", "/v1/completions")
STREAMS = [name for name in wire.names() if wire.load(name).streams and wire.load(name).request["path"] in PATHS]
WHOLE = [name for name in STREAMS if wire.load(name).body.endswith(DONE) and b'{"error"' not in wire.load(name).body
         and b'"abort"' not in wire.load(name).body]


def forwarded(body, choices=1, usage=True, tally=None):
    frames = Frames(choices, usage, tally or Tally())
    out = [frame for event in iter_events([body]) if event.data != "[DONE]" for frame in frames.feed(event)]
    return b"".join(out) + b"".join(frames.finish()), frames


@pytest.mark.parametrize("name", WHOLE)
def test_a_recorded_stream_comes_out_byte_for_byte_but_for_the_second_name_of_reasoning(name):
    transcript = wire.load(name)
    events = [event for event in transcript.body.split(b"\n\n") if event and not event.startswith(b":")]
    tally = Tally()
    count = len({choice.get("index") for sent in transcript.payloads for choice in sent["choices"]})
    out, frames = forwarded(transcript.body, count, tally=tally)
    assert frames.finished and out.endswith(DONE)
    after = out.split(b"\n\n")[:-1]
    assert len(after) == len(events)
    for before, now in zip(events, after):
        if b'"reasoning":"' not in before:
            assert now == before
        else:
            sent, got = json.loads(before[6:]), json.loads(now[6:])
            for choice in got["choices"]:
                assert choice["delta"].pop("reasoning_content") == choice["delta"]["reasoning"]
            assert got == sent
    counted = [sent["usage"] for sent in transcript.payloads if sent.get("usage")]
    expected = (counted[-1]["prompt_tokens"], counted[-1]["completion_tokens"]) if counted else (0, 0)
    assert (tally.prompt_tokens, tally.completion_tokens) == expected


@pytest.mark.parametrize("name", [name for name in WHOLE if b'"choices":[]' in wire.load(name).body])
def test_a_usage_chunk_that_was_not_asked_for_is_kept_back_and_counted(name):
    transcript = wire.load(name)
    tally = Tally()
    out, _ = forwarded(transcript.body, usage=False, tally=tally)
    assert len(out.split(b"\n\n")) == len(forwarded(transcript.body)[0].split(b"\n\n")) - 1
    assert b'"choices":[]' not in out
    assert tally.completion_tokens == transcript.payloads[-1]["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize("name", sorted(set(STREAMS) - set(WHOLE)))
def test_a_stream_that_fails_raises(name):
    transcript = wire.load(name)
    if transcript.body.endswith(DONE):
        with pytest.raises(BridgeError) as raised:
            forwarded(transcript.body)
        told = transcript.payloads[-1].get("error")
        assert raised.value.message == told["message"] if told else raised.value.code == "abort"
    else:
        assert not forwarded(transcript.body)[1].finished


def plain(delta='{"content":"x"}', index=0, reason="null", rest=""):
    return '{"id":"c","choices":[{"index":%d,"delta":%s,"finish_reason":%s}]%s}' % (index, delta, reason, rest)


def feed(data, frames=None):
    return b"".join((frames or Frames(1, True, Tally())).feed(Event(data=data)))


@pytest.mark.parametrize(
    "data",
    [
        plain(),
        plain('{"content":"\\"finish_reason\\":\\"stop\\" \\"error\\" \\"usage\\""}'),
        plain('{"content":"\u65e5\u2028\\ud83d"}'),
        plain('{"reasoning":null}'),
        plain('{"content":"about \\"reasoning\\" here"}'),
        plain('{"reasoning":"a","reasoning_content":"b"}'),
        plain("{}", reason='"stop"'),
        plain(rest=',"error":null'),
        plain(rest=',"usage":null'),
        plain(rest=', "spaces" : [ 1,  2 ]'),
        '{"choices":[{"index":0,"finish_reason":null},{"index":1,"finish_reason":null}]}',
        '{"choices":[],"odd":1}',
        '{"odd":1}',
        '{"choices":[5,null,"x"],"error":""}',
        '{"choices":[{"finish_reason":{"odd":[]},"index":"x"}]}',
    ],
)
def test_what_needs_no_change_is_forwarded_as_it_came(data):
    assert feed(data) == encode(data)


@pytest.mark.parametrize(
    "delta, sent",
    [
        ('{"reasoning":"a"}', {"reasoning": "a", "reasoning_content": "a"}),
        ('{"reasoning_content":"a"}', {"reasoning": "a", "reasoning_content": "a"}),
        ('{"reasoning":""}', {"reasoning": "", "reasoning_content": ""}),
        ('{"reasoning":"q\\"}\\\\"}', {"reasoning": 'q"}\\', "reasoning_content": 'q"}\\'}),
        ('{"reasoning": "a"}', {"reasoning": "a", "reasoning_content": "a"}),
        ('{"role":"assistant","reasoning":"a"}', {"role": "assistant", "reasoning": "a", "reasoning_content": "a"}),
        ('{"reasoning":"a","reasoning_content":null}', {"reasoning": "a", "reasoning_content": "a"}),
        ('{"reasoning":"\\"delta\\":{\\"reasoning\\":\\"x\\"}"}', {
            "reasoning": '"delta":{"reasoning":"x"}', "reasoning_content": '"delta":{"reasoning":"x"}'}),
        ('{"reasoning":"\u65e5\u672c"}', {"reasoning": "\u65e5\u672c", "reasoning_content": "\u65e5\u672c"}),
    ],
)
@pytest.mark.parametrize("reason", ["null", '"length"'])
def test_reasoning_gets_its_second_name(delta, sent, reason):
    frame = feed(plain(delta, reason=reason))
    assert frame.startswith(b"data: {") and frame.endswith(b"}\n\n") and frame.count(b"\n") == 2
    assert json.loads(frame[6:]) == {"id": "c", "choices": [
        {"index": 0, "delta": sent, "finish_reason": json.loads(reason)}]}


def test_two_choices_with_reasoning_in_one_event():
    choice = '{"delta":{"reasoning":"%s"},"finish_reason":null}'
    data = '{"choices":[%s,%s]}' % (choice % "a", choice % "b")
    assert [choice["delta"]["reasoning_content"] for choice in json.loads(feed(data)[6:])["choices"]] == ["a", "b"]


@pytest.mark.parametrize(
    "data, cls",
    [
        ('{"error": {"message": "no", "type": "BadRequestError", "param": null, "code": 400}}', BadRequestError),
        (plain(rest=',"error":{"message":"no","code":400}'), BadRequestError),
        (plain("{}", reason='"abort"'), IncompleteStreamError),
        (plain("{}", reason='"error"'), IncompleteStreamError),
        (plain()[:-1], ResponseDecodeError),
        (plain()[1:], ResponseDecodeError),
        ("5", ResponseDecodeError),
        ('{"choices":5,"usage":{}}', ResponseDecodeError),
        ('{"choices":5,"error":null}', ResponseDecodeError),
        ("<html>", ResponseDecodeError),
        ("[" * 100000, ResponseDecodeError),
    ],
)
def test_what_must_not_be_forwarded_is_raised(data, cls):
    with pytest.raises(cls):
        feed(data)


def test_an_event_without_data_is_none():
    assert feed("") == b""


def test_choices_end_one_by_one():
    frames = Frames(2, True, Tally())
    for index, done in ((0, False), (0, False), (1, True)):
        feed(plain("{}", index, '"stop"'), frames)
        assert frames.finished is done
    assert frames.partial() is None


def test_usage_stays_on_chunks_that_carry_more():
    tally = Tally()
    data = plain(rest=',"usage":{"prompt_tokens":3,"completion_tokens":1}')
    assert feed(data, Frames(1, False, tally)) == encode(data)
    assert (tally.prompt_tokens, tally.completion_tokens) == (3, 1)


@pytest.mark.parametrize(
    "usages, counts",
    [
        ([{"prompt_tokens": 3, "completion_tokens": 4}], (3, 4)),
        ([{"input_tokens": 3, "output_tokens": 4}], (3, 4)),
        ([{"prompt_tokens": 3, "completion_tokens": 1}, {"prompt_tokens": 3, "completion_tokens": 9}, {}], (3, 9)),
        ([None, 5, [], {"prompt_tokens": None, "completion_tokens": "4"}, {"prompt_tokens": -1}], (0, 0)),
    ],
)
def test_tally(usages, counts):
    tally = Tally()
    for usage in usages:
        tally.take(usage)
    assert (tally.prompt_tokens, tally.completion_tokens) == counts


PARTS = st.sampled_from(['{"id":"c",', '"choices":[', '{"index":0,', '"delta":', '{"reasoning":"r"}', '{"content":"c"}',
                         ",", '"finish_reason":null', '"finish_reason":"stop"', "}", "]", '"usage":{"prompt_tokens":1}',
                         '"error":', "null", "5", '"x"', "\n", " "])


@settings(max_examples=100, deadline=None)
@given(st.lists(PARTS, max_size=12).map("".join) | st.text(max_size=10))
def test_any_event_is_forwarded_or_raises_our_own_error(data):
    try:
        frame = feed(data)
    except BridgeError:
        return
    if data:
        [event] = iter_events([frame])
        assert event.data.strip().startswith("{") and event.data.strip().endswith("}")


# ---------------------------------------------------------------- whole blocks


@pytest.mark.parametrize("name", STREAMS)
def test_what_passes_unread_is_what_event_by_event_would_have_forwarded(name):
    body = wire.load(name).body
    for start in [0] + [at + 2 for at in range(len(body) - 2) if body[at:at + 2] == b"\n\n"][:40]:
        end = Frames(1, True, Tally()).passes(body[start:])
        assert 0 <= end <= len(body) - start
        block = body[start:start + end]
        if block:
            frames = Frames(1, True, Tally())
            assert b"".join(out for event in iter_events([block]) for out in frames.feed(event)) == block
            assert not frames.finished


def test_most_of_a_stream_passes_and_its_end_does_not():
    body = wire.load("chat_stream_count").body
    end = Frames(1, True, Tally()).passes(body)
    assert body[end:].count(b"\n\n") == 2  # the finish and the end mark
    assert Frames(1, True, Tally()).passes(body[end:]) == 0


def line(data):
    return b"data: %s\n\n" % data.encode()


@pytest.mark.parametrize(
    "event",
    [
        b"data: {\"id\":\"c\"}\n\n",
        b": keep-alive\n\n",
        b"\n" + line(plain()),
        b"event: x\n" + line(plain()),
        line(plain())[:-1],
        line(plain(reason='"stop"')),
        line(plain(rest=',"usage":{}')),
        line(plain(rest=',"error":null')),
        line(plain('{"reasoning":"x"}')),
        line('{"choices":[{"index":0,"finish_reason":null},{"index":1,"finish_reason":null}]}'),
        b'data: {"detail":"x"}\n\n',
        b'data: {"choices":[]}\n\n',
        b"data: [DONE]\n\n",
        b'data: ["finish_reason":null,"choices":[{}]]\n\n',
        line(plain())[1:],
    ],
)
def test_what_needs_a_look_does_not_pass(event):
    frames = Frames(1, True, Tally())
    assert frames.passes(event) == 0
    both = line(plain()) + event
    assert frames.passes(both) in (0, len(line(plain())))


@pytest.mark.parametrize("text", ['\\"usage\\"', "data: {", "\\n\\n", '\\"error\\"', '\\"finish_reason\\":null', "é"])
def test_what_a_text_says_does_not_stop_it(text):
    block = line(plain('{"content":"%s"}' % text)) * 3
    assert Frames(1, True, Tally()).passes(block) == len(block)
    assert Frames(1, True, Tally()).passes(block + block[:50]) == len(block)


def test_an_event_like_the_one_before_passes_by_what_stands_around_its_text():
    frames = Frames(1, True, Tally())
    assert frames.passes(line(plain('{"content":"one"}'))) and frames._before
    for text in ("two", "", "ä", " ", "{}", "a:b", "x" * 1000):
        block = line(plain('{"content":"%s"}' % text))
        assert frames.passes(block) == len(block)


@pytest.mark.parametrize(
    "event",
    [
        plain('{"content":"one"}', reason='"stop"'),
        plain('{"content":"one"}', rest=',"error":{"message":"no"}'),
        plain('{"content":"one"}', rest=',"usage":{"prompt_tokens":1}'),
        plain('{"content":"one","reasoning":"two"}'),
        plain('{"content":"one"},"finish_reason":"stop","logprobs":{"a":"b"}'),
        plain('{"content":"\n\ndata: {"}'),
    ],
)
def test_an_event_that_only_begins_like_the_one_before_is_looked_at(event):
    frames, new = Frames(1, True, Tally()), Frames(1, True, Tally())
    assert frames.passes(line(plain('{"content":"one"}')))
    assert frames.passes(line(event)) == new.passes(line(event)) == 0


@pytest.mark.parametrize("texts", [
    ["one", "two", "three", "four"], ["one", "", "", "four"], ["one", '\\"two\\"', "three"],
    ["one", "two", 'th\\"ree', "four", "five"],
    ['\\"one', "two", "three", "four"], ["\\\\", "two", "three"], ["one", "two", "x\\n"],
])
@pytest.mark.parametrize("role", [b"", line(plain('{"role":"assistant","content":""}', rest=',"prompt":null'))])
@pytest.mark.parametrize("end", [b"", line(plain("{}", reason='"stop"')), line(plain('{"reasoning":"x"}')), b"data: {"])
def test_a_burst_passes_up_to_what_needs_a_look(texts, role, end):
    burst = role + b"".join(line(plain('{"content":"%s"}' % text)) for text in texts)
    frames = Frames(1, True, Tally())
    assert frames.passes(burst + end) == len(burst)
    assert frames.passes(burst + end) == len(burst)


@pytest.mark.parametrize("odd", [
    plain('{"content":"x"}', reason='"stop"'), plain('{"reasoning":"x"}'), plain('{"content":"x"}', rest=',"usage":{}'),
    '{"error":{"message":"no"}}', "[DONE]", '{"id":"c","choices":[]}',
])
def test_a_burst_passes_no_further_than_the_first_that_needs_a_look(odd):
    before = b"".join(line(plain('{"content":"%d"}' % number)) for number in range(9))
    assert Frames(1, True, Tally()).passes(before + line(odd) + before) == len(before)
