"""The event-stream reader against the rules of the WHATWG, cut anywhere."""

import tracemalloc

import pytest
import wire
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_bridge import sse
from vllm_bridge.errors import ResponseDecodeError
from vllm_bridge.sse import Event, EventDecoder, LineDecoder, encode, iter_events, iter_lines

MIB = 1024 * 1024

# (bytes, lines): the ends are CR, LF and CRLF and nothing else.
LINES = [
    (b"", []),
    (b"a", [b"a"]),
    (b"a\n", [b"a"]),
    (b"a\n\nb", [b"a", b"", b"b"]),
    (b"a\r\rb\r\n\r\nc\n\rd", [b"a", b"", b"b", b"", b"c", b"", b"d"]),
    (b"\r\n", [b""]),
    (b"\n\r", [b"", b""]),
    (b"\xef\xbb\xbfa\n", [b"a"]),
    (b"\xef\xbb\xbf\n", [b""]),
    (b"\xef\xbb\xbf", []),
    (b"\xef\xbb", [b"\xef\xbb"]),
    (b"\xef\xbb\xbf\xef\xbb\xbfa\n", [b"\xef\xbb\xbfa"]),  # one mark is dropped, no more
    (b"a\n\xef\xbb\xbfb\n", [b"a", b"\xef\xbb\xbfb"]),  # and only at the start
    ("a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg\n".encode(), ["a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg".encode()]),
    (b"a\xc2\x85\xe2\x80\xa8\r\n", [b"a\xc2\x85\xe2\x80\xa8"]),
    (b"a\x00b\n", [b"a\x00b"]),
]

# (bytes, events): §9.2.6 of the standard, its own examples first.
EVENTS = [
    (b"data: YHOO\ndata: +2\ndata: 10\n\n", [Event(data="YHOO\n+2\n10")]),
    (
        b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
        [Event(data="first event", id="1"), Event(data="second event"), Event(data=" third event")],
    ),
    (b"data\n\ndata\ndata\n\ndata:", [Event(data=""), Event(data="\n")]),
    (b"data:test\n\ndata: test\n\n", [Event(data="test"), Event(data="test")]),
    (b"event: add\ndata: 73857293\n\ndata: x\n\n", [Event("add", "73857293"), Event(data="x")]),
    # no data, no event; its type is forgotten, its id is not
    (b"event: add\nid: 7\n\ndata: x\n\n", [Event(data="x", id="7")]),
    (b"event:\ndata: x\n\n", [Event("message", "x")]),
    (b"event: a\nevent: b\ndata: x\n\n", [Event("b", "x")]),
    (b"id: a\ndata: 1\n\ndata: 2\n\nid: b\ndata: 3\n\n", [Event("message", *pair) for pair in ("1a", "2a", "3b")]),
    (b"id: a\nid: b\x00c\ndata: x\n\n", [Event(data="x", id="a")]),
    (b"retry: 3000\ndata: x\n\ndata: y\n\n", [Event(data="x", retry=3000), Event(data="y")]),
    (b"retry: 3s\nretry: -1\nretry: 1.5\nretry:\nretry: \xd9\xa3\ndata: x\n\n", [Event(data="x")]),
    (b"retry: " + b"9" * 5000 + b"\ndata: x\n\n", [Event(data="x")]),
    (b": c\n:\n::\ndata: x\n: d\n\n", [Event(data="x")]),
    (b"Data: x\n data: y\ndata : z\nfoo: bar\nfoo\n\n", []),
    (b"data: x\r\rdata: y\r\n\r\ndata: z\n\n", [Event(data="x"), Event(data="y"), Event(data="z")]),
    (b"data: x\n", []),
    (b"data: x\n\ndata: unfinished\n", [Event(data="x")]),
    (b"data: x\n\ndata: unfinished", [Event(data="x")]),
    (b"\xef\xbb\xbfdata: x\n\n", [Event(data="x")]),
    (b"\n\n\n\n", []),
    ("data: \u65e5 \U0001f600 \u2028 \u0085\n\n".encode(), [Event(data="\u65e5 \U0001f600 \u2028 \u0085")]),
    (b"data: a\xff\xc3\n\n", [Event(data="a\ufffd\ufffd")]),
    (b"data: \xe2\x82\ndata: \xac\n\n", [Event(data="\ufffd\n\ufffd")]),  # no character across lines
    (b"event: \xff\nid: \xfe\ndata: x\n\n", [Event("\ufffd", "x", "\ufffd")]),
    (b"data: [DONE]\n\n", [Event(data="[DONE]")]),
    (b"data:\t x \n\n", [Event(data="\t x ")]),
]


def cuts(data):
    """Every way in two pieces, byte by byte, and with empty chunks between."""
    for at in range(len(data) + 1):
        yield [data[:at], data[at:]]
    yield [data[at:at + 1] for at in range(len(data))]
    yield [piece for at in range(len(data)) for piece in (b"", data[at:at + 1])] + [b""]


@pytest.mark.parametrize("data, lines", LINES)
def test_lines_however_they_are_cut(data, lines):
    assert list(iter_lines([data])) == lines
    for pieces in cuts(data):
        assert list(iter_lines(pieces)) == lines, pieces


@pytest.mark.parametrize("data, events", EVENTS)
def test_events_however_they_are_cut(data, events):
    assert list(iter_events([data])) == events
    for pieces in cuts(data[:3000]):
        assert list(iter_events(pieces + [data[3000:]])) == events, pieces


PIECES = st.sampled_from(
    [b"data: ", b"data:", b"data", b"event: e", b"id: 1", b"retry: 5", b":", b"\n", b"\r", b"\r\n", b"\n\n",
     b"\xef\xbb\xbf", b"x", b"\xe2\x80\xa8", b"\xc2\x85", b"\xff", b"\x00", b" ", "\u65e5".encode()]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(PIECES | st.binary(max_size=6), max_size=40).map(b"".join), st.lists(st.integers(0, 200), max_size=8))
def test_any_bytes_in_any_cut_give_the_same(data, places):
    places = sorted(min(place, len(data)) for place in places)
    pieces = [data[start:end] for start, end in zip([0] + places, places + [len(data)])]
    assert b"".join(pieces) == data
    assert list(iter_lines(pieces)) == list(iter_lines([data]))
    assert list(iter_events(pieces)) == list(iter_events([data]))
    whole = data[3:] if data.startswith(b"\xef\xbb\xbf") else data
    lines = whole.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    assert list(iter_lines([data])) == (lines if lines[-1] else lines[:-1])


@settings(max_examples=200, deadline=None)
@given(st.text(), st.sampled_from([None, "message", "response.created", "\u65e5 \u2028"]))
def test_what_is_encoded_is_read_back(data, event):
    expected = data.replace("\r\n", "\n").replace("\r", "\n").encode("utf-8", "replace").decode()
    assert list(iter_events([encode(data, event)])) == [Event(event or "message", expected)]


def test_an_event_is_handed_on_with_the_bytes_that_complete_it():
    taken = []

    def chunks():
        for chunk in (b"data: 1\n", b"\n", b"data: 2\r\n\r", b"\ndata: 3\n\nda"):
            taken.append(chunk)
            yield chunk

    events = iter_events(chunks())
    assert [(next(events).data, len(taken)) for _ in range(3)] == [("1", 2), ("2", 3), ("3", 4)]


@pytest.mark.parametrize("pieces", [
    [b"\r", b"\n", b"\n"], [b"\r\n", b"\n"], [b"\n", b"\r"], [b"\r", b"\r"], [b"\r\n", b"\r"],
])
def test_line_ends_in_blocks_of_their_own(pieces):
    assert list(iter_events([b"data: a"] + pieces + [b"data: b"] + pieces)) == [Event(data="a"), Event(data="b")]


def test_comments_come_where_they_are_asked_for():
    stream = [b": one\n", b"\ndata: a\r\n:two\r\n\r\n", b":\n"]
    assert list(EventDecoder().fold(iter_lines(stream), comments=True)) == [b": one", b":two", Event(data="a"), b":"]
    assert list(iter_events(stream)) == [Event(data="a")]


def test_a_line_ended_by_cr_is_handed_on_before_the_next_byte():
    decoder = LineDecoder()
    assert decoder.feed(b"a\r") == [b"a"]
    assert decoder.feed(b"\n") == []
    assert decoder.feed(b"b\n") == [b"b"]
    assert decoder.rest() is None


@pytest.mark.parametrize("name", [name for name in wire.names() if wire.load(name).streams])
def test_every_recorded_stream_has_its_payloads(name):
    transcript = wire.load(name)
    events = list(iter_events(transcript.frames))
    assert list(iter_events([transcript.body])) == events
    assert list(iter_events([b"\xef\xbb\xbf", transcript.body.replace(b"\n", b"\r\n")])) == events
    data = [event.data.encode() for event in events if event.data != "[DONE]"]
    assert data == [line[5:].strip() for line in transcript.body.split(b"\n")
                    if line.startswith(b"data:") and line[5:].strip() != b"[DONE]"][:len(data)]
    assert len(data) == len(transcript.payloads)


def test_forwarding_an_event_gives_vllms_own_bytes():
    transcript = wire.load("chat_stream_plain")
    assert b"".join(encode(event.data) for event in iter_events(transcript.frames)) == transcript.body


# ---------------------------------------------------------------- limits


@pytest.mark.parametrize("piece", [9999, 64 * 1024, 100 * MIB])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
def test_a_line_may_have_ten_mib_and_not_a_byte_more(piece, end):
    assert sse.MAX_LINE == 10 * MIB
    for extra in (0, 1):
        data = b"a\n" + b"b" * (10 * MIB + extra) + end
        lines = iter_lines(data[start:start + piece] for start in range(0, len(data), piece))
        assert next(lines) == b"a"
        if extra:
            with pytest.raises(ResponseDecodeError, match="longer than 10485760 bytes"):
                next(lines)
        else:
            assert len(next(lines)) == 10 * MIB


def test_a_line_that_is_too_long_between_others_in_one_chunk():
    with pytest.raises(ResponseDecodeError):
        LineDecoder(max_line=4).feed(b"a\nbbbbb\nc\n")
    assert LineDecoder(max_line=4).feed(b"a\nbbbb\nc\n") == [b"a", b"bbbb", b"c"]


def test_events_before_a_line_that_is_too_long_go_out():
    events = iter_events([b"data: 1\n\ndata: 2\n\n" + b"x" * (11 * MIB)])
    assert [next(events).data, next(events).data] == ["1", "2"]
    with pytest.raises(ResponseDecodeError):
        next(events)


def test_a_line_without_end_takes_memory_for_itself_alone():
    """Also where it comes in tiny pieces: a list of them would take twenty times as much."""
    decoder = EventDecoder(max_line=MIB // 8)
    tracemalloc.start()
    try:
        with pytest.raises(ResponseDecodeError):
            for _ in range(MIB // 8):
                decoder.feed(b"ab")
        assert tracemalloc.get_traced_memory()[1] < MIB // 2
    finally:
        tracemalloc.stop()


def test_an_event_of_many_lines_has_its_limit_too():
    decoder = EventDecoder(max_event=MIB // 8)
    block = b"data:xy\n" * 1000
    tracemalloc.start()
    try:
        with pytest.raises(ResponseDecodeError, match="longer than 131072 bytes"):
            for _ in range(1000):
                decoder.feed(block)
        assert tracemalloc.get_traced_memory()[1] < MIB // 2
    finally:
        tracemalloc.stop()


def test_an_event_of_many_lines_within_the_limit():
    decoder = EventDecoder(max_event=MIB)
    [event] = decoder.feed(b"data:xy\n" * 1000 + b"\n")
    assert event.data == "\n".join(["xy"] * 1000)
    assert decoder.feed(b"data: z\n\n") == [Event(data="z")]


def test_comments_without_end_take_no_memory():
    decoder = EventDecoder()
    tracemalloc.start()
    try:
        for _ in range(200):
            assert decoder.feed(b": keep-alive\n\n" * 100) == []
        assert tracemalloc.get_traced_memory()[1] < MIB // 8
    finally:
        tracemalloc.stop()


# ---------------------------------------------------------------- writing, and the event itself


@pytest.mark.parametrize(
    "data, event, frame",
    [
        ("x", None, b"data: x\n\n"),
        ("", None, b"data: \n\n"),
        ("a\nb", None, b"data: a\ndata: b\n\n"),
        ("a\r\nb\rc\n", None, b"data: a\ndata: b\ndata: c\ndata: \n\n"),
        ("x", "response.created", b"event: response.created\ndata: x\n\n"),
        ("\u65e5\u2028", None, b"data: \xe6\x97\xa5\xe2\x80\xa8\n\n"),
        ("\ud800", None, b"data: ?\n\n"),  # half a character has no UTF-8
        ("x", "a\n\ndata: forged\r\n", b"event: a  data: forged  \ndata: x\n\n"),
    ],
)
def test_encode(data, event, frame):
    assert encode(data, event) == frame


def test_an_event_compares_and_shows_all_of_itself():
    event = Event("add", "x", "1", 5)
    assert event == Event("add", "x", "1", 5)
    others = Event("add", "x", "1"), Event("add", "x", "2", 5), Event("add", "y", "1", 5), Event("e", "x", "1", 5)
    assert not any(event == other for other in others)
    assert event != ("add", "x", "1", 5)
    assert repr(event) == "Event(event='add', data='x', id='1', retry=5)"
    with pytest.raises(TypeError):
        hash(event)
