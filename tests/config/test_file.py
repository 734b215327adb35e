"""From the bytes of a config file to settings."""

import json
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_bridge.config.settings import Key, NetworkConfig, ProviderConfig
from vllm_bridge.config.file import load, loads, provider_config
from vllm_bridge.errors import ConfigError
from vllm_bridge.vllm import VLLMProvider

SKELETON = """{"client": {"allowed_origins": ["*"], "max_request_body_size_mb": 100},
 "providers": {"vllm": {
   "keys": [{"name": "a", "value": "env.VLLM_KEY", "models": ["*"], "weight": 1.0,
             "vllm_key_config": {"url": "http://h:8000", "model_name": ""}}],
   "network_config": {"max_retries": 2},
   "concurrency_and_buffer_size": {"concurrency": 100, "buffer_size": 500}}}}"""


def message(call, *args, **kwargs):
    with pytest.raises(ConfigError) as caught:
        call(*args, **kwargs)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_the_skeleton(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + SKELETON.encode())  # as Windows editors save it
    found = load(path, {"VLLM_KEY": "s3cret"})
    assert found.client == {"allowed_origins": ["*"], "max_request_body_size_mb": 100}
    assert found.provider == ProviderConfig(
        NetworkConfig(max_retries=2), keys=[Key("s3cret", name="a", url="http://h:8000")])
    assert "s3cret" not in repr(found)


def test_the_empty_file_is_all_defaults():
    assert loads("{}").provider == ProviderConfig()
    assert loads('{"client": null, "providers": null, "config_store": {}, "$schema": "x"}').client == {}
    assert loads('{"providers": {"vllm": null}}').provider == ProviderConfig()


def test_a_wrong_setting_names_path_and_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"providers": {"vllm": {"keys": [{}, {"weight": "x"}]}}}')
    assert message(load, str(path)) == (
        "providers.vllm.keys[1].weight: expected a number of 0 or more, got 'x' (in %s)" % path)


def test_broken_json_is_placed(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"client": {},\n "providers": {"vllm": {]}}')
    assert message(load, path).startswith("%s, line 2, column 25: is not JSON: " % path)


@pytest.mark.parametrize(
    "text, start",
    [
        ("[]", "the whole file: expected an object, got a list (in config)"),
        ('{"provider": {}}', "the whole file: unknown setting 'provider'; did you mean 'providers'? (in config)"),
        ('{"providers": {"vlm": {}}}', "providers: unknown setting 'vlm'; did you mean 'vllm'? (in config)"),
        ('{"providers": []}', "providers: expected an object"),
        ('{"client": 5}', "client: expected an object, got a number"),
        ('{"client": {"a": 1, "a": 2}}', "config: the name 'a' is there twice in one object"),
        ('{"client": {"a": NaN}}', "config: NaN is no JSON number"),
        ("[" * 200000, "config: is nested too deeply"),
        ("", "config, line 1, column 1: is not JSON"),
    ],
)
def test_bad_texts(text, start):
    assert message(loads, text).startswith(start)


def test_unreadable_files(tmp_path):
    assert message(load, tmp_path / "no.json").endswith("no.json: cannot be read: No such file or directory")
    assert "cannot be read: " in message(load, tmp_path)
    assert "cannot be read: " in message(load, "a\x00b")
    path = tmp_path / "latin.json"
    path.write_bytes(b'{"client": {"a": "\xfc"}}')
    assert message(load, path).endswith("latin.json: is not UTF-8 (byte 18)")


def test_other_providers_are_left_out_with_a_warning(caplog):
    found = loads('{"providers": {"vllm": {"native_responses": true}, "openai": {"keys": "?"}}}')
    assert found.provider.native_responses
    assert "'openai'" in caplog.text


@given(st.one_of(
    st.text(max_size=60),
    st.tuples(st.integers(0, len(SKELETON)), st.integers(0, len(SKELETON)), st.text(max_size=4)).map(
        lambda cut: SKELETON[: cut[0]] + cut[2] + SKELETON[cut[1]:]),
    st.dictionaries(st.sampled_from(["client", "providers", "x"]), st.dictionaries(
        st.sampled_from(["vllm", "y"]), st.one_of(st.none(), st.integers(), st.text(max_size=3)))).map(json.dumps),
))
def test_nothing_but_config_errors(text):
    try:
        loads(text, environ={"VLLM_KEY": "k"})
    except ConfigError as error:
        assert error.message


LONG_FORM = {"keys": [{"value": "s3cret", "name": "a", "vllm_key_config": {"url": "http://h:8000"}}],
             "network_config": {"max_retries": 5}}
EXPECTED = ProviderConfig(NetworkConfig(max_retries=5), keys=[Key("s3cret", name="a", url="http://h:8000")])


@pytest.mark.parametrize("given_config", [
    EXPECTED, LONG_FORM, {"vllm": LONG_FORM}, {"providers": {"vllm": LONG_FORM}},
    {"$schema": "x", "vllm": LONG_FORM}, {"client": {"port": 1}, "providers": {"vllm": LONG_FORM}},
    types.MappingProxyType(LONG_FORM), {"network_config": NetworkConfig(max_retries=5), "keys": EXPECTED.keys},
])
def test_a_provider_takes_its_settings_as_objects(given_config):
    assert provider_config(given_config) == EXPECTED
    with VLLMProvider(config=given_config) as provider:
        assert provider.config == EXPECTED


@pytest.mark.parametrize("given_config, start", [
    ({"vllm": LONG_FORM, "network_config": {}}, "config: unknown setting 'vllm'; "),
    ({"vllm": []}, "vllm: expected an object"),
    ({"vllm": {"keys": [{"weight": "x"}]}}, "vllm.keys[0].weight: "),
    ({"keys": [{"weight": "x"}]}, "config.keys[0].weight: "),
    ({"providers": {"openai": {}}}, "providers: unknown setting 'openai'"),
    ({"providers": {"vllm": {"keys": 5}}}, "providers.vllm.keys: "),
    ({"base_url": "http://h"}, "config: unknown setting 'base_url'; "),
    ([], "config: expected an object, got a list"),
    ("config.json", "config: expected an object, got a string"),
    (5, "config: expected an object, got a number"),
])
def test_a_wrong_object_is_named(given_config, start):
    assert message(VLLMProvider, config=given_config).startswith(start)


def test_only_other_providers_are_spoken_of(caplog):
    loads('{"providers": {"vllm": {}, "_note": 1, "$schema": 2}}')
    assert not caplog.records
    loads('{"providers": {"vllm": {}, "_note": 1, "openai": {}, "azure": {}}}')
    assert [record.getMessage() for record in caplog.records] == [
        "providers other than vllm are left out: 'azure', 'openai'"]


def test_warnings_of_a_configuration_are_logged(caplog):
    provider_config({"providers": {"openai": {}, "vllm": {"keys": [{"value": "env.NO_SUCH_VARIABLE_HERE"}]}}})
    assert {record.name for record in caplog.records} == {"vllm_bridge"}
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
