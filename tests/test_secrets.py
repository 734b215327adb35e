"""Keys and doors of the whole gateway: where no secret may turn up, and where no client can lead it.

The library's side of proxies, certificates and redirects is in tests/client; here is what a client of the gateway can
see of it, and what the operating system shows of the process.
"""

import base64
import json
import logging
import os
import re
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import pytest

from faces import LONG, Address, ask, chat, own
from scripted import SSE_HEAD, Scripted, answer, chunk, completion, event
from certificates import needs_openssl, tls
from vllm_bridge import VLLMProvider
from vllm_bridge.config.settings import ProviderConfig
from vllm_bridge.echo import EchoServer
from vllm_bridge.errors import BridgeError, ConfigError
from vllm_bridge.gateway import Gateway
from vllm_bridge.gateway.settings import SETTINGS, Settings, read

CHAT = "/v1/chat/completions"
UPSTREAM = "sk-upstream-3fGh56789"
CLIENT = "sk-client-7kLm56789"
WRONG = "sk-wrong-9pQr56789"
TEAM = "team-token-5tUv56789"
PASSWORD = "proxy-password-1wXy56789"
SECRETS = (UPSTREAM, CLIENT, WRONG, TEAM, PASSWORD)


def assert_clean(text: Any, *more: str) -> None:
    for secret in SECRETS + more:
        assert secret not in str(text)


@pytest.fixture(autouse=True)
def nothing_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
                 "VLLM_API_KEY", "VLLM_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def gateway_for(*urls: str, client_key: bool = True, **network: Any) -> Gateway:
    network = dict({"max_retries": 0, "extra_headers": {"X-Team-Token": TEAM}}, **network)
    config = ProviderConfig.from_dict(
        {"keys": [{"url": url, "value": UPSTREAM} for url in urls], "network_config": network}, environ={}
    )
    return Gateway(Settings(config, (CLIENT,) if client_key else ()))


def asked(address: Address, body: Any = None, path: str = CHAT, key: str = CLIENT, **headers: str) -> Any:
    headers["Authorization"] = "Bearer " + key
    return ask(address, "POST", path, chat("x") if body is None else body, headers)


# ---------------------------------------------------------------- a server that repeats what it was sent


def repeated(text: str) -> List[Tuple[str, List[Any]]]:
    error = {"message": text, "type": text, "param": text, "code": text}
    return [
        ("401", [answer({"error": error}, "401 No")]),
        ("a message", [answer({"message": text, "object": "error"}, "400 No")]),
        ("a detail", [answer({"detail": [{"loc": [text], "msg": text}]}, "422 No")]),
        ("text", [answer(text.encode(), "500 No", "text/plain")]),
        ("a page", [answer(b"<html><title>%s</title>" % text.encode(), "502 No", "text/html")]),
        ("a reason", [answer(b"", "503 " + text)]),
        ("in 200", [answer({"error": error})]),
        ("no JSON", [answer(b"{" + text.encode())]),
        ("no object", [answer(json.dumps([text]).encode())]),
        ("a redirect", [answer(b"", "307 Go", extra="Location: http://%s/\r\n" % text.replace(" ", "-"))]),
        ("a broken head", [b"HTTP/1.1 200 OK\r\n%s\r\n\r\n" % text.encode()]),
        ("no HTTP", [text.encode() + b"\r\n\r\n"]),
        ("a broken chunk", [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%s\r\n" % text.encode()]),
        ("an error event", [SSE_HEAD, event({"error": error})]),
        ("an odd event", [SSE_HEAD, event(text)]),
        ("an event cut off", [SSE_HEAD, chunk(b"data: " + text.encode())]),
        ("another type", [answer(text.encode(), content_type=text)]),
    ]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("reply", [case[1] for case in repeated("Bearer %s" % UPSTREAM)],
                         ids=[case[0] for case in repeated("")])
def test_what_a_server_repeats_is_not_passed_on(
    reply: List[Any], stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), Scripted(["request"] + reply) as server:
        gateway = gateway_for(server.url)
        with own(gateway) as address:
            for path, body in ((CHAT, chat("x", stream=stream)),
                               ("/v1/responses", {"model": "m", "input": "x", "stream": stream}),
                               ("/v1/rerank", {"model": "m", "query": "q", "documents": ["d"]})):
                found = asked(address, body, path)
                assert found.status >= 400 or b'"error"' in found.body or b"response.failed" in found.body
                assert_clean(found.body)
                assert_clean(found.headers)
            listed = ask(address, "GET", "/v1/models", None, {"Authorization": "Bearer " + CLIENT})
            assert_clean(listed.body)
            assert_clean(ask(address, "GET", "/metrics", None, {"Authorization": "Bearer " + CLIENT}).body)
            assert_clean(repr(gateway.provider))
        assert server.requests[0].headers["authorization"] == "Bearer " + UPSTREAM
    assert_clean(caplog.text)


@pytest.mark.parametrize("secret", [UPSTREAM, TEAM])
def test_what_a_server_repeats_in_a_header_is_not_passed_on(secret: str) -> None:
    good = answer(completion("Hi"), extra="X-Debug-Request: Bearer %s\r\nX-Vllm-Note: fine\r\n" % secret)
    with Scripted(["request", good]) as server, own(gateway_for(server.url)) as address:
        found = asked(address)
    assert found.status == 200 and found.headers["X-Vllm-Note"] == "fine"
    assert_clean(found.headers)


@pytest.mark.parametrize("reply", [case[1] for case in repeated("Bearer %s" % UPSTREAM)],
                         ids=[case[0] for case in repeated("")])
def test_the_librarys_errors_hold_no_key(reply: List[Any]) -> None:
    with Scripted(["request"] + reply) as server:
        with VLLMProvider(server.url, api_key=UPSTREAM, max_retries=0) as provider:
            for call in (provider.chat_completion, provider.chat_completion_stream):
                with pytest.raises(BridgeError) as caught:
                    list(call(model="m", messages=[{"role": "user", "content": "x"}]))
                error = caught.value
                assert_clean(error), assert_clean(repr(error)), assert_clean(error.args)
                assert_clean([getattr(error, name) for name in ("type", "code", "param", "payload", "url")])


LOGIN = base64.b64encode(b"me:" + PASSWORD.encode()).decode()


@pytest.mark.parametrize("way", ["headers", "with_options", "extra_headers"])
@pytest.mark.parametrize("name, value, secrets", [
    ("Authorization", "Bearer " + WRONG, [WRONG]), ("authorization", WRONG, [WRONG]),
    ("X-Api-Key", WRONG, [WRONG]), ("api-key", WRONG, [WRONG]), ("Ocp-Apim-Subscription-Key", WRONG, [WRONG]),
    ("Proxy-Authorization", "Basic " + LOGIN, [LOGIN, PASSWORD]), ("Cookie", "a=1; session=" + WRONG, [WRONG]),
    ("CF-Access-Client-Secret", WRONG, [WRONG]), ("X-Upstream", "Bearer " + WRONG, [WRONG]),
])
def test_no_error_repeats_a_header_that_is_a_credential(
    way: str, name: str, value: str, secrets: List[str], caplog: pytest.LogCaptureFixture
) -> None:
    said = "%s: %s; %s" % (name, value, PASSWORD)
    for label, reply in repeated(said if PASSWORD in secrets else said.replace(PASSWORD, "")):
        with caplog.at_level(logging.DEBUG), Scripted(["request"] + reply) as server:
            if way == "extra_headers":
                network = {"base_url": server.url, "max_retries": 0, "extra_headers": {name: value}}
                provider = VLLMProvider(config={"network_config": network})
            else:
                provider = VLLMProvider(server.url, max_retries=0, headers={name: value} if way == "headers" else None)
            with provider:
                asked_with = provider.with_options(headers={name: value}) if way == "with_options" else provider
                with pytest.raises(BridgeError) as caught:
                    asked_with.chat_completion(model="m", messages=[{"role": "user", "content": "x"}])
                shown = [repr(provider), repr(provider.config), repr(asked_with), repr(caught.value)]
            shown += traceback.format_exception(type(caught.value), caught.value, caught.value.__traceback__)
        error = caught.value
        shown += map(str, (error.args, error.type, error.code, error.param, error.payload, error.url, caplog.text))
        for secret in secrets:
            assert not [text for text in shown if secret in text], label
        assert server.requests[0].headers[name.lower()] == value


# ---------------------------------------------------------------- logs, tables, the process list


def test_no_log_and_no_table_has_a_key(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), EchoServer(api_key=UPSTREAM) as echo:
        gateway = gateway_for(echo.url, "http://127.0.0.1:9")
        with own(gateway) as address:
            for key in (CLIENT, WRONG):
                for text in ("hello", "!error 500", "!die", "!abort"):
                    for stream in (False, True):
                        asked(address, chat(text, stream=stream), CHAT + "?api_key=" + WRONG, key)
            asked(address, b"{", **{"X-Api-Key": WRONG, "X-Request-Id": "r", "Cookie": WRONG})
            asked(address, b"", "/nowhere?key=" + WRONG)
            for path in ("/metrics", "/ready", "/v1/models", "/health", "/version"):
                assert_clean(ask(address, "GET", path, None, {"Authorization": "Bearer " + CLIENT}).body)
        assert_clean([repr(gateway.settings), repr(gateway.provider), repr(gateway.provider.config), repr(gateway)])
    access = [record.getMessage() for record in caplog.records if record.name == "vllm_bridge.access"]
    assert len(access) == 23
    assert_clean(caplog.text)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")
def test_the_process_list_shows_no_key(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# clients\n%s\n" % CLIENT)
    (tmp_path / "config.json").write_text(json.dumps({"providers": {"vllm": {
        "keys": [{"value": "env.UPSTREAM_KEY", "vllm_key_config": {"url": "http://127.0.0.1:9"}}],
        "proxy_config": {"type": "http", "url": "http://127.0.0.1:9", "username": "u", "password": PASSWORD},
    }}}))
    command = [sys.executable, "-m", "vllm_bridge", "serve", "--port", "0", "--api-key-file", str(tmp_path / "keys"),
               "--config", str(tmp_path / "config.json")]
    environ = dict(os.environ, UPSTREAM_KEY=UPSTREAM, PYTHONUNBUFFERED="1")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environ,
                               cwd=str(Path(__file__).resolve().parents[1]))
    try:
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        match = re.search(r"http://127\.0\.0\.1:([0-9]+)", line)
        assert match, line
        address = ("127.0.0.1", int(match.group(1)))
        assert asked(address).status == 502
        assert asked(address, key=WRONG).status == 401
        assert_clean(Path("/proc/%d/cmdline" % process.pid).read_bytes())
    finally:
        process.terminate()
        output = process.communicate(timeout=LONG)[0].decode()
    assert process.returncode == 0
    assert_clean(line + output)
    assert "status=502" in output and "status=401" in output


@pytest.mark.parametrize("name", ["api_key", "upstream_key"])
def test_the_help_says_what_the_process_list_shows(name: str) -> None:
    (told,) = [setting.help for setting in SETTINGS if setting.name == name]
    assert "the process list shows it" in told and "VLLM_BRIDGE_%s" % name.upper() in told


@pytest.mark.parametrize("flags", [
    {"api_key": [CLIENT + "\n\x00"]}, {"upstream_key": UPSTREAM + "\n\x00"}, {"api_key_file": "FILE"},
    {"upstream": ["http://user:%s@gpu:8000" % PASSWORD]}, {"upstream": ["http://gpu:8000/?key=" + PASSWORD]},
], ids=["api_key", "upstream_key", "api_key_file", "user in a URL", "query in a URL"])
def test_a_wrong_setting_is_named_without_its_secret(flags: Dict[str, Any], tmp_path: Path) -> None:
    if "api_key_file" in flags:
        (tmp_path / "keys").write_text(CLIENT + "\x01\n")
        flags = {"api_key_file": str(tmp_path / "keys")}
    with pytest.raises(ConfigError) as caught:
        read(flags, {})
    assert_clean(caught.value)
    assert caught.value.__cause__ is None


# ---------------------------------------------------------------- whose key goes where


IDENTITY = {"X-Api-Key": WRONG, "Api-Key": WRONG, "Cookie": "session=" + WRONG, "Proxy-Authorization": "Basic " + WRONG,
            "X-BF-EH-Authorization": "Bearer " + WRONG, "X-BF-EH-X-Api-Key": WRONG, "X-BF-EH-Cookie": WRONG,
            "X-Forwarded-For": WRONG, "Forwarded": WRONG, "X-Real-Ip": WRONG}


@pytest.mark.parametrize("value", [UPSTREAM, ""])
def test_the_clients_key_stays_at_the_gateway(value: str) -> None:
    with EchoServer() as echo:
        config = ProviderConfig.from_dict({"keys": [{"url": echo.url, "value": value}]}, environ={})
        for keys in ((), (CLIENT,)):
            with own(Gateway(Settings(config, keys))) as address:
                for path, body in ((CHAT, None), (CHAT, chat("x", stream=True)),
                                   ("/v1/embeddings", {"model": "echo", "input": "x"})):
                    assert asked(address, body, path, **IDENTITY).status == 200
                ask(address, "GET", "/v1/models", None, {"Authorization": "Bearer " + CLIENT})
        assert len(echo.requests) == 8
        for request in echo.requests:
            assert request.headers.get("authorization") == ("Bearer " + value if value else None)
            assert CLIENT not in str(request.headers) and WRONG not in str(request.headers)


@pytest.mark.parametrize("value", [UPSTREAM, ""])
def test_netrc_replaces_no_key(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password %s\ndefault login me password %s\n" % (PASSWORD, PASSWORD))
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HOME", str(tmp_path))
    netrc.rename(tmp_path / ".netrc")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    with EchoServer() as echo:
        config = ProviderConfig.from_dict({"keys": [{"url": echo.url, "value": value}]}, environ={})
        with own(Gateway(Settings(config))) as address:
            assert ask(address, "POST", CHAT, chat("x")).status == 200
        assert echo.requests[-1].headers.get("authorization") == ("Bearer " + value if value else None)


# ---------------------------------------------------------------- where the gateway goes


@pytest.fixture
def trap() -> Iterator[Scripted]:
    """A server that nobody may ask."""
    with Scripted(["request", answer(completion("trapped")), "again"]) as server:
        yield server
        assert not server.requests and not server.connections


def test_no_request_names_the_server(trap: Scripted) -> None:
    host = trap.url.partition("//")[2]
    fields = {name: trap.url for name in ("base_url", "url", "api_base", "upstream", "server", "host", "endpoint")}
    network = {"base_url": trap.url, "proxy": trap.url}
    with EchoServer() as echo, own(gateway_for(echo.url)) as address:
        for body in (chat("x", **fields), chat("x", extra_body=dict(fields, network_config=network)),
                     chat("x", extra_params={"vllm_key_config": {"url": trap.url}}, network_config=network),
                     chat("x", fallbacks=[trap.url, trap.url + "/v1", "vllm/" + trap.url, host])):
            assert asked(address, body).status == 200
        for name in ("Host", "X-Forwarded-Host", "X-Forwarded-Server", "Forwarded", "X-BF-EH-Host", "X-Base-Url",
                     "X-Upstream", "Proxy", "Via", "X-Original-Url", "X-Rewrite-Url"):
            assert asked(address, **{name: host}).status == 200
        for name in ("X-BF-API-Key", "X-BF-API-Key-ID"):
            assert asked(address, **{name: trap.url}).status == 400
        assert asked(address, None, "http://%s%s" % (host, CHAT)).status == 200
        assert asked(address, None, CHAT + "?base_url=" + trap.url).status == 200
        for name in (trap.url, trap.url + "/v1", "vllm/" + trap.url, "http:" + host, "//" + host + "/m"):
            assert asked(address, dict(chat("x"), model=name)).status == 404
        for path in ("/v1/models/" + trap.url, "//%s/v1/models" % host, "/v1/chat/completions/@" + host):
            assert asked(address, None, path).status in (404, 405)
        assert all(request.headers["host"] == echo.url.partition("//")[2] for request in echo.requests)


def test_a_redirect_is_refused_and_its_target_logged(trap: Scripted, caplog: pytest.LogCaptureFixture) -> None:
    for status in ("301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"):
        moved = answer(b"", status, extra="Location: %s/v1\r\n" % trap.url)
        with Scripted(["request", moved]) as server, own(gateway_for(server.url)) as address:
            for body in (chat("x"), chat("x", stream=True)):
                found = asked(address, body)
                assert found.status == 502 and trap.url not in found.body.decode()
                assert "redirects" in found.error["message"]
        assert "redirects to %s/v1" % trap.url in caplog.text
        caplog.clear()


def test_the_environments_proxy_sees_nothing_of_loopback(trap: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, trap.url)
    with EchoServer() as echo, own(gateway_for(echo.url)) as address:
        assert asked(address).status == 200
        assert asked(address, chat("x", stream=True)).status == 200


# ---------------------------------------------------------------- certificates


TLS_REPLY = ["request", answer(completion("secure"))]


@needs_openssl
def test_a_certificate_of_nobody_known_is_refused_before_the_key_is_sent(
    authority: Any, caplog: pytest.LogCaptureFixture  # noqa: F811
) -> None:
    with Scripted([("tls", authority[1])] + TLS_REPLY) as server, own(gateway_for(tls(server))) as address:
        found = asked(address)
        assert found.status == 502
        assert found.error["message"] == "no secure connection to the vLLM server; the gateway's log says more"
        assert not server.requests
    assert "certificate verify failed" in caplog.text
    assert_clean(caplog.text)


@needs_openssl
@pytest.mark.parametrize("how", ["ca_cert_pem", "REQUESTS_CA_BUNDLE"])
def test_a_private_authority(how: str, authority: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    network = {}
    if how == "ca_cert_pem":
        network[how] = authority[0]
    else:
        monkeypatch.setenv(how, authority[0])
    with Scripted([("tls", authority[1])] + TLS_REPLY) as server, own(gateway_for(tls(server), **network)) as address:
        found = asked(address)
        assert (found.status, found.json["choices"][0]["message"]["content"]) == (200, "secure")
        assert server.requests[0].headers["authorization"] == "Bearer " + UPSTREAM
