"""A stream: its limits, its ends, and who may close it, over scripted sources and, for closing, real sockets."""

import copy
import pickle
import threading
import time

import pytest
import requests

from scripted import LAST_CHUNK, SSE_HEAD, Scripted, delta, event
from vllm_bridge import (
    APIConnectionError,
    APITimeoutError,
    BridgeError,
    IncompleteStreamError,
    NetworkConfig,
    ProviderConfig,
    RateLimitError,
    RequestCancelledError,
    ResponseDecodeError,
    Stream,
    VLLMProvider,
)
from vllm_bridge.api.decoding import TokenUsage
from vllm_bridge.api.forwarding import Forwarding
from vllm_bridge.client.stream import GRACE, KEEP_ALIVE, Limits, Progress, items_of

ASK = {"model": "m", "messages": []}
ENDLESS = ["request", SSE_HEAD, ("repeat", event(delta("x")), 0.01)]
WAITING = ["request", SSE_HEAD, event(delta("x")), "hold"]


class Bytes:
    """A source made of blocks; a float is a silence of that length, an exception is raised."""

    url = "http://test"
    request_id = "r1"
    resumes = True

    def __init__(self, *blocks, kind="text/event-stream"):
        self.headers = {"content-type": kind}
        self.blocks = list(blocks)
        self.timeout = None
        self.timeouts = []
        self.ended = []

    def read(self):
        if not self.blocks:
            return b""
        block = self.blocks.pop(0)
        if isinstance(block, Exception):
            raise block
        return block

    def set_timeout(self, seconds):
        self.timeouts.append(seconds)

    def finish(self):
        self.ended.append("finish")

    def close(self):
        self.ended.append("close")


class Words:
    """A reader whose items are the events' data; "end" finishes, "bad" is an error."""

    def __init__(self):
        self.finished = False
        self.seen = []

    def feed(self, event):
        if event.data == "bad":
            raise ResponseDecodeError("bad data")
        self.finished = self.finished or event.data == "end"
        self.seen.append(event.data)
        return [event.data]

    def finish(self):
        return ["held back"]

    def partial(self):
        return list(self.seen)


def told(error):
    error.url = Bytes.url


def stream_of(*blocks, first=9, idle=5, keep_alive=None, reader=None, **source):
    source, progress = Bytes(*blocks, **source), Progress()
    items = items_of(source, reader or Words(), Limits(first, idle, keep_alive), progress, told)
    return source, Stream(progress, items)


def data(*words):
    return b"".join(b"data: %s\n\n" % word.encode() for word in words)


# ---------------------------------------------------------------- ends

def test_done_is_an_end_whatever_came_before():
    source, stream = stream_of(data("a", "[DONE]", "after"), data("never read"))
    assert list(stream) == ["a", "held back"]
    assert source.ended == ["finish", "close"]
    assert source.blocks


def test_a_finish_and_the_end_of_the_body_is_an_end():
    source, stream = stream_of(data("a"), data("end"))
    assert list(stream) == ["a", "end", "held back"]
    assert source.ended[0] == "finish"


def test_the_end_of_the_body_alone_is_none():
    source, stream = stream_of(data("a", "b"))
    with pytest.raises(IncompleteStreamError, match="without a finish reason") as caught:
        list(stream)
    assert caught.value.partial == ["a", "b"]
    assert caught.value.url == "http://test" and caught.value.request_id == "r1"
    assert source.ended == ["close"]


def test_a_connection_that_breaks_is_an_incomplete_stream_before_the_finish_and_an_end_after_it():
    _, stream = stream_of(data("a"), APIConnectionError("reset by peer"))
    with pytest.raises(IncompleteStreamError, match="broke off: reset by peer") as caught:
        list(stream)
    assert caught.value.partial == ["a"]
    assert isinstance(caught.value.__cause__, APIConnectionError)
    _, stream = stream_of(data("end"), APIConnectionError("reset by peer"))
    assert list(stream) == ["end", "held back"]


def test_an_error_of_the_reader_tells_where_it_is_from_and_closes():
    source, stream = stream_of(data("a"), data("bad"))
    assert next(stream) == "a"
    with pytest.raises(ResponseDecodeError) as caught:
        next(stream)
    assert caught.value.url == "http://test"
    assert source.ended == ["close"]
    assert list(stream) == []


def test_an_error_in_the_first_event_is_raised_when_the_stream_is_opened():
    with pytest.raises(ResponseDecodeError):
        stream_of(data("bad"))


def test_a_stream_that_holds_everything_back_is_read_to_its_end_when_opened():
    source, stream = stream_of(data("[DONE]"))
    assert list(stream) == ["held back"]


# ---------------------------------------------------------------- limits

def test_the_limits_of_the_first_event_of_the_next_ones_and_after_the_finish():
    source, stream = stream_of(data("a"), data("b"), data("end"), data("usage"), first=9, idle=5)
    list(stream)
    assert source.timeouts == [9, 5, GRACE]


@pytest.mark.parametrize("first, idle, expected", [
    (9, 5, (9, 5, 2.0)), (3, 5, (3, 3, 2.0)), (None, 5, (None, 5, 2.0)), (9, None, (9, 9, 2.0)),
    (None, None, (None, None, 2.0)), (1, 5, (1, 1, 1)), (9, 0.5, (9, 0.5, 0.5)),
])
def test_which_limit_counts(first, idle, expected):
    limits = Limits(first, idle)
    assert (limits.first, limits.idle, limits.grace) == expected


def test_a_silence_names_its_limit():
    silence = APITimeoutError("nothing for 9 s (read timeout)")
    with pytest.raises(APITimeoutError, match=r"no first event came for 9 s \(read timeout\); raise it with timeout="):
        stream_of(silence)
    _, stream = stream_of(data("a"), silence)
    with pytest.raises(APITimeoutError, match=r"no event came for 5 s \(stream_idle_timeout_in_seconds") as caught:
        list(stream)
    assert caught.value.url == "http://test"


def test_a_deadline_is_handed_on_before_the_finish_and_no_error_after_it():
    over = APITimeoutError("total time", code="deadline")
    _, stream = stream_of(data("a"), over)
    with pytest.raises(APITimeoutError, match="total time"):
        list(stream)
    _, stream = stream_of(data("end"), over)
    assert list(stream) == ["end", "held back"]


def test_comments_and_unfinished_events_do_not_prolong_the_wait(monkeypatch):
    clock = [100.0]

    def later():
        clock[0] += 1.0
        return clock[0]

    monkeypatch.setattr("vllm_bridge.client.stream.time.monotonic", later)
    with pytest.raises(APITimeoutError, match="no first event came for 9 s"):
        stream_of(*[b"event: still-here\n"] * 50)
    _, stream = stream_of(data("a"), *[b": still here\n\n"] * 50)
    with pytest.raises(APITimeoutError, match="no event came for 5 s"):
        list(stream)
    source, stream = stream_of(data("a"), *[b"data: drip"] * 50)
    with pytest.raises(APITimeoutError, match="no event came for 5 s"):
        list(stream)
    assert source.timeouts[:2] == [9, 5]
    assert sorted(source.timeouts[1:], reverse=True) == source.timeouts[1:], "what is left of the wait"
    _, stream = stream_of(data("end"), *[b": still here\n\n"] * 50)
    assert list(stream) == ["end", "held back"]


@pytest.mark.parametrize("comment", [b": keep-alive\n\n", b":\n\n", b": a\r\n\r\n", b":x\n", b":\n:y\n"])
@pytest.mark.parametrize("reader", [Words, lambda: Forwarding(1, True, TokenUsage())])
def test_before_the_first_event_a_comment_is_a_sign_of_life(monkeypatch, comment, reader):
    clock = [100.0]

    def later():
        clock[0] += 1.0
        return clock[0]

    monkeypatch.setattr("vllm_bridge.client.stream.time.monotonic", later)
    last = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    source, stream = stream_of(*[comment] * 50, last, reader=reader())
    assert any(b"choices" in item if isinstance(item, bytes) else "choices" in item for item in stream)


def test_comments_are_items_where_they_are_wanted():
    comment, other = b": keep-alive\n\n", b":\r\n\r\n"
    source, stream = stream_of(comment, other, data("a"), comment + data("b") + comment, data("end"), keep_alive=0)
    assert list(stream) == [comment, b":\n\n", "a", comment, "b", comment, "end", "held back"]
    source, stream = stream_of(comment, data("a"), comment, data("end"))
    assert list(stream) == ["a", "end", "held back"]


def test_after_a_silence_comes_a_comment_of_our_own_between_two_events_only():
    silence = APITimeoutError("nothing for 2 s (read timeout)")
    blocks = [silence, silence, data("a"), silence, b"data: e", silence]
    source, stream = stream_of(*blocks, first=9, idle=5, keep_alive=2)
    assert [next(stream) for _ in range(4)] == [KEEP_ALIVE, KEEP_ALIVE, "a", KEEP_ALIVE]
    with pytest.raises(APITimeoutError, match="no event came for 5 s"):
        next(stream)
    assert {seconds for seconds in source.timeouts if seconds <= 2} == {2}


def test_our_own_comments_do_not_prolong_the_wait(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("vllm_bridge.client.stream.time.monotonic", lambda: clock[0])
    source = Bytes()

    def read():
        clock[0] += source.timeouts[-1]
        raise APITimeoutError("silence")

    source.read = read
    progress = Progress()
    items = items_of(source, Words(), Limits(9, 5, 2), progress, told)
    assert [next(items) for _ in range(4)] == [KEEP_ALIVE] * 4
    with pytest.raises(APITimeoutError, match="no first event came for 9 s"):
        next(items)
    assert clock[0] == 109.0 and not progress.begun


@pytest.mark.parametrize("mark", ["[DONE]", " [DONE]", "[DONE]  ", "\t[DONE] "])
@pytest.mark.parametrize("reader", [Words, lambda: Forwarding(1, True, TokenUsage())])
def test_the_end_mark_may_have_spaces_around_it(mark, reader):
    source, stream = stream_of(data("{}", mark, "after"), data("never read"), reader=reader())
    assert list(stream)[-1] in ("held back", b"data: {}\n\ndata: [DONE]\n\n")
    assert source.ended == ["finish", "close"]


def test_line_ends_in_three_blocks():
    source, stream = stream_of(b"data: a\r", b"\n", b"\n", b"data: end\r", b"\n", b"\n")
    assert list(stream) == ["a", "end", "held back"]


def test_without_a_limit_comments_may_go_on(monkeypatch):
    _, stream = stream_of(*[b": still here\n\n"] * 50 + [data("end")], first=None, idle=None)
    assert list(stream) == ["end", "held back"]


def test_the_time_that_the_caller_takes_is_no_silence_of_the_server(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("vllm_bridge.client.stream.time.monotonic", lambda: clock[0])
    source, stream = stream_of(data("a"), b"data: en", b"d\n\n")
    assert next(stream) == "a"
    clock[0] += 1000.0
    assert list(stream) == ["end", "held back"]


# ---------------------------------------------------------------- what is no event stream

@pytest.mark.parametrize("kind", ["", "text/event-stream", "text/event-stream; charset=utf-8", "TEXT/Event-Stream;x=y"])
def test_what_is_taken_for_an_event_stream(kind):
    assert list(stream_of(data("end"), kind=kind)[1]) == ["end", "held back"]


@pytest.mark.parametrize("kind", ["application/x-ndjson", "text/plain; charset=utf-8", "text/event-streams", "a/b"])
def test_another_type_is_refused_at_once_and_named(kind):
    source = Bytes(*[data("more")] * 10 ** 6, kind=kind)
    with pytest.raises(ResponseDecodeError, match="with " + kind) as caught:
        list(items_of(source, Words(), Limits(9, 5), Progress(), told))
    assert caught.value.url == "http://test" and "more" in caught.value.message
    assert source.ended == ["finish", "close"] and max(source.timeouts) <= 0.2


@pytest.mark.parametrize("kind", ["application/json", "application/problem+json", "text/plain", "text/html", ""])
def test_an_error_under_another_type_is_raised(kind):
    with pytest.raises(RateLimitError, match="too many"):
        stream_of(b'{"error":{"message":"too ', b'many","code":429}}', kind=kind)


def test_what_is_read_of_a_json_body_has_its_bounds():
    source = Bytes(b"[", *[b" " * 65536] * 100, kind="application/json")
    with pytest.raises(ResponseDecodeError, match="application/json"):
        list(items_of(source, Words(), Limits(9, 5), Progress(), told))
    assert len(source.blocks) > 80 and max(source.timeouts) <= 5
    with pytest.raises(APITimeoutError, match="total"):
        stream_of(b"{", APITimeoutError("total", code="deadline"), kind="application/json")
    with pytest.raises(ResponseDecodeError, match="instead of text/event-stream: {"):
        stream_of(b"{", APIConnectionError("reset"), kind="application/json")


# ---------------------------------------------------------------- closing

def test_a_stream_is_not_pickled():
    for copied in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="^a Stream cannot be pickled or copied: it reads from an open connection$"):
            copied(stream_of(data("end"))[1])


def test_closing_ends_the_items():
    source, stream = stream_of(data("a", "b"), data("end"))
    assert iter(stream) is not None
    assert next(stream) == "a"
    stream.close()
    assert list(stream) == []
    with pytest.raises(StopIteration):
        next(stream)
    stream.close()
    assert "finish" not in source.ended and "close" in source.ended


def test_a_with_block_closes_whatever_happens():
    source, stream = stream_of(data("a", "b"))
    with pytest.raises(KeyError):
        with stream as same:
            assert same is stream
            raise KeyError
    assert "close" in source.ended


def test_closing_inside_the_loop_ends_it():
    source, stream = stream_of(data("a"), data("b"), data("end"))
    seen = []
    for word in stream:
        seen.append(word)
        stream.close()
    assert seen == ["a"]


def test_a_converted_stream_closes_what_is_under_it_and_hands_its_errors_on():
    source, stream = stream_of(data("a", "b"), data("end"))
    upper = stream.converted(lambda words: (word.upper() for word in words))
    assert upper.request_id == "r1"
    assert list(upper) == ["A", "B", "END", "HELD BACK"]
    source, stream = stream_of(data("a", "b"), data("end"))
    with stream.converted(lambda words: (word.upper() for word in words)) as upper:
        assert next(upper) == "A"
    assert "close" in source.ended
    source, stream = stream_of(data("a", "b"))
    with pytest.raises(IncompleteStreamError):
        list(stream.converted(iter))
    assert "close" in source.ended


@pytest.fixture(params=[True, False], ids=["own connections", "a caller's session"])
def session(request):
    with requests.Session() as session:
        yield None if request.param else session


def provider_for(server, session):
    return VLLMProvider(config=ProviderConfig(NetworkConfig(server.url, max_retries=0)), session=session)


def settled(server):
    """Wait until the server has noticed the end."""
    end = time.monotonic() + 10
    while not server.ends and time.monotonic() < end:
        time.sleep(0.005)
    return bool(server.ends)


@pytest.mark.parametrize("script", [ENDLESS, WAITING], ids=["while it comes", "while it is silent"])
@pytest.mark.parametrize("how", ["close", "with", "del", "break"])
def test_leaving_a_stream_reaches_the_server(session, script, how):
    with Scripted(script) as server, provider_for(server, session) as provider:
        start = time.monotonic()
        if how == "break":
            for _ in provider.chat_completion_stream(**ASK):
                break
        elif how == "with":
            with provider.chat_completion_stream(**ASK) as stream:
                next(stream)
        else:
            stream = provider.chat_completion_stream(**ASK)
            next(stream)
            if how == "close":
                stream.close()
            else:
                del stream
        assert settled(server)
        assert time.monotonic() - start < 5


def test_a_stream_that_nobody_reads_is_closed_too(session):
    with Scripted(ENDLESS) as server, provider_for(server, session) as provider:
        provider.chat_completion_stream(**ASK)
        assert settled(server)


def test_another_thread_may_close_a_stream_whose_reader_waits(session):
    with Scripted(WAITING) as server, provider_for(server, session) as provider:
        stream = provider.chat_completion_stream(**ASK)
        assert next(stream).text == "x"
        caught = []

        def read():
            try:
                caught.append(list(stream))
            except BridgeError as error:
                caught.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        time.sleep(0.1)  # it waits now, most likely; if not yet, it is refused at once
        stream.close()
        reader.join(10)
        assert settled(server)
        assert caught == [[]] or isinstance(caught[0], RequestCancelledError)


def test_closing_from_many_threads_while_it_is_read(session):
    script = ["request", SSE_HEAD, ("repeat", event(delta("x")), 0.0)]
    with Scripted(script) as server, provider_for(server, session) as provider:
        for _ in range(10):
            stream = provider.chat_completion_stream(**ASK)
            caught = []

            def read(stream=stream, caught=caught):
                try:
                    for _ in stream:
                        pass
                except BaseException as error:
                    caught.append(error)

            def close(stream=stream, caught=caught):
                try:
                    stream.close()
                except BaseException as error:
                    caught.append(error)

            threads = [threading.Thread(target=target) for target in (read, close, close, close)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(10)
            assert all(isinstance(error, RequestCancelledError) for error in caught), caught


def test_a_read_stream_leaves_nothing_to_close(session):
    good = ["request", SSE_HEAD, event(delta("good", "stop")), event("[DONE]"), LAST_CHUNK, "again"]
    with Scripted(good) as server, provider_for(server, session) as provider:
        with provider.chat_completion_stream(**ASK) as stream:
            assert [chunk.text for chunk in stream] == ["good"]
        stream.close()
        assert list(provider.chat_completion_stream(**ASK))
        assert server.connections == 1
