"""What of a Response has arrived when its events stop: vLLM's own recorded streams, and ours, cut after every event."""

import pytest

import wire
from validity import check_event, check_response
from vllm_bridge.errors import BridgeError, IncompleteStreamError, RateLimitError
from vllm_bridge.api.responses import PartialResponse, ResponseEvents, iter_events

NATIVE = ["responses_tools_required_stream", "think_responses_stream", "store_responses_background_stream"]
BROKEN = IncompleteStreamError("the stream broke off", status_code=502)


def folded(events):
    partial = PartialResponse()
    for event in events:
        partial.feed(event)
    return partial


def texts(response):
    """Return everything that a Response says, in its order."""
    found = []
    for item in response["output"]:
        parts = (item.get("content") or []) + [part for part in item.get("summary") or [] if not item.get("content")]
        found += [part.get("text", part.get("refusal")) for part in parts] + [item.get("arguments", "")]
    return "".join(found)


def deltas(events):
    return "".join(event.get("delta", "") for event in events if "reasoning_summary" not in event["type"])


@pytest.mark.parametrize("name", NATIVE)
def test_a_recorded_stream_cut_after_every_event_keeps_what_its_deltas_said(name):
    events = wire.load(name).payloads
    for cut in range(1, len(events)):
        response = folded(events[:cut]).response()
        assert texts(response) == deltas(events[:cut])
        assert response["id"] == events[0]["response"]["id"]
        done = [event["item"] for event in events[:cut] if event["type"] == "response.output_item.done"]
        assert response["output"][:len(done)] == done
        assert all(item["status"] == "incomplete" for item in response["output"][len(done):])
    assert folded(events).response() == events[-1]["response"]


def chat(delta, finish=None):
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "chatcmpl-1", "created": 5, "model": "m", "choices": [choice]}


def test_every_kind_of_delta_is_kept():
    chunks = [
        chat({"reasoning": "Hm"}), chat({"reasoning": "m."}), chat({"content": "a"}), chat({"content": "b"}),
        chat({"refusal": "no"}), chat({"refusal": "pe"}), chat({"content": "c"}),
        chat({"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "f", "arguments": '{"x"'}}]}),
        chat({"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]}),
    ]
    machine = ResponseEvents()
    events = [event for one in chunks for event in machine.feed(one)]
    reasoning, message, call = folded(events).response()["output"]
    assert [part["text"] for part in reasoning["summary"]] == ["Hmm."]
    kinds = [(part["type"], part.get("text") or part.get("refusal")) for part in message["content"]]
    assert kinds == [("output_text", "ab"), ("refusal", "nope"), ("output_text", "c")]
    assert (call["status"], call["arguments"]) == ("incomplete", '{"x": 1}')


def test_parts_of_an_item_that_is_open():
    added = {"type": "response.output_item.added", "output_index": 0, "item": {
        "id": "msg_1", "type": "message", "role": "assistant", "status": "in_progress", "content": []}}
    said = [{"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": "a"},
            {"type": "response.refusal.delta", "output_index": 0, "content_index": 1, "delta": "no"},
            {"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": "b"}]
    call = {"type": "response.output_item.added", "output_index": 1, "item": {
        "id": "ctc_1", "type": "custom_tool_call", "call_id": "c", "name": "sh", "input": ""}}
    typed = {"type": "response.custom_tool_call_input.delta", "output_index": 1, "delta": "ls"}
    created = {"type": "response.created", "response": {"id": "resp_1", "output": []}}
    message, custom = folded([created, added, call, *said, typed]).response()["output"]
    assert [part.get("text", part.get("refusal")) for part in message["content"]] == ["ab", "no"]
    assert custom["input"] == "ls"


@pytest.mark.parametrize("event", [
    {}, {"type": []}, {"type": "response.output_text.delta"}, {"type": "response.output_text.delta", "delta": "x",
                                                               "output_index": 7, "content_index": 0},
    {"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": None},
    {"type": "response.output_text.delta", "output_index": 0, "content_index": [], "delta": "x"},
    {"type": "response.output_item.added", "output_index": 0, "item": "x"},
    {"type": "response.output_item.added", "output_index": [], "item": {}}, {"response": "x"}, {"type": "new.event"},
])
def test_events_that_do_not_fit_change_nothing(event):
    events = wire.load("think_responses_stream").payloads[:6]
    before = folded(events).response()
    assert folded(events + [event]).response() == before


def test_a_failure_without_a_response_is_the_apis_error_event():
    event = PartialResponse().failure(RateLimitError("slow down", code=429, param="model", status_code=429), 4)
    check_event(event)
    assert event["type"] == "error" and event["sequence_number"] == 4
    assert (event["message"], event["code"], event["param"]) == ("slow down", "429", "model")
    assert PartialResponse().failure(BridgeError("x"), 0)["code"] is None


def test_a_failure_ends_the_response_with_what_there_is():
    events = list(iter_events([chat({"content": "Hel"}), chat({"content": "lo"}, "stop")]))
    event = folded(events[:6]).failure(BROKEN, 6)
    check_event(event)
    check_response(event["response"])
    assert (event["type"], event["sequence_number"]) == ("response.failed", 6)
    response = event["response"]
    assert (response["status"], response["error"]["code"]) == ("failed", "server_error")
    assert response["error"]["message"] == "the stream broke off"
    assert texts(response) == "Hello"
