"""An application of request.py under any WSGI server (PEP 3333)."""

from typing import Any, Callable, Dict, Iterable, Iterator
from urllib.parse import quote

from ..errors import RequestCancelledError
from ..http1.head import ProtocolError
from .request import PHRASES, Answer, Application, Request

__all__ = ["respond"]

_BLOCK = 256 * 1024

Environ = Dict[str, Any]
StartResponse = Callable[..., Any]


def respond(application: Application, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Let an application answer one call of a WSGI server.

    A client that leaves is noticed under gunicorn and waitress, which say how to ask.
    """
    request = _request(environ)
    try:
        answer = application.answer(request)
    except ProtocolError as error:
        answer = application.refuse(request, error.status, error.message)
    fields = list(answer.fields)
    if isinstance(answer.body, bytes) and answer.status != 204:
        fields.append(("Content-Length", str(len(answer.body))))
    sent = _Sent(application, request, answer)
    try:
        start_response("%d %s" % (answer.status, PHRASES.get(answer.status, "Other")), fields)
    except BaseException:
        sent.close()
        raise
    return sent


class _Sent:
    """The body of an answer, whose end the application is told of when the server closes it."""

    def __init__(self, application: Application, request: Request, answer: Answer) -> None:
        self._application = application
        self._request = request
        self._answer = answer
        self._complete = False
        self._closed = False

    def __iter__(self) -> Iterator[bytes]:
        body = self._answer.body
        if self._request.method != "HEAD":
            if isinstance(body, bytes):
                if body:
                    yield body
            else:
                yield from body
        self._complete = True

    def close(self) -> None:
        """End the answer, once."""
        if self._closed:
            return
        self._closed = True
        try:
            if not isinstance(self._answer.body, bytes):
                self._answer.body.close()
        finally:
            self._application.ended(self._request, self._answer, self._complete)


def _request(environ: Environ) -> Request:
    fields = {name[5:].replace("_", "-").lower(): value for name, value in environ.items() if name.startswith("HTTP_")}
    for name in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        if environ.get(name):
            fields[name.replace("_", "-").lower()] = environ[name]
    target = quote(environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", ""), encoding="latin-1")
    if environ.get("QUERY_STRING"):
        target += "?" + environ["QUERY_STRING"]
    return Request(
        environ["REQUEST_METHOD"], target, environ.get("SERVER_PROTOCOL", "HTTP/1.0"), fields,
        environ.get("REMOTE_ADDR", ""), _Input(environ),
        environ.get("gunicorn.socket") or environ.get("waitress.client_disconnected"),
    )


class _Input:
    """The body of a request behind ``wsgi.input``."""

    def __init__(self, environ: Environ) -> None:
        self._source = environ["wsgi.input"]
        self._length = environ.get("CONTENT_LENGTH") or ""
        self._ends = bool(environ.get("wsgi.input_terminated"))  # elsewhere a body in chunks has no end to find

    def read(self, limit: int) -> bytes:
        return b"".join(self.blocks(limit))

    def blocks(self, limit: int) -> Iterator[bytes]:
        if self._length:
            if not (self._length.isascii() and self._length.isdigit()) or len(self._length) > 18:
                raise ProtocolError(400, "Content-Length is not a number of bytes")
            left = int(self._length)
            if left > limit:
                raise _too_long(limit)
        elif self._ends:
            left = limit + 1
        else:
            return
        while left > 0:
            try:
                block: bytes = self._source.read(min(left, _BLOCK))
            except OSError as error:
                raise RequestCancelledError("the client left inside its body") from error
            if not block:
                break
            left -= len(block)
            yield block
        if self._length and left:
            raise ProtocolError(400, "the body ended before its Content-Length")
        if not self._length and not left:
            raise _too_long(limit)


def _too_long(limit: int) -> ProtocolError:
    return ProtocolError(413, "the request body is longer than the %d bytes that this server accepts" % limit)
