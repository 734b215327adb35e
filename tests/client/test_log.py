"""What a call writes into the log: requests, replies, retries; never a key, and texts only where they are asked for."""

import logging
import subprocess
import sys

import pytest

from scripted import LAST_CHUNK, SSE_HEAD, Scripted, answer, completion, delta, event
from vllm_bridge import APIConnectionError, VLLMProvider

ASK = {"model": "m", "messages": [{"role": "user", "content": "a private question"}]}
BUSY = answer({"error": {"message": "busy"}}, "503 Service Unavailable", extra="Retry-After: 0\r\n")
FINE = answer(completion("a private answer"), extra="X-Request-Id: r-7\r\n")


def logged(caplog, level):
    return [record.getMessage() for record in caplog.records if record.levelno == level]


def test_at_info_a_call_is_one_line_and_a_retry_another(caplog):
    caplog.set_level(logging.INFO, "vllm_bridge")
    with Scripted(["request", BUSY, "request", FINE]) as server, VLLMProvider(server.url, api_key="sk-s3cret") as vllm:
        vllm.chat_completion(**ASK, extra_query={"token": "s3cret"}, extra_headers={"X-Team-Key": "s3cret"})
    first, retry, last = logged(caplog, logging.INFO)
    assert "POST %s/v1/chat/completions" % server.url in first and ": 503 after 0." in first
    assert "503" in retry or "busy" in retry
    assert "[r-7]: 200 after 0." in last
    assert "s3cret" not in caplog.text and "private" not in caplog.text


def test_at_debug_what_goes_out_is_told_too_and_no_text(caplog):
    caplog.set_level(logging.DEBUG, "vllm_bridge")
    with Scripted(["request", FINE]) as server, VLLMProvider(server.url, api_key="sk-s3cret") as vllm:
        vllm.chat_completion(**ASK, timeout=7)
    [sent] = logged(caplog, logging.DEBUG)
    assert "sent, " in sent and " bytes, timeout (5" in sent
    assert "s3cret" not in caplog.text and "private" not in caplog.text


def test_a_server_that_is_not_there(caplog):
    caplog.set_level(logging.INFO, "vllm_bridge")
    with VLLMProvider("http://127.0.0.1:1", max_retries=0) as vllm, pytest.raises(APIConnectionError):
        vllm.chat_completion(**ASK)
    assert any("APIConnectionError after 0." in line for line in logged(caplog, logging.INFO))


def test_texts_are_logged_where_they_are_asked_for(caplog):
    caplog.set_level(logging.DEBUG, "vllm_bridge")
    caplog.set_level(logging.DEBUG, "vllm_bridge.content")
    stream = ["request", SSE_HEAD, event(delta("a private answer", "stop")), event("[DONE]"), LAST_CHUNK]
    with Scripted(["request", FINE, *stream]) as server, VLLMProvider(server.url, api_key="sk-s3cret") as vllm:
        vllm.chat_completion(**ASK)
        list(vllm.chat_completion_stream(**ASK))
    lines = [record.getMessage() for record in caplog.records if record.name == "vllm_bridge.content"]
    assert sum("> {" in line and "a private question" in line for line in lines) == 2
    assert sum("< " in line and "a private answer" in line for line in lines) == 2
    assert "s3cret" not in caplog.text and not any("\n" in line for line in lines)


@pytest.mark.parametrize("name", ["vllm_bridge", "vllm_bridge.content"])
def test_a_key_that_a_server_repeats_is_masked(caplog, name):
    caplog.set_level(logging.DEBUG, "vllm_bridge")
    caplog.set_level(logging.DEBUG, name)
    said = answer(completion("your key is sk-very-s3cret"), extra="X-Request-Id: Bearer sk-very-s3cret\r\n")
    with Scripted(["request", said]) as server, VLLMProvider(server.url, api_key="sk-very-s3cret") as vllm:
        vllm.chat_completion(**ASK)
    assert "200 after" in caplog.text and "s3cret" not in caplog.text


def test_a_gateways_requests_are_in_its_own_log(caplog):
    caplog.set_level(logging.INFO, "vllm_bridge")
    with Scripted(["request", FINE]) as server, VLLMProvider(server.url) as vllm:
        vllm.with_options(direct=True).chat_completion(**ASK)
    assert logged(caplog, logging.INFO) == []


PROGRAM = """
import sys, vllm_bridge
with vllm_bridge.VLLMProvider(sys.argv[1], api_key="sk-s3cret") as vllm:
    vllm.chat_completion(messages=[{"role": "user", "content": "a private question"}])
"""


@pytest.mark.parametrize("wanted, there, not_there", [
    ("info", ["INFO vllm_bridge: POST", "200 after"], ["sent", "private"]),
    ("DEBUG", ["sent", "200 after"], ["private"]),
    ("content", ["a private question", "a private answer"], []),
    ("verbose", ["VLLM_BRIDGE_LOG: expected info, debug or content, got 'verbose'"], ["200 after", "private"]),
    ("", [], ["200 after"]),
])
def test_the_environment_asks_for_it(wanted, there, not_there):
    with Scripted(["request", FINE]) as server:
        done = subprocess.run([sys.executable, "-c", PROGRAM, server.url], env={"VLLM_BRIDGE_LOG": wanted},
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120)
    shown = done.stderr.decode()
    assert done.returncode == 0 and done.stdout == b"", shown
    assert all(part in shown for part in there) and not any(part in shown for part in not_there + ["s3cret"]), shown
