"""Settings given as keywords or as objects of a file."""

import copy
import pickle
import sys
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st
from requests import certs

from vllm_bridge.config import settings as module
from vllm_bridge.config.settings import Key, NetworkConfig, ProviderConfig, ProxyConfig
from vllm_bridge.errors import ConfigError

with open(certs.where(), encoding="utf-8") as _file:
    PEM = "-----BEGIN" + _file.read().split("-----BEGIN")[1]


def message(call, *args, **kwargs):
    with pytest.raises(ConfigError) as caught:
        call(*args, **kwargs)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_defaults():
    config = ProviderConfig(environ={})
    network = config.network_config
    assert network.base_url is None
    assert network.default_request_timeout_in_seconds == 300
    assert network.connect_timeout_in_seconds == 5
    assert network.stream_idle_timeout_in_seconds == 120
    assert (network.max_retries, network.retry_backoff_initial_ms, network.retry_backoff_max_ms) == (2, 500, 5000)
    assert network.keep_alive_timeout_in_seconds == 4.0
    assert network.max_conns_per_host == 5000
    assert (network.extra_headers, network.insecure_skip_verify, network.ca_cert_pem) == ({}, False, None)
    assert config.proxy_config == ProxyConfig() and config.proxy_config.type == "environment"
    assert config.keys == ()
    assert not (config.send_back_raw_request or config.send_back_raw_response or config.native_responses)


WRONG = [
    ("network_config.base_url", {"network_config": {"base_url": "ftp://x"}}),
    ("network_config.default_request_timeout_in_seconds",
     {"network_config": {"default_request_timeout_in_seconds": 0}}),
    ("network_config.connect_timeout_in_seconds", {"network_config": {"connect_timeout_in_seconds": "5"}}),
    ("network_config.connect_timeout_in_seconds", {"network_config": {"connect_timeout_in_seconds": 0}}),
    ("network_config.connect_timeout_in_seconds", {"network_config": {"connect_timeout_in_seconds": 0.0}}),
    ("network_config.stream_idle_timeout_in_seconds", {"network_config": {"stream_idle_timeout_in_seconds": 0}}),
    ("network_config.max_retries", {"network_config": {"max_retries": -1}}),
    ("network_config.max_retries", {"network_config": {"max_retries": 1.5}}),
    ("network_config.max_retries", {"network_config": {"max_retries": True}}),
    ("network_config.retry_backoff_initial_ms", {"network_config": {"retry_backoff_initial": "1s"}}),
    ("network_config.retry_backoff_max_ms", {"network_config": {"retry_backoff_max_ms": float("nan")}}),
    ("network_config.retry_backoff_max", {"network_config": {"retry_backoff_max_ms": 1, "retry_backoff_max": 1}}),
    ("network_config.stream_idle_timeout_in_seconds", {"network_config": {"stream_idle_timeout_in_seconds": []}}),
    ("network_config.extra_headers.X-A", {"network_config": {"extra_headers": {"X-A": "a\nb"}}}),
    ("network_config.insecure_skip_verify", {"network_config": {"insecure_skip_verify": "false"}}),
    ("network_config.ca_cert_pem", {"network_config": {"ca_cert_pem": "/no/such/file.pem"}}),
    ("network_config.ca_cert_pem", {"network_config": {"ca_cert_pem": "-----BEGIN CERTIFICATE-----\nAAAA"}}),
    ("network_config.ca_cert_pem", {"network_config": {"ca_cert_pem": __file__}}),
    ("network_config.ca_cert_pem", {"network_config": {"ca_cert_pem": "env.NOT_THERE"}}),
    ("network_config.max_conns_per_host", {"network_config": {"max_conns_per_host": 0}}),
    ("network_config.keep_alive_timeout_in_seconds", {"network_config": {"keep_alive_timeout_in_seconds": -4}}),
    ("network_config", {"network_config": []}),
    ("network_config", {"network_config": {"max_retrys": 1}}),
    ("proxy_config.type", {"proxy_config": {"type": "sock5"}}),
    ("proxy_config.type", {"proxy_config": {"url": "http://proxy:3128"}}),
    ("proxy_config.type", {"proxy_config": {"type": []}}),
    ("proxy_config.url", {"proxy_config": {"type": "http"}}),
    ("proxy_config.url", {"proxy_config": {"type": "http", "url": "socks5://proxy"}}),
    ("proxy_config.url", {"proxy_config": {"type": "http", "url": "env.NOT_THERE"}}),
    ("proxy_config.url", {"proxy_config": {"url": []}}),
    ("proxy_config.password", {"proxy_config": {"type": "http", "url": "p:1", "password": 5}}),
    ("keys", {"keys": {"value": "s3cret"}}),
    ("keys", {"keys": "s3cret"}),
    ("keys[0]", {"keys": ["s3cret"]}),
    ("keys[0]", {"keys": [{"valeu": "x"}]}),
    ("keys[1].value", {"keys": [{}, {"value": ["s3cret"]}]}),
    ("keys[1].value", {"keys": [{}, {"value": "s3cret\r\nX: y"}]}),
    ("keys[1].weight", {"keys": [{}, {"weight": "x"}]}),
    ("keys[0].weight", {"keys": [{"weight": float("inf")}]}),
    ("keys[0].models", {"keys": [{"models": "*"}]}),
    ("keys[0].models[1]", {"keys": [{"models": ["a", 5]}]}),
    ("keys[0].blacklisted_models", {"keys": [{"blacklisted_models": {}}]}),
    ("keys[0].aliases", {"keys": [{"aliases": ["a"]}]}),
    ("keys[0].aliases.'a'", {"keys": [{"aliases": {"a": 5}}]}),
    ("keys[0].aliases.'a'", {"keys": [{"aliases": {"a": {"region": "x"}}}]}),
    ("keys[0].aliases.'a'.model_id", {"keys": [{"aliases": {"a": {"model_id": None}}}]}),
    ("keys[0].aliases.'a'", {"keys": [{"aliases": {"a": {"modelid": "x"}}}]}),
    ("keys[0].enabled", {"keys": [{"enabled": 1}]}),
    ("keys[0].id", {"keys": [{"id": 5}]}),
    ("keys[0].url", {"keys": [{"url": []}]}),
    ("keys[0].url", {"keys": [{"url": "env.NOT_THERE"}]}),
    ("keys[0].vllm_key_config", {"keys": [{"vllm_key_config": "http://a"}]}),
    ("keys[0].vllm_key_config", {"keys": [{"vllm_key_config": {"uri": "http://a"}}]}),
    ("keys[0].vllm_key_config.url", {"keys": [{"vllm_key_config": {"url": "http://a:b"}}]}),
    ("keys[0].vllm_key_config.url", {"keys": [{"url": "http://a", "vllm_key_config": {"url": "http://b"}}]}),
    ("keys[0].vllm_key_config.model_name", {"keys": [{"vllm_key_config": {"model_name": 5}}]}),
    ("keys[1].name", {"keys": [{"name": "a"}, {"name": "a"}]}),
    ("keys[2].id", {"keys": [{"id": "a"}, {"id": "b"}, {"id": "b"}]}),
    ("send_back_raw_request", {"send_back_raw_request": "yes"}),
    ("send_back_raw_response", {"send_back_raw_response": 1}),
    ("native_responses", {"native_responses": []}),
]


@pytest.mark.parametrize("path, settings", WRONG)
def test_a_wrong_setting_is_named_by_its_path(path, settings):
    text = message(ProviderConfig.from_dict, settings, environ={})
    assert text.startswith("providers.vllm.%s: " % path)
    assert "s3cret" not in text
    if set(settings) <= set(ProviderConfig._table):
        assert message(ProviderConfig, environ={}, **settings).startswith(path + ": ")


def test_the_words_of_a_message():
    text = message(ProviderConfig.from_dict, {"keys": [{}, {"weight": "x"}]}, environ={})
    assert text == "providers.vllm.keys[1].weight: expected a number of 0 or more, got 'x'"
    assert message(NetworkConfig, max_retries=-1) == (
        "network_config.max_retries: expected a whole number from 0 to 1000000, got -1")
    assert message(ProviderConfig.from_dict, {"keyz": []}) == (
        "providers.vllm: unknown setting 'keyz'; did you mean 'keys'?")
    assert message(ProviderConfig.from_dict, []) == "providers.vllm: expected an object, got a list"


def test_bifrosts_other_settings_are_read_over():
    config = ProviderConfig.from_dict({
        "keys": [{"name": "a", "value": "k", "use_for_batch_api": True, "weight": None,
                  "vllm_key_config": {"url": "http://h:8000/v1", "model_name": ""}}],
        "network_config": {"retry_backoff_initial": 100, "retry_backoff_max": 200, "enforce_http2": False},
        "proxy_config": None,
        "concurrency_and_buffer_size": {"concurrency": 100, "buffer_size": 500},
        "send_back_raw_response": True,
    })
    assert config == ProviderConfig(
        NetworkConfig(retry_backoff_initial_ms=100, retry_backoff_max_ms=200),
        keys=[Key("k", name="a", url="http://h:8000")],
        send_back_raw_response=True,
    )
    assert config.keys[0].model_name is None


def test_each_of_bifrosts_other_settings_is_read_over():
    # The fields of schemas.ProviderConfig, NetworkConfig and Key in Bifrost's core/schemas that mean nothing here.
    others = {
        "": "concurrency_and_buffer_size config_hash custom_provider_config description openai_config "
            "pricing_overrides status store_raw_request_response",
        "network_config": "allow_private_network beta_header_overrides enforce_http2 http2_ping_interval_in_seconds",
        "keys": "config_hash created_at description status updated_at use_anthropic_endpoints use_for_batch_api",
    }
    found = {place: dict.fromkeys(names.split(), 1) for place, names in others.items()}
    server = {"vllm_key_config": {"use_anthropic_endpoint": True, "use_anthropic_endpoints": []}}
    config = {**found[""], "network_config": found["network_config"], "keys": [{**found["keys"], **server}]}
    assert ProviderConfig.from_dict(config) == ProviderConfig(keys=[Key()])


def test_an_alias_may_be_an_object():
    """Bifrost's AliasConfig, core/schemas/account.go."""
    rich = {"model_id": "big", "model_name": "Big", "model_family": "llama", "description": "x", "region": "r",
            "project_id": "p", "use_anthropic_endpoints": True, "endpoint": "e", "api_version": "1"}
    key = Key(aliases={"a": rich, "b": {"model_id": "small"}, "c": "plain"})
    assert key.aliases == {"a": "big", "b": "small", "c": "plain"}


def test_environment_values():
    environ = {"K": "key\n", "U": "http://gpu:1/v1", "P": "proxy:3128", "W": "pass word", "H": "blue", "CA": PEM}
    config = ProviderConfig.from_dict({
        "keys": [{"value": "env.K", "vllm_key_config": {"url": "env.U"}}],
        "network_config": {"base_url": "env.U", "extra_headers": {"X-Team": "env.H"}, "ca_cert_pem": "env.CA"},
        "proxy_config": {"type": "http", "url": "env.P", "username": "me", "password": "env.W"},
    }, environ=environ)
    assert (config.keys[0].value, config.keys[0].url) == ("key", "http://gpu:1")
    assert config.network_config.extra_headers == {"X-Team": "blue"}
    assert config.network_config.ca_cert_pem == PEM.strip()
    assert config.proxy_config.url_with_credentials() == "http://me:pass%20word@proxy:3128"


def test_the_process_environment_is_the_default(monkeypatch):
    monkeypatch.setenv("BRIDGE_TEST_KEY", "abc")
    assert Key("env.BRIDGE_TEST_KEY").value == "abc"


def test_an_unset_key_is_empty_with_a_warning(caplog):
    assert Key("env.NOT_THERE", environ={}).value == ""
    assert [record.name for record in caplog.records] == ["vllm_bridge"]
    assert "NOT_THERE is not set" in caplog.text
    caplog.clear()
    assert Key("env.THERE", environ={"THERE": ""}).value == ""
    assert not caplog.records  # set to nothing on purpose


def test_a_variable_of_the_wrong_kind_is_not_quoted():
    for settings in ({"network_config": {"base_url": "env.K"}}, {"keys": [{"url": "env.K"}]},
                     {"proxy_config": {"type": "http", "url": "env.K"}}):
        for value in ("s3cret:key", "s3cret key", "s3cret://x", "[s3cret", "s3cret..x", "s3cret/\u00e9"):
            assert "s3cret" not in message(ProviderConfig.from_dict, settings, environ={"K": value})


def test_no_repr_shows_a_secret():
    config = ProviderConfig(
        NetworkConfig("http://gpu", extra_headers={"X-Token": "s3cret"}, ca_cert_pem=PEM),
        ProxyConfig("http", "proxy:1", "me", "s3cret"),
        keys=[Key("s3cret", name="a")],
    )
    text = repr(config)
    assert "s3cret" not in text and "BEGIN" not in text
    assert "X-Token" in text and "base_url='http://gpu'" in text and "name='a'" in text and "value='***'" in text
    assert "value=''" in repr(Key())


def test_settings_are_values():
    key = Key("k", url="http://a")
    assert key == Key("k", url="http://a/v1")
    assert key != Key("k", url="http://b") and key != "k"
    assert len({key, Key("k", url="http://a"), Key("other")}) == 2
    for settings in (key, NetworkConfig(), ProxyConfig(), ProviderConfig(keys=[key])):
        assert pickle.loads(pickle.dumps(settings)) == settings == copy.deepcopy(settings)
        with pytest.raises(AttributeError, match="read-only"):
            settings.url = "x"
    changed = key.replace(weight=2)
    assert (changed.weight, changed.url, key.weight) == (2, "http://a", 1.0)
    with pytest.raises(ConfigError, match="key.weight: "):
        key.replace(weight=-1)


def test_where_a_key_goes():
    def resolved(config, **environ):
        return [(key.value, key.url) for key in config.resolved_keys(environ)]

    keys = [Key("k"), Key("", url="http://own")]
    network = NetworkConfig("http://net")
    both = {"VLLM_BASE_URL": "env-host:9/v1", "VLLM_API_KEY": "env-key\n"}
    assert resolved(ProviderConfig()) == [("", "http://localhost:8000")]
    assert resolved(ProviderConfig(), **both) == [("env-key", "http://env-host:9")]
    assert resolved(ProviderConfig(network), **both) == [("env-key", "http://net")]
    assert resolved(ProviderConfig(network, keys=keys), **both) == [("k", "http://net"), ("", "http://own")]
    assert resolved(ProviderConfig(keys=keys), **both) == [("k", "http://env-host:9"), ("", "http://own")]
    assert message(ProviderConfig().resolved_keys, {"VLLM_BASE_URL": "ftp://x"}).startswith("VLLM_BASE_URL: ")
    bad = message(ProviderConfig().resolved_keys, {"VLLM_API_KEY": "s3cret\nx"})
    assert bad.startswith("VLLM_API_KEY: ") and "s3cret" not in bad


def test_the_environment_is_read_when_keys_are_resolved(monkeypatch):
    monkeypatch.setenv("VLLM_BASE_URL", "http://from-env:1")
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    assert ProviderConfig().resolved_keys() == (Key(url="http://from-env:1"),)


def test_proxies(monkeypatch):
    assert ProxyConfig("none").url_with_credentials() is None
    assert ProxyConfig("http", "proxy:3128/").url_with_credentials() == "http://proxy:3128"
    assert ProxyConfig("http", "https://proxy", "a@b").url_with_credentials() == "https://a%40b@proxy"
    monkeypatch.setitem(sys.modules, "socks", types.ModuleType("socks"))
    assert ProxyConfig("socks5", "proxy:1080").url == "socks5h://proxy:1080"
    for kind in ("environment", "none", "http", "socks5"):
        assert ProxyConfig(kind, "proxy:1080" if kind in ("http", "socks5") else None).type == kind
    monkeypatch.setitem(sys.modules, "socks", None)
    text = message(ProxyConfig, "socks5", "proxy:1080")
    assert text == 'proxy_config.type: "socks5" needs PySocks; install it with: pip install "requests[socks]"'


def test_lean_http_is_taken_does_nothing_and_is_spoken_of_once(monkeypatch, caplog):
    monkeypatch.setattr(module, "_warned", False)
    NetworkConfig().replace(max_retries=1)
    ProviderConfig.from_dict({"network_config": {"lean_http": None}})
    assert not caplog.records
    ProviderConfig.from_dict({"network_config": {"lean_http": False}})
    NetworkConfig(lean_http=True)
    assert NetworkConfig(lean_http=False).replace(max_retries=1) == NetworkConfig(max_retries=1)
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("vllm_bridge", "WARNING")
    assert record.getMessage().startswith("providers.vllm.network_config.lean_http: does nothing")
    assert message(NetworkConfig, lean_http="no").startswith("network_config.lean_http: ")


def test_an_empty_address_of_a_key_hides_no_name():
    key = Key(vllm_key_config={"use_anthropic_endpoint": True, "url": "", "model_name": "real"}, url="gpu:1")
    assert (key.url, key.model_name) == ("http://gpu:1", "real")
    assert Key(vllm_key_config={"model_name": None, "url": "gpu:2"}, model_name="m").url == "http://gpu:2"


def test_certificates(tmp_path):
    bundle = tmp_path / "ca.pem"
    bundle.write_text(PEM)
    assert NetworkConfig(ca_cert_pem=str(bundle)).ca_cert_pem == str(bundle)
    assert NetworkConfig(ca_cert_pem=str(tmp_path)).ca_cert_pem == str(tmp_path)
    assert NetworkConfig(ca_cert_pem=PEM).ca_cert_pem == PEM
    assert "no such file" in message(NetworkConfig, ca_cert_pem=str(tmp_path / "other.pem"))
    assert "no certificate" in message(NetworkConfig, ca_cert_pem="a\x00b")


def _names():
    every = [name for cls in (ProviderConfig, NetworkConfig, ProxyConfig, Key) for name in [*cls._table, *cls._also]]
    return st.one_of(st.sampled_from(sorted(every)), st.text(max_size=5))


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), st.just(10**500),
              st.sampled_from(["http://gpu:1", "env.A", "env.NONE", "http", "none", "*"])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_names(), inner, max_size=4)),
    max_leaves=12,
)


OBJECT = st.dictionaries(_names(), JSON, max_size=4)


@given(st.one_of(JSON,
                 st.fixed_dictionaries({"keys": st.lists(OBJECT, max_size=2)}),
                 st.fixed_dictionaries({"network_config": OBJECT}),
                 st.fixed_dictionaries({"proxy_config": OBJECT})))
def test_nothing_but_config_errors(settings):
    try:
        config = ProviderConfig.from_dict(settings, environ={"A": "x"})
    except ConfigError as error:
        assert error.message.startswith("providers.vllm")
    else:
        assert config == ProviderConfig.from_dict(settings, environ={"A": "x"})
        repr(config)
