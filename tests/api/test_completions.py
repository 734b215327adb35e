"""Text completions: what is asked for, and chunks folded."""

import copy
import warnings

import pytest
import wire

from vllm_bridge.errors import InternalServerError
from vllm_bridge.api.completions import CompletionAccumulator, expected_choices, normalise, prepare


def test_a_request_goes_up_as_it_is_but_for_guided_names():
    body = {"prompt": [[1, 2], [3]], "best_of": 2, "nonsense": 1, "response_format": {"type": "json_object"}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert prepare(body) == body
    with pytest.warns(DeprecationWarning, match="guided_regex"):
        assert prepare({"prompt": "x", "guided_regex": "a"}) == {"prompt": "x", "structured_outputs": {"regex": "a"}}


@pytest.mark.parametrize(
    "body, count",
    [
        ({}, 1),
        ({"prompt": "x"}, 1),
        ({"prompt": "x", "n": 3}, 3),
        ({"prompt": ["x", "y"], "n": 3}, 6),
        ({"prompt": [1, 2, 3]}, 1),
        ({"prompt": [[1, 2], [3]], "n": 2}, 4),
        ({"prompt": []}, 1),
        ({"prompt": ("x", "y")}, 2),
        ({"prompt": (1, 2)}, 1),
        ({"prompt": ([1, 2], (3,)), "n": 2}, 4),
        ({"prompt": ()}, 1),
        ({"prompt": "x", "n": 2, "best_of": 5}, 2),
        ({"prompt": ["x"], "prompt_embeds": ["AA", "BB"]}, 3),
        ({"prompt_embeds": "AA", "n": 2}, 2),
        ({"prompt": "x", "prompt_embeds": "AA"}, 2),
        ({"messages": [], "n": 2}, 2),
        ({"n": "2"}, 2),  # vLLM reads numbers in strings (err_temperature_numeric_string)
        ({"n": 2.0}, 2),
        ({"n": True}, 1),
        ({"n": 0}, 1),
        ({"n": -1}, 1),
        ({"n": None}, 1),
        ({"n": "x"}, 1),
        ({"n": "9" * 5000}, 1),
        ({"n": float("nan")}, 1),
        ({"n": float("inf")}, 1),
        ({"n": [2]}, 1),
        ({"prompt": {"a": 1, "b": 2}}, 1),
    ],
)
def test_how_many_choices_a_request_asks_for(body, count):
    assert expected_choices(body) == count


@pytest.mark.parametrize("name", ["completions_prompt_list_stream", "completions_stream"])
def test_as_many_choices_are_expected_as_a_server_sends(name):
    transcript = wire.load(name)
    indexes = {choice["index"] for chunk in transcript.payloads for choice in chunk["choices"]}
    assert expected_choices(transcript.request["body"]) == len(indexes)


def test_replies():
    payload = wire.load("completions_plain").json
    assert normalise(payload) is payload and payload == wire.load("completions_plain").json
    payload["choices"][0]["finish_reason"] = ""
    assert normalise(payload)["choices"][0]["finish_reason"] is None
    payload["choices"][0]["finish_reason"] = "abort"
    with pytest.raises(InternalServerError, match="abort"):
        normalise(payload)


def folded(*chunks):
    accumulator = CompletionAccumulator()
    before = copy.deepcopy(chunks)
    for chunk in chunks:
        accumulator.feed(chunk)
    assert chunks == before
    return accumulator.completion()


def test_nothing_arrived():
    assert folded() == {"choices": []}


def test_choices_interleave_and_lists_are_joined():
    def chunk(index, text, number, reason=None):
        logprobs = {"tokens": [text], "token_logprobs": [number], "text_offset": [number], "top_logprobs": [{text: 0}]}
        return {"id": "c", "object": "text_completion", "choices": [
            {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason, "token_ids": [number]}]}

    reply = folded(chunk(1, "b", 1), chunk(0, "a", 2), chunk(1, "B", 3, "stop"), chunk(0, "A", 4, "length"),
                   {"id": "c", "choices": [], "usage": {"total_tokens": 9}})
    assert reply == {
        "id": "c", "object": "text_completion", "usage": {"total_tokens": 9},
        "choices": [
            {"index": 0, "text": "aA", "finish_reason": "length", "token_ids": [2, 4], "logprobs": {
                "tokens": ["a", "A"], "token_logprobs": [2, 4], "text_offset": [2, 4],
                "top_logprobs": [{"a": 0}, {"A": 0}]}},
            {"index": 1, "text": "bB", "finish_reason": "stop", "token_ids": [1, 3], "logprobs": {
                "tokens": ["b", "B"], "token_logprobs": [1, 3], "text_offset": [1, 3],
                "top_logprobs": [{"b": 0}, {"B": 0}]}},
        ],
    }


def test_the_halves_of_a_character_are_one_and_an_empty_finish_is_none():
    chunks = [{"choices": [{"index": 0, "text": text, "finish_reason": "", "stop_reason": ""}]}
              for text in ("\ud83d", "\ude00")]
    [choice] = folded(*chunks)["choices"]
    assert choice == {"index": 0, "text": "\U0001f600", "finish_reason": None, "stop_reason": None}


@pytest.mark.parametrize(
    "choices", [None, 5, {}, [None], [{}], [{"index": [], "text": 5}], [{"index": "x", "text": None}]]
)
def test_odd_chunks_fold(choices):
    assert all(choice["text"] == "" for choice in folded({"choices": choices})["choices"])


def test_what_was_returned_stays_as_it_was():
    accumulator = CompletionAccumulator()
    chunk = {"choices": [{"index": 0, "text": "x", "token_ids": [1], "logprobs": {"tokens": ["x"]}}]}
    accumulator.feed(chunk)
    first = accumulator.completion()
    before = copy.deepcopy(first)
    accumulator.feed(chunk)
    assert first == before
