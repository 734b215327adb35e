"""Errors from every payload there is, and payloads from every error."""

import copy
import json
import pickle

import pytest
import wire
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_bridge import errors
from vllm_bridge.errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    BridgeError,
    ConfigError,
    IncompleteStreamError,
    InternalServerError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    RequestCancelledError,
    ResponseDecodeError,
    UnprocessableEntityError,
    UnsupportedOperationError,
    class_for_status,
    error_from_body,
    error_from_payload,
    error_to_payload,
    http_status,
    payload_error,
)

CLASSES = [getattr(errors, name) for name in errors.__all__]
RECORDED = [name for name in wire.names() if (lambda t: t.status_line and t.status >= 400 and t.body)(wire.load(name))]


def test_the_tree_is_the_one_drawn_at_the_top_of_the_file():
    parents, drawn = [], {}
    for line in errors.__doc__.splitlines():
        name = line.lstrip("├└─│ ")
        depth = (len(line) - len(name)) // 4
        if line == "BridgeError" or depth:
            name = name.split()[0]
            parents[depth:] = [name]
            drawn[name] = parents[depth - 1] if depth else "Exception"
    assert drawn == {cls.__name__: cls.__bases__[0].__name__ for cls in CLASSES}
    for builtin, cls in (
        (ConnectionError, APIConnectionError),
        (TimeoutError, APITimeoutError),
        (ValueError, ResponseDecodeError),
        (ValueError, ConfigError),
        (NotImplementedError, UnsupportedOperationError),
    ):
        assert issubclass(cls, builtin) and issubclass(cls, BridgeError)


@pytest.mark.parametrize(
    "status, cls",
    [(400, BadRequestError), (401, AuthenticationError), (403, PermissionDeniedError), (404, NotFoundError),
     (405, APIStatusError), (422, UnprocessableEntityError), (429, RateLimitError), (499, APIStatusError),
     (500, InternalServerError), (503, InternalServerError), (599, InternalServerError), (600, InternalServerError)],
)
def test_class_for_status(status, cls):
    assert class_for_status(status) is cls


# ---------------------------------------------------------------- what real servers sent


@pytest.mark.parametrize("name", RECORDED)
def test_every_recorded_error_body(name):
    transcript = wire.load(name)
    fields = {"request_id": "r", "url": "http://h/p"}
    error = error_from_body(transcript.status, transcript.content_type, transcript.body, **fields)
    assert type(error) is class_for_status(transcript.status)
    assert error.status_code == http_status(error) == transcript.status
    assert (error.request_id, error.url) == ("r", "http://h/p")
    if not transcript.content_type.startswith("application/json"):
        assert transcript.body.decode() in error.message
        return
    body = transcript.json
    assert error.payload == body
    told = body["error"] if isinstance(body.get("error"), dict) else body
    assert error.type == told.get("type") or type(told.get("type")) is not str or error.type == type(error).default_type
    assert error.code == told.get("code")
    assert error.param == told.get("param")
    words = told.get("message") or told.get("error") or told["detail"]
    assert error.message == words


@pytest.mark.parametrize("name", [name for name in wire.names() if wire.load(name).status_line.split()[1:2] == ["200"]])
def test_no_recorded_success_is_taken_for_an_error(name):
    transcript = wire.load(name)
    if transcript.streams:
        payloads = transcript.payloads
    elif transcript.content_type.startswith("application/json"):
        payloads = [transcript.json]
    else:
        return
    for payload in payloads:
        error = payload_error(payload)
        told = payload.get("error") if isinstance(payload, dict) else None
        if told and payload.get("object") != "response":
            assert error.message == told["message"] and error.status_code == told.get("code", 500)
        else:
            assert error is None


@pytest.mark.parametrize(
    "name, cls, status",
    [
        ("s_err_top_logprobs_too_big", BadRequestError, 400),
        ("err_queue_completions_3_prompts_stream", InternalServerError, 503),
        ("kill_engine_chat_stream", InternalServerError, 500),
    ],
)
def test_an_error_in_a_200_has_the_status_of_its_code(name, cls, status):
    transcript = wire.load(name)
    assert transcript.status == 200
    error = payload_error(transcript.payloads[-1])
    assert type(error) is cls and error.status_code == error.code == status


# ---------------------------------------------------------------- shapes

NESTED = {"error": {"message": "m", "type": "t", "param": "p", "code": 404}}


@pytest.mark.parametrize(
    "payload, status, cls, message, fields",
    [
        (NESTED, 404, NotFoundError, "m", ("t", "p", 404, 404)),
        (NESTED, 200, NotFoundError, "m", ("t", "p", 404, 404)),
        (NESTED, 500, InternalServerError, "m", ("t", "p", 404, 500)),  # the real status wins
        ({"error": {"message": "m", "code": "429"}}, 200, RateLimitError, "m", (None, None, "429", 429)),
        ({"error": {"message": "m", "code": "rate_limit_exceeded"}}, 200, InternalServerError, "m",
         (None, None, "rate_limit_exceeded", 500)),
        ({"error": {"message": "m", "code": 404.0}}, 200, NotFoundError, "m", (None, None, 404.0, 404)),
        ({"error": {"message": "m", "code": 200}}, 200, InternalServerError, "m", (None, None, 200, 500)),
        ({"error": {"message": "m", "code": 599}}, 200, InternalServerError, "m", (None, None, 599, 599)),
        ({"error": {"message": "m", "code": 400}}, 200, BadRequestError, "m", ("BadRequestError", None, 400, 400)),
        ({"error": {"message": "m", "code": 399}}, 200, InternalServerError, "m", (None, None, 399, 500)),
        ({"error": {"message": "m", "code": 600}}, 200, InternalServerError, "m", (None, None, 600, 500)),
        ({"error": {"message": "m", "code": True}}, 200, InternalServerError, "m", (None, None, True, 500)),
        ({"error": {"message": "m", "code": None}}, 200, InternalServerError, "m", (None, None, None, 500)),
        ({"error": {"message": "m", "code": [1]}}, 200, InternalServerError, "m", (None, None, None, 500)),
        ({"error": {"message": "m", "code": float("nan")}}, 200, InternalServerError, "m", (None, None, None, 500)),
        ({"error": {"message": "m", "code": float("inf")}}, 200, InternalServerError, "m", (None, None, None, 500)),
        ({"error": {"message": "m", "code": "4" * 500}}, 200, InternalServerError, "m", (None, None, "4" * 500, 500)),
        ({"error": "Unauthorized"}, 401, AuthenticationError, "Unauthorized", (None, None, None, 401)),
        ({"error": "Unauthorized", "code": 401}, 200, AuthenticationError, "Unauthorized", (None, None, 401, 401)),
        ({"object": "error", "message": "old", "type": "BadRequestError", "param": None, "code": 400}, 400,
         BadRequestError, "old", ("BadRequestError", None, 400, 400)),
        ({"object": "error", "message": "old", "code": 400}, 200, BadRequestError, "old",
         ("BadRequestError", None, 400, 400)),
        ({"object": "error", "error": None, "message": "old"}, 200, InternalServerError, "old",
         (None, None, None, 500)),
        ({"detail": "Not Found"}, 404, NotFoundError, "Not Found", (None, None, None, 404)),
        ({"detail": [{"loc": ["body", "n", 0], "msg": "bad", "type": "x"}, {"msg": "worse"}]}, 422,
         UnprocessableEntityError, "body.n.0: bad; worse", (None, None, None, 422)),
        ({"detail": [{"loc": 5, "msg": "bad"}, "text", 7]}, 422, UnprocessableEntityError,
         "bad; text; 7",
         (None, None, None, 422)),
        ({"detail": {"message": "scaling"}}, 503, InternalServerError, "scaling", (None, None, None, 503)),
        ({"detail": {"reason": 1}}, 503, InternalServerError, '{"reason": 1}', (None, None, None, 503)),
        ({"detail": [{"msg": ""}, ""], "message": [""]}, 400, BadRequestError, '{"msg": ""}; ',
         ("BadRequestError", None, None, 400)),
        ({"error": {"detail": "d"}}, 500, InternalServerError, "d", (None, None, None, 500)),
        ({"type": "error", "error": {"type": "NotFoundError", "message": "m"}}, 404, NotFoundError, "m",
         ("NotFoundError", None, None, 404)),
        ({"error": True, "message": "m"}, 500, InternalServerError, "m", (None, None, None, 500)),
        ({"error": {"message": {"text": "odd"}}}, 400, BadRequestError, '{"text": "odd"}',
         ("BadRequestError", None, None, 400)),
        ({"error": {"message": "m", "type": 5, "param": ["a"]}}, 400, BadRequestError, "m",
         ("BadRequestError", None, None, 400)),
        ({}, 418, APIStatusError, "provider API error (status 418)", (None, None, None, 418)),
        ({"foo": 1}, 418, APIStatusError, 'provider API error (status 418): {"foo": 1}', (None, None, None, 418)),
        ({"error": {"message": " "}}, 401, AuthenticationError,
         'authentication failed: unauthorized (401) - check your API key: {"error": {"message": " "}}',
         (None, None, None, 401)),
        ([], 500, InternalServerError, "provider API error (status 500)", (None, None, None, 500)),
        ([1], 500, InternalServerError, "provider API error (status 500): [1]", (None, None, None, 500)),
    ],
)
def test_shapes(payload, status, cls, message, fields):
    error = error_from_payload(payload, status)
    assert type(error) is cls
    assert error.message == message
    assert (error.type, error.param, error.code, error.status_code) == fields
    assert error.payload is payload
    json.dumps(error_to_payload(error), allow_nan=False)


@pytest.mark.parametrize(
    "payload",
    [
        None, 5, "error", [], [{"error": "x"}], {}, {"error": None}, {"error": ""}, {"error": {}}, {"error": False},
        {"id": "x", "choices": [{"message": {"content": '{"error": {"message": "no"}}'}}]},
        {"id": "x", "choices": [], "error": None},
        {"choices": [{"index": 0}], "error": {"note": "nothing said"}},
        {"text": "the object is error", "usage": {"seconds": 1}},
        {"object": "response", "status": "failed", "error": {"message": "m", "code": "server_error"}},
        {"object": "response", "status": "completed", "error": None},
        {"detail": "high", "choices": []},  # a field, not the message of an error
        {"results": [{"error": "x"}], "error": []},
        {"message": "hello"},
    ],
)
def test_what_is_no_error(payload):
    assert payload_error(payload) is None


@pytest.mark.parametrize(
    "payload, message",
    [
        ({"error": "x"}, "x"),
        ({"error": {"message": "x"}}, "x"),
        ({"error": {"code": 503}}, 'provider API error (status 503): {"error": {"code": 503}}'),
        ({"error": {"type": "T"}}, 'provider API error (status 500): {"error": {"type": "T"}}'),
        ({"error": True, "message": "x"}, "x"),
        ({"error": 1}, 'provider API error (status 500): {"error": 1}'),
        ({"choices": [], "error": {"message": "x"}}, "x"),
        ({"error": {"n": 1}, "data": None}, 'provider API error (status 500): {"error": {"n": 1}, "data": null}'),
        ({"object": "error", "message": "x"}, "x"),
        ({"detail": "x"}, "x"),
    ],
)
def test_what_is_an_error_under_a_200(payload, message):
    assert payload_error(payload, url="u").message == message
    assert payload_error(payload, url="u").url == "u"


@pytest.mark.parametrize(
    "status, content_type, body, message",
    [
        (401, "", b"", "authentication failed: unauthorized (401) - check your API key"),
        (403, "", b"  \n", "access forbidden (403) - your API key may not have permission for this operation"),
        (404, "", b"", "resource not found (404)"),
        (429, "", b"", "rate limit exceeded (429)"),
        (500, "", b"", "provider server error (500)"),
        (504, "", b"", "provider server error (504)"),
        (418, "", b"", "empty response received from provider (HTTP 418)"),
        (400, "text/plain; charset=utf-8", b"Invalid HTTP request received.",
         "provider API error: Invalid HTTP request received."),
        (502, "text/html", b"<html><head><title>502 Bad\n Gateway</title></head></html>",
         "HTML response received from provider: 502 Bad Gateway"),
        (502, "TEXT/HTML; charset=x", b"Bad Gateway", "HTML response received from provider"),
        (502, "", b" \n<!DOCTYPE html><p>x", "HTML response received from provider"),
        (502, "application/json", b"<body>", "HTML response received from provider"),
        (400, "text/html", b'{"error": "json all the same"}', "json all the same"),
        (500, "application/json", b'{"error": "cut', 'provider API error: {"error": "cut'),
        (500, "application/json", b"null", "provider API error: null"),
        (500, "application/json", b'"boom"', 'provider API error: "boom"'),
        (500, "application/json", b"[" * 100000, "provider API error: " + "[" * 65536),
        (500, "", b"\xff\xfe", "provider API error: \ufffd\ufffd"),
        (500, "", b"x" * 1000, "provider API error: " + "x" * 1000),
        (400, "", "{\"error\": \"gr\u00fc\u00df\"}".encode(), "gr\u00fc\u00df"),
        (400, "", b"\xef\xbb\xbf{\"error\": \"bom\"}", "bom"),
    ],
)
def test_bodies(status, content_type, body, message):
    error = error_from_body(status, content_type, body)
    assert type(error) is class_for_status(status)
    assert error.message == message
    assert error.status_code == status


@pytest.mark.parametrize("depth", [50, 300, 450, 700, 900, 980, 2000])
@pytest.mark.parametrize("form", ["%s", '{"detail": %s}', '{"detail": [%s]}', '{"error": {"message": %s}}'])
def test_a_nested_body_is_an_error_like_any_other(form, depth):
    body = (form % ("[" * depth + "1" + "]" * depth)).encode()
    error = error_from_body(500, "application/json", body)
    assert type(error) is InternalServerError and error.quoted <= 2000


def test_a_payload_nested_beyond_all_measure():
    payload = []
    for _ in range(100000):
        payload = [payload]
    assert error_from_payload(payload, 500).message == "provider API error (status 500): nested too deeply to be shown"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(["error", "message", "type", "code", "param", "detail", "msg", "loc", "object", "choices"])
        | st.text(max_size=4), inner, max_size=5,
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(JSON, st.sampled_from([200, 204, 304, 400, 401, 404, 418, 500, 503, 599]))
def test_any_payload_is_an_error_with_a_message_and_a_status(payload, status):
    error = error_from_payload(payload, status)
    assert isinstance(error, APIStatusError)
    assert isinstance(error.message, str) and error.message
    assert 400 <= http_status(error) <= 599
    assert error.status_code == (status if status >= 400 else http_status(error))
    json.loads(json.dumps(error_to_payload(error), allow_nan=False))
    under_200 = payload_error(payload)
    assert under_200 is None or isinstance(under_200, APIStatusError)
    again = error_from_body(max(400, status), "application/json", json.dumps(payload).encode())
    assert isinstance(again, APIStatusError) and again.message


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60), st.text(max_size=20))
def test_any_body_is_an_error(body, content_type):
    error = error_from_body(500, content_type, body)
    assert type(error) is InternalServerError and error.message


@pytest.mark.parametrize("make", [
    lambda text: error_from_body(500, "text/plain", text.encode()),
    lambda text: error_from_payload({"weird": text}, 400),
    lambda text: errors.undecodable("the server sent no JSON object", text),
])
@pytest.mark.parametrize("before", [0, 165, 460, 1000])
def test_a_text_is_whole_until_its_keys_are_masked(make, before):
    error = make("x" * before + " Bearer sk-SECRET-SECRET")
    assert "sk-SECRET-SECRET" in error.message and error.quoted < 600


# ---------------------------------------------------------------- too long for the model


@pytest.mark.parametrize("name", [name for name in RECORDED if "too_long" in name or name == "req_36MB_body"])
def test_recorded_refusals_of_what_is_too_long(name):
    transcript = wire.load(name)
    assert errors.exceeds_context(error_from_body(transcript.status, transcript.content_type, transcript.body))


@pytest.mark.parametrize("message", [
    # vLLM 0.4 to 0.10, SGLang, llama.cpp
    "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (4000 in the messages, "
    "1000 in the completion). Please reduce the length of the messages or completion.",
    "The decoder prompt (length 2000) is longer than the maximum model length of 1024.",
    "'max_tokens' or 'max_completion_tokens' is too large: 5000. This model's maximum context length is 1024 tokens "
    "and your request has 20 input tokens (5000 > 1024 - 20).",
    "The input (9000 tokens) is longer than the model's context length (8192 tokens).",
    "the request exceeds the available context size, try increasing it",
])
def test_other_servers_and_versions(message):
    assert errors.exceeds_context(BadRequestError(message))
    assert not errors.exceeds_context(InternalServerError(message))


@pytest.mark.parametrize("name", [name for name in RECORDED if "too_long" not in name and name != "req_36MB_body"])
def test_other_recorded_errors_are_none_of_that(name):
    transcript = wire.load(name)
    assert not errors.exceeds_context(error_from_body(transcript.status, transcript.content_type, transcript.body))


# ---------------------------------------------------------------- the errors themselves


def made(cls):
    more = {"partial": {"choices": [{"text": "so far"}]}} if cls is IncompleteStreamError else {}
    more.update(type="t", code=7, param="p", status_code=418, request_id="r", payload={"a": [1]}, url="http://h")
    error = cls("m", **more)
    error.retry_after = 1.5
    return error


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("again", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])
def test_an_error_survives_pickling_and_copying_whole(cls, again):
    error = made(cls)
    other = again(error)
    assert type(other) is cls
    assert other.args == ("m",) and str(other) == str(error) == "m [418 from http://h]"
    assert vars(other) == vars(error)
    with pytest.raises(cls):
        raise other


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_partial_survives_every_pickle_protocol(protocol):
    error = pickle.loads(pickle.dumps(IncompleteStreamError("cut", partial={"text": "so"}, url="u"), protocol))
    assert (error.partial, error.message, error.url) == ({"text": "so"}, "cut", "u")


@pytest.mark.parametrize("cls", CLASSES)
def test_what_is_not_given_is_the_classs_own(cls):
    error = cls("m")
    assert (error.message, error.type, error.code, error.status_code) == (
        "m", cls.default_type, cls.default_code, cls.default_status)
    assert error.param is error.request_id is error.payload is error.url is error.retry_after is None
    assert str(error) == "m" and error.quoted == 2000
    assert repr(error) == "%s('m')" % cls.__name__


def test_str_says_where_it_happened():
    assert str(BridgeError("m", url="http://h/v1")) == "m [http://h/v1]"
    assert str(NotFoundError("m", url="http://h/v1")) == "m [404 from http://h/v1]"


@pytest.mark.parametrize(
    "error, status",
    [
        (BadRequestError("m"), 400),
        (APIStatusError("m", status_code=409), 409),
        (APIStatusError("m", status_code=302), 500),
        (APIStatusError("m"), 500),
        (InternalServerError("m", status_code=503), 503),
        (InternalServerError("m", status_code=999), 500),
        (InternalServerError("m", status_code=599), 599),
        (InternalServerError("m", status_code=600), 500),
        (APIStatusError("m", status_code=399), 500),
        (APITimeoutError("m"), 504),
        (APIConnectionError("m"), 502),
        (IncompleteStreamError("m"), 502),
        (RequestCancelledError("m"), 499),
        (UnsupportedOperationError("m"), 400),
        (ResponseDecodeError("m"), 502),
        (ConfigError("m"), 500),
        (BridgeError("m"), 500),
    ],
)
def test_the_status_a_gateway_answers_with(error, status):
    assert http_status(error) == status


@pytest.mark.parametrize(
    "error, told",
    [
        (NotFoundError("m", type="NotFoundError", param="model", code=404, url="http://secret-host", request_id="r"),
         {"message": "m", "type": "NotFoundError", "param": "model", "code": 404}),
        (AuthenticationError("m"), {"message": "m", "type": "authentication_error", "param": None, "code": None}),
        (PermissionDeniedError("m"), {"message": "m", "type": "permission_error", "param": None, "code": None}),
        (NotFoundError("m"), {"message": "m", "type": "not_found_error", "param": None, "code": None}),
        (RateLimitError("m"), {"message": "m", "type": "rate_limit_error", "param": None, "code": None}),
        (APIStatusError("m", status_code=400),
         {"message": "m", "type": "invalid_request_error", "param": None, "code": None}),
        (InternalServerError("m"), {"message": "m", "type": "api_error", "param": None, "code": None}),
        (APITimeoutError("m"), {"message": "m", "type": "request_timed_out", "param": None, "code": None}),
        (UnsupportedOperationError("speech is not supported by vllm provider"),
         {"message": "speech is not supported by vllm provider", "type": "unsupported_operation", "param": None,
          "code": "unsupported_operation"}),
    ],
)
def test_the_wire_form_has_the_servers_words_and_not_its_address(error, told):
    assert error_to_payload(error) == {"error": told}


@pytest.mark.parametrize("name", [name for name in RECORDED if b'"error":{' in wire.load(name).body])
def test_a_recorded_error_comes_out_as_it_went_in(name):
    transcript = wire.load(name)
    error = error_from_body(transcript.status, transcript.content_type, transcript.body)
    told = transcript.json["error"]
    assert error_to_payload(error) == {"error": {key: told.get(key) for key in ("message", "type", "param", "code")}}
