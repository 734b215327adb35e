"""Where a stream's bytes come from, and what is read of a body that is no event stream."""

import time
from typing import Any, Dict, Optional, Protocol

from ..api.body import decode
from ..errors import APIConnectionError, BridgeError, ResponseDecodeError, payload_error

__all__ = ["Source", "first_block"]

_NO_STREAM = 1024 * 1024, 5.0  # bytes and seconds that are read of a JSON body where a stream should be
_QUOTED = 65536, 0.2  # and of anything else


class Source(Protocol):
    """Where a stream's bytes come from: an open reply of the transport."""

    url: str
    request_id: Optional[str]
    headers: Any
    resumes: bool  # a read that took too long may be tried again
    server: Optional[str]

    @property
    def elapsed(self) -> float:
        """The seconds from the call until now, or until the end."""

    def read(self) -> bytes:
        """Return the bytes that are there, ``b""`` at the end of the body."""

    def set_timeout(self, seconds: Optional[float]) -> None:
        """Limit the wait of the next reads."""

    def finish(self) -> None:
        """Give the connection back: nothing but the end of the body is still to come."""

    def close(self) -> None:
        """Close the connection, from any thread; does nothing after `finish`."""


def first_block(source: Source) -> bytes:
    """Return what had to be read to know that a body without a type is an event stream, as a rule nothing.

    Raises the error that a body of another type tells of, without waiting for a generation to end.
    """
    content_type = source.headers.get("content-type") or ""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "text/event-stream":
        return b""
    body = b"" if kind else source.read()
    if body.lstrip()[:1] not in (b"", b"{", b"[", b"<"):
        return body
    body += _beginning(source, *(_NO_STREAM if kind.endswith(("/json", "+json")) else _QUOTED))
    source.finish()
    fields: Dict[str, Any] = {"request_id": source.request_id, "url": source.url}
    try:
        error: Optional[BridgeError] = payload_error(decode(body), **fields)
    except ResponseDecodeError:
        error = None
    text = body.decode("utf-8", "replace")
    raise error or ResponseDecodeError(
        "the server answered a streaming request with %s instead of text/event-stream: %s"
        % (content_type or "no content type", text),
        payload=text,
        **fields,
    )


def _beginning(source: Source, size: int, seconds: float) -> bytes:
    """Return what comes of a body within so many bytes and seconds."""
    blocks = []
    end = time.monotonic() + seconds
    while size > 0 and time.monotonic() < end:
        source.set_timeout(max(0.001, end - time.monotonic()))
        try:
            block = source.read()
        except (APIConnectionError, ResponseDecodeError) as error:
            if error.code == "deadline":
                raise
            break
        if not block:
            break
        blocks.append(block)
        size -= len(block)
    return b"".join(blocks)
