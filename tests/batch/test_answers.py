"""The lines of OUT, written and read back."""

import json

import pytest

from vllm_bridge.batch.answers import Answered, hex_hash, line_of, text_line
from vllm_bridge.batch.lines import key_hash, text_hash
from vllm_bridge.batch.request import Request
from vllm_bridge.batch.result import Result
from vllm_bridge.errors import APIConnectionError, BadRequestError

CHAT = {"id": "c", "choices": [{"message": {"role": "assistant", "content": "Hé"}}], "usage": {}}


def good(number=3, key=b"a", payload=CHAT, data=None, operation="chat_completion", given=b"{}"):
    request = Request(number, given, key)
    request.operation = operation
    data = json.dumps(payload).encode() if data is None else data
    return Result(request, 1, 0.1).answered(200, "id-1", data, payload)


def bad(error, key=b"a"):
    return Result(Request(3, b"{}", key), 1, 0.1, error)


def test_an_answer_in_openais_batch_format():
    assert json.loads(line_of(good())) == {
        "id": "line-3", "custom_id": "a", "response": {"status_code": 200, "request_id": "id-1", "body": CHAT},
        "error": None,
    }


def test_the_servers_own_bytes_are_kept_unless_they_would_break_the_line():
    data = b'{"choices": [], "x": 1.50}'
    assert data in line_of(good(data=data))
    broken = line_of(good(data=json.dumps(CHAT, indent=1).encode() + b"\r\n"))
    assert broken.count(b"\n") == 1 and b"\r" not in broken
    assert json.loads(broken)["response"]["body"] == CHAT


def test_a_failure_tells_what_the_server_said():
    error = BadRequestError("too long", payload={"error": {"message": "too long"}}, url="http://a/", request_id="r")
    assert json.loads(line_of(bad(error))) == {
        "id": "line-3", "custom_id": "a",
        "response": {"status_code": 400, "request_id": "r", "body": {"error": {"message": "too long"}}},
        "error": {"code": "BadRequestError", "message": "too long"},
    }
    found = json.loads(line_of(bad(APIConnectionError("gone", url="http://a/"))))
    assert found["response"] is None and found["error"]["message"] == "gone"
    found = json.loads(line_of(bad(BadRequestError("line 3 is no request", code="invalid_line"))))
    assert found["response"] is None and found["error"]["code"] == "invalid_line"


@pytest.mark.parametrize("key", [b"a", b"", 'é"\\\n\u2028'.encode(), b"line-1", None])
@pytest.mark.parametrize("failed", [False, True])
def test_a_line_is_found_again(key, failed):
    line = line_of(bad(BadRequestError("no", url="http://a/"), key) if failed else good(key=key))
    answered = Answered()
    assert answered.read(line.rstrip(b"\n"))
    known = key_hash(key) if key is not None else hex_hash(text_hash(b"{}"))
    assert answered.at(3) == known and known in answered and answered.at(2) == 0 == answered.at(99)
    assert (answered.lines, answered.failed) == (1, int(failed))
    well = Answered()
    assert well.read(line.rstrip(b"\n"), well=True) and well.lines == (0 if failed else 1)


def test_another_programs_batch_output_is_read_too():
    answered = Answered()
    line = {"id": "vllm-1", "custom_id": "a", "response": {"status_code": 200, "body": {}}, "error": None}
    assert answered.read(json.dumps(line).encode())
    assert key_hash(b"a") in answered
    for other in (b"{}", b'{"custom_id": "a", "body": {}}', b"x", b'{"id":"line-3","custom_id":null,"response":null'):
        assert not answered.read(other)


def test_a_number_that_is_far_away_takes_no_memory():
    answered = Answered()
    assert answered.read(line_of(good(number=10 ** 14))[:-1]) and key_hash(b"a") in answered
    assert answered.at(10 ** 14) == 0


@pytest.mark.parametrize("operation, payload, text", [
    ("chat_completion", CHAT, "Hé"),
    ("chat_completion", {"choices": [{"message": {"content": None}}]}, ""),
    ("chat_completion", {"choices": []}, ""),
    ("text_completion", {"choices": [{"text": "b\n"}]}, "b\n"),
    ("responses", {"output": [
        {"type": "reasoning", "summary": []},
        {"type": "message", "content": [{"type": "output_text", "text": "a"}, {"type": "output_text", "text": "b"}]}]},
     "ab"),
    ("embedding", {"data": [{"embedding": [0.5, 1.0]}]}, [0.5, 1.0]),
    ("rerank", {"results": [{"index": 0}]}, [{"index": 0}]),
    ("score", {"data": [{"score": 0.5}]}, [{"score": 0.5}]),
    ("messages", {"content": [{"type": "thinking"}, {"type": "text", "text": "a"}]}, "a"),
])
def test_the_text_alone(operation, payload, text):
    line = text_line(good(operation=operation, payload=payload))
    assert line.count(b"\n") == 1 and json.loads(line) == text


def test_a_failure_is_null_among_texts():
    assert text_line(bad(BadRequestError("no"))) == b"null\n"
