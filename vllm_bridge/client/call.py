"""One operation carried out: a key chosen, the request sent, and sent again elsewhere where that is safe."""

import random
import threading
import time
from itertools import chain
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    FrozenSet,
    Generator,
    Iterable,
    Iterator,
    Optional,
    TypeVar,
    Union,
)

from ..api.body import Written, decode, replaced, to_json
from ..api.forwarding import Forwarding
from ..config.redaction import Redaction
from ..config.settings import Key, NetworkConfig, ProviderConfig
from ..errors import BridgeError, RequestCancelledError, payload_error
from ..http1.wait import has_left
from . import models
from .authorization import Auth
from .attempts import Attempts
from .fleet import Fleet
from .routing import Prompt
from .keys import headers_for, server_names
from .options import Options, joined
from .reply import Call, OpenReply, Reply, with_origin
from .retry import parse_retry_after
from .session import Transport
from .stream import KEEP_ALIVE, Limits, Progress, Reader, Stream, items_of

if TYPE_CHECKING:
    from ..http1.multipart import MultipartBody

__all__ = ["Caller"]

_REQUEST_ID = "X-Request-Id"
_MOMENT = 0.05  # seconds between two looks at who may break a pause off

T = TypeVar("T")
Wire = Union[Dict[str, Any], "MultipartBody", None]


class Caller:
    """Carries operations to the servers of one provider; shared by all its ``with_options`` copies."""

    def __init__(self, config: ProviderConfig, auth: Auth = None) -> None:
        self.network: NetworkConfig = config.network_config
        self.lacks_responses = False  # set when a server turned out to have no route for them
        self.lacks_base64: Dict[str, float] = {}  # until when, by model, since a server refused to send such vectors
        self.fleet = Fleet(config.resolved_keys(), way=config.routing)
        self.transport = Transport(self.network, config.proxy_config, auth)
        self._secrets = Redaction(config).secrets
        self._take_keys()

    def set_keys(self, keys: Iterable[Key]) -> None:
        """Put others in the place of the keys, while calls run; what is known of servers that stay is kept."""
        self.fleet.set_keys(keys)
        self._take_keys()

    def _take_keys(self) -> None:
        extra = self.network.extra_headers
        self._headers = {id(key): headers_for(key, extra) for key in self.fleet.keys}  # a key's hash takes long
        self.transport.name_servers(server_names(self.fleet.keys))

    def succeed(self, before: "Caller") -> None:
        """Go on with what another one knows of the servers; its running calls go on too, with these keys."""
        before.fleet.settle_for(self.fleet)
        self.fleet = before.fleet
        self._take_keys()
        before._take_keys()

    def reply(self, method: str, path: str, wire: Wire, model: Optional[str], options: Options) -> Reply:
        """Return the complete reply; the errors of a 200 are raised like those of any other status."""
        fleet = self.fleet
        reply: Reply
        if method == "GET" or not (fleet.several or fleet.most):
            reply = _result(self._attempts(None, method, path, wire, model, options))
            return reply
        prompt = fleet.prompt(path, wire, model, options.headers, False)
        length = 0
        try:
            reply = _result(self._attempts(None, method, path, wire, model, options, prompt))
            fleet.answered(prompt)
            length = len(reply.body) // 4 if prompt.answer else 0
        finally:
            fleet.done(prompt, length)
        return reply

    def stream(
        self,
        path: str,
        wire: Wire,
        model: Optional[str],
        options: Options,
        reader: Callable[[], Union[Reader[T], Forwarding]],
        method: str = "POST",
    ) -> Stream[T]:
        """Return the reply as a stream; `reader` makes the stream's meaning anew for each attempt.

        With a ``keep_alive_interval`` it is returned with its first comment, and further attempts are made while it
        is iterated; without one its first event is there.
        """
        fleet, progress = self.fleet, Progress()
        prompt = None
        if fleet.several or fleet.most:
            prompt = fleet.prompt(path, wire, model, options.headers, True)
        limits = Limits(options.timeout[1], options.stream_idle_timeout, options.keep_alive_interval)

        def begin(call: Call) -> "Generator[bytes, None, Iterator[T]]":  # written out it would be made for each call
            reply = yield from _opened(self.transport.open, call, options.keep_alive_interval)
            if options.trace is not None:
                options.trace.status, options.trace.request_id = reply.status, reply.request_id
            items = items_of(
                reply, reader(), limits, progress, lambda error: with_origin(error, call, reply.request_id)
            )
            for item in items:
                if progress.begun:
                    if prompt is not None:
                        fleet.answered(prompt)
                    return chain((item,), items)
                yield item
            return iter(())

        attempts = self._attempts(begin, method, path, wire, model, options, prompt, True)
        items = _items(attempts, options, progress)
        return Stream(progress, items if prompt is None else _counted(items, fleet, prompt, progress))

    def get(self, path: str, key: Key, options: Options, method: str = "GET") -> Reply:
        """Ask one certain server, once."""
        deadline = None if options.deadline is None else time.monotonic() + options.deadline
        call = self._call(key, deadline, method, path, None, None, options)
        trace = options.trace
        if trace is not None:
            trace.attempts += 1
            trace.key, trace.request_id = key, call.request_id
        try:
            reply = self.transport.send(call)
            _check(reply)
            if trace is not None:
                trace.status, trace.request_id = reply.status, reply.request_id
            return reply
        except BridgeError as error:
            with_origin(error, call)
            raise

    def _attempts(
        self,
        begin: Optional[Callable[[Call], Generator[bytes, None, Any]]],
        method: str,
        path: str,
        wire: Wire,
        model: Optional[str],
        options: Options,
        prompt: Optional[Prompt] = None,
        streams: bool = False,
    ) -> Generator[bytes, None, Any]:
        """Make attempts until one gives a result, which is returned; yield the comments that come meanwhile.

        The result is what `begin` returns, without that the complete reply.
        """
        fleet, trace = self.fleet, options.trace
        deadline = None if options.deadline is None else time.monotonic() + options.deadline
        attempts: Optional[Attempts] = None
        tried: FrozenSet[Key] = frozenset()
        while True:
            if prompt is None:
                key = fleet.select(model, tried, options.key_id, options.key_name)
            else:
                key = self._chosen(model, tried, options, prompt)
            call = self._call(key, deadline, method, path, wire, model, options, streams)
            if trace is not None:
                trace.attempts += 1
                trace.key = key
                trace.request_id = call.request_id
                trace.sent = time.monotonic()
            try:
                if begin is None:
                    result: Any = self.transport.send(call)
                    _check(result)
                    if trace is not None:
                        trace.status, trace.request_id = result.status, result.request_id
                else:
                    result = yield from begin(call)
            except BridgeError as error:
                if attempts is None:
                    attempts = Attempts(self.network, fleet, model, options)
                with_origin(error, call)
                if trace is not None:
                    trace.status, trace.request_id = error.status_code, error.request_id
                    trace.failed += (key,)
                pause = attempts.failed(key, error, prompt)
                if pause is None or (deadline is not None and time.monotonic() + pause >= deadline):
                    attempts.ended(False)
                    raise attempts.failure(error)
                tried = attempts.tried
            else:
                if fleet.down or attempts is not None:
                    _ended_well(fleet, key, attempts)
                return result
            yield from _paused(pause, options)

    def tidy(self, options: Options) -> None:
        """Close what is idle for too long, and ask the servers again what they have, if that was long ago."""
        self.transport.tidy()
        fleet = self.fleet
        if fleet.several and fleet.asked_at is not None and fleet.clock() - fleet.asked_at >= models.REFRESHED:
            fleet.asked_at = fleet.clock()
            fleet.to_ask.update(fleet.servers.values())
            models.beside(self, options)

    def _chosen(self, model: Optional[str], tried: FrozenSet[Key], options: Options, prompt: Prompt) -> Key:
        """Return the key to use, of several servers'; they are asked what they have where that is not known."""
        fleet = self.fleet
        if fleet.to_ask:
            models.beside(self, options)
        if not (options.key_id or options.key_name) and isinstance(model, str) and model not in fleet.known:
            models.learn(self, model, options)
        key = fleet.select(model, tried, options.key_id, options.key_name, prompt)
        if options.direct and model in fleet.bare:  # a gateway has taken off what it takes off
            raise fleet.nobody_has(model)
        if fleet.resting:
            models.wake(self, key, options)
        return key

    def _call(
        self,
        key: Key,
        deadline: Optional[float],
        method: str,
        path: str,
        wire: Wire,
        model: Optional[str],
        options: Options,
        streams: bool = False,
    ) -> Call:
        body: Any = wire
        headers = (self._headers.get(id(key)) or headers_for(key, self.network.extra_headers)).copy()
        if wire is not None:
            name = None if model is None or not (key.aliases or self.fleet.bare) else self.fleet.name_at(key, model)
            if isinstance(wire, dict):
                headers["Content-Type"] = "application/json"
                body = to_json(wire) if name is None else _renamed(wire, name)
            else:
                body = wire if name is None else wire.with_field("model", name)
                headers["Content-Type"] = body.content_type
        if streams:
            headers["Accept"] = "text/event-stream"
            headers["Cache-Control"] = "no-cache"
        if options.headers:
            headers = joined(headers, options.headers)
        if options.request_id is not None:
            headers[_REQUEST_ID] = options.request_id
        elif _REQUEST_ID not in headers:
            headers[_REQUEST_ID] = "%032x" % random.getrandbits(128)
        return Call(
            method, "%s%s%s" % (key.url, path, options.query), headers, body, options.timeout, deadline, options.cancel,
            self._secrets, options.client, options.session, options.direct, key.url,
        )


def _ended_well(fleet: Fleet, key: Key, attempts: Optional[Attempts]) -> None:
    fleet.succeeded(key)
    if attempts is not None:
        attempts.ended(True)


def _renamed(wire: Dict[str, Any], model: str) -> bytes:
    """Return a request body as JSON, the model under its name at the key's server."""
    data = replaced(to_json(wire), model) if isinstance(wire, Written) else None
    return to_json({**wire, "model": model}) if data is None else data


def _check(reply: Reply) -> None:
    """Raise the error that a 200 holds."""
    # vLLM's JSON never spaces or escapes a key, and an error's object begins with it.
    body = reply.body if len(reply.body) < 65536 else reply.body[:1024]
    # To find nothing takes rfind a third of the time of find, and of `in`.
    if body.rfind(b'"error"') >= 0 or body.rfind(b'"detail"') >= 0:
        try:
            payload = decode(reply.body)
        except BridgeError:
            return  # for its reader to find
        error = payload_error(payload, request_id=reply.request_id, url=reply.url)
        if error is not None:
            error.retry_after = parse_retry_after(reply.headers.get("retry-after"), time.time())
            raise error


# ---------------------------------------------------------------- generators


def _result(attempts: Generator[Any, None, T]) -> T:
    """Run a generator to its end, and return what it returns."""
    while True:
        try:
            next(attempts)
        except StopIteration as end:
            result: T = end.value
            return result


def _items(
    attempts: Generator[bytes, None, Iterator[T]], options: Options, progress: Progress
) -> Generator[Any, None, None]:
    """Yield a stream's items, and before them, where they are wanted, the comments that come during the attempts."""
    trace = options.trace
    try:
        items = _result(attempts) if options.keep_alive_interval is None else (yield from attempts)
        yield from items if trace is None or isinstance(progress.reader, Forwarding) else trace.counted(items)
    except BridgeError as error:
        if trace is not None and error.status_code is not None:
            trace.status = error.status_code
        raise
    finally:
        if trace is not None:
            trace.events = trace.events or progress.events


def _counted(
    items: Generator[Any, None, None], fleet: Fleet, prompt: Prompt, progress: Progress
) -> Generator[Any, None, None]:
    """Yield a stream's items; its server has less to do when they end."""
    count = 0
    try:
        for item in items:
            count += 1
            yield item
    finally:
        items.close()
        fleet.done(prompt, max(count, progress.events))


def _opened(
    open: Callable[[Call], OpenReply], call: Call, interval: Optional[float]
) -> Generator[bytes, None, OpenReply]:
    """Return the open reply; yield comments of our own while its head lets us wait."""
    if not interval:
        return open(call)
    waiting = _Opening(open, call)
    try:
        waiting.start()
    except RuntimeError:  # no thread to be had
        return open(call)
    try:
        while not waiting.done.wait(interval):
            yield KEEP_ALIVE
    except GeneratorExit:
        waiting.leave()
        raise
    if waiting.failure is not None:
        raise waiting.failure
    assert waiting.reply is not None
    return waiting.reply


class _Opening(threading.Thread):
    """Waits for the head of a reply beside the one who sends comments meanwhile."""

    def __init__(self, open: Callable[[Call], OpenReply], call: Call) -> None:
        super().__init__(daemon=True)
        self.done = threading.Event()
        self.reply: Optional[OpenReply] = None
        self.failure: Optional[BaseException] = None
        self._open = open
        self._call = call
        self._left = False

    def run(self) -> None:
        """Open the reply; close it if nobody waits for it any more."""
        try:
            self.reply = self._open(self._call)
        except BaseException as error:
            self.failure = error
        self.done.set()
        if self._left and self.reply is not None:
            self.reply.close()

    def leave(self) -> None:
        """Wait no longer."""
        self._left = True
        if self.reply is not None:
            self.reply.close()


def _paused(seconds: float, options: Options) -> Generator[bytes, None, None]:
    """Wait before the next attempt; raise `RequestCancelledError` when nobody wants it any more."""
    now = time.monotonic()
    end, interval, cancel = now + seconds, options.keep_alive_interval, options.cancel
    comment = now + interval if interval else end
    while now < end:
        if has_left(options.client):
            raise RequestCancelledError("the client left")
        if cancel is not None and cancel.why is not None:
            raise RequestCancelledError(cancel.why)
        pause = min(end, comment) - now
        time.sleep(pause if cancel is None and options.client is None else min(pause, _MOMENT))
        now = time.monotonic()
        if interval and comment <= now < end:
            yield KEEP_ALIVE
            comment = now + interval
