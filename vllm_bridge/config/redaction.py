"""What nobody may read in an error, a log or a ``repr``: keys, headers that carry credentials, passwords in URLs.

A server, or a proxy in between, may repeat the request's headers in what it answers. What is quoted of an answer is
masked while it is whole and shortened afterwards: of a key across the cut the beginning would be left.
"""

import base64
import json
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Callable, Iterable, List, Mapping, Optional, Pattern, Tuple
from urllib.parse import quote, urlsplit

from ..errors import BridgeError

if TYPE_CHECKING:
    from .settings import ProviderConfig

__all__ = [
    "HIDDEN", "MASK", "Redaction", "credentials", "is_credential", "mask", "masked", "one_line", "shortened",
]

MASK = "[api key]"  # within a text
HIDDEN = "***"  # in place of a value

# A shorter key may be part of an ordinary word, so only as a word of its own it is taken for the key.
_SURELY = 8
_SEARCHED = 64 * 1024  # bytes of a reply that are looked through

_CREDENTIAL = re.compile(
    r"auth(?!or(?!i))|api-?key|\bkey\b|token|secret|passw|credential|cookie|session|signature|jwt|bearer", re.IGNORECASE
)
_SCHEME = re.compile(r"(basic|bearer|token|api-?key|digest|negotiate)[ \t]+(?=\S)", re.IGNORECASE)
_KEYLIKE = re.compile(r"(sk|hf|ghp|xox[abp])[-_][A-Za-z0-9_-]{8,}\Z")
_USER_IN_URL = re.compile(r"://[^/?#\s@\"'<>]+@")


def is_credential(name: str, value: str = "") -> bool:
    """Tell whether a header's or a setting's name, or else its value, looks like a credential's."""
    spaced = name.replace("_", "-")
    return bool(_CREDENTIAL.search(spaced) or _SCHEME.match(value) or _KEYLIKE.match(value))


def credentials(headers: Mapping[str, str]) -> Tuple[str, ...]:
    """Return what must not be shown of a request's headers, without the scheme before it or the user."""
    found: List[str] = []
    for name, value in headers.items():
        if is_credential(name, value):
            found += _within(name.lower(), value)
    return tuple(dict.fromkeys(secret for secret in found if secret))


def _within(name: str, value: str) -> List[str]:
    if name == "cookie":
        return [pair.partition("=")[2].strip() for pair in value.split(";")]
    scheme = _SCHEME.match(value)
    if scheme is None:
        return [value]
    bare = value[scheme.end():]
    if scheme.group(1).lower() != "basic":
        return [bare]
    try:
        login = base64.b64decode(bare).decode("utf-8")
    except ValueError:
        return [bare]
    return [bare, login, login.partition(":")[2]]


def masked(text: str, secrets: Tuple[str, ...]) -> str:
    """Return a text without secrets, and without users and passwords in URLs."""
    if "://" in text:
        text = _USER_IN_URL.sub("://%s@" % HIDDEN, text)
    find = _pattern(secrets)
    if find is None:
        return text
    text = find.sub(MASK, text)
    for secret in secrets:  # its beginning, where whoever wrote the text has cut it
        at = text.rfind(secret[:_SURELY]) if len(secret) > _SURELY else -1
        if at >= 0 and secret.startswith(text[at:].rstrip("….\"'}] \n")):
            text = text[:at] + MASK
    return text


@lru_cache(maxsize=64)
def _pattern(secrets: Tuple[str, ...]) -> Optional[Pattern[str]]:
    forms = {form for secret in secrets for form in (secret, json.dumps(secret)[1:-1], quote(secret, safe=""))}
    forms.discard("")
    if not forms:
        return None
    # The longest first: one may be the beginning of another.
    return re.compile("|".join(_exactly(form) for form in sorted(forms, key=len, reverse=True)))


def _exactly(secret: str) -> str:
    if len(secret) < _SURELY:
        return r"(?<![A-Za-z0-9])%s(?![A-Za-z0-9])" % re.escape(secret)
    return re.escape(secret)


def shortened(text: str, limit: int) -> str:
    """Return the beginning of a text that has been masked."""
    return text if len(text) <= limit else text[:limit] + "…"


def one_line(text: str, limit: int = 4000) -> str:
    """Return a text of others for a log or a terminal: what is not printable, line ends too, is escaped."""
    text = shortened(text, limit)
    if text.isprintable():
        return text
    return "".join([char if char.isprintable() else ascii(char)[1:-1] for char in text])


def mask(error: BridgeError, secrets: Tuple[str, ...]) -> None:
    """Replace secrets in an error's message, payload and fields."""
    state = error.__dict__

    def clean(text: str) -> str:
        return masked(text, secrets)

    for name in ("message", "type", "code", "param", "payload", "request_id"):
        try:
            state[name] = _masked(state[name], clean)
        except RecursionError:
            state[name] = None  # nested so deeply that nobody reads it
    error.args = tuple(clean(arg) if isinstance(arg, str) else arg for arg in error.args)


def _masked(value: Any, clean: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(str(name)): _masked(item, clean) for name, item in value.items()}
    if isinstance(value, list):
        return [_masked(item, clean) for item in value]
    return value


class Redaction:
    """All secrets of a provider's settings, and the addresses of its servers, which a gateway's clients need not know.

    `secrets` are the keys, credentials among ``extra_headers`` and the proxy's password.
    """

    def __init__(self, config: "ProviderConfig") -> None:
        keys, proxy = config.resolved_keys(), config.proxy_config
        found = [key.value for key in keys] + [*credentials(config.network_config.extra_headers)]
        if proxy.password:
            login = "%s:%s" % (proxy.username or "", proxy.password)
            found += [proxy.password, base64.b64encode(login.encode("utf-8")).decode("ascii")]
        self.secrets = tuple(dict.fromkeys(secret for secret in found if secret))
        # What is short or a word may stand in an answer for what it says.
        sure = [secret for secret in self.secrets if len(secret) >= _SURELY and not secret.isalpha()]
        forms = {form for secret in sure for form in (secret, json.dumps(secret)[1:-1])}
        self._marks = [form.encode("utf-8") for form in forms]
        self._addresses: List[Tuple[str, str]] = []
        self.hide([str(key.url) for key in keys], "the vLLM server")
        self.hide([proxy.url] if proxy.url else [], "the proxy")

    def hide(self, urls: Iterable[str], instead: str) -> None:
        """Put other words in the place of addresses from now on."""
        addresses = dict(self._addresses)
        for url in urls:
            parts = urlsplit(url)
            addresses.update(dict.fromkeys((url, "%s://%s" % parts[:2]), instead))
            if ":" in parts.netloc:
                addresses[parts.netloc] = instead
        self._addresses = sorted(addresses.items(), key=lambda pair: -len(pair[0]))

    def clean(self, text: str) -> str:
        """Return a text without addresses and secrets."""
        text = masked(text, self.secrets)
        for address, instead in self._addresses:
            text = text.replace(address, instead)
        return text

    def stands_in(self, data: bytes) -> bool:
        """Tell whether a secret stands in a reply."""
        return any([data.find(mark, 0, _SEARCHED) >= 0 for mark in self._marks])

    def fields(self, fields: List[Tuple[str, str]]) -> List[Tuple[str, str]]:
        """Return a reply's header fields without secrets."""
        find = _pattern(self.secrets)
        if find is None or find.search("\n".join([value for _, value in fields])) is None:
            return fields
        return [(name, masked(value, self.secrets)) for name, value in fields]
