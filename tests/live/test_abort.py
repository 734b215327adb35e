"""Whoever stops reading stops the generation: vLLM's own count of running requests falls to 0 within a second."""

import json
import socket
import threading
import time
import urllib.parse

import pytest
from cases import LONG
from oracle import running, wait_for_running

from vllm_bridge import APITimeoutError, Cancellation, RequestCancelledError

WITHIN = 1.0
TRIES = 3              # a machine that is busy with something else may need another one
LONG_TEXT = {"prompt": "count", "temperature": 0, "max_tokens": 900, "ignore_eos": True}


def falls_to_zero(face, leave):
    """Run `leave`, which begins a generation and walks away from it, until the count falls in time."""
    took = []
    for _ in range(TRIES):
        assert running(face.server) == 0
        left = leave()
        wait_for_running(face.server, 0, 20.0)
        took.append(time.monotonic() - left)
        if took[-1] < WITHIN:
            return
    pytest.fail("after leaving, vLLM went on for %s s" % took)


def begun(stream):
    for _ in range(3):
        next(stream)


@pytest.mark.parametrize("operation,fields", [
    ("chat_completion_stream", LONG), ("text_completion_stream", LONG_TEXT)])
def test_closing_a_stream(chat, operation, fields):
    def leave():
        stream = getattr(chat.vllm, operation)(model=chat.model, **fields)
        begun(stream)
        wait_for_running(chat.server, 1, 10.0)
        stream.close()
        return time.monotonic()
    falls_to_zero(chat, leave)


def test_leaving_the_block(chat):
    def leave():
        with chat.vllm.chat_completion_stream(model=chat.model, **LONG) as stream:
            begun(stream)
        return time.monotonic()
    falls_to_zero(chat, leave)


def test_an_exception_in_the_loop(chat):
    def leave():
        try:
            with chat.vllm.chat_completion_stream(model=chat.model, **LONG) as stream:
                for _ in stream:
                    raise KeyError("the caller's own")
        except KeyError:
            return time.monotonic()
    falls_to_zero(chat, leave)


def test_a_stream_that_nobody_keeps(chat):
    def leave():
        stream = chat.vllm.chat_completion_stream(model=chat.model, **LONG)
        begun(stream)
        del stream
        return time.monotonic()
    falls_to_zero(chat, leave)


def test_cancelling_a_call_that_waits(chat):
    def leave():
        cancel = Cancellation()
        caught = []

        def work():
            try:
                chat.vllm.with_options(cancel=cancel).chat_completion(model=chat.model, **LONG)
            except RequestCancelledError as error:
                caught.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        wait_for_running(chat.server, 1, 10.0)
        cancel.cancel()
        left = time.monotonic()
        thread.join()
        assert caught
        return left
    falls_to_zero(chat, leave)


def test_a_deadline(chat):
    def leave():
        with pytest.raises(APITimeoutError):
            chat.vllm.with_options(deadline=0.7, max_retries=0).chat_completion(model=chat.model, **LONG)
        return time.monotonic()
    falls_to_zero(chat, leave)


@pytest.mark.parametrize("streamed", [True, False], ids=["stream", "plain"])
def test_a_client_that_hangs_up(chat, streamed):
    """A bare socket that goes away, at vLLM itself and at the gateway."""
    body = json.dumps(dict(LONG, model=chat.model, stream=streamed)).encode("ascii")
    head = ("POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            "Content-Length: %d\r\n\r\n" % len(body)).encode("ascii")
    parts = urllib.parse.urlsplit(chat.front.url)

    def leave():
        client = socket.create_connection((parts.hostname, parts.port))
        client.sendall(head + body)
        wait_for_running(chat.server, 1, 10.0)
        if streamed:
            client.recv(100)
        client.close()
        return time.monotonic()
    falls_to_zero(chat, leave)


def test_the_next_call_works(chat):
    """A stream that was left half-read does not leave its rest to the next call."""
    with chat.vllm.chat_completion_stream(model=chat.model, **LONG) as stream:
        begun(stream)
    short = dict(LONG, ignore_eos=False, messages=[{"role": "user", "content": "hello"}])
    whole = chat.vllm.chat_completion(model=chat.model, **short).choices[0].message.content
    again = "".join(chunk.text for chunk in chat.vllm.chat_completion_stream(model=chat.model, **short))
    assert whole == again
