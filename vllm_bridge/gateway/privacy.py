"""Keeping the servers' addresses and keys out of what clients read."""

from typing import List, Tuple
from urllib.parse import urlsplit

from ..config.settings import ProviderConfig

__all__ = ["Privacy"]


class Privacy:
    """Cleans messages of one provider's secrets."""

    def __init__(self, config: ProviderConfig) -> None:
        found: List[Tuple[str, str]] = []
        for key in config.resolved_keys():
            url = key.url or ""
            parts = urlsplit(url)
            found += [(url, "the vLLM server"), ("%s://%s" % parts[:2], "the vLLM server")]
            if ":" in parts.netloc:
                found.append((parts.netloc, "the vLLM server"))
            found.append((key.value, "[api key]"))
        proxy = config.proxy_config
        for secret in (proxy.url, proxy.password):
            if secret:
                found.append((secret, "the proxy"))
        # The longest first: one may be the beginning of another.
        self._found = sorted({pair for pair in found if pair[0]}, key=lambda pair: -len(pair[0]))

    def clean(self, text: str) -> str:
        """Return a message without addresses and keys."""
        for secret, instead in self._found:
            if secret in text:
                text = text.replace(secret, instead)
        return text
