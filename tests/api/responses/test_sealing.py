"""Reasoning as ``encrypted_content``: there and back, and nobody else's."""

import base64
import json

import pytest

from validity import check_event, check_response
from vllm_bridge.api.responses import Seal, from_chat, iter_events, to_chat, without_seals

SEAL = Seal([b"key"])
INCLUDE = {"input": "x", "store": False, "include": ["reasoning.encrypted_content"]}
TEXT = "Hm \u00e9\U0001f600 \ud83d"
CHUNK = {"id": "chatcmpl-1", "created": 5, "model": "m"}
MESSAGE = {"role": "assistant", "reasoning": TEXT, "content": "Hi"}
REPLY = dict(CHUNK, choices=[{"index": 0, "message": MESSAGE, "finish_reason": "stop"}])


def chunk(delta, finish=None):
    return dict(CHUNK, choices=[{"index": 0, "delta": delta, "finish_reason": finish}])


def sent(*items, seal=SEAL):
    return to_chat({"input": [*items, {"role": "user", "content": "x"}]}, seal)[0]["messages"][:-1]


def test_a_whole_reply_and_a_stream_carry_the_same():
    whole = from_chat(REPLY, to_chat(INCLUDE, SEAL)[1])
    check_response(json.loads(json.dumps(whole).replace("\\ud83d\"", "\"")))
    chunks = [chunk({"reasoning": TEXT[:2]}), chunk({"reasoning": TEXT[2:]}), chunk({"content": "Hi"}, "stop")]
    events = list(iter_events(chunks, to_chat(INCLUDE, SEAL)[1]))
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    for item in (whole["output"][0], done[0], events[-1]["response"]["output"][0]):
        assert item["summary"] == [{"type": "summary_text", "text": TEXT}]
        assert SEAL.opened(item["encrypted_content"]) == TEXT
        assert base64.b64decode(item["encrypted_content"], validate=True)
    added = [event["item"] for event in events if event["type"] == "response.output_item.added"]
    assert all("encrypted_content" not in item for item in added + whole["output"][1:])


def test_events_with_it_are_valid():
    for event in iter_events([chunk({"reasoning": "Hm"}), chunk({"content": "Hi"}, "stop")], to_chat(INCLUDE, SEAL)[1]):
        check_event(event)


@pytest.mark.parametrize("body, seal", [({"input": "x"}, SEAL), ({"input": "x", "include": []}, SEAL), (INCLUDE, None)])
def test_it_is_there_only_where_it_is_asked_for(body, seal):
    assert "encrypted_content" not in from_chat(REPLY, to_chat(body, seal)[1])["output"][0]


@pytest.mark.parametrize("rest", [
    {}, {"summary": []}, {"summary": None, "content": None}, {"summary": [{"type": "summary_text", "text": "short"}]},
    {"content": [{"type": "reasoning_text", "text": "short"}]},
])
def test_what_comes_back_goes_up_as_reasoning(rest):
    item = dict({"type": "reasoning", "encrypted_content": SEAL.sealed(TEXT)}, **rest)
    (message,) = sent(item)
    assert message["reasoning"] == message["reasoning_content"] == TEXT


def tampered():
    sealed = SEAL.sealed("Hm")
    for at in range(len(sealed)):
        other = "B" if sealed[at] != "B" else "C"
        yield sealed[:at] + other + sealed[at + 1:]
    data = base64.b64decode(sealed)
    for at in range(len(data)):
        yield base64.b64encode(data[:at] + bytes([data[at] ^ 1]) + data[at + 1:]).decode()
        yield base64.b64encode(data[:at]).decode()


FOREIGN = [
    "", "gAAAAABl", "\u00e9", "A", "====", 5, None, ["x"], {}, Seal([b"other"]).sealed("Hm"), SEAL.sealed("Hm") + "\n",
]


@pytest.mark.parametrize("content", FOREIGN + sorted(tampered()))
def test_what_is_not_ours_is_nothing_and_no_error(content):
    assert SEAL.opened(content) is None
    assert sent({"type": "reasoning", "summary": [], "encrypted_content": content}) == []
    short = [{"type": "summary_text", "text": "short"}]
    (message,) = sent({"type": "reasoning", "summary": short, "encrypted_content": content})
    assert message["reasoning"] == "short"
    body = {"input": [{"type": "reasoning", "summary": [], "encrypted_content": content}]}
    assert without_seals(body, SEAL) is body


def test_the_order_of_the_secrets_does_not_matter():
    assert Seal([b"a", b"b"]).opened(Seal([b"b", b"a"]).sealed("x")) == "x"
    assert Seal([b"ab"]).opened(Seal([b"a", b"b"]).sealed("x")) is None


def test_for_a_server_of_its_own_it_is_opened():
    sealed = {"encrypted_content": SEAL.sealed("Hm")}
    short = [{"type": "summary_text", "text": "short"}]
    user = {"role": "user", "content": "x"}
    body = {"model": "m", "input": [
        {"type": "reasoning", "id": "rs_1", "summary": short, **sealed}, user,
        {"type": "reasoning", "id": "rs_2", "summary": [], **sealed}, "odd", {"type": "message", **sealed},
        {"type": "reasoning", "id": "rs_3", "summary": [], "content": "short", **sealed},
    ]}
    before = json.dumps(body)
    told = without_seals(body, SEAL)
    assert json.dumps(body) == before
    assert told == {"model": "m", "input": [
        {"type": "reasoning", "id": "rs_1", "summary": short}, user,
        {"type": "reasoning", "id": "rs_2", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm"}]},
        "odd", {"type": "message", **sealed}, {"type": "reasoning", "id": "rs_3", "summary": [], "content": "short"},
    ]}
    for untouched in ({"input": "x"}, {"input": [user]}, {}):
        assert without_seals(untouched, SEAL) is untouched
