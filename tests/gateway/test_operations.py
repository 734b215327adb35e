"""How answers leave, with data alone."""

import json
from types import SimpleNamespace
from typing import Any, Dict, List

import pytest

from vllm_bridge.client.options import Trace
from vllm_bridge.errors import BadRequestError
from vllm_bridge.gateway.operations import OPERATIONS, Asked, Opened

ERROR = {"message": "it broke", "type": "server_error", "param": None, "code": 500}


def responses(*given: Dict[str, Any]) -> Any:
    provider: Any = SimpleNamespace(responses_stream=lambda **body: list(given))
    open_stream: Any = OPERATIONS["responses"].stream
    return open_stream(Asked(provider, {}, None, Trace(), lambda code, message: message))


def test_the_events_of_responses_and_their_error() -> None:
    opened = responses(
        {"type": "response.created", "sequence_number": 0},
        {"type": "x", "sequence_number": 7, "response": {"usage": {"input_tokens": 3, "output_tokens": 4}}},
    )
    blocks: List[bytes] = list(opened.blocks)
    assert blocks[0] == b'event: response.created\ndata: {"type":"response.created","sequence_number":0}\n\n'
    head, data = opened.failure(ERROR).decode().rstrip("\n").split("\n")
    assert head == "event: response.failed"
    failed = json.loads(data[len("data: "):])
    assert (failed["type"], failed["sequence_number"], failed["response"]["status"]) == ("response.failed", 8, "failed")
    assert (failed["response"]["error"]["message"], failed["response"]["usage"]["input_tokens"]) == ("it broke", 3)


def test_an_error_where_no_response_has_begun() -> None:
    opened = responses({"type": "x", "sequence_number": 7})
    list(opened.blocks)
    head, data = opened.failure(ERROR).decode().rstrip("\n").split("\n")
    assert head == "event: error"
    shown = {"code": "500", "message": "it broke", "param": None}
    told = json.loads(data[len("data: "):])
    assert told == {"type": "error", "sequence_number": 8, "error": dict(shown, type=ERROR["type"]), **shown}
    assert b'"code":null' in opened.failure({**ERROR, "code": None})


def test_nothing_follows_the_end_of_a_response() -> None:
    for end in ("response.completed", "response.incomplete", "response.failed", "error"):
        opened = responses({"type": end})
        assert len(list(opened.blocks)) == 1 and opened.failed is (end in ("response.failed", "error"))
        assert opened.failure(ERROR) == b""


def test_the_error_of_a_chat_stream() -> None:
    stream: Any = []
    assert json.loads(Opened(stream).failure(ERROR)[len("data: "):]) == {"error": ERROR}


@pytest.mark.parametrize("name, body", [
    ("chat_completion", {"messages": [1]}), ("text_completion", {"prompt": ""}),
    ("text_completion", {"prompt_embeds": "x"}), ("embedding", {"messages": [1]}), ("responses", {"input": "x"}),
])
def test_the_main_field_is_there(name: str, body: Dict[str, Any]) -> None:
    OPERATIONS[name].check(body, {})
    with pytest.raises(BadRequestError, match=" is required for "):
        OPERATIONS[name].check({}, {})
