"""What nobody may read, and where it is looked for."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_bridge.config.redaction import Redaction, credentials, is_credential, mask, masked, one_line, shortened
from vllm_bridge.config.settings import Key, NetworkConfig, ProviderConfig
from vllm_bridge.errors import BadRequestError, InternalServerError

KEY = "sk-SECRETSECRETSECRET0123456789"


@pytest.mark.parametrize("name", (
    "Authorization authorization Proxy-Authorization X-Api-Key api-key apikey Api_Key Cookie Set-Cookie X-Auth X-Token "
    "X-Team-Token CF-Access-Client-Secret Ocp-Apim-Subscription-Key X-Goog-Api-Key X-Amz-Security-Token password "
    "X-Password X-Signature X-Session-Id X-Vault-Token X-Access-Key credentials X-JWT"
).split())
def test_names_of_credentials(name):
    assert is_credential(name)
    assert credentials({name: KEY if "ookie" not in name else "a=" + KEY})


@pytest.mark.parametrize("name", (
    "X-Team Content-Type User-Agent X-Request-Id Accept X-Author traceparent X-Forwarded-For X-Keyboard Monkey"
).split())
def test_names_of_others(name):
    assert not is_credential(name)
    assert credentials({name: "research"}) == ()


@pytest.mark.parametrize("value", ["Bearer " + KEY, "bearer  " + KEY, "Token " + KEY, KEY])
def test_a_value_may_tell_too(value):
    assert credentials({"X-Upstream": value}) == (KEY,)


def test_the_secret_is_what_stands_behind_the_scheme():
    login = base64.b64encode(b"user:pass:word").decode()
    assert credentials({"Authorization": "Bearer " + KEY}) == (KEY,)
    assert credentials({"authorization": "Basic " + login}) == (login, "user:pass:word", "pass:word")
    assert credentials({"Authorization": "Basic \u00e9"}) == ("\u00e9",)
    login = base64.b64encode("\u00fcser:p\u00e4ss".encode()).decode()
    assert credentials({"X-Forwarded-Login": "basic " + login}) == (login, "\u00fcser:p\u00e4ss", "p\u00e4ss")
    assert credentials({"Cookie": "a=first-value; b=second=value; c"}) == ("first-value", "second=value")
    assert credentials({"X-Api-Key": "", "Authorization": "Bearer"}) == ("Bearer",)


@pytest.mark.parametrize("text, expected", [
    ("no " + KEY + "!", "no [api key]!"),
    (KEY + KEY, "[api key][api key]"),
    ("x" + KEY + "y", "x[api key]y"),
    ("cut: " + KEY[:12], "cut: [api key]"),
    ("cut: " + KEY[:12] + "\u2026", "cut: [api key]"),
    ('{"cut": "' + KEY[:20] + '..."}', '{"cut": "[api key]'),
    ("sk-SECRE is a word, as sk-SECR is", "sk-SECRE is a word, as sk-SECR is"),
    ("via http://user:pass@proxy:3128/x", "via http://***@proxy:3128/x"),
    ("via socks5h://token@proxy, http://a/b@c", "via socks5h://***@proxy, http://a/b@c"),
    ("the model m", "the model m"),
    ("", ""),
])
def test_texts(text, expected):
    assert masked(text, (KEY,)) == expected


@pytest.mark.parametrize("secret, shown", [
    ("a b/\u00f6+key", "a%20b%2F%C3%B6%2Bkey"),
    ('quo"te\\key', 'quo\\"te\\\\key'), ("k\u00f6nigskey", "k\\u00f6nigskey"),
])
def test_a_secret_in_another_spelling(secret, shown):
    assert masked("<%s> <%s>" % (secret, shown), (secret,)) == "<[api key]> <[api key]>"


def test_a_short_key_is_a_word_of_its_own():
    assert masked("abc abcd xabc abc-1", ("abc",)) == "[api key] abcd xabc [api key]-1"
    assert masked("short", ("",)) == "short"
    assert masked("xabcd-1234y xabcd123y", ("abcd-1234", "abcd123")) == "x[api key]y xabcd123y"
    assert masked("xabcd1234y", ("abcd1234",)) == "x[api key]y"


def test_the_longer_key_first():
    assert masked("key-12345678-long key-12345678", ("key-12345678", "key-12345678-long")) == "[api key] [api key]"


@given(st.text(max_size=30), st.integers(1, 60))
def test_no_cut_after_masking_shows_a_part(before, limit):
    text = shortened(masked(before + " " + KEY + " tail", (KEY,)), limit)
    assert "SECRET" not in text
    assert len(text) <= limit + 1


def test_an_error_is_masked_in_all_its_fields():
    error = BadRequestError("no " + KEY, type=KEY, code=KEY, param=KEY, request_id=KEY,
                            payload={KEY: [KEY, {"a": KEY}, 5, None]})
    mask(error, (KEY, "other-secret"))
    assert "SECRET" not in repr([error, error.args, error.__dict__])
    assert error.payload == {"[api key]": ["[api key]", {"a": "[api key]"}, 5, None]}
    unmasked = InternalServerError("m", code=5)
    mask(unmasked, ())
    assert (unmasked.message, unmasked.code, unmasked.args) == ("m", 5, ("m",))


def test_a_payload_nested_too_deeply_to_be_searched_is_dropped():
    nested = KEY
    for _ in range(5000):
        nested = [nested]
    error = BadRequestError("no " + KEY, payload=nested)
    mask(error, (KEY,))
    assert (error.message, error.args, error.payload) == ("no [api key]", ("no [api key]",), None)


CONFIG = ProviderConfig.from_dict({
    "keys": [{"url": "http://gpu-1:8000/team", "value": "sk-one"}, {"url": "https://inner.example", "value": "sk-two"}],
    "proxy_config": {"type": "http", "url": "http://proxy:3128", "username": "u", "password": "pass-word"},
    "network_config": {"extra_headers": {"CF-Access-Client-Secret": "cf-secret-0123", "X-Team": "research"}},
}, environ={})


def test_addresses_and_keys_of_a_configuration_go():
    text = ("http://gpu-1:8000/team/v1 gpu-1:8000 http://gpu-1:8000 https://inner.example sk-one sk-two "
            "http://proxy:3128 pass-word cf-secret-0123 " + base64.b64encode(b"u:pass-word").decode())
    clean = Redaction(CONFIG).clean(text)
    for secret in ("gpu-1", "inner.example", "sk-one", "sk-two", "proxy:3128", "pass-word", "cf-", "dTpw"):
        assert secret not in clean
    assert masked(text, Redaction(CONFIG).secrets).startswith("http://gpu-1:8000/team/v1 ")


@pytest.mark.parametrize("secret, text, found", [
    ("sk-0123456789", '{"a":"Bearer sk-0123456789"}', True), ("sk-0123456789", '{"a":"sk-012345678"}', False),
    ('sk-"0123456789', '{"a":"sk-\\"0123456789"}', True), ("sk-\u00e90123456789", '{"a":"sk-\\u00e90123456789"}', True),
    ("sk-\u00e90123456789", '{"a":"sk-\u00e90123456789"}', True), ("EMPTY", '{"a":"EMPTY"}', False),
    ("password", '{"a":"a password"}', False), ("s3cret", '{"a":"s3cret"}', False), ("", "{}", False),
])
def test_a_secret_in_a_reply(secret, text, found):
    """What is short or a word may stand there for what it says."""
    config = ProviderConfig.from_dict({"keys": [{"value": secret, "url": "http://a"}]}, environ={})
    assert Redaction(config).stands_in(text.encode()) is found


@pytest.mark.parametrize("text, expected", [
    ("plain \u00fc", "plain \u00fc"), ("a\nb\r\u2028\x85c", "a\\nb\\r\\u2028\\x85c"),
    ("\x1b[31m\x00", "\\x1b[31m\\x00"),
    ("\u202egpj", "\\u202egpj"), ("\ud800", "\\ud800"), ("x" * 30, "x" * 20 + "\u2026"),
])
def test_one_line(text, expected):
    assert one_line(text, 20) == expected


def test_a_proxys_login_is_masked_as_it_is_sent():
    proxy = {"type": "http", "url": "p:1", "username": "\u00fc", "password": "p\u00e4ss-word"}
    config = CONFIG.replace(proxy_config=proxy)
    sent = base64.b64encode("\u00fc:p\u00e4ss-word".encode()).decode()
    assert Redaction(config).clean("Basic %s p\u00e4ss-word" % sent) == "Basic [api key] [api key]"


def test_other_words_of_a_message_stay():
    text = "The model `gpu` of research does not exist (http://example.com)."
    assert Redaction(CONFIG).clean(text) == text


def test_no_repr_shows_a_secret():
    network = NetworkConfig(extra_headers={"Authorization": "Bearer " + KEY, "X-Api-Key": KEY, "Cookie": "a=" + KEY})
    shown = repr([ProviderConfig(network, CONFIG.proxy_config, [Key(KEY)]), network, CONFIG])
    for secret in ("SECRET", "pass-word", "sk-one", "cf-secret"):
        assert secret not in shown
    assert "X-Api-Key" in shown
