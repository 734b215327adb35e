"""Reasoning as ``encrypted_content``: a client without a store hands it back as it is, between two tool calls."""

import base64
import binascii
import hashlib
import hmac
import json
from typing import Any, Dict, Iterable, Optional

__all__ = ["Seal", "without_seals"]

_VERSION = b"vb1"
_MAC = hashlib.sha256().digest_size


class Seal:
    """Seal reasoning with a key: whoever has the key can tell that nobody else has written it.

    Base64 of a version, the reasoning in a JSON object, and the HMAC-SHA256 (RFC 2104) of both. It is no secret.
    """

    def __init__(self, secrets: Iterable[bytes]) -> None:
        """Make the key of `secrets`, in whatever order they come."""
        self._key = hashlib.sha256(b"\0".join([b"vllm_bridge reasoning", *sorted(secrets)])).digest()

    def sealed(self, reasoning: str) -> str:
        """Return the ``encrypted_content`` of a reasoning item."""
        told = _VERSION + json.dumps({"reasoning": reasoning}).encode()
        return base64.b64encode(told + self._mac(told)).decode()

    def opened(self, content: Any) -> Optional[str]:
        """Return the reasoning in an ``encrypted_content``; ``None`` if it is not sealed by this key."""
        if not isinstance(content, str):
            return None
        try:
            data = base64.b64decode(content, validate=True)
        except (ValueError, binascii.Error):
            return None
        told, mac = data[:-_MAC], data[-_MAC:]
        if not told.startswith(_VERSION) or not hmac.compare_digest(mac, self._mac(told)):
            return None
        # Base64 has several spellings of the last byte, of which one is ours.
        return json.loads(told[len(_VERSION):])["reasoning"] if base64.b64encode(data).decode() == content else None

    def _mac(self, told: bytes) -> bytes:
        return hmac.new(self._key, told, hashlib.sha256).digest()


def without_seals(body: Dict[str, Any], seal: Seal) -> Dict[str, Any]:
    """Return a Responses request for a server of its own: what is sealed here is open there, the rest as it came.

    The server could not read it, and vLLM refuses any ``encrypted_content``. It is the caller's own object if nothing
    is sealed.
    """
    items = body.get("input")
    if not isinstance(items, list):
        return body
    opened = [_opened(item, seal) for item in items]
    return body if all(new is old for new, old in zip(opened, items)) else {**body, "input": opened}


def _opened(item: Any, seal: Seal) -> Any:
    if not isinstance(item, dict) or item.get("type") != "reasoning":
        return item
    reasoning = seal.opened(item.get("encrypted_content"))
    if reasoning is None:
        return item
    item = {key: value for key, value in item.items() if key != "encrypted_content"}
    if not item.get("summary") and not item.get("content"):
        item["content"] = [{"type": "reasoning_text", "text": reasoning}]
    return item
