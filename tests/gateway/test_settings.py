"""The gateway's settings: which of flag, environment and file counts, and what is refused."""

import json
from pathlib import Path
from typing import Any, Dict

import pytest

from vllm_bridge.config.settings import ProviderConfig
from vllm_bridge.errors import ConfigError
from vllm_bridge.gateway.settings import SETTINGS, Settings, read


def file(tmp_path: Path, client: Dict[str, Any], vllm: Any = None) -> str:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"client": client, "providers": {"vllm": vllm or {}}}))
    return str(path)


def test_defaults() -> None:
    settings = read({}, {})
    assert (settings.host, settings.port, settings.workers) == ("127.0.0.1", 8080, 1)
    assert settings.max_body == 100 * 1024 * 1024
    assert settings.api_keys == () and settings.allowed_origins == ()
    assert [key.url for key in settings.provider.resolved_keys({})] == ["http://localhost:8000"]
    assert "8080" in repr(settings)


# The same setting in its three places: as text, as text, as JSON; and what it comes to.
PLACES = [
    ("host", "127.0.0.2", "127.0.0.2", "127.0.0.2", "host"),
    ("port", "81", "82", 83, "port"),
    ("workers", "2", "3", 4, "workers"),
    ("max_connections", "2", "3", 4, "max_connections"),
    ("graceful_timeout", "2.5", "0", 4, "graceful_timeout"),
    ("log_format", "json", "json", "json", "log_format"),
    ("insecure", "true", "yes", True, "insecure"),
]


@pytest.mark.parametrize("name, flag, variable, value, attribute", PLACES)
def test_flag_beats_environment_beats_file(
    tmp_path: Path, name: str, flag: str, variable: str, value: Any, attribute: str
) -> None:
    config = file(tmp_path, {name: value})
    environ = {"VLLM_BRIDGE_CONFIG": config}
    kind = type(value)
    assert getattr(read({}, environ), attribute) == value
    environ["VLLM_BRIDGE_" + name.upper()] = variable
    from_variable = getattr(read({}, environ), attribute)
    assert from_variable == (True if kind is bool else variable if kind is str else float(variable))
    from_flag = getattr(read({name: flag}, environ), attribute)
    assert from_flag == (True if kind is bool else flag if kind is str else float(flag))


def test_settings_that_go_to_the_provider(tmp_path: Path) -> None:
    config = file(tmp_path, {"timeout": 11, "stream_idle_timeout": 12, "native_responses": True},
                  {"network_config": {"max_retries": 7}})
    provider = read({"config": config}, {}).provider
    network = provider.network_config
    assert (network.default_request_timeout_in_seconds, network.stream_idle_timeout_in_seconds) == (11, 12)
    assert (network.max_retries, provider.native_responses) == (7, True)
    later = read({"config": config, "timeout": "5", "native_responses": "auto"}, {}).provider
    assert later.network_config.default_request_timeout_in_seconds == 5
    assert later.native_responses == "auto"


def test_upstreams_and_their_key() -> None:
    keys = read({"upstream": ["http://a:1/v1/", "http://b:2"], "upstream_key": "sk-u"}, {}).provider.keys
    assert [(key.url, key.value) for key in keys] == [("http://a:1", "sk-u"), ("http://b:2", "sk-u")]
    keys = read({}, {"VLLM_BRIDGE_UPSTREAM": "http://a:1, http://b:2", "VLLM_API_KEY": "sk-e"}).provider.keys
    assert [(key.url, key.value) for key in keys] == [("http://a:1", "sk-e"), ("http://b:2", "sk-e")]
    (key,) = read({"upstream_key": "sk-u"}, {}).provider.keys
    assert key.value == "sk-u" and key.url is None


def test_upstreams_replace_the_servers_of_the_file(tmp_path: Path) -> None:
    config = file(tmp_path, {}, {"keys": [{"value": "sk-f", "url": "http://f:1"}]})
    assert [key.url for key in read({"config": config}, {}).provider.keys] == ["http://f:1"]
    assert [key.url for key in read({"config": config, "upstream": ["http://a:1"]}, {}).provider.keys] == ["http://a:1"]
    with pytest.raises(ConfigError, match="^--upstream-key: .*put it there"):
        read({"config": config, "upstream_key": "sk-u"}, {})


@pytest.mark.parametrize("name, value", [("upstream", "http://a:1"), ("upstreams", ["http://a:1"])])
def test_a_file_names_its_servers_in_one_place(tmp_path: Path, name: str, value: Any) -> None:
    config = file(tmp_path, {name: value}, {"keys": [{"value": "sk-f"}]})
    for flags in ({"config": config}, {"config": config, "upstream": ["http://b:1"]}):
        with pytest.raises(ConfigError, match="^client.%s: the keys of providers.vllm name" % name):
            read(flags, {})
    assert read({"config": file(tmp_path, {name: value})}, {}).provider.keys[0].url == "http://a:1"


def test_names_of_bifrost_are_understood(tmp_path: Path) -> None:
    config = file(tmp_path, {"allowed_origins": ["https://a.example"], "max_request_body_size_mb": 5,
                             "drop_excess_requests": True, "_comment": "x", "api_keys": "env.GATE"})
    settings = read({"config": config}, {"GATE": "sk-gate"})
    assert settings.allowed_origins == ("https://a.example",)
    assert settings.max_body == 5 * 1024 * 1024
    assert settings.api_keys == ("sk-gate",)


def test_keys_of_clients(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_bytes(b"# gateway\n\nsk-1\r\n  sk-2  \nsk-1\n")
    settings = read({"api_key": ["sk-0", "sk-2"], "api_key_file": str(keys)}, {})
    assert settings.api_keys == ("sk-0", "sk-2", "sk-1")
    assert read({}, {"VLLM_BRIDGE_API_KEY": "a,b c"}).api_keys == ("a", "b", "c")


@pytest.mark.parametrize("flags, environ, message", [
    ({"port": "x"}, {}, "--port: expected a whole number from 0 to 65535, got 'x'"),
    ({"port": "65536"}, {}, "--port: "),
    ({}, {"VLLM_BRIDGE_WORKERS": "0"}, "VLLM_BRIDGE_WORKERS: "),
    ({"timeout": "0"}, {}, "--timeout: expected a number above 0"),
    ({"timeout": "nan"}, {}, "--timeout: "),
    ({"graceful_timeout": "-1"}, {}, "--graceful-timeout: "),
    ({"log_format": "xml"}, {}, "--log-format: expected text or json"),
    ({"insecure": "maybe"}, {}, "--insecure: expected true or false"),
    ({"host": " "}, {}, "--host: must not be empty"),
    ({"upstream": ["ftp://x"]}, {}, "--upstream: "),
    ({}, {"VLLM_BRIDGE_CONFIG": "/nowhere/at/all"}, "/nowhere/at/all: cannot be read"),
    ({"api_key": ["a\nb"]}, {}, "--api-key: has a line break"),
    ({"api_key": [""]}, {}, "--api-key: must not be empty"),
    ({"api_key_file": "/nowhere/at/all"}, {}, "--api-key-file: cannot read '/nowhere/at/all'"),
    ({"native_responses": "perhaps"}, {}, "--native-responses: "),
])
def test_a_wrong_setting_is_named(flags: Dict[str, Any], environ: Dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(flags, environ)
    assert caught.value.message.startswith(message)


@pytest.mark.parametrize("link", ["tcp://10.43.12.7:80", "udp://10.43.12.7:80", "tcp://[fd00::7]:80"])
def test_a_service_called_vllm_bridge_sets_no_port(tmp_path: Path, link: str) -> None:
    """Kubernetes: Service, "Environment variables"; the variables are in every pod of the namespace."""
    links = {"VLLM_BRIDGE_SERVICE_HOST": "10.43.12.7", "VLLM_BRIDGE_SERVICE_PORT": "80", "VLLM_BRIDGE_PORT": link,
             "VLLM_BRIDGE_PORT_80_TCP": link, "VLLM_BRIDGE_PORT_80_TCP_ADDR": "10.43.12.7"}
    assert read({}, links).port == 8080
    assert read({"port": "81"}, links).port == 81
    assert read({"config": file(tmp_path, {"port": 82})}, links).port == 82
    with pytest.raises(ConfigError, match="^--port: "):
        read({"port": link}, {})


def test_a_variable_that_a_flag_replaces_is_not_read(tmp_path: Path) -> None:
    wrong = {"VLLM_BRIDGE_PORT": "x", "VLLM_BRIDGE_WORKERS": "0", "VLLM_BRIDGE_UPSTREAM": "ftp://x",
             "VLLM_BRIDGE_API_KEY": "a\tb\x00", "VLLM_BRIDGE_CONFIG": "/nowhere/at/all"}
    for name in wrong:
        with pytest.raises(ConfigError):
            read({}, {name: wrong[name]})
    flags = {"port": "81", "workers": "2", "upstream": ["http://a:1"], "api_key": ["k"], "config": file(tmp_path, {})}
    settings = read(flags, wrong)
    assert (settings.port, settings.workers, settings.api_keys) == (81, 2, ("k",))
    assert settings.provider.resolved_keys({"VLLM_BASE_URL": "ftp://x"})[0].url == "http://a:1"


@pytest.mark.parametrize("client, message", [
    ({"porrt": 1}, "client: unknown setting 'porrt'; did you mean 'port'?"),
    ({"config": "x"}, "client: unknown setting 'config'"),
    ({"port": True}, "client.port: "),
    ({"allowed_origins": 5}, "client.allowed_origins: expected a list"),
    ({"api_key": {"secret": 1}}, "client.api_key: "),
    ({"max_body_mb": 1, "max_request_body_size_mb": 2}, "client.max_request_body_size_mb: is the same setting as"),
    ({"api_key": ["env.NOT_SET"]}, "client.api_key: the environment variable NOT_SET is not set"),
])
def test_a_wrong_setting_of_the_file_is_named(tmp_path: Path, client: Dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read({"config": file(tmp_path, client)}, {})
    assert caught.value.message.startswith(message)


def test_files_of_keys_that_are_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text("# none\n")
    with pytest.raises(ConfigError, match="^--api-key-file: there is no key in"):
        read({"api_key_file": str(empty)}, {})
    empty.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="^--api-key-file: .*not UTF-8"):
        read({"api_key_file": str(empty)}, {})


def test_no_message_repeats_a_secret() -> None:
    for flags in ({"api_key": ["sk-secret\r"]}, {"upstream_key": "sk-secret\n\n-"}):
        try:
            settings = read(flags, {})
        except ConfigError as error:
            assert "secret" not in str(error)
        else:
            assert "secret" not in repr(settings)


@pytest.mark.parametrize("host", [
    "0.0.0.0", "0", "0x0.0", "::", "[::]", "::ffff:0.0.0.0", "192.168.1.5", "gateway.example", "127.evil.example",
    "127.0.0.1.evil.example", "localhost.evil.example",
])
def test_an_open_address_needs_a_key_or_a_word(host: str) -> None:
    with pytest.raises(ConfigError, match="^host: .*api_key"):
        read({"host": host}, {}).check_address()
    read({"host": host, "api_key": ["x"]}, {}).check_address()
    read({"host": host, "insecure": "true"}, {}).check_address()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "127.1", "::1", "[::1]", "localhost", "LOCALHOST."])
def test_this_machine_needs_none(host: str) -> None:
    read({"host": host}, {}).check_address()


def test_settings_by_hand() -> None:
    assert Settings(ProviderConfig(), max_body_mb=0.5).max_body == 524288
    with pytest.raises(ConfigError, match="unknown setting 'max_body'"):
        Settings(ProviderConfig(), max_body=1)


def test_every_flag_of_the_issue_is_there() -> None:
    assert {setting.name for setting in SETTINGS} == set((
        "host port upstream upstream_key alias api_key api_key_file timeout stream_idle_timeout config workers "
        "max_body_mb max_connections allowed_origin allowed_host allowed_header passed_header log_format model_prefix "
        "forwarded_allow_ips "
        "graceful_timeout insecure native_responses routing max_parsed_mb sse_keep_alive_interval keep_alive_timeout "
        "header_timeout body_timeout write_timeout max_queued"
    ).split())


def test_an_upstream_given_twice_is_one() -> None:
    given = read({"upstream": ["http://gpu:8000", "gpu:8000/v1/", "http://other"]}, {})
    assert [key.url for key in given.provider.keys] == ["http://gpu:8000", "http://other"]
    environ = {"VLLM_BASE_URL": "http://a, http://b,http://a/"}
    assert [key.url for key in ProviderConfig(environ=environ).resolved_keys(environ)] == ["http://a", "http://b"]


def test_the_way_of_choosing_a_server() -> None:
    assert read({}, {}).provider.routing == "expected_wait"
    assert read({"routing": "random"}, {}).provider.routing == "random"
    assert read({}, {"VLLM_BRIDGE_ROUTING": "least_requests"}).provider.routing == "least_requests"
    with pytest.raises(ConfigError, match="--routing: expected expected_wait, random, round_robin or least_requests"):
        read({"routing": "sticky"}, {})


def test_aliases(tmp_path: Path) -> None:
    found = read({"alias": ["claude-*=Qwen/Qwen3", "small = a=b"], "upstream": ["http://a", "http://b"]}, {})
    assert [key.aliases for key in found.provider.keys] == [{"claude-*": "Qwen/Qwen3", "small": "a=b"}] * 2
    keys = [{"url": "http://a", "aliases": {"small": "theirs"}}]
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"client": {"aliases": ["small=ours", "x=y"]},
                                "providers": {"vllm": {"keys": keys}}}))
    found = read({"config": str(path)}, {})
    assert found.provider.keys[0].aliases == {"small": "theirs", "x": "y"}
    for wrong in ("a", "=b", "a=", " "):
        with pytest.raises(ConfigError, match="^--alias: "):
            read({"alias": [wrong]}, {})


def test_allowed_hosts(tmp_path: Path) -> None:
    assert read({"allowed_host": ["Gateway.Example.", "*.corp"]}, {}).allowed_hosts == ("gateway.example", "*.corp")
    assert read({"config": file(tmp_path, {"allowed_hosts": ["a.example"]})}, {}).allowed_hosts == ("a.example",)
    for wrong in ("http://a.example", "a.example:8080", "a.example/v1", " "):
        with pytest.raises(ConfigError, match="^--allowed-host: "):
            read({"allowed_host": [wrong]}, {})


def test_an_empty_prefix_is_one(tmp_path: Path) -> None:
    assert read({}, {}).model_prefix == "vllm/"
    assert read({"model_prefix": ""}, {"VLLM_BRIDGE_MODEL_PREFIX": "x/"}).model_prefix == ""
    assert read({}, {"VLLM_BRIDGE_MODEL_PREFIX": ""}).model_prefix == ""
    assert read({"config": file(tmp_path, {"model_prefix": ""})}, {"VLLM_BRIDGE_HOST": ""}).model_prefix == ""


@pytest.mark.parametrize("flags, environ, named", [
    ({}, {"VLLM_BRIDGE_API_KEY": '"sk-quoted"'}, "VLLM_BRIDGE_API_KEY"),
    ({}, {"VLLM_BRIDGE_API_KEY": "'sk-a,sk-quoted' "}, "VLLM_BRIDGE_API_KEY"),
    ({"upstream": ["http://a:1"]}, {"VLLM_BRIDGE_UPSTREAM_KEY": '"sk-quoted"'}, "VLLM_BRIDGE_UPSTREAM_KEY"),
    ({"upstream": ["http://a:1"]}, {"VLLM_API_KEY": '"sk-quoted"'}, "VLLM_API_KEY"),
    ({"config": {"api_key": "env.GATE"}}, {"GATE": '"sk-quoted"'}, "GATE"),
    ({"config": {}}, {"GPU": '"sk-quoted"'}, "GPU"),
])
def test_a_key_in_quotation_marks_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, flags: Dict[str, Any], environ: Dict[str, str], named: str
) -> None:
    """docker run --env-file takes KEY="x" with its quotation marks, which a shell would take off."""
    if "config" in flags:
        flags = {"config": file(tmp_path, flags["config"], {"keys": [{"value": "env.GPU", "url": "http://a"}]})}
        environ = {"GPU": "sk-x", "GATE": "sk-y", **environ}
    settings = read(flags, environ)
    (record,) = caplog.records
    assert record.getMessage().startswith(named + ": ") and "quotation marks" in record.getMessage()
    assert "sk-" not in caplog.text
    assert "quoted" in str([settings.api_keys, [key.value for key in settings.provider.resolved_keys(environ)]])
    caplog.clear()
    read({}, {"VLLM_BRIDGE_API_KEY": "sk-a\"b", "VLLM_BRIDGE_MODEL_PREFIX": '"x"'})
    read({"api_key": ["sk-a"]}, {"VLLM_BRIDGE_API_KEY": '"sk-b"'})
    assert not caplog.records


def test_headers_that_pass(tmp_path: Path) -> None:
    found = read({"allowed_header": ["X-Team", "x-b-*"]}, {"VLLM_BRIDGE_PASSED_HEADER": "X-Served-By, Alt-Svc"})
    assert (found.allowed_headers, found.passed_headers) == (("x-team", "x-b-*"), ("x-served-by", "alt-svc"))
    found = read({"config": file(tmp_path, {"allowed_headers": ["a"], "passed_headers": ["b"]})}, {})
    assert (found.allowed_headers, found.passed_headers) == (("a",), ("b",))
    for name, wrong in (("allowed_header", "Authorization"), ("allowed_header", "x y"), ("allowed_header", "x:"),
                        ("allowed_header", "Content-Length"), ("passed_header", "Transfer-Encoding"),
                        ("passed_header", "x-request-id"), ("passed_header", "Access-Control-Allow-Origin")):
        with pytest.raises(ConfigError, match="^--%s: " % name.replace("_", "-")):
            read({name: [wrong]}, {})


def test_times_and_sizes_of_the_server() -> None:
    names = ("keep_alive_timeout", "header_timeout", "body_timeout", "write_timeout", "sse_keep_alive_interval")
    found = read({name: "1.5" for name in names}, {"VLLM_BRIDGE_MAX_PARSED_MB": "0.5"})
    assert {getattr(found, name) for name in names} == {1.5} and found.max_parsed == 524288
    found = read({}, {})
    assert [getattr(found, name) for name in names] == [75, 20, 30, 60, 0] and found.max_parsed == 2 * 1048576
    for name in names[:4]:
        with pytest.raises(ConfigError, match="--" + name.replace("_", "-")):
            read({name: "0"}, {})


def test_the_proxies_that_are_believed() -> None:
    assert read({"forwarded_allow_ips": ["10.0.0.1,::1", "*"]}, {}).forwarded_allow_ips == ("10.0.0.1/32,::1/128", "*")
    assert read({}, {"VLLM_BRIDGE_FORWARDED_ALLOW_IPS": "10.0.0.0/8, 127.0.0.1"}).forwarded_allow_ips == (
        "10.0.0.0/8", "127.0.0.1/32")
    with pytest.raises(ConfigError, match="--forwarded-allow-ips: expected addresses and networks such as 10.0.0.0/8"):
        read({"forwarded_allow_ips": ["proxy.example"]}, {})
