"""One operation carried out: a key chosen, the request sent, and sent again elsewhere where that is safe."""

import random
import time
from typing import TYPE_CHECKING, Any, Callable, Dict, FrozenSet, Optional, Tuple, TypeVar, Union

from ..api.decoding import Tally
from ..config.settings import Key, NetworkConfig, ProviderConfig
from ..errors import BridgeError, payload_error
from .fleet import KeyRing
from ..config.redaction import mask
from .reply import Call, Cancellation, Reply
from .retry import CONNECTION_NOT_MADE, RetryPolicy, parse_retry_after
from .stream import Reader, Stream
from .session import Transport
from ..version import USER_AGENT
from ..api.body import Written, decode, to_json

if TYPE_CHECKING:
    from ..http1.multipart import MultipartBody

__all__ = ["Caller", "Options", "Trace"]

_REQUEST_ID = "X-Request-Id"
_KNOWN = {"x-request-id": _REQUEST_ID, "host": "Host"}

T = TypeVar("T")
Wire = Union[Dict[str, Any], "MultipartBody", None]


class Trace(Tally):
    """What became of a call: filled in while it runs, for whoever logs or counts."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.attempts = 0
        self.key: Optional[Key] = None
        self.request_id: Optional[str] = None

    @property
    def server(self) -> Optional[str]:
        """The URL of the server that was asked last."""
        return None if self.key is None else self.key.url


class Options:
    """Settings of a call that are no wire fields. Times are in seconds; `deadline` is the total time.

    They are not changed once they are made: `changed` returns others.
    """

    deadline: Optional[float] = None
    cancel: Optional[Cancellation] = None
    trace: Optional[Trace] = None
    key_id: Optional[str] = None
    key_name: Optional[str] = None

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

    def changed(self, changes: Dict[str, Any]) -> "Options":
        """Return these settings with some others in their place."""
        other = object.__new__(Options)
        other.__dict__.update(self.__dict__)
        other.__dict__.update(changes)
        return other

    def __repr__(self) -> str:
        return "Options(timeout=%r, max_retries=%r)" % (self.timeout, self.max_retries)  # the headers may hold a key


class Caller:
    """Carries operations to the servers of one provider; shared by all its ``with_options`` copies."""

    def __init__(self, config: ProviderConfig) -> None:
        network = config.network_config
        self.network: NetworkConfig = network
        self.lacks_responses = False  # set when a server turned out to have no route for them
        self.lacks_base64: Dict[str, float] = {}  # until when, by model, since a server refused to send such vectors
        self.ring = KeyRing(config.resolved_keys())
        self.transport = Transport(network, config.proxy_config)
        self._headers: Dict[Key, Dict[str, str]] = {key: self._headers_for(key) for key in self.ring.keys}
        self._json_headers = {
            key: {**headers, "Content-Type": "application/json"} for key, headers in self._headers.items()
        }

    def reply(self, method: str, path: str, wire: Wire, model: Optional[str], options: Options) -> Reply:
        """Return the complete reply; the errors of a 200 are raised like those of any other status."""

        send = self.transport.send

        def attempt(key: Key, deadline: Optional[float]) -> Reply:
            reply = send(self._call(method, path, wire, model, key, options, deadline))
            # vLLM's JSON never spaces or escapes a key, and an error's object begins with it (WIRE.md §3).
            body = reply.body if len(reply.body) < 65536 else reply.body[:1024]
            if b'"error"' in body or b'"detail"' in body:
                self._check(reply)
            return reply

        return self._attempts(attempt, model, options)

    def stream(
        self, path: str, wire: Wire, model: Optional[str], options: Options, reader: Callable[[], Reader[T]]
    ) -> Stream[T]:
        """Return the reply as a stream; `reader` makes the stream's meaning anew for each attempt."""

        def attempt(key: Key, deadline: Optional[float]) -> Stream[T]:
            call = self._call("POST", path, wire, model, key, options, deadline, streams=True)
            return self.transport.stream(call, reader(), options.stream_idle_timeout)

        return self._attempts(attempt, model, options)

    def get(self, path: str, key: Key, options: Options) -> Reply:
        """Ask one certain server, once."""
        deadline = None if options.deadline is None else time.monotonic() + options.deadline
        try:
            reply = self.transport.send(self._call("GET", path, None, None, key, options, deadline))
            self._check(reply)
        except BridgeError as error:
            mask(error, (key.value,))
            raise
        return reply

    def _attempts(self, attempt: Callable[[Key, Optional[float]], T], model: Optional[str], options: Options) -> T:
        network, ring, trace = self.network, self.ring, options.trace
        deadline = None if options.deadline is None else time.monotonic() + options.deadline
        tried: FrozenSet[Key] = frozenset()
        retries = 0
        while True:
            key = ring.select(model, tried, options.key_id, options.key_name)
            if trace is not None:
                trace.attempts += 1
                trace.key = key
            try:
                result = attempt(key, deadline)
            except BridgeError as error:
                mask(error, (key.value,))
                tried = tried | {key}
                if error.code == CONNECTION_NOT_MADE:
                    ring.failed(key)
                    tried |= {other for other in ring.keys if other.url == key.url}  # no other way to go
                elif error.status_code is not None:
                    ring.succeeded(key)
                other = not (options.key_id or options.key_name) and ring.other_left(model, tried)
                policy = RetryPolicy(
                    options.max_retries, network.retry_backoff_initial_ms, network.retry_backoff_max_ms
                )
                wait = error.retry_after
                if not policy.should_retry(error, attempt=retries, other_key_left=other, retry_after=wait):
                    raise
                pause = policy.delay(retries, wait, other_key_left=other)
                if deadline is not None and time.monotonic() + pause >= deadline:
                    raise
                _sleep(pause, options.cancel)
                if not other:
                    tried = frozenset()
                retries += 1
            else:
                ring.succeeded(key)
                return result

    def _call(
        self,
        method: str,
        path: str,
        wire: Wire,
        model: Optional[str],
        key: Key,
        options: Options,
        deadline: Optional[float],
        streams: bool = False,
    ) -> Call:
        body: Any = wire
        if isinstance(wire, dict):
            headers = self._json_headers[key].copy()
            body = to_json(wire) if model is None or not key.aliases else _aliased(wire, model, key)
        else:
            headers = self._headers[key].copy()
            if wire is not None:
                headers["Content-Type"] = wire.content_type
        if streams:
            headers["Accept"] = "text/event-stream"
            headers["Cache-Control"] = "no-cache"
        if options.headers:
            headers = _overridden(headers, options.headers)
        if _REQUEST_ID not in headers:
            headers[_REQUEST_ID] = "%032x" % random.getrandbits(128)
        if options.trace is not None:
            options.trace.request_id = headers[_REQUEST_ID]
        return Call(
            method, "%s%s" % (key.url, path), headers, body, options.timeout, deadline, options.cancel, key.value
        )

    def _headers_for(self, key: Key) -> Dict[str, str]:
        # Accept-Encoding: vLLM never compresses, and a proxy that does would hold a stream's events back.
        headers = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": USER_AGENT}
        if key.value:
            headers["Authorization"] = "Bearer %s" % key.value
        present = {name.lower() for name in headers}
        for name, value in self.network.extra_headers.items():
            if name.lower() not in present:
                headers[_named(name)] = value
        return headers

    @staticmethod
    def _check(reply: Reply) -> None:
        try:
            payload = decode(reply.body)
        except BridgeError:
            return  # for its reader to find
        error = payload_error(payload, request_id=reply.request_id, url=reply.url)
        if error is not None:
            error.retry_after = parse_retry_after(reply.headers.get("Retry-After"), time.time())
            raise error


def _aliased(wire: Dict[str, Any], model: str, key: Key) -> bytes:
    """Return a request body as JSON, the model under its name at the key's server."""
    from ..api.body import replaced

    name = KeyRing.resolve_alias(key, model)
    data = replaced(to_json(wire), name) if isinstance(wire, Written) else None
    return to_json({**wire, "model": name}) if data is None else data


def _named(name: str) -> str:
    """Return the name under which the parts of this program look for a header."""
    return _KNOWN.get(name.lower(), name)


def _overridden(headers: Dict[str, str], others: Dict[str, str]) -> Dict[str, str]:
    if len(others) == 1 and _REQUEST_ID in others:  # nearly every request of a gateway
        headers.update(others)
        return headers
    names = {name.lower() for name in others}
    kept = {name: value for name, value in headers.items() if name.lower() not in names}
    kept.update((_named(name), value) for name, value in others.items())
    return kept


def _sleep(seconds: float, cancel: Optional[Cancellation]) -> None:
    end = time.monotonic() + seconds
    while cancel is None or not cancel.cancelled:
        left = end - time.monotonic()
        if left <= 0:
            return
        time.sleep(left if cancel is None else min(left, 0.1))
