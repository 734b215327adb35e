"""One client connection: requests in, the application's replies out."""

import json
import logging
import sys
import time
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, Dict, Optional, Tuple
from urllib.parse import unquote_to_bytes

from ..errors import APIStatusError, error_to_payload
from ..http1.head import ProtocolError, RequestHead, find_head_end, parse_request_head
from .body import BodyError, RequestBody
from .channel import Channel
from .reply import Reply

if TYPE_CHECKING:
    from .listener import GatewayServer

__all__ = ["Connection"]

logger = logging.getLogger("vllm_bridge.gateway")

_HEAD_READ = 64 * 1024
_BODY_READ = 256 * 1024
_DRAINED = 64 * 1024  # bytes of an unread body that are read to keep the connection
_SLOWEST = 512  # bytes a second below which a sender of a body is cut off

_PHRASES = {
    400: "Bad Request", 408: "Request Timeout", 413: "Content Too Large", 414: "URI Too Long",
    417: "Expectation Failed", 431: "Request Header Fields Too Large", 500: "Internal Server Error",
    501: "Not Implemented", 503: "Service Unavailable", 505: "HTTP Version Not Supported",
}
_CODES = {408: "request_timeout", 413: "request_too_large", 500: "internal_error", 503: "too_many_connections"}

# Names of headers → keys of the environ. None: not handed over. A name with an underscore would meet its
# twin with a hyphen under one key, and HTTP_PROXY would be read as a proxy setting by libraries.
_KEYS: Dict[str, Optional[str]] = {
    "content-length": "CONTENT_LENGTH", "content-type": "CONTENT_TYPE", "proxy": None,
}
_KEYS_KEPT = 500


class Connection(BaseHTTPRequestHandler):
    """Serve the requests of one connection in order; ``http.server`` calls it in a thread of its own.

    Heads are read by http1.py instead of ``parse_request``, and the WSGI application answers instead of
    the ``do_`` methods.
    """

    server: "GatewayServer"

    def setup(self) -> None:
        self.connection = self.request
        self._channel = Channel(self.request, self.server.write_timeout)
        self._buffer = b""  # received and not yet used
        self._waited = 0.0  # seconds spent waiting for the body of this request
        self._received = 0  # bytes of it
        self._continue = False  # the client waits for 100 Continue
        self._unread = False  # input may be left that the client is still sending
        self._base: Dict[str, Any] = dict(
            self.server.base_environ, REMOTE_ADDR=str(self.client_address[0]), REMOTE_PORT=str(self.client_address[1])
        )
        self._base["wsgi.errors"] = sys.stderr
        self._base["vllm_bridge.socket"] = self.request

    def handle(self) -> None:
        try:
            if self.server.is_refused(self.request):
                self._refuse(503, "this gateway has all the connections it may have open; try again later")
            else:
                served = 0
                while self._serve_one(served):
                    served += 1
        except (ProtocolError, BodyError) as error:
            self._refuse(error.status, error.message)
        except OSError:
            pass  # the client has gone, or takes nothing

    def finish(self) -> None:
        if (self._unread or self._buffer) and not self.server.stopping:
            self._channel.linger()

    # ------------------------------------------------------------ one request

    def _serve_one(self, served: int) -> bool:
        """Answer the next request; tell whether another may follow."""
        head = self._read_head(served)
        if head is None:
            return False
        most = self.server.max_body
        if most is not None and (head.body_length or 0) > most:
            raise BodyError(413, "the request body is longer than the %d bytes that this server accepts" % most)
        body = RequestBody(self._more_body, self._give_back, head.body_length, most)
        self._continue = head.expect_continue
        self._waited, self._received = 0.0, 0

        def must_close() -> bool:
            unread = body.unread
            if self.server.stopping or body.failed or self._continue or unread is None:
                return True
            return unread > _DRAINED

        reply = Reply(head, self._channel, self.server.date_line, must_close)
        if not self._call(head, body, reply):
            self._unread = True
            return False
        if body.unread == 0:
            return not reply.close
        self._unread = True
        if reply.close or not body.drain():
            return False
        self._unread = False
        return True

    def _call(self, head: RequestHead, body: RequestBody, reply: Reply) -> bool:
        """Let the application answer; tell whether the reply left whole."""
        result: Any = None
        try:
            try:
                result = self.server.app(self._environ(head, body), reply.start_response)
                reply.send_body(result)
                return True
            finally:
                if hasattr(result, "close"):
                    result.close()
        except BodyError as error:
            if not reply.sent:
                self._refuse(error.status, error.message)
        except Exception as error:
            if self._channel.lost:
                logger.debug("the client left before its reply ended: %s", error)
                return False
            where = head.target.partition("?")[0]
            logger.error("the application failed on %s %r", head.method, where, exc_info=True)
            if not reply.sent:
                self._refuse(500, "the gateway failed on this request; its log says more")
        return False

    def _environ(self, head: RequestHead, body: RequestBody) -> Dict[str, Any]:
        environ = self._base.copy()
        path, _, query = head.target.partition("?")
        if "%" in path:
            path = unquote_to_bytes(path).decode("latin-1")
        environ["REQUEST_METHOD"] = head.method
        environ["PATH_INFO"] = "" if path == "*" else path
        environ["QUERY_STRING"] = query
        environ["REQUEST_URI"] = head.target
        environ["SERVER_PROTOCOL"] = head.version
        environ["wsgi.input"] = body
        fields = head.fields
        keys = list(map(_KEYS.get, fields))
        if None not in keys:
            environ.update(zip(keys, fields.values()))  # type: ignore[arg-type]
            return environ
        for name, value in fields.items():
            key = _KEYS[name] if name in _KEYS else _environ_key(name)
            if key is not None:
                environ[key] = value
        return environ

    # ------------------------------------------------------------ in

    def _read_head(self, served: int) -> Optional[RequestHead]:
        """Return the head of the next request, ``None`` if the client sends no other."""
        server = self.server
        data = self._buffer
        if not data:
            server.idle.add(self.request)
            if served and server.stopping:
                return None
            try:
                data = self._channel.receive(
                    _HEAD_READ, server.keep_alive_timeout if served else server.header_timeout
                )
            except TimeoutError:
                return None
            server.idle.discard(self.request)
            if not data:
                return None
        end = data.find(b"\r\n\r\n") + 4
        if end < 4 or data[0] == 13:
            data, end = self._read_slow_head(data)
        self._buffer = data[end:]
        return parse_request_head(data[:end])

    def _read_slow_head(self, data: bytes) -> Tuple[bytes, int]:
        """Collect a head that did not come in one piece, all of it within ``header_timeout``."""
        deadline = time.monotonic() + self.server.header_timeout
        buffer = bytearray(data)
        seen = blanks = 0
        while True:
            # RFC 9112 §2.2: an empty line before the request line is ignored.
            while blanks < 2 and buffer.startswith(b"\r\n"):
                del buffer[:2]
                blanks, seen = blanks + 1, 0
            if buffer != b"\r":
                end = find_head_end(buffer, seen)
                if end >= 0:
                    return bytes(buffer), end
                seen = len(buffer)
            try:
                data = self._channel.receive(_HEAD_READ, max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                raise ProtocolError(408, "the request head did not arrive in time") from None
            if not data:
                raise ProtocolError(400, "the connection ended inside the request head")
            buffer += data

    def _more_body(self) -> bytes:
        """Return the next bytes of the body and what follows it."""
        data = self._buffer
        if data:
            self._buffer = b""
            self._continue = False
            return data
        if self._continue:
            self._continue = False
            self._channel.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        limit = self.server.body_timeout
        started = time.monotonic()
        try:
            data = self._channel.receive(_BODY_READ, limit)
        except TimeoutError:
            raise BodyError(408, "nothing of the request body arrived for %g seconds" % limit) from None
        self._waited += time.monotonic() - started
        self._received += len(data)
        if not data:
            raise BodyError(400, "the connection ended inside the request body")
        if self._waited > limit + self._received / _SLOWEST:
            raise BodyError(408, "the request body arrives too slowly")
        return data

    def _give_back(self, data: bytes) -> None:
        self._buffer = data

    # ------------------------------------------------------------ out

    def _refuse(self, status: int, message: str) -> None:
        """Answer with an error of the server's own and end the connection."""
        self._unread = True
        kind = "server_error" if status >= 500 else "invalid_request_error"
        error = APIStatusError(message, type=kind, code=_CODES.get(status, "invalid_http"), status_code=status)
        logger.info("refused %s: %d, %s", self.client_address[0], status, message)
        body = json.dumps(error_to_payload(error)).encode("utf-8")
        head = "HTTP/1.1 %d %s\r\n%sContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
        head %= (status, _PHRASES[status], self.server.date_line(), len(body))
        try:
            self._channel.send(head.encode("latin-1") + body)
        except OSError:
            pass


def _environ_key(name: str) -> Optional[str]:
    key = None if "_" in name else "HTTP_" + name.upper().replace("-", "_")
    if len(_KEYS) < _KEYS_KEPT:
        _KEYS[name] = key
    return key
