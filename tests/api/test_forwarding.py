"""Forwarded events: the server's own bytes, but where something has to change."""

import json

import pytest
import wire
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_bridge.errors import BadRequestError, BridgeError, IncompleteStreamError, ResponseDecodeError
from vllm_bridge.api.forwarding import DONE, Forwarding, TokenUsage, plain
from vllm_bridge.sse import encode, iter_events

PATHS = ("/v1/chat/completions", "/v1/completions")
STREAMS = [name for name in wire.names() if wire.load(name).streams and wire.load(name).request["path"] in PATHS]
WHOLE = [name for name in STREAMS if wire.load(name).body.endswith(DONE) and b'{"error"' not in wire.load(name).body
         and b'"abort"' not in wire.load(name).body]


def forwarded(*blocks, choices=1, usage=True, tokens=None):
    """Return what leaves, and how the reading ended."""
    forwarding = Forwarding(choices, usage, tokens or TokenUsage())
    return b"".join(fed(block, forwarding) for block in blocks), forwarding


def fed(block, forwarding):
    out = forwarding.feed(block)
    if forwarding.failure is not None:
        raise forwarding.failure
    return out


@pytest.mark.parametrize("name", WHOLE)
def test_a_recorded_stream_comes_out_byte_for_byte_but_for_the_second_name_of_reasoning(name):
    transcript = wire.load(name)
    events = [event for event in transcript.body.split(b"\n\n") if event]
    tokens = TokenUsage()
    count = len({choice.get("index") for sent in transcript.payloads for choice in sent["choices"]})
    out, forwarding = forwarded(transcript.body, choices=count, tokens=tokens)
    assert forwarding.finished and forwarding.ended and out.endswith(DONE)
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
    assert (tokens.prompt_tokens, tokens.completion_tokens) == expected


@pytest.mark.parametrize("name", [name for name in WHOLE if b'"choices":[]' in wire.load(name).body])
def test_a_usage_chunk_that_was_not_asked_for_is_kept_back_and_counted(name):
    transcript = wire.load(name)
    body, tokens = transcript.body, TokenUsage()
    count = len({choice.get("index") for sent in transcript.payloads for choice in sent["choices"]})
    out, _ = forwarded(body, usage=False, choices=count, tokens=tokens)
    assert tokens.completion_tokens == transcript.payloads[-1]["usage"]["completion_tokens"] > 0
    *chunks, last, kept, done = body.split(b"\n\n")[:-1]
    mark = kept[kept.index(b',"system_fingerprint":"vllm-0.32.0-'):]
    # Where nobody asks for usage, vLLM's last chunk ends so (tests/data/vllm-0.32.0/chat_stream_count.json).
    assert out.endswith(mark + b"\n\n" + DONE) and len(out.split(b"\n\n")) == len(chunks) + 3
    if b'"reasoning"' not in body:
        assert out == b"\n\n".join([*chunks, last[:-1] + mark, done, b""])
    for cut in (len(body) // 2, body.rindex(kept), body.rindex(kept) + 9, body.rindex(done)):
        assert forwarded(body[:cut], body[cut:], usage=False, choices=count)[0] == out


LAST = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}%s}\n\n'
MORE = b'data: {"choices":[{"index":0,"delta":{"content":"b"},"finish_reason":null}]}\n\n'


@pytest.mark.parametrize("body, left", [
    (LAST + DONE, LAST + DONE), (LAST + USAGE % b"" + DONE, LAST + DONE),
    (LAST + USAGE % b',"system_fingerprint":null' + DONE, LAST + DONE),
    (LAST + USAGE % b',"system_fingerprint":["x"]' + DONE, LAST + DONE),
    (LAST.replace(b"}]}", b'}],"system_fingerprint":"a"}') + USAGE % b',"system_fingerprint":"a"' + DONE,
     LAST.replace(b"}]}", b'}],"system_fingerprint":"a"}') + DONE),
    (LAST + MORE + USAGE % b',"system_fingerprint":"a"' + DONE, LAST + MORE + DONE),
    (LAST + MORE * 3 + DONE, LAST + MORE * 3 + DONE), (LAST + b": ping\n\n" + DONE, b": ping\n\n" + LAST + DONE),
    (LAST.replace(b"\n", b"\r\n") + DONE, LAST + DONE),
])
def test_the_end_of_the_choices_waits_for_the_usage_and_no_longer(body, left):
    events = [event + b"\n\n" for event in body.split(b"\n\n")[:-1]]
    for blocks in ([body], events, [body[at:at + 1] for at in range(len(body))]):
        assert forwarded(*blocks, usage=False)[0] == left
    asked = forwarded(body, usage=True)[0]
    assert asked.startswith(LAST[:-2]) or body.startswith(LAST[:-4])


@pytest.mark.parametrize("after", [b'data: {"error":{"message":"late"}}\n\n', b"data: {oops\n\n"])
def test_the_end_of_the_choices_leaves_before_an_error(after):
    for blocks in ([LAST + after], [LAST, after]):
        forwarding = Forwarding(1, False, TokenUsage())
        assert b"".join(map(forwarding.feed, blocks)) == LAST
        assert isinstance(forwarding.failure, BridgeError)


def test_the_end_of_the_choices_leaves_where_the_stream_just_stops():
    forwarding = Forwarding(1, False, TokenUsage())
    assert forwarding.feed(LAST) == b"" and forwarding.finished
    assert forwarding.finish() == LAST + DONE


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


def chunk(delta='{"content":"x"}', index=0, reason="null", rest=""):
    return '{"id":"c","choices":[{"index":%d,"delta":%s,"finish_reason":%s}]%s}' % (index, delta, reason, rest)


def feed(data, forwarding=None):
    return fed(encode(data), forwarding or Forwarding(1, True, TokenUsage()))


@pytest.mark.parametrize(
    "data",
    [
        chunk(),
        chunk('{"content":"\\"finish_reason\\":\\"stop\\" \\"error\\" \\"usage\\""}'),
        chunk('{"content":"\u65e5\u2028\\ud83d"}'),
        chunk('{"reasoning":null}'),
        chunk('{"content":"about \\"reasoning\\" here"}'),
        chunk('{"reasoning":"a","reasoning_content":"b"}'),
        chunk("{}", reason='"stop"'),
        chunk(rest=',"error":null'),
        chunk(rest=',"usage":null'),
        chunk(rest=', "spaces" : [ 1,  2 ]'),
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
    frame = feed(chunk(delta, reason=reason))
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
        (chunk(rest=',"error":{"message":"no","code":400}'), BadRequestError),
        (chunk("{}", reason='"abort"'), IncompleteStreamError),
        (chunk("{}", reason='"error"'), IncompleteStreamError),
        (chunk()[:-1], ResponseDecodeError),
        (chunk()[1:], ResponseDecodeError),
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


def test_what_came_before_an_error_leaves_before_it_is_raised():
    block = encode(chunk()) + encode('{"error":{"message":"no","code":400}}')
    forwarding = Forwarding(1, True, TokenUsage())
    assert forwarding.feed(block) == encode(chunk())
    assert isinstance(forwarding.failure, BadRequestError)


@pytest.mark.parametrize("end", ['"finish_reason":""', '"finish_reason": ""', '"stop_reason":"","finish_reason":""'])
def test_an_empty_reason_is_no_finish_and_leaves_as_null(end):
    data = '{"choices":[{"index":0,"delta":{"content":"a \\"finish_reason\\":\\"\\""},%s}]}'
    forwarding = Forwarding(1, True, TokenUsage())
    assert feed(data % end, forwarding) == encode(data % end.replace(' ""', '""').replace('""', "null"))
    assert not forwarding.finished


def test_choices_end_one_by_one():
    forwarding = Forwarding(2, True, TokenUsage())
    for index, done in ((0, False), (0, False), (1, True)):
        feed(chunk("{}", index, '"stop"'), forwarding)
        assert forwarding.finished is done
    assert forwarding.partial() is None and forwarding.events == 3


def test_usage_stays_on_chunks_that_carry_more():
    tokens = TokenUsage()
    data = chunk(rest=',"usage":{"prompt_tokens":3,"completion_tokens":1}')
    assert feed(data, Forwarding(1, False, tokens)) == encode(data)
    assert (tokens.prompt_tokens, tokens.completion_tokens) == (3, 1)


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
    tokens = TokenUsage()
    for usage in usages:
        tokens.take(usage)
    assert (tokens.prompt_tokens, tokens.completion_tokens) == counts


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


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_a_stream_cut_anywhere_leaves_the_same(name, end):
    body = wire.load(name).body
    expected, _ = forwarded(body)
    body = body.replace(b"\n", end)
    for size in (1, 7, 100, 1000):
        out, forwarding = forwarded(*(body[at:at + size] for at in range(0, len(body), size)))
        assert out == expected and forwarding.ended


@pytest.mark.parametrize("name", STREAMS)
def test_what_passes_unread_is_what_event_by_event_would_have_left(name):
    body = wire.load(name).body
    ends = [0] + [at + 2 for at in range(len(body) - 2) if body[at:at + 2] == b"\n\n"][:20]
    for start in ends:
        for end in (each + more for each in ends for more in (-1, 0, 1, 9) if each > start):
            count = plain(body[start:end])
            if count:
                events = body[start:end].split(b"\n\n")[:-1]
                out, forwarding = forwarded(*(event + b"\r\n\r\n" for event in events))
                assert out == body[start:end] and not forwarding.finished
                assert forwarding.events == len(events) == count


def line(data):
    return b"data: %s\n\n" % data.encode()


@pytest.mark.parametrize(
    "event",
    [
        b"data: {\"id\":\"c\"}\n\n",
        b": keep-alive\n\n",
        b"\n" + line(chunk()),
        b"event: x\n" + line(chunk()),
        line(chunk())[:-1],
        line(chunk(reason='"stop"')),
        line(chunk(rest=',"usage":{}')),
        line(chunk(rest=',"error":null')),
        line(chunk('{"reasoning":"x"}')),
        line('{"choices":[{"index":0,"finish_reason":null},{"index":1,"finish_reason":null}]}'),
        b'data: {"detail":"x"}\n\n',
        b'data: {"choices":[]}\n\n',
        b"data: [DONE]\n\n",
        b'data: ["finish_reason":null,"choices":[{}]]\n\n',
        line(chunk())[1:],
    ],
)
def test_what_needs_a_look_does_not_pass(event):
    assert plain(event) == plain(line(chunk()) + event) == plain(event + line(chunk())) == 0


@pytest.mark.parametrize("text", ['\\"usage\\"', "data: {", "\\n\\n", '\\"error\\"', '\\"finish_reason\\":null', "é"])
def test_what_a_text_says_does_not_stop_it(text):
    block = line(chunk('{"content":"%s"}' % text)) * 3
    assert plain(block) == 3
    assert plain(block + block[:50]) == 0


@pytest.mark.parametrize("comment", [b": keep-alive\n\n", b":\n\n", b":a\n:b\n\n"])
def test_comments_pass(comment):
    told = comment.replace(b"\n:b", b"\n\n:b")
    event = line(chunk())
    assert forwarded(comment, event, comment + event, event + comment)[0] == (told + event) * 2 + event + told
    assert forwarded(comment)[1].events == 0
    inside = b"data: {\n" + comment.rstrip(b"\n") + b"\ndata: }\n\n"
    assert forwarded(inside)[0] == told + b"data: {\ndata: }\n\n"


def test_a_comment_need_not_wait_for_its_blank_line():
    out = Forwarding(1, True, TokenUsage())
    assert out.feed(b": a\n") == b": a\n\n"
    assert out.feed(b"\n") == b""
    assert out.feed(line(chunk())) == line(chunk())


def test_nothing_follows_the_end_mark():
    out, forwarding = forwarded(line(chunk()) + b"data:  [DONE] \n\n" + line(chunk()))
    assert out == line(chunk()) + DONE and forwarding.ended


def test_an_event_without_end_is_not_kept_for_ever():
    forwarding = Forwarding(1, True, TokenUsage())
    with pytest.raises(ResponseDecodeError, match="an event of the stream is longer than 41943040 bytes"):
        for _ in range(50):
            assert forwarding.feed(b"x" * 1000000) == b""
