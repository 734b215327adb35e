"""The settings of a call that are no wire fields, and what became of it."""

from typing import Any, Callable, Dict, Iterator, Mapping, Optional, Tuple, TypeVar
from urllib.parse import urlencode

from ..api.decoding import TokenUsage
from ..config.environment import check_headers
from ..config.settings import Key
from ..config.validate import mapping, normalise_timeout, number, whole
from ..errors import ConfigError
from ..http1.wait import Client
from .cancellation import Cancellation

__all__ = ["Options", "Trace", "joined"]

_KNOWN = {"x-request-id": "X-Request-Id", "host": "Host"}  # the parts of this program look for these names

T = TypeVar("T")


class Trace(TokenUsage):
    """What became of a call: filled in while it runs, a stream's at its end, for whoever logs or counts.

    `status` is the HTTP status of the last reply, or the one that an error in it stands for; ``None`` without a reply.
    `events` counts a stream's items; `sent` is when the last request left, of time.monotonic; `failed` are the keys of
    the attempts that gave nothing.
    """

    attempts = 0
    failed: Tuple[Key, ...] = ()
    sent: Optional[float] = None
    events = 0
    key: Optional[Key] = None
    request_id: Optional[str] = None
    status: Optional[int] = None

    @property
    def server(self) -> Optional[str]:
        """The URL of the server that was asked last."""
        return None if self.key is None else self.key.url

    def counted(self, items: Iterator[T]) -> Iterator[T]:
        """Yield items as they are, and note what they say of tokens."""
        for item in items:
            if isinstance(item, dict):
                self.events += 1
                self.take(item.get("usage"))
                response = item.get("response")
                if isinstance(response, dict):
                    self.take(response.get("usage"))
            yield item


class Options:
    """Settings of a call that are no wire fields. Times are in seconds; `deadline` is the total time.

    They are not changed once they are made: `changed` returns others. For a gateway: `client` is whose call it is, for
    as long as he is there (see `http1.wait`); with `direct` calls that need no proxy go past requests;
    `keep_alive_interval` makes comments items of a stream, as bytes: the server's if it is 0, else after so many
    seconds of silence our own as well; with `verbatim` the keywords of an operation are a body that somebody else
    wrote, in which ``extra_body`` is a field like any other.
    """

    deadline: Optional[float] = None
    cancel: Optional[Cancellation] = None
    trace: Optional[Trace] = None
    key_id: Optional[str] = None
    key_name: Optional[str] = None
    client: Client = None
    session: Any = None
    direct: bool = False
    request_id: Optional[str] = None  # before any among the headers
    query: str = ""  # of every URL, with its question mark
    keep_alive_interval: Optional[float] = None
    verbatim: bool = False

    def __init__(
        self,
        timeout: Tuple[Optional[float], Optional[float]],
        headers: Dict[str, str],
        max_retries: int,
        stream_idle_timeout: Optional[float],
    ) -> None:
        self.timeout = timeout
        self.headers = headers
        self.max_retries = max_retries
        self.stream_idle_timeout = stream_idle_timeout

    def changed(self, /, **changes: Any) -> "Options":
        """Return these settings with some others in their place; raise `ConfigError` for what is none."""
        state: Dict[str, Any] = {}
        for name, value in changes.items():
            if type(value) is _KINDS.get(name):
                state[name] = value
            elif name not in _CHECKS:
                raise ConfigError("with_options: no option %r; there are: %s" % (name, ", ".join(_CHECKS)))
            elif value is not None:
                state[name] = _CHECKS[name](value, self)
            elif name == "timeout":
                state[name] = (self.timeout[0], None)
            elif name not in ("headers", "query", "max_retries"):  # those stay as they are
                state[name] = None
        return self.replaced(state)

    def replaced(self, state: Dict[str, Any]) -> "Options":
        """Return these settings with others in their place that need no look at them."""
        other = object.__new__(Options)
        other.__dict__ = {**self.__dict__, **state}
        return other

    def __repr__(self) -> str:
        return "Options(timeout=%r, max_retries=%r)" % (self.timeout, self.max_retries)  # the headers may hold a key


def joined(*groups: Mapping[str, str]) -> Dict[str, str]:
    """Return all headers; of those with the same name, in whatever case, the last one stays."""
    found: Dict[str, Tuple[str, str]] = {}
    for group in groups:
        for name, value in group.items():
            lower = name.lower()
            found[lower] = _KNOWN.get(lower, name), value
    return dict(found.values())


# Values of exactly these types need no look at them.
_KINDS: Dict[str, type] = {"cancel": Cancellation, "trace": Trace, "key_id": str, "key_name": str}


def _instance(kind: type, name: str) -> Callable[[Any, Options], Any]:
    def check(value: Any, options: Options) -> Any:
        if not isinstance(value, kind):
            raise ConfigError("%s: expected a %s, got %s" % (name, kind.__name__, type(value).__name__))
        return value

    return check


def _headers(value: Any, options: Options) -> Dict[str, str]:
    checked = check_headers(value, "headers")
    return joined(options.headers, checked) if options.headers else checked


def _query(value: Any, options: Options) -> str:
    """Return parameters as the openai package writes them: ``true``, ``name[]=1&name[]=2``, ``name[key]=1``."""
    pairs = list(_pairs("", mapping(value, "query")))
    found = urlencode(pairs)
    return "%s%s%s" % (options.query, "&" if options.query else "?", found) if found else options.query


def _pairs(name: str, value: Any) -> Iterator[Tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _pairs("%s[%s]" % (name, key) if name else str(key), item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _pairs(name + "[]", item)
    elif value is not None:
        yield name, str(value).lower() if isinstance(value, bool) else str(value)


# How each setting of a call is read: (what was given, the settings so far) -> what counts from now on.
_CHECKS: Dict[str, Callable[[Any, Options], Any]] = {
    "timeout": lambda value, options: normalise_timeout(value, "timeout", options.timeout[0]),
    "headers": _headers,
    "query": _query,
    "max_retries": lambda value, options: whole(value, "max_retries"),
    "stream_idle_timeout": lambda value, options: number(value, "stream_idle_timeout", positive=True),
    "deadline": lambda value, options: number(value, "deadline", positive=True),
    "cancel": _instance(Cancellation, "cancel"),
    "trace": _instance(Trace, "trace"),
    "key_id": _instance(str, "key_id"),
    "key_name": _instance(str, "key_name"),
    "client": lambda value, options: value,
    "session": lambda value, options: value,
    "direct": _instance(bool, "direct"),
    "verbatim": _instance(bool, "verbatim"),
    "keep_alive_interval": lambda value, options: number(value, "keep_alive_interval"),
}
