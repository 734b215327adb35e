"""Vectors travel as base64 and come out as the floats that decimal digits would have given."""

import array
import base64
import json
import struct
import sys
from types import SimpleNamespace
from typing import Any, Dict, List

import pytest

import wire
from scripted import Scripted, answer
from vllm_bridge import BadRequestError, ResponseDecodeError, VLLMProvider
from vllm_bridge.api import embeddings as embedding
from vllm_bridge.errors import error_from_payload

ASK = {"model": "m", "input": "hello"}


def packed(*floats: float) -> str:
    return base64.b64encode(struct.pack("<%df" % len(floats), *floats)).decode()


def reply(*vectors: Any) -> Dict[str, Any]:
    return {"object": "list", "data": [{"index": n, "embedding": one} for n, one in enumerate(vectors)], "new": 1}


# ---------------------------------------------------------------- what is asked for


def test_base64_is_asked_for_in_a_copy() -> None:
    given = dict(ASK)
    assert embedding.prepare(given) == {"model": "m", "input": "hello", "encoding_format": "base64"}
    assert given == ASK


@pytest.mark.parametrize("given", [
    {"encoding_format": "float"}, {"encoding_format": "base64"}, {"encoding_format": "bytes"},
    {"embed_dtype": "float16"}, {"endianness": "big"},
])
def test_a_caller_who_says_how_vectors_come_is_left_alone(given: Dict[str, Any]) -> None:
    body = {**ASK, **given}
    assert embedding.prepare(body) is body


@pytest.mark.parametrize("status, message, falls_back", [
    (400, "base64 encoding is not currently supported", True),  # vLLM 0.3
    (400, "Input should be 'float', got 'base64'", True),
    (422, "encoding_format: unexpected value", True),
    (400, "body.encoding_format: Extra inputs are not permitted", True),
    (400, "[{'type': 'literal_error', 'loc': ('body', 'encoding_format'), 'msg': \"Input should be 'float'\"}]", True),
    (400, "1 validation errors:\n  {'type': 'literal_error', 'loc': 'body.encoding_format', 'msg': 'x'}", True),
    (400, "1 validation error for EmbeddingRequest\nencoding_format\n  unexpected value", True),
    (400, "Unrecognized request argument supplied: encoding_format", True),
    (400, "create() got an unexpected keyword argument 'encoding_format'", True),
    (400, "unknown field `encoding_format`, expected one of `input`, `model`", True),
    (400, "encoding_format 'base64' is not supported", True),
    (501, "encoding_format must be float", True),
    (400, "The model `m` does not exist.", False),
    (500, "encoding_format: unexpected value", False),
    (404, "encoding_format: unexpected value", False),
    (400, "Invalid base64-encoded string in image_url", False),
    (400, "Incorrect padding: the image is no valid base64", False),
    (400, "base64 images are not supported by this model", False),
    (400, "[{'type': 'missing', 'loc': ('body', 'input'), 'msg': 'Field required', 'input': {'model': 'm', "
          "'encoding_format': 'base64'}}]", False),
    (400, "Invalid input: {'encoding_format': 'base64', 'input': 5}", False),
    (400, "cannot embed 'why base64 encoding is not supported'", False),  # the caller's own words
])
def test_which_errors_mean_that_base64_is_not_known(status: int, message: str, falls_back: bool) -> None:
    error = error_from_payload({"error": {"message": message}}, status)
    for given in ("why base64 encoding is not supported", ["x", "why base64 encoding is not supported"]):
        assert embedding.falls_back(error, {**ASK, "input": given}) is falls_back
    spoken = {"role": "user", "content": [{"type": "text", "text": "why base64 encoding is not supported"}]}
    assert embedding.falls_back(error, {"model": "m", "messages": [spoken]}) is falls_back


def test_a_field_that_is_named_as_the_fault() -> None:
    error = error_from_payload({"error": {"message": "no", "param": "encoding_format"}}, 400)
    assert embedding.falls_back(error, dict(ASK))
    detail = [{"loc": ["body", "encoding_format"], "msg": "Input should be 'float'", "type": "literal_error"}]
    assert embedding.falls_back(error_from_payload({"detail": detail}, 422), dict(ASK))


@pytest.mark.parametrize("name", [name for name in wire.names("embed_err_") if name != "embed_err_bad_encoding"])
def test_no_recorded_refusal_of_an_input_is_one_of_base64(name: str) -> None:
    told = wire.load(name)
    assert not embedding.falls_back(error_from_payload(told.json, told.status), dict(ASK))


# ---------------------------------------------------------------- what comes out


def test_a_real_reply_s_floats_survive_the_way_over_base64() -> None:
    decimal = wire.load("embed_float").json
    floats: List[float] = decimal["data"][0]["embedding"]
    encoded = json.loads(json.dumps(decimal))
    encoded["data"][0]["embedding"] = packed(*floats)
    assert embedding.converted(encoded) == decimal


def test_every_vector_is_turned_and_nothing_else() -> None:
    payload = reply(packed(1.5, -2.0), packed(), packed(3.25))
    assert embedding.converted(payload) == reply([1.5, -2.0], [], [3.25])
    json.dumps(payload, allow_nan=False)


def test_a_server_that_sends_floats_all_the_same() -> None:
    assert embedding.converted(reply([0.5], packed(0.25), None)) == reply([0.5], [0.25], None)


@pytest.mark.parametrize("payload", [{}, {"data": None}, {"data": {}}, {"data": [1, None, {"embedding": 3}]}])
def test_odd_payloads_pass(payload: Dict[str, Any]) -> None:
    assert embedding.converted(json.loads(json.dumps(payload))) == payload


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_json_lacks_is_the_error_of_float_format(number: float) -> None:
    with pytest.raises(BadRequestError) as caught:
        embedding.converted(reply(packed(1.0), packed(1.0, number, 2.0)))
    told = wire.load("nan_embedding_float")
    expected = error_from_payload(told.json, told.status)
    for name in ("message", "type", "code", "param", "status_code", "payload"):
        assert getattr(caught.value, name) == getattr(expected, name), name


def test_infinities_that_cancel_out_are_seen() -> None:
    with pytest.raises(BadRequestError):
        embedding.converted(reply(packed(float("inf"), float("-inf"))))


def test_the_largest_numbers_are_no_error() -> None:
    most = struct.unpack("<f", b"\xff\xff\x7f\x7f")[0]
    assert embedding.converted(reply(packed(*[most] * 4000)))["data"][0]["embedding"] == [most] * 4000


def test_a_real_reply_of_nan() -> None:
    with pytest.raises(BadRequestError, match="Out of range"):
        embedding.converted(wire.load("nan_embedding_base64").json)


@pytest.mark.parametrize("text", ["AAAA", "AAAAAAA=", "not base64!", "AAA", "é" * 8])
def test_what_is_no_vector_is_refused(text: str) -> None:
    with pytest.raises(ResponseDecodeError, match="an embedding is no base64 of float32 numbers"):
        embedding.converted(reply(text))


def test_a_big_endian_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    class Swapped(array.array):  # type: ignore[type-arg]
        """An array as such a machine has it: its own order is the other one."""

        def frombytes(self, data: Any) -> None:
            super().frombytes(data)
            super().byteswap()

    monkeypatch.setattr(embedding, "array", Swapped)
    monkeypatch.setattr(sys, "byteorder", "big" if sys.byteorder == "little" else "little")
    assert embedding.converted(reply(packed(1.5, -2.0)))["data"][0]["embedding"] == [1.5, -2.0]


# ---------------------------------------------------------------- through the provider


def asked(server: Scripted) -> List[Any]:
    return [json.loads(one.body).get("encoding_format") for one in server.requests]


def test_the_provider_hands_out_floats_and_the_caller_s_own_format() -> None:
    encoded = {"object": "list", "data": [{"index": 0, "object": "embedding", "embedding": packed(0.5, -1.0)}]}
    with Scripted(["request", answer(encoded), "again"]) as server, VLLMProvider(server.url) as vllm:
        floats = vllm.embedding(**ASK)
        assert floats.data[0].embedding == [0.5, -1.0]
        assert json.loads(json.dumps(floats))["data"][0]["embedding"] == [0.5, -1.0]
        as_asked = vllm.embedding(**ASK, encoding_format="base64")
        assert as_asked.data[0].embedding == packed(0.5, -1.0)
        assert asked(server) == ["base64", "base64"]


def test_a_server_that_refuses_base64_is_asked_for_that_model_s_floats_for_some_time(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("vllm_bridge.vllm.time", SimpleNamespace(monotonic=lambda: now[0]))
    refused = {"error": {"message": "encoding_format: only float", "type": "invalid", "code": 400}}
    floats = {"object": "list", "data": [{"index": 0, "object": "embedding", "embedding": [0.5]}]}
    script = ["request", answer(refused, "400 Bad Request"), "request", answer(floats), "request", answer(floats),
              "request", answer(floats), "request", answer(floats)]
    with Scripted(script) as server, VLLMProvider(server.url) as vllm:
        assert vllm.embedding(**ASK).data[0].embedding == [0.5]
        assert vllm.embedding(**ASK).data[0].embedding == [0.5]
        assert vllm.embedding(model="other", input="hello").data[0].embedding == [0.5]
        now[0] += 3600
        assert vllm.embedding(**ASK).data[0].embedding == [0.5]
        assert asked(server) == ["base64", None, None, "base64", "base64"]


def test_any_other_refusal_is_the_caller_s() -> None:
    refused = {"error": {"message": "too long", "type": "BadRequestError", "code": 400}}
    with Scripted(["request", answer(refused, "400 Bad Request")]) as server, VLLMProvider(server.url) as vllm:
        with pytest.raises(BadRequestError, match="too long"):
            vllm.embedding(**ASK)
        assert asked(server) == ["base64"]


def test_an_error_in_a_vector_tells_where_it_is_from() -> None:
    nan = {"object": "list", "data": [{"index": 0, "object": "embedding", "embedding": packed(float("nan"))}]}
    with Scripted(["request", answer(nan)]) as server, VLLMProvider(server.url) as vllm:
        with pytest.raises(BadRequestError, match="Out of range") as caught:
            vllm.embedding(**ASK)
        assert caught.value.url == server.url + "/v1/embeddings"
