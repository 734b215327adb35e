"""One value of a setting and its path; this machine, and no_proxy."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_bridge.config import validate as fields
from vllm_bridge.config.environment import check_headers
from vllm_bridge.errors import ConfigError


def message(call, *args, **kwargs):
    with pytest.raises(ConfigError) as caught:
        call(*args, **kwargs)
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize(
    "given, expected",
    [
        ("http://gpu:8000", "http://gpu:8000"),
        ("http://gpu:8000/", "http://gpu:8000"),
        ("http://gpu:8000/v1", "http://gpu:8000"),
        ("http://gpu:8000/v1//", "http://gpu:8000"),
        ("https://Proxy.Example.COM/team/v1/", "https://proxy.example.com/team"),
        ("https://proxy.example.com/v1/team", "https://proxy.example.com/v1/team"),
        ("gpu:8000", "http://gpu:8000"),
        ("gpu", "http://gpu"),
        ("localhost:8000/v1", "http://localhost:8000"),
        ("HTTPS://gpu", "https://gpu"),
        ("http://10.0.0.7:08000", "http://10.0.0.7:8000"),
        ("http://[::1]:8000/v1", "http://[::1]:8000"),
        ("http://[fe80::1%25eth0]:8000", "http://[fe80::1%25eth0]:8000"),
        ("http://vllm_svc.ns.svc.cluster.local.:80", "http://vllm_svc.ns.svc.cluster.local.:80"),
        ("http://b\u00fccher.example", "http://xn--bcher-kva.example"),  # the example of RFC 3492's users
    ],
)
def test_base_urls(given, expected):
    assert fields.normalise_base_url(given, "url") == expected
    assert fields.normalise_base_url(expected, "url") == expected


@pytest.mark.parametrize(
    "url, reason",
    [
        ("ftp://gpu", "expected a URL beginning with http:// or https://, got 'ftp://gpu'"),
        ("", "got nothing"),
        ("http://", "with a host name"),
        ("http://:8000", "with a host name"),
        ("http:/gpu:8000", "a port from 1 to 65535"),
        ("http://gpu:", "a port from 1 to 65535"),
        ("http://gpu:0", "a port"),
        ("http://gpu:65536", "a port"),
        ("http://gpu:80x", "a port"),
        ("http://gpu:\u0668\u0660", "a port"),
        ("http://[::1]8000", "a port"),
        ("http://[::1", "expected a URL"),
        ("http://[::zz]:1", "a host name"),
        ("http://a..b", "a host name"),
        ("http://" + "a" * 64, "a host name"),
        ("http://\u00fc" + "b" * 70, "a host name"),
        ("http://-gpu", "a host name"),
        ("http://gpu:8000 ", "white space"),
        ("http://gpu:8000\n", "white space"),
        ("http://g\x00pu", "control character"),
        ("http://gpu\\x", "backslash"),
        ("http://gpu/caf\u00e9", "percent-encoded"),
        ("http://gpu/?a=1", "query"),
        ("http://gpu/#x", "fragment"),
        *[("http://gpu:8000/v1/" + path, "one operation") for path in (
            "chat/completions", "completions", "embeddings", "rerank", "responses", "models", "audio/transcriptions")],
        (None, "expected a string, got null"),
        (8000, "expected a string, got 8000"),
        (b"http://gpu", "expected a string, got bytes"),
    ],
)
def test_bad_base_urls(url, reason):
    text = message(fields.normalise_base_url, url, "network_config.base_url")
    assert text.startswith("network_config.base_url: ")
    assert reason in text


@pytest.mark.parametrize(
    "url",
    [
        "http://user:s3cret@gpu:8000",
        "user:s3cret@gpu",
        "ftp://user:s3cret@gpu",
        "http://gpu:s3cret@",
        "http://u:s3cret@[::1",
        "http:/user:s3cret@gpu",
        "http://gpu/?api_key=s3cret",
        "ftp://gpu/?api_key=s3cret",
        "http://gpu:1x/?k=s3cret",
    ],
)
def test_no_message_repeats_what_a_url_carries(url):
    assert "s3cret" not in message(fields.normalise_base_url, url, "url")


def test_credentials_are_sent_elsewhere():
    assert "extra_headers" in message(fields.normalise_base_url, "http://user:s3cret@gpu", "url")


@given(st.text(max_size=40))
def test_any_text_is_a_url_or_a_config_error(text):
    try:
        found = fields.normalise_base_url(text, "url")
    except ConfigError as error:
        assert error.message.startswith("url: ")
    else:
        assert found.startswith(("http://", "https://")) and found.isascii()


@pytest.mark.parametrize(
    "value, expected",
    [
        (600, (5.0, 600.0)),
        (2, (2.0, 2.0)),
        (0.5, (0.5, 0.5)),
        ((3, 60), (3.0, 60.0)),
        ([3, None], (3.0, None)),
        ((None, 60), (None, 60.0)),
        (None, (None, None)),
    ],
)
def test_timeouts(value, expected):
    assert fields.normalise_timeout(value, "timeout") == expected


def test_a_limit_itself_is_allowed():
    assert fields.normalise_timeout(1000000, "timeout") == (5.0, 1000000.0)
    assert fields.whole(1000000, "max_retries") == 1000000 and fields.whole(1, "n", least=1, most=1) == 1
    assert fields.number(0, "weight") == 0


def test_the_connect_limit_is_the_callers():
    assert fields.normalise_timeout(600, "timeout", connect=30) == (30, 600.0)
    assert fields.normalise_timeout(600, "timeout", connect=None) == (600.0, 600.0)


@pytest.mark.parametrize(
    "value, path, shown",
    [
        (0, "timeout", "above 0, got 0"),
        (-1, "timeout", "got -1"),
        (math.nan, "timeout", "got nan"),
        (math.inf, "timeout", "at most 1000000"),
        pytest.param(10**400, "timeout", "a number of 1329 bits", id="beyond-floats"),
        pytest.param(10**5000, "timeout", "a number of 16610 bits", id="beyond-repr"),
        (True, "timeout", "got True"),
        ("5", "timeout", "got '5'"),
        ((5, 0), "timeout[1]", "got 0"),
        ((5,), "timeout", "got 1 values"),
        ({}, "timeout", "got an object"),
        (object(), "timeout", "got object"),
    ],
)
def test_bad_timeouts(value, path, shown):
    text = message(fields.normalise_timeout, value, "timeout")
    assert text.startswith(path + ": ")
    assert shown in text


def test_headers_are_copied_and_trimmed():
    given_headers = {"X-Team": " blue\t", "x-empty": "", "X-Name": "J\u00fcrgen"}
    checked = check_headers(given_headers, "headers")
    assert checked == {"X-Team": "blue", "x-empty": "", "X-Name": "J\u00fcrgen"}
    assert checked is not given_headers


@pytest.mark.parametrize(
    "headers, start",
    [
        ({"X-A": "s3cret\r\nHost: evil"}, "headers.X-A: has a line break"),
        ({"X-A": "s3cret\n"}, "headers.X-A: has a line break"),
        ({"X-A": "s3cret\x00"}, "headers.X-A: "),
        ({"X-A": "s3cret\u20ac"}, "headers.X-A: "),
        ({"X-A": 5}, "headers.X-A: expected a string, got a number"),
        ({"X-A": b"s3cret"}, "headers.X-A: expected a string, got bytes"),
        ({"X A": "s3cret"}, "headers.'X A': is no header name"),
        ({"X-A\r\nB": "s3cret"}, "headers.'X-A\\r\\nB': is no header name"),
        ({"": "s3cret"}, "headers.'': "),
        ({5: "s3cret"}, "headers: expected names that are strings"),
        ({"Content-Length": "5"}, "headers.Content-Length: is set by the connection"),
        ({"transfer-encoding": "chunked"}, "headers.transfer-encoding: is set by"),
        ({"X-A": "s3cret", "x-a": "s3cret"}, "headers.x-a: is there twice"),
        ([("X-A", "s3cret")], "headers: expected an object, got a list"),
    ],
)
def test_bad_headers(headers, start):
    text = message(check_headers, headers, "headers")
    assert text.startswith(start)
    assert "s3cret" not in text


@pytest.mark.parametrize("name", (
    "Connection Content-Length Expect Keep-Alive Proxy-Connection TE Trailer Transfer-Encoding Upgrade"
).split())
def test_what_frames_the_message_is_not_the_callers(name):
    assert "is set by the connection itself" in message(check_headers, {name: "x"}, "headers")


def test_a_login_at_a_proxy_may_be_given():
    given_headers = {"Proxy-Authorization": "Basic x", "Proxy-Authenticate": "x", "Te-X": "y"}
    assert check_headers(given_headers, "headers") == given_headers


def test_headers_may_come_from_the_environment():
    assert "12345" not in message(check_headers, {"X-A": 12345}, "headers", {})
    assert check_headers({"X-A": "env.A"}, "headers", {"A": "1\n"}) == {"X-A": "1"}
    assert check_headers({"X-A": "env.A"}, "headers") == {"X-A": "env.A"}
    text = message(check_headers, {"X-A": "env.A"}, "headers", {})
    assert text == "headers.X-A: the environment variable A is not set; set it"
    assert "is empty" in message(check_headers, {"X-A": "env.A"}, "headers", {"A": " "})


def test_long_values_are_cut():
    text = message(fields.number, "x" * 500, "weight")
    assert text == "weight: expected a number of 0 or more, got '%s'\u2026" % ("x" * 60)


def test_unknown_names_get_a_hint():
    assert fields.known({"a": 1, "$schema": 1, "_note": 1, "old": 1}, ("a", "b"), ("old",), "p") == ["a"]
    text = message(fields.known, {"wieght": 1}, ("weight", "value"), (), "keys[0]")
    assert text == "keys[0]: unknown setting 'wieght'; did you mean 'weight'?"
    assert message(fields.known, {"zzz": 1}, ("b", "a"), (), "p") == "p: unknown setting 'zzz'; known are a, b"


@pytest.mark.parametrize("host", (
    "localhost LOCALHOST localhost. a.localhost a.b.localhost. 127.0.0.1 127.9.9.9 127.0.0.1. 127.1 127.0.1 0x7f.1 "
    "0x7F000001 0177.0.0.1 2130706433 017700000001 0.0.0.0 0 0x0 ::1 [::1] [0:0:0:0:0:0:0:1] [::1%25lo] ::1%lo :: [::] "
    "[::ffff:127.0.0.1] ::ffff:7f00:1 ::FFFF:127.8.0.1 [::ffff:0.0.0.0]"
).split())
def test_this_machine(host):
    assert fields.is_this_machine(host)


@pytest.mark.parametrize("host", (
    "127.evil.example 127.0.0.1.evil.example localhost.example notlocalhost 127.example.com 10.0.0.1 128.0.0.1 126.1 "
    "1.127.0.0 2130706433.example 0x7f.example ::2 [fe80::1%lo] [::ffff:10.0.0.1] 127.0.0.256 127.0.0.1.1 0.0.0.1 "
    "127..1 [localhost .localhost a@localhost a/b.localhost localhost:80 a.localhost:80 localhost.. 09.0.0.1 fe::1"
).split() + ["", ".", "127.0.0.1 ", "127.0.0.1\n", "localhost\n", "a localhost", "127.0.0.1 x"])
def test_another_machine(host):
    assert not fields.is_this_machine(host)


def test_all_networks_are_this_machine_only_for_a_caller():
    for host in ("0.0.0.0", "::", "[::]", "0", "::ffff:0.0.0.0"):
        assert fields.is_this_machine(host) and not fields.is_this_machine(host, listening=True)
    for host in ("127.1", "localhost", "[::1]"):
        assert fields.is_this_machine(host, listening=True)


@pytest.mark.parametrize("host, port, no_proxy", [
    ("gpu", 80, "*"), ("gpu", 80, "a, *"), ("10.0.0.1", 80, "*"),
    ("gpu.corp", 80, "gpu.corp"), ("gpu.corp", 80, "corp"), ("gpu.corp", 80, ".corp"), ("gpu.corp", 80, "*.corp"),
    ("GPU.Corp.", 80, "gpu.CORP"), ("gpu.corp", 80, "corp."), ("corp", 80, ".corp"), ("a.b.corp", 80, "a,b .corp c"),
    ("gpu.corp", 8000, "corp:8000"), ("gpu.corp", 8000, " a , gpu.corp:08000 "), ("gpu.corp", 80, "*.corp:80"),
    ("10.1.2.3", 80, "10.0.0.0/8"), ("10.1.2.3", 80, "10.1.2.3"), ("10.1.2.3", 80, "10.1.2.3:80"),
    ("10.1.2.3", 80, "10.9.9.9/8"), ("10.1.2.3", 80, "10.0.0.0/255.0.0.0"), ("0xa.1.2.3", 80, "10.1.2.3"),
    ("[::ffff:10.1.2.3]", 80, "10.0.0.0/8"), ("10.1.2.3", 80, "::ffff:10.1.2.3"), ("10.1.2.3", 80, "0.0.0.0/0"),
    ("[fd00::1]", 80, "fd00::/8"), ("[fd00::1]", 80, "[fd00::]/8"), ("[fd00::1]", 80, "[fd00::/8]"),
    ("fd00::1", 80, "[fd00:0:0::1]"), ("[FD00::1]", 8000, "[fd00::1]:8000"), ("[fd00::1%eth0]", 80, "fd00::1"),
    ("xn--bcher-kva.example", 80, "b\u00fccher.example"),
])
def test_no_proxy_names_the_server(host, port, no_proxy):
    assert fields.bypasses_proxy(host, port, no_proxy)


@pytest.mark.parametrize("host, port, no_proxy", [
    ("gpu", 80, ""), ("gpu", 80, " , ,"), ("gpu.corp", 80, "."), ("gpu.corp", 80, "*."), ("mycorp", 80, "corp"),
    ("gpu.corp", 80, "u.corp"), ("gpu.corp", 80, "gpu"), ("gpu.corp", 80, "corp:8000"), ("gpu.corp", 80, "a.gpu.corp"),
    ("10.1.2.3", 80, "11.0.0.0/8"), ("10.1.2.3", 80, "2.3"), ("10.1.2.3", 80, ".3"), ("10.1.2.3", 80, "10.1.2.3:81"),
    ("10.1.2.3", 80, "10.0.0.0/99"), ("10.1.2.3", 80, "10.0.0.0/x"), ("10.1.2.3", 80, "corp/8"),
    ("10.1.2.3", 80, "::/0"), ("[fd00::1]", 80, "fe00::/8"), ("[fd00::1]", 80, "[fd00::1]:81"),
    ("[fd00::1]", 80, "0.0.0.0/0"), ("gpu.corp", 80, "10.0.0.0/8"), ("[fd00::1]", 80, "["), ("gpu", 80, "[gpu]:81"),
])
def test_no_proxy_does_not_name_the_server(host, port, no_proxy):
    assert not fields.bypasses_proxy(host, port, no_proxy)


@given(st.text(max_size=20), st.text(alphabet="*.:/[]%0123456789abcx, \u00e9", max_size=20))
def test_no_host_and_no_list_is_too_odd(host, no_proxy):
    fields.is_this_machine(host)
    fields.bypasses_proxy(host, 80, no_proxy)
