"""One request as the gateway sees it, from its WSGI environ to what is known of it at its end."""

import random
import re
import time
from typing import Any, Dict, Iterator, Optional

from ..client.options import Trace
from ..errors import APIStatusError, BadRequestError
from ..client.cancellation import Cancellation

__all__ = ["Request", "bare_model"]

PREFIX = "vllm/"
_ID = re.compile(r"[!-~]{1,200}\Z")
_BLOCK = 256 * 1024

# Headers of a client that mean something to vLLM or to tracing, and go up as they are (WIRE.md §2).
_PASSED = (
    ("HTTP_TRACEPARENT", "traceparent"),
    ("HTTP_TRACESTATE", "tracestate"),
    ("HTTP_X_SESSION_ID", "X-Session-ID"),
    ("HTTP_X_VLLM_PRIORITY", "X-Vllm-Priority"),
    ("HTTP_X_DATA_PARALLEL_RANK", "X-data-parallel-rank"),
    ("HTTP_ENDPOINT_LOAD_METRICS_FORMAT", "endpoint-load-metrics-format"),
)
_OWN = "HTTP_X_BF_"
_EXTRA = "HTTP_X_BF_EH_"
# Never set from outside, whatever they are called in a x-bf-eh-... header (SPEC §2.1).
_REFUSED = frozenset((
    "accept accept-encoding authorization connection content-length content-type cookie expect host keep-alive "
    "proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding upgrade x-api-key "
    "x-goog-api-key x-request-id"
).split())


def bare_model(name: str) -> str:
    """Return a model's name without one literal ``vllm/`` before it: ``vllm//data/x`` is ``/data/x``."""
    return name[len(PREFIX):] if name.startswith(PREFIX) else name


class Request:
    """A request, and what becomes of it."""

    __slots__ = (
        "environ", "method", "path", "id", "started", "operation", "model", "rest", "cancellation", "trace",
        "first", "streaming", "fallbacks", "watched", "ended",
    )

    def __init__(self, environ: Dict[str, Any]) -> None:
        self.environ = environ
        self.method: str = environ["REQUEST_METHOD"]
        path: str = environ.get("PATH_INFO") or "/"
        # WSGI hands bytes over as Latin-1 (PEP 3333).
        self.path = path if path.isascii() else path.encode("latin-1").decode("utf-8", "replace")
        given = environ.get("HTTP_X_REQUEST_ID")
        self.id: str = given if given is not None and _ID.match(given) else "%032x" % random.getrandbits(128)
        self.started = time.monotonic()
        self.operation = ""
        self.model: Optional[str] = None
        self.rest = ""
        self.cancellation = Cancellation()
        self.trace = Trace()
        self.first: Optional[float] = None  # seconds until the first event
        self.streaming = False
        self.fallbacks = 0
        self.watched = 0
        self.ended = False

    @property
    def under_openai(self) -> bool:
        """Whether the client asked under ``/openai``, where replies are exactly OpenAI's (SPEC §10)."""
        return self.path.startswith("/openai/")

    def options(self) -> Dict[str, Any]:
        """Return what `with_options` takes: the headers to pass on, the key to use, who watches."""
        environ = self.environ
        headers = {"X-Request-Id": self.id}
        for key, name in _PASSED:
            if key in environ:
                headers[name] = environ[key]
        options: Dict[str, Any] = {"headers": headers, "cancel": self.cancellation, "trace": self.trace}
        if _OWN in "\n".join(environ):  # no loop over all headers for those that hardly anybody sends
            for key in environ:
                if key.startswith(_OWN):
                    self._own_header(key, options)
        return options

    def _own_header(self, key: str, options: Dict[str, Any]) -> None:
        value = self.environ[key]
        if key == "HTTP_X_BF_API_KEY_ID":
            options["key_id"] = value
        elif key == "HTTP_X_BF_API_KEY":
            options["key_name"] = value
        elif key.startswith(_EXTRA):
            name = key[len(_EXTRA):].replace("_", "-").lower()
            if name and name not in _REFUSED and not name.startswith("x-bf-"):
                options["headers"][name] = value

    # ------------------------------------------------------------ the body

    def body(self, most: int) -> bytes:
        """Read the body; raises `APIStatusError` (413) when it is longer than `most` bytes."""
        length = self._announced(most)
        if length is None:
            return b"".join(self.blocks(most))
        data: bytes = self.environ["wsgi.input"].read(length) if length else b""
        if len(data) != length:
            raise _invalid("the body ended before its Content-Length")
        return data

    def blocks(self, most: int) -> Iterator[bytes]:
        """Read the body piece by piece; an announced length over `most` is refused at once."""
        left = self._announced(most)
        source = self.environ["wsgi.input"]
        if left is None:
            if self.environ.get("wsgi.input_terminated"):  # elsewhere there is no end to find
                yield from _chunked(source, most)
            return
        while left > 0:
            block = source.read(min(left, _BLOCK))
            if not block:
                raise _invalid("the body ended before its Content-Length")
            left -= len(block)
            yield block

    def _announced(self, most: int) -> Optional[int]:
        """Return the announced length of the body, ``None`` for a body in chunks or without one."""
        environ = self.environ
        coding = environ.get("HTTP_CONTENT_ENCODING")
        if coding and coding.lower() != "identity":
            raise _error(415, "unsupported_encoding", "the request body is compressed (%.40s); send it plain" % coding)
        text = environ.get("CONTENT_LENGTH")
        if not text:
            return None
        if not (text.isascii() and text.isdigit()) or len(text) > 18:
            raise _invalid("Content-Length is no number")
        length = int(text)
        if length > most:
            raise _too_long(most)
        return length


def _chunked(source: Any, most: int) -> Iterator[bytes]:
    size = 0
    for block in iter(lambda: source.read(_BLOCK), b""):
        size += len(block)
        if size > most:
            raise _too_long(most)
        yield block


def _invalid(reason: str) -> BadRequestError:
    return BadRequestError("invalid request format: %s" % reason, type="invalid_request_error")


def _too_long(most: int) -> APIStatusError:
    message = "the request body is longer than the %d bytes that this server accepts" % most
    return _error(413, "request_too_large", message)


def _error(status: int, code: str, message: str) -> APIStatusError:
    return APIStatusError(message, type="invalid_request_error", code=code, status_code=status)
