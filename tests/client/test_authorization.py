"""Who a request says it is from: auth as in requests, keys that expire, certificates; how servers are checked."""

import base64
import functools
import os
import pathlib
import pickle
import ssl

import pytest
import requests

from certificates import needs_openssl, tls
from scripted import Scripted, answer, completion
from vllm_bridge import (
    APIConnectionError,
    AuthenticationError,
    ConfigError,
    NetworkConfig,
    ProviderConfig,
    VLLMProvider,
)

MESSAGES = [{"role": "user", "content": "Hi"}]
FINE = ["request", answer(completion()), "again"]
BUSY = answer({"error": {"message": "busy", "code": 503}}, "503 Service Unavailable", extra="Retry-After: 0\r\n")


@pytest.fixture(autouse=True)
def no_key_in_the_environment(monkeypatch):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)


def asked(server):
    return [dict(request.headers).get("authorization") for request in server.requests]


def test_a_login():
    with Scripted(FINE) as server, VLLMProvider(server.url, auth=("ann", "s3cret")) as provider:
        provider.chat_completion(messages=MESSAGES)
        provider.with_options(timeout=5, direct=True).chat_completion(messages=MESSAGES)
        assert asked(server) == ["Basic " + base64.b64encode(b"ann:s3cret").decode()] * 2


def test_what_changes_a_request_sees_all_of_it():
    seen = []

    def sign(request):
        seen.append((request.method, request.url, request.headers["Content-Type"], bytes(request.body)))
        request.headers["X-Signature"] = "of-%d" % len(request.body)
        return request

    with Scripted(FINE) as server, VLLMProvider(server.url, auth=sign) as provider:
        provider.chat_completion(model="m", messages=MESSAGES)
        request = server.requests[0]
        assert seen == [("POST", server.url + "/v1/chat/completions", "application/json", request.body)]
        assert dict(request.headers)["x-signature"] == "of-%d" % len(request.body)


def test_a_key_that_expires_is_asked_for_before_each_attempt():
    keys = iter(["first", "second", "third"])
    models = answer({"object": "list", "data": []})
    with Scripted(["request", BUSY, "request", answer(completion()), "request", models]) as server:
        with VLLMProvider(server.url, api_key=lambda: next(keys)) as provider:
            provider.chat_completion(messages=MESSAGES)
            provider.list_models()
        assert asked(server) == ["Bearer first", "Bearer second", "Bearer third"]


def test_a_key_that_is_asked_for_is_in_no_error():
    refused = answer({"error": {"message": "no such key: sk-s3cret", "code": 401}}, "401 Unauthorized")
    with Scripted(["request", refused]) as server, VLLMProvider(server.url, api_key=lambda: "sk-s3cret") as provider:
        with pytest.raises(AuthenticationError) as caught:
            provider.chat_completion(messages=MESSAGES)
        assert "s3cret" not in str(caught.value) and "s3cret" not in repr(caught.value.payload)


@pytest.mark.parametrize("key, sent", [("", None), (None, None), ("k", "Bearer k")])
def test_no_key_may_be_given_too(key, sent):
    with Scripted(FINE) as server, VLLMProvider(server.url, api_key=lambda: key, verify=None) as provider:
        provider.chat_completion(messages=MESSAGES)
        assert asked(server) == [sent]


@pytest.mark.parametrize("key", [5, b"k", "a\nb"])
def test_what_is_no_key_is_named(key):
    with VLLMProvider("http://127.0.0.1:1", api_key=lambda: key) as provider:
        with pytest.raises(ConfigError, match="api_key: "):
            provider.chat_completion(messages=MESSAGES)


def test_what_giving_the_key_raises_is_the_callers():
    def broken():
        raise LookupError("no token today")

    with VLLMProvider("http://127.0.0.1:1", api_key=broken) as provider:
        with pytest.raises(LookupError, match="no token today"):
            provider.chat_completion(messages=MESSAGES)


def test_a_provider_with_auth_pickles():
    with Scripted(FINE) as server, VLLMProvider(server.url, api_key=functools.partial(os.getenv, "KEY")) as first:
        os.environ["KEY"] = "k"
        try:
            with pickle.loads(pickle.dumps(first)) as second:
                second.chat_completion(messages=MESSAGES)
        finally:
            del os.environ["KEY"]
        assert asked(server) == ["Bearer k"]


def test_auth_that_waits_for_a_challenge_belongs_to_a_session():
    with VLLMProvider("http://127.0.0.1:1", auth=requests.auth.HTTPDigestAuth("ann", "s3cret")) as provider:
        for _ in range(2):
            with pytest.raises(ConfigError, match="session="):
                provider.chat_completion(messages=MESSAGES)


@pytest.mark.parametrize("given", [{"auth": ("a", "b")}, {"cert": "a.pem"}, {"verify": False}])
def test_a_session_has_these_itself(given):
    with requests.Session() as session, pytest.raises(ConfigError, match="session"):
        VLLMProvider("http://gpu", session=session, **given)


def test_two_ways_to_say_who_it_is_are_one_too_many():
    with pytest.raises(ConfigError, match="auth"):
        VLLMProvider("http://gpu", api_key=lambda: "k", auth=("a", "b"))
    with pytest.raises(ConfigError, match="api_key"):
        VLLMProvider(config={}, api_key=lambda: "k")


@pytest.mark.parametrize("given", ["ann", 5, ("ann",), ("ann", "b", "c"), ["ann", "b"]])
def test_auth_is_a_pair_or_callable(given):
    with pytest.raises(ConfigError, match="auth: "):
        VLLMProvider("http://gpu", auth=given)


@pytest.mark.parametrize("unknown", ["tiemout", "api_key", "self", "base_url"])
def test_an_option_that_there_is_not_is_named(unknown):
    with pytest.raises(ConfigError, match="no option %r; there are: timeout" % unknown):
        VLLMProvider("http://gpu").with_options(**{unknown: 3})


# ---------------------------------------------------------------- certificates

@pytest.fixture
def guarded(authority):
    """A server that asks for a certificate of the authority: (its context, the path of one, the authority's path)."""
    bundle, context = authority
    folder = os.path.dirname(bundle)
    asking = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    asking.load_cert_chain(os.path.join(folder, "server.pem"), os.path.join(folder, "server.key"))
    asking.load_verify_locations(bundle)
    asking.verify_mode = ssl.CERT_REQUIRED
    return asking, (os.path.join(folder, "server.pem"), os.path.join(folder, "server.key")), bundle


@needs_openssl
def test_a_client_certificate_in_one_file_or_two(guarded, tmp_path):
    context, pair, bundle = guarded
    both = tmp_path / "both.pem"
    both.write_text("".join(pathlib.Path(path).read_text() for path in pair))
    for cert in (pair, str(both)):
        with Scripted([("tls", context), *FINE]) as server:
            with VLLMProvider(tls(server), cert=cert, verify=bundle) as provider:
                assert provider.chat_completion(messages=MESSAGES).text == "fine"
            config = ProviderConfig(NetworkConfig(tls(server), client_cert=cert, ca_cert_pem=bundle))
            with VLLMProvider(config=config) as provider:
                assert provider.chat_completion(messages=MESSAGES).text == "fine"


@needs_openssl
def test_without_its_certificate_a_client_is_refused(guarded):
    context, _, bundle = guarded
    with Scripted([("tls", context), *FINE]) as server:
        with VLLMProvider(tls(server), verify=bundle, max_retries=0) as provider:
            with pytest.raises(APIConnectionError):
                provider.chat_completion(messages=MESSAGES)


@needs_openssl
def test_how_a_server_is_checked(authority):
    bundle, context = authority
    with Scripted([("tls", context), *FINE]) as server:
        for verify in (False, bundle):
            with VLLMProvider(tls(server), verify=verify) as provider:
                assert provider.chat_completion(messages=MESSAGES).text == "fine"
        with VLLMProvider(tls(server), max_retries=0) as provider:
            with pytest.raises(APIConnectionError, match="certificate"):
                provider.chat_completion(messages=MESSAGES)


@needs_openssl
@pytest.mark.parametrize("cert", ["missing.pem", ("{bundle}", "missing.key"), "{bundle}", ("a", "b", "c"), 5])
def test_a_certificate_that_cannot_be_read_is_named(authority, cert):
    cert = tuple(each.format(bundle=authority[0]) for each in cert) if isinstance(cert, tuple) else cert
    cert = cert.format(bundle=authority[0]) if isinstance(cert, str) else cert
    with pytest.raises(ConfigError, match="client_cert: "):
        VLLMProvider("https://gpu", cert=cert)
