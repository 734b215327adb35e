"""Keys of clients."""

from typing import Dict

import pytest

from vllm_bridge.errors import AuthenticationError
from vllm_bridge.gateway.authentication import Authentication


def key(value: str) -> Dict[str, str]:
    return {"authorization": value}


def test_a_key_lets_in() -> None:
    authentication = Authentication(["sk-1", "sk-ö"])
    assert authentication.required
    for header in ("Bearer sk-1", "bearer  sk-1 ", "Bearer sk-ö".encode().decode("latin-1")):
        authentication.check(key(header))
    for header in ("Bearer sk-2", "sk-1", "Basic sk-1", "Bearer", "Bearer ", "", "Bearer sk-1x", "Bearer sk-1 sk-1"):
        with pytest.raises(AuthenticationError) as caught:
            authentication.check(key(header))
        assert (caught.value.status_code, caught.value.code) == (401, "invalid_api_key")
    with pytest.raises(AuthenticationError):
        authentication.check({})


def test_a_key_may_come_as_other_clients_send_it() -> None:
    authentication = Authentication(["sk-1"])
    for fields in ({"x-api-key": "sk-1"}, {"api-key": " sk-1 "}, {"x-api-key": "", "api-key": "sk-1"},
                   {"authorization": "Bearer sk-1", "x-api-key": "wrong"}):
        authentication.check(fields)
    for fields in ({"x-api-key": "sk-2"}, {"x-api-key": "Bearer sk-1"}, {"x-api-key": ""}, {"x-goog-api-key": "sk-1"},
                   {"authorization": "Bearer sk-2", "x-api-key": "sk-1"}, {"authorization": "", "api-key": "sk-1"},
                   {"x-api-key": "sk-2", "api-key": "sk-1"}):
        with pytest.raises(AuthenticationError):
            authentication.check(fields)


def test_without_keys_none_is_asked_for() -> None:
    assert not Authentication().required
