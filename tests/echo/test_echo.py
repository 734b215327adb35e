"""The stand-in against the transcripts: the same requests, the same keys, types, chunks, errors and headers."""

import base64
import contextlib
import doctest
import http.client
import importlib
import json
import struct
import subprocess
import sys

import pytest
import wire

from vllm_bridge.echo import EchoServer

BOUNDARY = "----wirecap7MA4YWxk"


def wav(size):
    """A WAV file of ``size`` bytes that plays 32000 bytes a second, like the one of the transcripts."""
    kind = struct.pack("<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16)
    head = b"RIFF" + struct.pack("<I", max(0, size - 8)) + b"WAVEfmt " + kind
    return (head + b"data" + struct.pack("<I", max(0, size - 44)) + bytes(max(0, size - 44)))[:size]


def encode(body):
    if isinstance(body, dict) and "multipart_fields" in body:
        parts = ['--%s\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (BOUNDARY, name, value)
                 for name, value in body["multipart_fields"]]
        data = "".join(parts).encode()
        if body["file"]:
            name, kind, size = body["file"]
            data += ('--%s\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\nContent-Type: %s\r\n\r\n'
                     % (BOUNDARY, name, kind)).encode() + wav(size) + b"\r\n"
        return data + ("--%s--\r\n" % BOUNDARY).encode()
    if isinstance(body, str):  # the transcript has the bytes of err_invalid_utf8 as text
        return body.encode().replace(b"\\xff\\xfe", b"\xff\xfe")
    if body is None:
        return None
    return json.dumps(body).encode()


class Answer:
    def __init__(self, response):
        self.status = response.status
        self.headers = [[name.lower(), value] for name, value in response.getheaders()]
        self.body = response.read()

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def payloads(self):
        events = self.body.split(b"\n\n")
        assert events.pop() == b"" and events[-1] == b"data: [DONE]"
        return [json.loads(event[len(b"data: "):]) for event in events[:-1]]


def send(server, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request(method, path, encode(body), dict(headers or {}, Connection="close"))
        return Answer(connection.getresponse())
    finally:
        connection.close()


def replay(server, transcript, **changes):
    request = transcript.request
    body = dict(request["body"], **changes) if changes else request["body"]
    return send(server, request["method"], request["path"], body, request["headers"])


STARTED = {}


@contextlib.contextmanager
def shared(**options):
    """A stand-in that the first test with these options starts; it runs until the last test of the file."""
    key = repr(sorted(options.items()))
    if key not in STARTED:
        STARTED[key] = EchoServer(**options).start()
    yield STARTED[key]


@pytest.fixture(scope="module", autouse=True)
def stop_what_was_started():
    yield
    while STARTED:
        STARTED.popitem()[1].stop()


def serving(transcript, **options):
    """A stand-in that serves the model the transcript's server served."""
    name = transcript.json["model"] if transcript.status == 200 and not transcript.streams \
        and "model" in transcript.json else None
    if name is None and transcript.streams and transcript.payloads:
        name = transcript.payloads[0].get("model")
    name = name or (transcript.request["body"] or {}).get("model", "chat")
    return shared(models=(name,), **options)


def shape(value):
    """Keys in their order and types of values; a list is the shapes of its items, repeats folded.

    An object from tokens to numbers is just that; ``bytes`` are empty for the special tokens of a real model.
    """
    if isinstance(value, dict) and value and all(isinstance(item, float) for item in value.values()):
        return "tokens"
    if isinstance(value, dict) and value and all(key.isdigit() for key in value):
        return shape(list(value.values()))
    if isinstance(value, dict):
        return [(key, "bytes" if key == "bytes" else shape(item)) for key, item in value.items()]
    if isinstance(value, list):
        return ["list"] + folded(shape(item) for item in value)
    return type(value).__name__


def folded(items):
    found = []
    for item in items:
        if not found or found[-1] != item:
            found.append(item)
    return found


ANSWERS = """chat_plain chat_stop chat_stop_include chat_length chat_logprobs chat_logprobs_no_top chat_json_schema
chat_structured_choice chat_structured_json chat_json_object chat_tools_auto chat_tools_named chat_tools_required
chat_tools_none chat_model_null chat_model_omitted chat_return_token_ids chat_system_and_parts chat_max_tokens_one
err_max_tokens_string completions_plain completions_n2 completions_echo completions_logprobs completions_echo_logprobs
completions_stop completions_token_ids completions_token_id_lists completions_return_token_ids embed_float embed_list
embed_token_lists embed_no_model embed_base64_f16 embed_messages rerank_v2 rerank_top_n rerank_top_n_string
rerank_top_n_zero rerank_err_empty_doc rerank_err_empty_query models version tokenize_prompt tokenize_messages
tokenize_prompt_strs tokenize_no_model detokenize detokenize_empty score_v1 score_data score_queries_documents
rerank_classify generative_scoring chat_batch messages_plain messages_system messages_truncated messages_tools
messages_count_tokens embed_pooling embed_pooling_base64 embed_cohere_v2_types embed_cohere_v2_plain embed_rerank_v2
load""".split()
# These replay as they are; the stand-in's answer has to be long or short enough to end as the model's did.
STREAMS = """chat_stream_plain chat_stream_usage chat_stream_continuous chat_stream_continuous_only chat_stream_n2
chat_stream_tools chat_stream_tools_named chat_stream_tools_required chat_stream_json_schema
chat_stream_return_token_ids chat_stream_logprobs completions_stream completions_stream_usage
completions_stream_logprobs""".split()


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_in_one_piece_has_vllms_keys_and_types(name):
    real = wire.load(name)
    with serving(real) as server:
        ours = replay(server, real)
    assert ours.status == real.status
    if name in ("chat_stop", "chat_stop_include", "completions_stop"):  # these texts are not in an echo
        ours_shape, real_shape = dict(shape(ours.json)), dict(shape(real.json))
        assert list(ours_shape) == list(real_shape)
        return
    assert shape(ours.json) == shape(real.json)
    assert [name for name, _ in ours.headers] == [name.lower() for name, _ in real.headers]


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_has_vllms_kinds_of_chunks_in_vllms_order(name):
    real = wire.load(name)
    with serving(real) as server:
        ours = replay(server, real)
    assert folded(shape(chunk) for chunk in ours.payloads) == folded(shape(chunk) for chunk in real.payloads)
    assert [name for name, _ in ours.headers] == [name.lower() for name, _ in real.headers]
    assert dict(ours.headers)["content-type"] == real.content_type


@pytest.mark.parametrize("name", ["messages_stream", "messages_truncated_stream", "messages_tools_stream",
                                  "messages_tools_no_args_stream"])
def test_a_message_stream_has_vllms_events_in_vllms_order(name):
    real = wire.load(name)
    request = dict(real.request["body"], messages=[{"role": "user", "content": ECHOED.get(name, "hello")}])
    with shared(models=("chat",), max_model_len=1024) as server:
        ours = send(server, "POST", "/v1/messages", request, real.request["headers"])
    events = [event.split(b"\ndata: ") for event in ours.body.split(b"\n\n")[:-1]]
    assert all(kind == b"event: " + json.loads(data)["type"].encode() for kind, data in events)
    sent = [shape(payload) for payload in real.payloads if not payload.get("delta", {}).get("text", "").isspace()]
    said = real.payloads[1]["content_block"]["type"] == "text"
    if name == "messages_tools_stream":  # an echo calls without a word
        sent, said = [part for part in sent if "text" not in str(part)], False
    assert folded(shape(json.loads(data)) for _, data in events)[-2:] == folded(sent)[-2:]
    assert set(map(str, (shape(json.loads(data)) for _, data in events))) >= {
        str(part) for part in sent if said or "text" not in str(part)}


ECHOED = {"messages_tools_stream": "weather and time", "messages_tools_no_args_stream": "ping"}


ERRORS = """err_unknown_model err_unknown_model_stream err_unknown_route err_unknown_route_get err_wrong_method_get
err_wrong_method_delete err_wrong_method_put err_double_slash err_invalid_json err_invalid_utf8
err_json_array_body err_json_null_body err_messages_empty err_completions_missing_prompt err_no_content_type err_n_zero
err_temperature_huge err_stop_empty_string err_stream_options_without_stream err_top_logprobs_without_logprobs
err_top_logprobs_too_big err_tool_choice_unknown_fn err_json_schema_missing err_gzip_request_body err_n2_beam_no
completions_suffix completions_prompt_empty completions_prompt_empty_list embed_err_empty_list embed_err_unknown_model
rerank_err_unknown_model rerank_top_n_null rerank_top_n_negative rerank_err_query_list rerank_query_object
s_err_top_logprobs_too_big audio_bad_format audio_err_bad_boundary audio_err_empty_file
audio_err_file_is_string audio_err_no_boundary audio_err_too_big audio_err_unknown_model audio_srt audio_language_bad
audio_stream_usage_without_stream audio_stream_verbose models_retrieve messages_unknown_model
messages_unknown_model_stream messages_missing_max_tokens messages_server_tool messages_count_tokens_unknown_model
detokenize_negative score_mismatch score_err_missing generative_scoring_bad chat_batch_missing decision_missing
rerank_classify_missing embed_pooling_missing tokenize_unknown_model root decision_v1_decisions""".split()
SERVED = {"rerank": "rerank", "score": "rerank", "embed": "embed", "audio": "whisper"}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_is_vllms_byte_for_byte(name):
    real = wire.load(name)
    with shared(models=(SERVED.get(name.split("_")[0], "chat"),), max_model_len=1024) as server:
        ours = replay(server, real)
    assert ours.status == real.status
    assert ours.body.decode() == real.body.decode()
    assert [[name, value] for name, value in ours.headers if name != "date"] == \
        [[name.lower(), value] for name, value in real.headers if name.lower() != "date"]


@pytest.mark.parametrize("name", ["err_max_tokens_too_big", "think_max_tokens_zero", "models_head", "health"])
def test_more_answers_equal_vllms(name):
    real = wire.load(name)
    with shared(models=("chat",), max_model_len=1024) as server:
        ours = replay(server, real)
    assert (ours.status, ours.body) == (real.status, real.body)


@pytest.mark.parametrize("name", ["auth_missing", "auth_missing_models", "auth_missing_stream", "auth_basic_scheme",
                                  "auth_empty_bearer", "auth_missing_health", "auth_missing_version",
                                  "auth_missing_unknown", "auth_missing_options", "auth_missing_v2_rerank"])
def test_a_key_guards_what_it_guards_in_vllm(name):
    real = wire.load(name)
    with shared(models=("auth",), api_key="sekret") as server:
        ours = replay(server, real)
    assert (ours.status, ours.body) == (real.status, real.body)
    assert [header for header, _ in ours.headers] == [header.lower() for header, _ in real.headers]


@pytest.mark.parametrize("name", ["auth_ok", "auth_lowercase_bearer"])
def test_the_right_key_opens(name):
    with shared(models=("auth",), api_key="sekret") as server:
        assert replay(server, wire.load(name)).status == 200


@pytest.mark.parametrize("name", ["audio_json", "audio_text", "audio_no_model", "audio_verbose_segment"])
def test_a_transcription_has_vllms_keys_and_types(name):
    real = wire.load(name)
    with shared(models=("whisper",)) as server:
        ours = replay(server, real)
    assert shape(ours.json) == shape(real.json)
    if "duration" in real.json:
        assert ours.json["duration"] == real.json["duration"]
    else:
        assert ours.json["usage"] == real.json["usage"]


@pytest.mark.parametrize("name", ["audio_stream", "audio_stream_text", "audio_stream_usage", "audio_stream_continuous",
                                  "audio_stream_options_json", "audio_65s_stream"])
def test_a_transcription_stream_has_vllms_chunks(name):
    real = wire.load(name)
    with shared(models=("whisper",)) as server:
        ours = replay(server, real)
    assert folded(shape(chunk) for chunk in ours.payloads) == folded(shape(chunk) for chunk in real.payloads)


def without_prompt_details(value):
    """The thinking server of the transcripts counted cached tokens, which the stand-in has none of."""
    value["usage"].pop("prompt_tokens_details", None)
    return value


@pytest.mark.parametrize("name", ["think_reasoning", "think_reasoning_excluded", "think_reasoning_truncated",
                                  "think_off_plain", "think_reasoning_then_tool"])
def test_reasoning_is_answered_as_vllm_does(name):
    real = wire.load(name)
    thinking = real.request["body"].get("chat_template_kwargs") or {"enable_thinking": True}
    changes = {"chat_template_kwargs": thinking}
    if name == "think_reasoning_then_tool":
        changes["messages"] = [{"role": "user", "content": "weather"}]
    with serving(real) as server:
        ours = replay(server, real, **changes)
    ours, real = without_prompt_details(ours.json), without_prompt_details(real.json)
    if name == "think_off_plain":  # its server has a reasoning parser, which always counts
        ours["usage"]["completion_tokens_details"] = real["usage"]["completion_tokens_details"]
    assert shape(ours) == shape(real)
    assert ours["choices"][0]["finish_reason"] == real["choices"][0]["finish_reason"]


@pytest.mark.parametrize("name", ["think_stream_reasoning", "think_stream_reasoning_excluded",
                                  "think_stream_reasoning_only", "think_off_stream"])
def test_reasoning_is_streamed_as_vllm_does(name):
    real = wire.load(name)
    thinking = real.request["body"].get("chat_template_kwargs") or {"enable_thinking": True}
    changes = {"chat_template_kwargs": thinking}
    if name == "think_stream_reasoning_only":
        changes["messages"] = [{"role": "user", "content": "!empty"}]
    with serving(real) as server:
        ours = replay(server, real, **changes).payloads
    real = real.payloads
    if "usage" in real[-1]:
        without_prompt_details(real[-1])
    assert folded(shape(chunk) for chunk in ours) == folded(shape(chunk) for chunk in real)


@pytest.mark.parametrize("name, text", [("chat_stream_stop", "1 2 3 10 11"),
                                        ("chat_stream_length", "count to ten and on"),
                                        ("chat_stream_empty", "!empty"), ("chat_stream_tools_no_args", "ping"),
                                        ("completions_prompt_list_stream", None)])
def test_streams_end_as_vllms_do(name, text):
    real = wire.load(name)
    with serving(real) as server:
        changes = {"messages": [{"role": "user", "content": text}]} if text else {}
        ours = replay(server, real, **changes)
    assert folded(shape(chunk) for chunk in ours.payloads) == folded(shape(chunk) for chunk in real.payloads)
    ends = [[choice["finish_reason"] for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
            for chunks in (ours.payloads, real.payloads)]
    assert ends[0] == ends[1]


def ask(server, text, **fields):
    reply = send(server, "POST", "/v1/chat/completions", dict(fields, messages=[{"role": "user", "content": text}]),
                 {"Content-Type": "application/json"})
    return reply.payloads if fields.get("stream") else reply.json


@pytest.fixture()
def server():
    with EchoServer() as running:
        yield running


def test_an_echo_counts_words(server):
    reply = ask(server, "a big  world")
    assert reply["choices"][0]["message"]["content"] == "You said: a big  world"
    assert reply["usage"] == {"prompt_tokens": 3, "total_tokens": 8, "completion_tokens": 5,
                              "prompt_tokens_details": None, "completion_tokens_details": None}


def test_the_chunks_of_a_stream_make_the_answer_in_one_piece(server):
    thinking = {"chat_template_kwargs": {"enable_thinking": True}}
    for fields in ({}, {"n": 2}, {"stop": "big"}, {"max_tokens": 3}, thinking):
        whole = ask(server, "a big  world", **fields)["choices"]
        parts = ask(server, "a big  world", stream=True, **fields)
        for choice in whole:
            deltas = [part["choices"][0] for part in parts if part["choices"][0]["index"] == choice["index"]]
            for field in ("content", "reasoning"):
                assert "".join(delta["delta"].get(field) or "" for delta in deltas) == (choice["message"][field] or "")
            assert deltas[-1]["finish_reason"] == choice["finish_reason"]
            assert deltas[-1]["stop_reason"] == choice["stop_reason"]


def test_a_stop_string_ends_the_text_and_is_billed(server):
    reply = ask(server, "1 2 3 4", stop=[" 3", " 4"])
    assert reply["choices"][0]["message"]["content"] == "You said: 1 2"
    assert reply["choices"][0]["stop_reason"] == " 3"
    assert reply["usage"]["completion_tokens"] == 5
    assert ask(server, "1 2 3", stop="2", include_stop_str_in_output=True)["choices"][0]["message"]["content"] \
        == "You said: 1 2"


def test_tool_arguments_are_the_real_ones_and_two_calls_come_on_demand(server):
    real = wire.load("chat_tools_auto_two")
    tools = real.request["body"]["tools"]
    reply = ask(server, "!call 2", tools=tools)
    assert [call["function"]["name"] for call in reply["choices"][0]["message"]["tool_calls"]] == \
        [call["function"]["name"] for call in real.json["choices"][0]["message"]["tool_calls"]]
    one = wire.load("chat_tools_auto").json["choices"][0]["message"]["tool_calls"][0]["function"]
    assert reply["choices"][0]["message"]["tool_calls"][0]["function"] == one
    alone = ask(server, "!call 2", tools=tools, parallel_tool_calls=False)
    assert len(alone["choices"][0]["message"]["tool_calls"]) == 1
    assert [chunk["choices"][0]["delta"]["tool_calls"][0]["index"]
            for chunk in ask(server, "!call 2", tools=tools, stream=True)
            if "tool_calls" in chunk["choices"][0]["delta"]][-1] == 1
    broken = ask(server, "!broken-call", tools=tools)["choices"][0]["message"]["tool_calls"]
    with pytest.raises(ValueError):
        json.loads(broken[0]["function"]["arguments"])


def test_a_cut_call_is_text_in_one_piece_and_half_a_call_in_a_stream(server):
    tools = wire.load("chat_tools_truncated").request["body"]["tools"]
    reply = ask(server, "weather", tools=tools, max_tokens=2)["choices"][0]
    assert "tool_calls" not in reply["message"] and reply["message"]["content"].startswith("<tool_call>\n")
    assert reply["finish_reason"] == "length"
    last = ask(server, "weather", tools=tools, max_tokens=2, stream=True)[-1]["choices"][0]
    assert last["finish_reason"] == "length" and "tool_calls" in last["delta"]


def test_a_tool_result_is_answered_and_calls_no_tool_again(server):
    real = wire.load("chat_tool_result_turn")
    reply = replay(server, real, model="echo").json
    assert shape(reply) == shape(real.json)
    assert reply["choices"][0]["message"]["content"].startswith("The tool said: ")


def test_an_abort_looks_like_the_real_one(server):
    real = wire.load("kill_sigterm_api_chat_stream").payloads
    last = ask(server, "!abort x", stream=True)[-1]["choices"][0]
    known = [chunk["choices"][0] for chunk in real if chunk["choices"]][-1]
    assert shape(last) == shape(known) and last["finish_reason"] == known["finish_reason"] == "abort"


def test_generation_beyond_the_end_is_cut_by_max_tokens(server):
    reply = ask(server, "!count 3", ignore_eos=True, max_tokens=50)
    assert reply["choices"][0]["finish_reason"] == "length" and reply["usage"]["completion_tokens"] == 50


def test_fields_are_read_as_laxly_as_vllm_reads_them(server):
    assert ask(server, "x", max_tokens="1")["usage"]["completion_tokens"] == 1
    assert "max_tokens must be an integer" in ask(server, "x", max_tokens=[1])["error"]["message"]
    assert ask(server, "x", structured_outputs={"json_object": True})["choices"][0]["message"]["content"] == "{}"


def test_a_prompt_that_does_not_fit_is_refused():
    real = wire.load("err_context_too_long").json["error"]
    with EchoServer(max_model_len=10) as server:
        ours = ask(server, "x " * 11)["error"]
        assert len(ask(server, "x " * 8)["choices"][0]["message"]["content"].split()) == 2
    assert [ours["type"], ours["param"], ours["code"]] == [real["type"], real["param"], real["code"]]
    assert ours["message"].startswith("This model's maximum context length is 10 tokens. However, your prompt contains "
                                      "at least 11 input tokens, which exceeds this limit")


def test_the_prompts_logprobs_are_those_of_its_tokens(server):
    real = wire.load("chat_prompt_logprobs")
    ours = replay(server, real, model="echo", messages=[{"role": "user", "content": "Hello to you"}])
    assert shape(ours.json) == shape(real.json)


def test_completions_count_as_they_go(server):
    options = {"include_usage": True, "continuous_usage_stats": True}
    fields = {"prompt": "a b", "stream": True, "stream_options": options}
    chunks = send(server, "POST", "/v1/completions", fields, {"Content-Type": "application/json"}).payloads
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 2, 3, 4, 4, 4]
    assert chunks[-1]["choices"] == []


@pytest.mark.parametrize("path, fields", [
    ("/v1/chat/completions", {"messages": "text"}), ("/v1/chat/completions", {"messages": [5]}),
    ("/v1/chat/completions", {"messages": [{"role": "user"}], "tools": [5]}),
    ("/v1/chat/completions", {"messages": [{"role": "user"}], "response_format": "json"}),
    ("/v1/completions", {"prompt": "a", "stop": 5}), ("/v1/completions", {"prompt": "a", "stream": True, "stop": 5}),
    ("/v1/embeddings", {"input": "a", "dimensions": []}), ("/rerank", {"query": 5, "documents": ["a"]})])
def test_fields_of_wrong_types_are_refused(server, path, fields):
    reply = send(server, "POST", path, fields, {"Content-Type": "application/json"})
    assert (reply.status, list(reply.json["error"])) == (400, ["message", "type", "param", "code"])


def test_an_empty_body_is_a_missing_one(server):
    real = wire.load("err_json_null_body")
    ours = send(server, "POST", "/v1/chat/completions", "", {"Content-Type": "application/json"})
    assert (ours.status, ours.body) == (real.status, real.body)


def test_empty_structures_are_refused_late(server):
    real = wire.load("s_err_structured_empty_choice")
    assert [shape(event) for event in ask(server, "x", stream=True, structured_outputs={"choice": []})] == \
        [shape(event) for event in real.payloads]


def test_embeddings_are_unit_vectors_and_base64_is_the_same_floats(server):
    def embed(**fields):
        return send(server, "POST", "/v1/embeddings", fields, {"Content-Type": "application/json"}).json
    floats = embed(input=["a", "b"])["data"]
    assert [len(row["embedding"]) for row in floats] == [8, 8]
    assert sum(value * value for value in floats[0]["embedding"]) == pytest.approx(1)
    packed = base64.b64decode(embed(input="a", encoding_format="base64")["data"][0]["embedding"])
    assert list(struct.unpack("<8f", packed)) == floats[0]["embedding"] != floats[1]["embedding"]
    big = base64.b64decode(embed(input="a", encoding_format="base64", endianness="big")["data"][0]["embedding"])
    assert list(struct.unpack(">8f", big)) == floats[0]["embedding"]
    assert len(embed(input="a", dimensions="3")["data"][0]["embedding"]) == 3
    real = wire.load("embed_matryoshka_dims_0").json["error"]
    ours = embed(input="a", dimensions=0)["error"]
    assert dict(ours, message="") == dict(real, message="")
    assert ours["message"] == real["message"].replace("embed", "echo").replace("64", "8")
    for refused in ({"input": 5}, {"input": "a", "encoding_format": "hex"}, {}):
        assert embed(**refused)["error"]["type"] == "Bad Request"


def test_rerank_takes_strings_only(server):
    def rerank(**fields):
        return send(server, "POST", "/v1/rerank", dict({"query": "q"}, **fields), {"Content-Type": "application/json"})
    assert rerank(documents=[{"text": "a"}]).status == 400
    assert "At least one text_pair" in rerank(documents=[]).json["error"]["message"]
    assert "MultiModalParam" in rerank(documents=["a", {"content": []}]).json["error"]["message"]
    assert rerank(documents=None).json["error"]["message"].startswith("3 validation errors:")
    assert rerank().json["error"]["param"] == "body.documents"
    assert rerank(documents="one q").json["results"][0]["document"] == {"text": "one q", "multi_modal": None}


def test_a_window_of_audio_has_its_own_text_and_bad_wavs_count_a_second(server):
    body = {"multipart_fields": [["response_format", "verbose_json"]], "file": ["a.wav", "audio/wav", 2080044]}
    head = {"Content-Type": "multipart/form-data; boundary=" + BOUNDARY}
    reply = send(server, "POST", "/v1/audio/transcriptions", body, head).json
    assert (reply["duration"], len(reply["segments"])) == (65.0, 3)
    body = {"multipart_fields": [["prompt", "!count 2"]], "file": ["a.ogg", "audio/ogg", 10]}
    assert send(server, "POST", "/v1/audio/transcriptions", body, head).json == {
        "text": " 1 2", "usage": {"type": "duration", "seconds": 1}}
    body["multipart_fields"] = [["prompt", "!empty"]]
    assert send(server, "POST", "/v1/audio/transcriptions", body, head).json["text"] == ""
    head = {"Content-Type": "application/json"}
    assert send(server, "POST", "/v1/audio/transcriptions", {"a": 1}, head).status == 400
    real = wire.load("audio_err_no_file")
    assert replay(server, real).json["error"]["param"] == real.json["error"]["param"]


def test_a_request_id_becomes_the_id():
    real = wire.load("think_x_request_id")
    with EchoServer(models=("chat",), request_id_headers=True) as server:
        ours = replay(server, real)
    assert ours.json["id"] == real.json["id"]
    assert [header for header, _ in ours.headers] == [header.lower() for header, _ in real.headers]


def test_several_models_are_listed_and_the_one_asked_for_answers():
    with EchoServer(models=("a", "b")) as server:
        assert [row["id"] for row in send(server, "GET", "/v1/models").json["data"]] == ["a", "b"]
        assert ask(server, "x", model="b")["model"] == "b"
        assert "Valid aliases: a, b." in ask(server, "x", model="c")["error"]["message"]


def test_operations_that_are_not_served_are_route_misses():
    real = wire.load("err_generate_model_v1_embeddings")
    with EchoServer(models=("chat",), operations=("chat_completion",)) as server:
        ours = replay(server, real)
        assert (ours.status, ours.body) == (real.status, real.body)
        assert ask(server, "x")["object"] == "chat.completion"
    with pytest.raises(ValueError, match="fly"):
        EchoServer(operations=("fly",))
    with pytest.raises(ValueError, match="model"):
        EchoServer(models=())


def test_a_trailing_slash_is_redirected():
    real = wire.load("err_trailing_slash")
    with EchoServer(models=("chat",)) as server:
        ours = replay(server, real)
        assert (ours.status, ours.body) == (real.status, real.body)
        assert dict(ours.headers)["location"] == server.url + "/v1/chat/completions"
        assert [header for header, _ in ours.headers] == [header.lower() for header, _ in real.headers]


def test_metrics_name_vllms_gauge(server):
    reply = send(server, "GET", "/metrics")
    assert dict(reply.headers)["content-type"] == "text/plain; version=1.0.0; charset=utf-8"
    assert reply.body.splitlines()[-1] == b'vllm:num_requests_running{engine="0",model_name="echo"} 0.0'


@pytest.mark.parametrize("room", ["", ".directives", ".schema", ".generate", ".pooling"])
def test_the_documented_examples_run(room):
    result = doctest.testmod(importlib.import_module("vllm_bridge.echo" + room))
    assert result.attempted and not result.failed


def test_importing_the_library_does_not_import_the_stand_in():
    code = "import sys, vllm_bridge; sys.exit(any(n.startswith('vllm_bridge.echo') for n in sys.modules))"
    assert subprocess.call([sys.executable, "-c", code]) == 0
