"""Answers of a given form: what goes up for each kind of ``response_format``, what ``parsed`` is, what is wrong."""

import dataclasses
import enum
import json
import pickle
import subprocess
import sys
from typing import Any, Dict, List, Optional, Sequence, Tuple, TypedDict, Union

import pytest

from scripted import LAST_CHUNK, SSE_HEAD, Scripted, answer, completion, delta, event
from vllm_bridge import BadRequestError, ResponseDecodeError, VLLMProvider
from vllm_bridge.api.structured import wire_format
from vllm_bridge.echo import EchoServer

MESSAGES = [{"role": "user", "content": "Who?"}]
SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}


class Mood(enum.Enum):
    GOOD = "good"
    BAD = "bad"


@dataclasses.dataclass
class Address:
    city: str
    zip: Optional[str] = None


@dataclasses.dataclass
class Person:
    name: str
    age: int = dataclasses.field(metadata={"description": "in years"})
    size: float
    mood: Mood
    homes: List[Address]
    boss: Optional["Person"] = None
    scores: Dict[str, int] = dataclasses.field(default_factory=dict)
    pair: Tuple[str, int] = ("", 0)
    tags: Sequence[str] = ()
    known: bool = dataclasses.field(default=False, init=False)


class Movie(TypedDict):
    title: str
    year: Union[int, str]


TEXT = (
    '{"name": "Ann", "age": 40, "size": 2, "mood": "good", "homes": [{"city": "Paris"}, {"city": "Rome", "zip": "1"}], '
    '"boss": {"name": "Bob", "age": 50, "size": 1.5, "mood": "bad", "homes": []}, "pair": ["a", 1], "tags": ["x"]}'
)


def asked(text, finish="stop", **wire):
    """Return what goes up for a chat, and its reply."""
    reply = completion(text)
    reply["choices"][0]["finish_reason"] = finish
    with Scripted(["request", answer(reply)]) as server, VLLMProvider(server.url) as vllm:
        found = vllm.chat_completion(messages=MESSAGES, **wire)
        return server.requests[0].json.get("response_format"), found


def test_a_dataclass():
    sent, reply = asked(TEXT, response_format=Person)
    assert sent["type"] == "json_schema" and sent["json_schema"]["name"] == "Person" and sent["json_schema"]["strict"]
    schema = sent["json_schema"]["schema"]
    assert schema["required"] == ["name", "age", "size", "mood", "homes"] and not schema["additionalProperties"]
    assert schema["properties"]["age"] == {"type": "integer", "description": "in years"}
    assert schema["properties"]["mood"] == {"enum": ["good", "bad"]}
    assert "known" not in schema["properties"]
    assert reply.parsed == Person(
        "Ann", 40, 2.0, Mood.GOOD, [Address("Paris"), Address("Rome", "1")], pair=("a", 1), tags=["x"],
        boss=Person("Bob", 50, 1.5, Mood.BAD, []))
    assert type(reply.parsed.size) is float
    assert pickle.loads(pickle.dumps(reply)).parsed == reply.parsed and reply.copy().parsed == reply.parsed


@pytest.mark.parametrize("given", [Person, Address, Movie])
def test_the_schema_of_a_type_is_a_schema(given):
    jsonschema = pytest.importorskip("jsonschema")
    schema = wire_format(given)[0]["json_schema"]["schema"]
    jsonschema.Draft202012Validator.check_schema(schema)
    if given is Person:
        jsonschema.validate(json.loads(TEXT), schema)


def test_a_typed_dict():
    sent, reply = asked('{"title": "M", "year": 1931}', response_format=Movie)
    assert sent["json_schema"]["schema"]["properties"]["year"] == {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    assert reply.parsed == {"title": "M", "year": 1931}


@pytest.mark.skipif(sys.version_info < (3, 10), reason="X | Y")
def test_types_as_they_are_written_today():
    @dataclasses.dataclass
    class Shelf:
        books: "list[str | None]"
        by_name: "dict[str, int] | None" = None

    sent, reply = asked('{"books": ["a", null], "by_name": {"a": 1}}', response_format=Shelf)
    assert reply.parsed == Shelf(["a", None], {"a": 1})


def test_a_json_schema():
    sent, reply = asked('{"age": 5}', response_format=SCHEMA)
    assert sent == {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
    assert reply.parsed == {"age": 5}
    assert asked("{}", response_format=dict(SCHEMA, title="A person!"))[0]["json_schema"]["name"] == "A_person_"


@pytest.mark.parametrize("given", [
    {"type": "text"}, {"type": "json_object"}, {"type": "structural_tag", "format": {}}, {"new": "form"},
    {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}},
])
def test_what_servers_take_goes_up_as_it_is(given):
    sent, reply = asked('{"age": 5}', response_format=given)
    assert sent == given and reply.parsed == {"age": 5}


def test_without_a_form_an_answer_is_read_as_json():
    assert asked("[1, 2]")[1].parsed == [1, 2]
    with pytest.raises(ResponseDecodeError):
        asked("fine")[1].parsed


@pytest.mark.parametrize("text, finish, where", [
    (TEXT.replace("40", '"old"'), "stop", "age: expected integer, got 'old'"),
    (TEXT.replace('"Rome"', "5"), "stop", r"homes\[1\].city: expected string, got 5"),
    (TEXT.replace('"name": "Ann", ', ""), "stop", "name: is missing"),
    (TEXT.replace('"name": "Ann"', '"name": "Ann", "nick": "A"'), "stop", "nick: there is no such member"),
    (TEXT[:50], "length", "max_tokens"), ("It is Ann.", "stop", "Expecting value"), ("", "stop", "no text"),
])
def test_the_error_says_where_an_answer_is_not_what_was_asked_for(text, finish, where):
    reply = asked(text, finish, response_format=Person)[1]
    with pytest.raises(ResponseDecodeError, match="response_format asks for: .*" + where) as caught:
        reply.parsed
    assert caught.value.payload == text and reply.text == text


@pytest.mark.parametrize("given, words", [(int, "got int"), (object, "object"), (Mood, "got Mood")])
def test_a_type_without_a_schema_is_refused(given, words):
    with VLLMProvider("http://127.0.0.1:1") as vllm, pytest.raises(BadRequestError, match=words) as caught:
        vllm.chat_completion(messages=MESSAGES, response_format=given)
    assert caught.value.param == "response_format"


def test_a_field_without_a_schema_is_named():
    Odd = dataclasses.make_dataclass("Odd", [("when", complex)])
    with VLLMProvider("http://127.0.0.1:1") as vllm, pytest.raises(BadRequestError, match="Odd.when: .*complex"):
        vllm.chat_completion(messages=MESSAGES, response_format=Odd)


def test_a_type_that_cannot_be_found_is_named():
    Lost = dataclasses.make_dataclass("Lost", [("of", "NoWhere")])
    with VLLMProvider("http://127.0.0.1:1") as vllm, pytest.raises(BadRequestError, match="Lost: .*NoWhere"):
        vllm.chat_completion(messages=MESSAGES, response_format=Lost)


def test_an_answer_that_is_nested_deeply_is_an_error():
    reply = asked("[" * 100_000 + "]" * 100_000, response_format=SCHEMA)[1]
    with pytest.raises(ResponseDecodeError, match="response_format asks for"):
        reply.parsed


class Model:
    """What of pydantic 2 is used."""

    def __init__(self, age: int) -> None:
        self.age = age

    @classmethod
    def model_json_schema(cls) -> Dict[str, Any]:
        return SCHEMA

    @classmethod
    def model_validate_json(cls, text: str) -> "Model":
        if text != '{"age": 5}':
            raise ValueError("1 validation error for Model: age")
        return cls(5)


def test_what_looks_like_a_pydantic_model_is_used_as_one():
    sent, reply = asked('{"age": 5}', response_format=Model)
    assert sent["json_schema"]["schema"] == SCHEMA and reply.parsed.age == 5
    with pytest.raises(ResponseDecodeError, match="validation error for Model: age"):
        asked('{"age": 6}', response_format=Model)[1].parsed


def test_a_pydantic_model():
    pydantic = pytest.importorskip("pydantic")
    Animal = pydantic.create_model("Animal", legs=(int, ...))
    assert asked('{"legs": 4}', response_format=Animal)[1].parsed == Animal(legs=4)
    with pytest.raises(ResponseDecodeError, match="legs"):
        asked('{"legs": "many"}', response_format=Animal)[1].parsed


def test_a_stream_is_read_when_it_is_whole():
    pieces = [event(delta('{"age"')), event(delta(": 5}", "stop")), event("[DONE]"), LAST_CHUNK]
    with Scripted(["request", SSE_HEAD, *pieces]) as server, VLLMProvider(server.url) as vllm:
        with vllm.chat_completion_stream(messages=MESSAGES, response_format=SCHEMA) as stream:
            assert stream.completion().parsed == {"age": 5}
        assert server.requests[0].json["response_format"]["json_schema"]["schema"] == SCHEMA


def test_texts_have_forms_too():
    Answer = dataclasses.make_dataclass("Answer", [("city", str)])
    with EchoServer() as server, VLLMProvider(server.url) as vllm:
        reply = vllm.text_completion(model="echo", prompt="Where?", response_format=Answer)
        assert isinstance(reply.parsed, Answer) or "response_format asks for" in _problem(reply)
        with vllm.text_completion_stream(model="echo", prompt="Where?", response_format=Answer) as stream:
            assert stream.completion().text


def _problem(reply):
    with pytest.raises(ResponseDecodeError) as caught:
        reply.parsed
    return caught.value.message


def test_pydantic_is_never_imported():
    program = "import sys, vllm_bridge.api.structured; assert 'pydantic' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
