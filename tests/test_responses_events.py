"""Chat chunks → Responses events."""

import pytest

import wire
from validity import check_event
from vllm_bridge.chat import ChatAccumulator
from vllm_bridge.responses import ResponseEvents, from_chat, iter_events

RECORDED = [
    name
    for name in wire.names("chat_stream") + wire.names("think_stream") + wire.names("think_off_stream")
    if wire.load(name).streams
]


@pytest.mark.parametrize("name", RECORDED)
def test_every_recorded_stream_gives_valid_events_and_the_response_of_its_completion(name):
    payloads = wire.load(name).payloads
    machine = ResponseEvents()
    events = [event for payload in payloads for event in machine.feed(payload)] + machine.finish()
    for event in events:
        check_event(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    folded = ChatAccumulator()
    for payload in payloads:
        folded.feed(payload)
    assert machine.response == from_chat(folded.completion())
    assert events == list(iter_events(payloads))
