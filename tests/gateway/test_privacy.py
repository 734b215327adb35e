"""What clients must not read."""

from vllm_bridge.config.settings import ProviderConfig
from vllm_bridge.gateway.privacy import Privacy


def privacy() -> Privacy:
    return Privacy(ProviderConfig.from_dict({
        "keys": [{"url": "http://gpu-1:8000/team", "value": "sk-one"},
                 {"url": "https://inner.example", "value": "sk-two"}],
        "proxy_config": {"type": "http", "url": "http://proxy:3128", "username": "u", "password": "pass-word"},
    }, environ={}))


def test_addresses_and_keys_go() -> None:
    text = ("http://gpu-1:8000/team/v1 gpu-1:8000 http://gpu-1:8000 https://inner.example sk-one sk-two "
            "http://proxy:3128 pass-word")
    clean = privacy().clean(text)
    for secret in ("gpu-1", "inner.example", "sk-one", "sk-two", "proxy:3128", "pass-word"):
        assert secret not in clean


def test_other_words_stay() -> None:
    text = "The model `gpu` does not exist (http://example.com)."
    assert privacy().clean(text) == text
