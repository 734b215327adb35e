"""One client's connection: requests in, the application's answers out, all on the connection's own thread."""

import logging
import socket
import time
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, Iterator, NamedTuple, Optional, Tuple

from ..errors import RequestCancelledError
from ..http1 import wait
from ..http1.head import ProtocolError, RequestHead, field_block, find_head_end, remains
from .body import RequestBody
from .request import PHRASES, Answer, Request

if TYPE_CHECKING:
    from .listener import Server

__all__ = ["Connection"]

logger = logging.getLogger("vllm_bridge.gateway")

_BLOCK = 64 * 1024
_JOINED = 64 * 1024  # bytes of a body up to which it leaves in one write with its head
_FULL = 503, "this server does as much at once as it may; try again later"
_LINGER = 5.0  # seconds in all that a client whose connection ends may go on sending
_LINGER_IDLE = 1.0  # seconds of silence after which it has understood


class _Left(Exception):
    """The client has left, or takes nothing."""


class _Begun(NamedTuple):
    """An answer as far as the application has to be asked before anything leaves."""

    answer: Answer
    fields: str
    first: bytes  # the whole body, or its first block
    blocks: Optional[Iterator[bytes]]  # those that follow


class Connection(BaseHTTPRequestHandler):
    """Serve the requests of one connection in order; ``http.server`` calls it in a thread of its own.

    Heads are read by `http1.head` instead of ``parse_request``, and the application answers instead of ``do_`` methods.
    """

    server: "Server"
    connection: socket.socket

    def setup(self) -> None:
        self.connection = self.request
        self._client = str(self.client_address[0])
        self._data = b""  # received and not yet used
        self._served = False
        self._unread = False  # the client may be sending what nobody will read
        try:
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            pass  # a client that has gone

    def handle_one_request(self) -> None:
        """Answer the next request; leave ``close_connection`` True unless another may follow."""
        self.close_connection = True
        try:
            head = self._read_head()
        except ProtocolError as error:
            self._unread = True
            method, target, fields = remains(self._data)
            request = Request(method, target, "HTTP/1.1", fields, self._client, _NO_BODY)
            self._deliver(request, self._begun(request, (error.status, error.message)), False)
            return
        except OSError:
            return  # the client has gone
        if head is not None:
            self._serve(head)

    def finish(self) -> None:
        if (self._unread or self._data) and not self.server.stopping:
            self._linger()

    # ------------------------------------------------------------ in

    def _read_head(self) -> Optional[RequestHead]:
        """Return the head of the next request, ``None`` if the client sends no other.

        Of a head that is refused `_data` has all that came.
        """
        server, data = self.server, self._data
        if not data:
            if self._served:
                server.idle[self.connection] = 0.0
                if server.stopping:
                    return None
            if not wait.readable(
                self.connection, server.keep_alive_timeout if self._served else server.header_timeout
            ):
                return None
            data = self.connection.recv(_BLOCK)
            if not data:
                return None
        self._data = data
        end = data.find(b"\r\n\r\n") + 4
        if end < 4 or data[0] == 13:
            data, end = self._collect_head(data)
        server.idle.pop(self.connection, None)
        head = RequestHead(data[:end])
        self._data = data[end:]
        return head

    def _collect_head(self, data: bytes) -> Tuple[bytes, int]:
        """Return a head that did not come in one piece with what follows it, and where it ends."""
        deadline = time.monotonic() + self.server.header_timeout
        buffer = bytearray(data)
        seen = blanks = 0
        try:
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
                if not wait.readable(self.connection, max(0.0, deadline - time.monotonic())):
                    raise ProtocolError(408, "the request head did not arrive in time")
                data = self.connection.recv(_BLOCK)
                if not data:
                    raise ProtocolError(400, "the connection ended inside the request head")
                buffer += data
        finally:
            self._data = bytes(buffer)

    def _linger(self) -> None:
        """End the output and read on for a while, so that the last answer reaches a client that is still sending.

        Closing with unread input would reset the connection, and the answer could be lost with it.
        """
        end = time.monotonic() + _LINGER
        self.server.idle[self.connection] = 0.0
        try:
            self.connection.shutdown(socket.SHUT_WR)
            while time.monotonic() < end and wait.readable(self.connection, _LINGER_IDLE):
                if not self.connection.recv(_BLOCK):
                    return
        except OSError:
            pass

    # ------------------------------------------------------------ the application

    def _serve(self, head: RequestHead) -> None:
        server = self.server
        body = RequestBody(self.connection, head, self._data, server.body_timeout)
        self._data = b""
        self._served = True
        request = Request(
            head.method, head.target, head.version, head.fields, self._client, body, self.connection, server.is_over
        )
        counted = request.path not in server.application.probes
        full = False
        if counted:
            try:
                server.free_places.pop()
            except IndexError:
                counted, full = False, True
        try:
            begun = self._begun(request, _FULL if full else None)
            keep = head.keep_alive and not server.stopping and (body.finished or body.is_skippable())
            keep = self._deliver(request, begun, keep)
        finally:
            if counted:
                server.free_places.append(None)
        if keep and not body.finished:
            server.idle[self.connection] = 0.0
            try:
                body.skip()
            except (ProtocolError, RequestCancelledError):
                keep = False
        self.close_connection = not keep
        self._data = body.rest
        self._unread = not body.finished

    def _begun(self, request: Request, refusal: Optional[Tuple[int, str]] = None) -> _Begun:
        """Let the application answer, or word a refusal; take from it what has to be known before the head leaves.

        Where the application fails a refusal says so; where it cannot word that either, the error is raised.
        """
        application = self.server.application
        answer: Optional[Answer] = None
        try:
            if refusal is None:
                answer = application.answer(request)
            else:
                logger.debug("refused %s: %d, %s", self._client, *refusal)
                answer = application.refuse(request, *refusal)
            fields = field_block(answer.fields)
            if isinstance(answer.body, bytes):
                return _Begun(answer, fields, answer.body, None)
            blocks = iter(()) if request.method == "HEAD" else iter(answer.body)
            return _Begun(answer, fields, next(blocks, b""), blocks)
        except BaseException as error:
            if answer is not None and not isinstance(answer.body, bytes):
                answer.body.close()
            if refusal is not None or not isinstance(error, Exception):
                raise
            if isinstance(error, ProtocolError):
                again = error.status, error.message
            elif isinstance(error, RequestCancelledError):
                again = 499, error.message
            else:
                logger.error("the application failed on %s %r", request.method, request.path, exc_info=True)
                again = 500, "the server failed on this request; its log says more"
        return self._begun(request, again)

    # ------------------------------------------------------------ out

    def _deliver(self, request: Request, begun: _Begun, keep: bool) -> bool:
        """Send an answer; tell whether the connection may be used again, which is so only where `keep` is."""
        answer, fields, data, blocks = begun
        status, old = answer.status, request.version == "HTTP/1.0"
        silent = request.method == "HEAD" or status == 204
        chunked = blocks is not None and not old
        if blocks is not None:
            keep = keep and chunked
            framing = "Transfer-Encoding: chunked\r\n" if chunked and not silent else ""
        else:
            framing = "" if status == 204 else "Content-Length: %d\r\n" % len(data)
        if not keep:
            framing += "Connection: close\r\n"
        elif old:
            framing += "Connection: keep-alive\r\n"
        if status == 426:  # RFC 9110 §15.5.22
            framing += "Connection: Upgrade\r\nUpgrade: HTTP/1.1\r\n"
        head = ("HTTP/1.1 %d %s\r\n%s%s%s\r\n" % (
            status, PHRASES.get(status, ""), fields, self.server.date_line(), framing
        )).encode("latin-1")
        complete = False
        try:
            if silent:
                self._send(head)
            else:
                if chunked:
                    data = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
                if len(data) > _JOINED:
                    self._send(head)
                    self._send(data)
                else:
                    self._send(head + data)
                if blocks is not None:
                    self._send_blocks(blocks, chunked)
            complete = True
        except _Left as error:
            logger.debug("%s did not take the whole answer: %s", self._client, error)
        except Exception:
            logger.error("the application failed on %s %r", request.method, request.path, exc_info=True)
        finally:
            if blocks is not None:
                self._close(answer)
            self.server.application.ended(request, answer, complete)
        return keep and complete

    def _send_blocks(self, blocks: Iterator[bytes], chunked: bool) -> None:
        """Send each block at once, and the end."""
        send = self._send
        for block in blocks:
            if block:
                send(b"%x\r\n%b\r\n" % (len(block), block) if chunked else block)
        if chunked:
            send(b"0\r\n\r\n")

    def _send(self, data: bytes) -> None:
        """Send all of it; raises _Left."""
        try:
            sent = self.connection.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise _Left(error) from None
        if sent < len(data):
            self._send_rest(memoryview(data)[sent:])

    def _send_rest(self, rest: memoryview) -> None:
        limit = self.server.write_timeout
        while rest:
            if not wait.writable(self.connection, limit):
                raise _Left("nothing was taken for %g seconds" % limit)
            try:
                rest = rest[self.connection.send(rest):]
            except BlockingIOError:
                pass
            except OSError as error:
                raise _Left(error) from None

    def _close(self, answer: Answer) -> None:
        try:
            answer.body.close()  # type: ignore[union-attr]
        except Exception:
            logger.error("an answer's body could not be closed", exc_info=True)


class _NoBody:
    def read(self, limit: int) -> bytes:
        return b""

    def blocks(self, limit: int) -> Iterator[Any]:
        return iter(())


_NO_BODY = _NoBody()
