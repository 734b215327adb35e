"""Replies: dicts that read by attribute, with the fields that real servers send."""

import copy
import json
import pickle
from typing import Any, Dict, List, Optional, Union

import pytest
import wire

from vllm_bridge.api import records
from vllm_bridge.errors import ResponseDecodeError
from vllm_bridge.api.body import decode
from vllm_bridge.api.attributes import Record, _declared
from vllm_bridge.api.records import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    Embedding,
    EmbeddingList,
    ModelList,
    Rerank,
    Response,
    ToolCall,
    Transcription,
)

SHAPES = [cls for cls in vars(records).values() if isinstance(cls, type) and issubclass(cls, Record)]


def test_a_reply_is_the_json_that_the_server_sent():
    sent = wire.load("chat_plain").json
    reply = ChatCompletion(wire.load("chat_plain").json)
    assert reply == sent and isinstance(reply, dict)
    assert reply.choices[0].message.content == sent["choices"][0]["message"]["content"]
    assert reply.usage.total_tokens == sent["usage"]["total_tokens"]
    assert type(reply.choices[0]) is records.ChatChoice and type(reply.choices[0].message) is records.ChatMessage
    assert reply == sent and json.loads(json.dumps(reply)) == sent  # also after the reads
    assert list(reply) == list(sent)


def test_reading_twice_gives_the_same_object_and_changes_are_seen():
    reply = ChatCompletion(wire.load("chat_plain").json)
    assert reply.choices is reply["choices"] and reply.choices[0] is reply["choices"][0]
    assert reply.usage is reply["usage"]
    reply.choices[0].message["content"] = "changed"
    assert reply["choices"][0]["message"]["content"] == "changed" == reply.text


@pytest.mark.parametrize(
    "name, cls",
    [("chat_plain", ChatCompletion), ("completions_plain", Completion), ("embed_float", EmbeddingList),
     ("rerank_ties", Rerank), ("models", ModelList), ("audio_json", Transcription), ("responses_plain", Response)],
)
def test_every_field_that_a_server_sends_reads_by_attribute(name, cls):
    check_fields(cls(wire.load(name).json), wire.load(name).json)


def check_fields(record, sent):
    for key, value in sent.items():
        read = record[key] if hasattr(dict, key) or isinstance(getattr(type(record), key, None), property) else None
        if read is None:
            read = getattr(record, key)
        assert read == value
        if isinstance(value, dict):
            check_fields(read, value)
        elif isinstance(value, list):
            for item, original in zip(read, value):
                if isinstance(original, dict):
                    check_fields(item, original)


def test_undeclared_objects_read_by_attribute_too():
    record = Record({"a": {"b": [{"c": {"d": 1}}, None, 5]}, "e": [[{"f": 1}]], "g": []})
    assert record.a.b[0].c.d == 1 and type(record.a.b[0].c) is Record
    assert record.a.b[1:] == [None, 5]
    assert record.e == [[{"f": 1}]] and record.g == []


def test_a_declared_field_that_is_absent_reads_none_and_another_is_an_error():
    reply = ChatCompletion({"id": "x"})
    assert reply.usage is None and reply.choices is None and reply.kv_transfer_params is None
    assert "usage" not in reply
    with pytest.raises(AttributeError) as raised:
        reply.usagee
    assert str(raised.value) == "ChatCompletion has no field 'usagee'; it has: id"
    with pytest.raises(AttributeError, match="it has: none"):
        Record().x
    with pytest.raises(AttributeError, match="k29 and 970 more$"):
        Record(("k%d" % number, 0) for number in range(1000)).x
    assert getattr(reply, "nothing", 5) == 5 and not hasattr(reply, "nothing")


def test_the_methods_of_dict_win():
    record = Record({"items": 1, "keys": 2, "get": 3, "copy": 4, "update": 5})
    assert dict(record.items()) == record and record.get("items") == 1 and callable(record.update)
    assert record["keys"] == 2 and record.copy() == record and type(ChatCompletion(id="x").copy()) is ChatCompletion


def test_attributes_are_for_reading():
    reply = ChatCompletion({"id": "x"})
    for name in ("id", "usage", "other"):
        with pytest.raises(AttributeError, match=r"read-only: set record\['%s'\]" % name):
            setattr(reply, name, 1)
    with pytest.raises(AttributeError):
        del reply.id
    assert reply == {"id": "x"}


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda record: pickle.loads(pickle.dumps(record)),
                                   lambda record: record.copy()])
@pytest.mark.parametrize("read_before", [False, True])
def test_copies_are_records_of_the_same_class(again, read_before):
    reply = ChatCompletion(wire.load("chat_plain").json)
    if read_before:
        assert reply.choices[0].message.content
    other = again(reply)
    assert other == reply and other is not reply and type(other) is ChatCompletion
    assert other.choices[0].message.content == reply.text
    other["id"] = "changed"
    assert reply["id"] != "changed"


def test_a_deep_copy_shares_nothing():
    reply = ChatCompletion(wire.load("chat_plain").json)
    other = copy.deepcopy(reply)
    other.choices[0].message["content"] = "changed"
    assert reply.text != "changed"


@pytest.mark.parametrize("value", [1, {"a": 1}, [{"a": 1}], "x"])
def test_a_servers_field_is_no_protocol_of_python(value):
    record = Record({"__deepcopy__": value, "__reduce_ex__": value, "__getstate__": value, "__class__": value})
    assert copy.deepcopy(record) == record == pickle.loads(pickle.dumps(record))
    with pytest.raises(AttributeError):
        record.__deepcopy__
    assert record["__deepcopy__"] == value and type(record) is Record


def test_repr_and_dir():
    reply = ChatCompletion({"id": "x", "odd": {"a": 1}})
    assert repr(reply) == "ChatCompletion({'id': 'x', 'odd': {'a': 1}})"
    assert {"id", "odd", "usage", "text", "items"} <= set(dir(reply))
    assert dir(Record({1: 2}))  # a key that is no name is left out


def test_a_vector_is_not_searched_for_objects():
    """Reading ``row.embedding`` must not look at each of a thousand floats."""
    assert _declared(Embedding)["embedding"] is None
    assert _declared(ChatCompletion)["choices"] is records.ChatChoice
    assert _declared(ChatCompletion)["prompt_logprobs"] is Record
    assert _declared(ChatCompletion)["id"] is None
    row = Embedding({"embedding": [0.5, {"not": "a float"}]})
    assert type(row.embedding[1]) is dict
    assert Embedding({"embedding": {"odd": 1}}).embedding.odd == 1  # whatever a server makes of it


@pytest.mark.parametrize("cls", SHAPES)
def test_every_shape_declares_what_it_holds(cls):
    assert cls.__dict__.get("__doc__") or cls.__annotations__
    record = cls()
    for name in _declared(cls):
        assert getattr(record, name) is None
        assert not hasattr(dict, name)  # else the method would win


def test_shapes_are_found_in_hints_of_any_form():
    class Inner(Record):
        pass

    class Outer(Record):
        a: Inner
        b: Optional[Inner]
        c: List[Inner]
        d: Optional[List[Inner]]
        e: Union[Inner, str, None]
        f: Dict[str, Any]
        g: Union[str, int, None]

    assert _declared(Outer) == {
        "a": Inner, "b": Inner, "c": Inner, "d": Inner, "e": Inner, "f": Record, "g": None}


# ---------------------------------------------------------------- text


@pytest.mark.parametrize(
    "record, text",
    [
        (ChatCompletion(choices=[{"index": 0, "message": {"content": "a"}}]), "a"),
        (ChatCompletion(choices=[{"index": 1, "message": {"content": "b"}},
                                 {"index": 0, "message": {"content": "a"}}]), "a"),
        (ChatCompletion(choices=[{"message": {"content": "a"}}]), "a"),
        (ChatCompletionChunk(choices=[{"index": 0, "delta": {"content": "a"}}]), "a"),
        (ChatCompletionChunk(choices=[{"index": 1, "delta": {"content": "b"}}]), ""),
        (ChatCompletionChunk(choices=[]), ""),
        (Completion(choices=[{"index": 0, "text": "a"}]), "a"),
        (Completion(choices=[{"index": 1, "text": "b"}]), ""),
        (Response(output=[{"type": "reasoning", "content": [{"type": "output_text", "text": "no"}]},
                          {"type": "message", "content": [{"type": "output_text", "text": "a"},
                                                          {"type": "refusal", "refusal": "r"},
                                                          {"type": "output_text", "text": "b"}]}]), "ab"),
        (Response(), ""),
    ],
)
def test_text(record, text):
    assert (record.output_text if isinstance(record, Response) else record.text) == text


@pytest.mark.parametrize("cls", [ChatCompletion, ChatCompletionChunk, Completion])
@pytest.mark.parametrize("choices", [None, [], {}, 5, "x", [None], [5], [[]], [{}],
                                     [{"message": 5, "delta": 5, "text": 5}],
                                     [{"message": {"content": [1]}, "delta": {"content": None}, "text": None}]])
def test_text_of_anything_odd_is_empty(cls, choices):
    assert cls(choices=choices).text == ""
    assert cls().text == ""


@pytest.mark.parametrize("output", [None, 5, {}, [None], [5], [{"type": "message", "content": 5}],
                                    [{"type": "message", "content": [None, {"type": "output_text", "text": 5}]}]])
def test_output_text_of_anything_odd_is_empty(output):
    assert Response(output=output).output_text == ""


def test_a_call_that_is_broken_says_so():
    assert ToolCall(id="x").arguments_error is None


# ---------------------------------------------------------------- JSON from the wire


@pytest.mark.parametrize(
    "data, value", [(b'{"a": 1}', {"a": 1}), ("[1]", [1]), (b"\xef\xbb\xbf5", 5), (b'"\\ud800"', "\ud800")]
)
def test_decode(data, value):
    assert decode(data) == value


@pytest.mark.parametrize(
    "data, told",
    [
        (b"", "an empty body"),
        (b"<html>", "<html>"),
        (b'{"a": ', '{"a": '),
        (b'"\xff"', '"\ufffd"'),
        ("x" * 300, "x" * 300),
        (b"[" * 100000, "nested too deeply"),
        (b"{} {}", "Extra data"),
    ],
)
def test_what_is_no_json_is_shown(data, told):
    with pytest.raises(ResponseDecodeError, match="the server sent no valid JSON") as raised:
        decode(data)
    assert told in raised.value.message and len(raised.value.payload or "") <= 65536
