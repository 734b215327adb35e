"""Lists of models: read, thinned out and merged."""

import json

import pytest
import wire

from vllm_bridge.api import models
from vllm_bridge.errors import ResponseDecodeError


def listed(*names, **more):
    return [{"id": name, **more} for name in names]


def test_a_recorded_list_is_kept_whole():
    recorded = wire.load("embed_models")
    read = models.read(recorded.body)
    for model in read["data"]:
        assert model.pop("context_length") == model["max_model_len"]
    assert read == recorded.json


def test_what_is_no_model_is_left_out():
    named = {"id": "a", "max_model_len": 8, "context_length": 9}
    sent = {"data": [5, named, None, {"name": "no id"}]}
    assert models.read(json.dumps(sent).encode()) == {"data": [named, {"name": "no id"}]}
    assert models.read(b'{"data": []}') == {"data": []}


@pytest.mark.parametrize("payload", [
    [], {}, {"data": None}, {"data": {"id": "a"}}, {"data": ["a"]}, {"data": [{"embedding": [1]}]}, {"choices": []}])
def test_what_is_no_list_of_models(payload):
    with pytest.raises(ResponseDecodeError):
        models.read(json.dumps(payload).encode())


def test_aliases_stand_beside_their_models():
    found = listed("big", "small", own=1)
    aliases = {"gpt": "big", "mini": "small", "lost": "none"}
    assert models.allowed(found, aliases, lambda name: name != "small") == [
        {"id": "big", "own": 1}, {"id": "gpt", "alias": "big", "own": 1}, {"id": "mini", "alias": "small", "own": 1}]
    assert found == listed("big", "small", own=1)


def test_lists_are_merged_by_id():
    assert models.merged([listed("b", "a", of=1), [], listed("a", "c", of=2)]) == [
        {"id": "a", "of": 1}, {"id": "b", "of": 1}, {"id": "c", "of": 2}]
