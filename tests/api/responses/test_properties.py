"""Whatever a chat stream brings: the grammar of its events, and streamed equals not streamed."""

import os

import pytest

from validity import check_event
from vllm_bridge.api.chat import ChatAccumulator
from vllm_bridge.errors import IncompleteStreamError, InternalServerError
from vllm_bridge.api.responses import ResponseEvents, from_chat, iter_events, to_chat

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")

pytestmark = pytest.mark.filterwarnings("default::hypothesis.errors.HypothesisWarning")
CASES = hypothesis.settings(
    max_examples=200 if os.environ.get("VLLM_BRIDGE_LONG") else 30, deadline=None, derandomize=True, database=None,
)

TOOLS = [
    {"type": "function", "name": "f", "parameters": {}},
    {"type": "custom", "name": "shell"},
    {"type": "namespace", "name": "crm", "description": "d", "tools": [{"type": "function", "name": "find"}]},
]
CONTEXT = to_chat({"input": "x", "tools": TOOLS})[1]
CLIENTS = to_chat({"input": "x", "tools": [*TOOLS, {"type": "local_shell"}], "include": ["reasoning.content"]})[1]

texts = st.sampled_from(["", "a", "é", "\n", "Hello ", "{"]) | st.none()
names = st.sampled_from(["f", "shell", "crm__find", "local_shell", "", None])
arguments = st.sampled_from(["", "{", "}", '{"input": "ls"}', '{"command": ["ls"]}', "{}", '"', None])
call_ids = st.sampled_from(["c1", "c2", "c3", "", None])
finishes = st.sampled_from([None, "", "stop", "tool_calls", "length", "content_filter", "abort", "odd"])
usages = st.none() | st.fixed_dictionaries(
    {"prompt_tokens": st.integers(0, 9), "completion_tokens": st.integers(0, 9), "total_tokens": st.integers(0, 18)}
)


@st.composite
def fragments(draw, indexes):
    part = {"index": draw(indexes)}
    if draw(st.booleans()):
        part["id"] = draw(call_ids)
    if draw(st.booleans()):
        part["function"] = {"name": draw(names), "arguments": draw(arguments)}
    return part


def reasoning():
    return st.builds(lambda text: {"reasoning": text}, texts)


def content():
    return st.builds(lambda text: {"content": text}, texts)


def refusal():
    return st.builds(lambda text: {"refusal": text}, texts)


def calls(highest=2):
    return st.builds(lambda parts: {"tool_calls": parts}, st.lists(fragments(st.integers(0, highest)), max_size=3))


@st.composite
def chunks_of(draw, deltas, index=0):
    """Put deltas into chunks, with finish reasons and usage on some of them."""
    made = []
    for delta in deltas:
        choice = {"index": index, "delta": delta, "finish_reason": None}
        if draw(st.integers(0, 5)) == 0:
            choice["finish_reason"] = draw(finishes)
        chunk = {"id": "chatcmpl-p", "created": 7, "model": "m", "choices": [choice]}
        if draw(st.integers(0, 5)) == 0:
            chunk["usage"] = draw(usages)
        made.append(chunk)
    return made


@st.composite
def any_stream(draw):
    """Deltas of every kind in any order, for up to two choices."""
    made = []
    for index in range(draw(st.integers(1, 2))):
        deltas = draw(st.lists(st.one_of(reasoning(), content(), refusal(), calls(), st.just({})), max_size=8))
        made += draw(chunks_of(deltas, index))
    return draw(st.permutations(made)) if draw(st.booleans()) else made


@st.composite
def ordered_stream(draw):
    """Deltas in the order in which vLLM sends them: reasoning, content, refusal, calls by index."""
    made = [{"id": "chatcmpl-p", "created": 7, "model": "m", "choices": []}]
    for index in range(draw(st.integers(1, 2))):
        deltas = [{"role": "assistant", "content": ""}]
        deltas += draw(st.lists(reasoning(), max_size=3)) + draw(st.lists(content(), max_size=3))
        deltas += draw(st.lists(refusal(), max_size=2))
        for number in range(draw(st.integers(0, 3))):
            parts = draw(st.lists(fragments(st.integers(0, number)), min_size=1, max_size=3))
            parts[0]["index"] = number
            deltas += [{"tool_calls": [part]} for part in parts]
        chunks = draw(chunks_of(deltas, index))
        if draw(st.booleans()):
            logprobs = draw(st.booleans())
            for chunk in chunks:
                adorn(draw, chunk, logprobs)
        made += chunks
    return made


def adorn(draw, chunk, logprobs):
    """Put on a chunk what vLLM may send beside the deltas."""
    (choice,) = chunk["choices"]
    delta = choice["delta"]
    spelled = "<call>" if "tool_calls" in delta else delta.get("reasoning") or delta.get("content") or ""
    tokens = [{"token": one, "logprob": -1.0, "bytes": draw(st.sampled_from([None, [1]]))} for one in spelled]
    choice["logprobs"] = {"content": tokens} if logprobs and (tokens or draw(st.booleans())) else None
    choice["token_ids"] = draw(st.sampled_from([None, [], [1, 2]]))
    choice["stop_reason"] = draw(st.sampled_from([None, "", 7, "x"]))
    delta.update(draw(st.sampled_from([{}, {"mood": "o"}, {"mood": None}, {"mark": {"a": [1], "b": 2}}])))
    beside = [{}, {"system_fingerprint": "f"}, {"service_tier": "flex"}, {"prompt_token_ids": [1]}]
    chunk.update(draw(st.sampled_from(beside)))


def check_grammar(events):
    """Check the order of the events, whatever they tell of."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    terminal = [kind for kind in kinds if kind in ("response.completed", "response.incomplete", "response.failed")]
    assert len(terminal) == 1 and kinds[-1] == terminal[0]
    response = events[-1]["response"]
    assert terminal[0] == "response." + response["status"]
    items, parts = {}, {}
    for event in events[2:-1]:
        step(event, items, parts)
    assert sorted(items) == list(range(len(items)))
    assert [items[index]["done"] for index in sorted(items)] == response["output"]
    assert all(part["done"] for part in parts.values())
    assert len({item["id"] for item in response["output"]}) == len(response["output"])
    call_ids_given = [item["call_id"] for item in response["output"] if "call_id" in item]
    assert len(set(call_ids_given)) == len(call_ids_given)


def step(event, items, parts):
    """Follow one event between the opening and the terminal one."""
    kind, index = event["type"].replace("response.", ""), event["output_index"]
    if kind == "output_item.added":
        assert index == len(items)
        items[index] = {"id": event["item"]["id"], "text": "", "done": None, "item": event["item"]}
        return
    item = items[index]
    assert item["done"] is None and event.get("item_id", item["id"]) == item["id"]
    key = (index, event.get("summary_index"), event.get("content_index"))
    if kind == "output_item.done":
        assert all(part["done"] for where, part in parts.items() if where[0] == index)
        assert event["item"]["id"] == item["id"] and event["item"]["type"] == item["item"]["type"]
        item["done"] = event["item"]
    elif kind.endswith("part.added"):
        assert key not in parts
        parts[key] = {"text": "", "told": False, "done": False}
    elif kind.endswith("part.done"):
        part = event["part"]
        assert parts[key]["told"] and not parts[key]["done"]
        assert part["refusal" if part["type"] == "refusal" else "text"] == parts[key]["text"]
        parts[key]["done"] = True
    elif "arguments" in kind or "input" in kind:
        if kind.endswith("delta"):
            item["text"] += event["delta"]
        else:
            assert event["input" if "input" in event else "arguments"] == item["text"]
    elif kind.endswith("delta"):
        assert event["delta"] and not parts[key]["told"]
        parts[key]["text"] += event["delta"]
    else:
        assert kind.endswith("done") and not parts[key]["told"]
        assert event["refusal" if "refusal" in kind else "text"] == parts[key]["text"]
        parts[key]["told"] = True


def folded(chunks):
    accumulator = ChatAccumulator()
    for chunk in chunks:
        accumulator.feed(chunk)
    return accumulator.completion()


def said(response):
    """Return what a Response says, regardless of the order of different kinds."""
    found = {"reasoning": "", "output_text": "", "refusal": "", "calls": []}
    for item in response["output"]:
        if item["type"] == "reasoning":
            found["reasoning"] += item["summary"][0]["text"]
        elif item["type"] == "message":
            for part in item["content"]:
                found[part["type"]] += part.get("text", part.get("refusal"))
        else:
            given = item.get("input", item.get("arguments"))
            found["calls"].append((item["type"], item["name"], item.get("namespace"), given))
    found["calls"].sort(key=repr)
    return found, response["status"], response["usage"], response["chat_choices"]


@CASES
@hypothesis.given(any_stream(), st.sampled_from(["whole", "cut", "error"]))
def test_any_stream_keeps_to_the_grammar(chunks, end):
    machine = ResponseEvents(CONTEXT)
    events = [event for chunk in chunks for event in machine.feed(chunk)]
    if end == "whole":
        events += machine.finish()
    elif end == "cut":
        events += machine.fail(IncompleteStreamError("cut"))
    else:
        events += machine.feed({"error": {"message": "down", "code": 500}}) + machine.finish()
    if not chunks:
        assert [event["type"] for event in events] == ["error"]
        return
    check_grammar(events)
    for event in events:
        check_event(event)
    if end == "whole":
        assert said(machine.response) == said(from_chat(folded(chunks), CONTEXT))
    else:
        assert machine.response["status"] == "failed"


@CASES
@hypothesis.given(ordered_stream(), st.sampled_from([CONTEXT, CLIENTS]))
def test_a_stream_in_vllms_order_gives_exactly_the_response_of_its_completion(chunks, context):
    events = list(iter_events(chunks, context))
    check_grammar(events)
    for event in events:
        check_event(event)
    assert events[-1]["response"] == from_chat(folded(chunks), context)


@CASES
@hypothesis.given(ordered_stream(), st.data())
def test_an_error_at_any_point_ends_the_stream_once(chunks, data):
    at = data.draw(st.integers(1, len(chunks)))

    def broken():
        yield from chunks[:at]
        raise InternalServerError("down", code=500)

    events = list(iter_events(broken(), CONTEXT))
    check_grammar(events)
    assert events[-1]["response"]["error"]["message"] == "down"
