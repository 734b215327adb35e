"""One WSGI reply, framed as HTTP/1.1."""

import logging
import re
from typing import Any, Callable, Iterable, List, Optional, Set, Tuple

from ..http1.head import HOP_BY_HOP, RequestHead, field_block
from .channel import Channel

__all__ = ["Reply"]

logger = logging.getLogger("vllm_bridge.gateway")

_STATUS = re.compile(r"[2-9][0-9][0-9](?: [\t -~\x80-\xff]*)?")
_statuses: Set[str] = set()  # those that were seen
# The connection is the server's: an application that names these fields is not heard, but for "close".
_SPECIAL = HOP_BY_HOP | {"content-length", "date"}
Headers = List[Tuple[str, str]]


class Reply:
    """Frame what an application answers: by length where it is known, else in chunks.

    ``close`` says that the connection ends with this
    reply, ``sent`` that its head has left.
    """

    __slots__ = (
        "close", "sent", "status", "_channel", "_date", "_head", "_block", "_length", "_left", "_chunked", "_silent",
        "_must_close",
    )

    def __init__(
        self,
        head: RequestHead,
        channel: Channel,
        date: Callable[[], str],
        must_close: Callable[[], bool],
    ) -> None:
        self.close = not head.keep_alive
        self.sent = False
        self.status = ""
        self._head = head
        self._channel = channel
        self._date = date
        self._must_close = must_close
        self._block = ""
        self._length: Optional[int] = None  # as the application declared it
        self._left = 0  # bytes still missing to it
        self._chunked = False
        self._silent = False  # no body may follow

    # ------------------------------------------------------------ what the application calls

    def start_response(self, status: str, headers: Headers, exc_info: Any = None) -> Callable[[bytes], None]:
        """Take the status and headers (PEP 3333); raises ValueError for those that HTTP does not allow."""
        if exc_info is not None:
            try:
                if self.sent:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # no circle through this frame
        elif self.status:
            raise RuntimeError("start_response was called twice without exc_info")
        if status not in _statuses:
            _check_status(status)
        code = status[:3]
        special = {name.lower(): value for name, value in headers if name.lower() in _SPECIAL}
        length = special.pop("content-length", None)
        dated = special.pop("date", None) is not None
        if special or (code == "204" and length is not None):
            if "close" in special.get("connection", "").lower():
                self.close = True
            headers = [
                pair for pair in headers if pair[0].lower() not in HOP_BY_HOP
                and (code != "204" or pair[0].lower() != "content-length")
            ]
        self._block = field_block(headers) if dated else field_block(headers) + self._date()
        self._length = None
        if length is not None and code != "204":
            if not (length.isdigit() and length.isascii() and len(length) <= 18):
                raise ValueError("the Content-Length is not a number of bytes")
            self._length = self._left = int(length)
        self.status = status
        self._silent = self._head.method == "HEAD" or code in ("204", "304")
        return self.write

    def write(self, data: bytes) -> None:
        """Send one piece of the body; the head goes with the first."""
        if not data:
            return
        head = b"" if self.sent else self._head_bytes(None)
        if self._silent:
            data = b""
        elif self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        elif self._length is not None:
            data = self._counted(data)
        self.sent = True
        if head:
            self._channel.send_parts((head, data))
        else:
            self._channel.send(data)

    # ------------------------------------------------------------ what the connection calls

    def send_body(self, body: Iterable[bytes]) -> None:
        """Send what the application returned, each item at once, and end the reply."""
        if isinstance(body, (list, tuple)) and not self.sent:
            self._send_whole(body[0] if len(body) == 1 else b"".join(body))
            return
        items = iter(body)
        for item in items:
            if self._silent and self.status:
                break  # HEAD: the application has said all that may be sent
            self.write(item)
        self.finish()

    def finish(self) -> None:
        """End the reply."""
        if not self.sent:
            self._send_whole(b"")
        elif self._chunked:
            self._channel.send(b"0\r\n\r\n")
        elif self._length is not None and self._left and not self._silent:
            logger.error("the application sent %d bytes fewer than its Content-Length", self._left)
            self.close = True

    def _send_whole(self, data: bytes) -> None:
        head = self._head_bytes(len(data))
        if self._length is not None and not self._silent:
            data = self._counted(data)
            if self._left:
                logger.error("the application sent %d bytes fewer than its Content-Length", self._left)
                self.close = True
        self.sent = True
        if self._silent or not data:
            self._channel.send(head)
        else:
            self._channel.send_parts((head, data))

    def _counted(self, data: bytes) -> bytes:
        if len(data) > self._left:
            logger.error("the application sent more bytes than its Content-Length; the rest is cut off")
            self.close = True
            data = data[:self._left]
        self._left -= len(data)
        return data

    def _head_bytes(self, length: Optional[int]) -> bytes:
        """Write the head of a body of `length` bytes, ``None`` if that is not known."""
        if not self.status:
            raise RuntimeError("the application sent a body before it called start_response")
        if not self.close:
            self.close = self._must_close()
        framing = ""
        one_zero = self._head.version == "HTTP/1.0"
        if self._length is None and self.status[:3] not in ("204", "304"):
            if length is not None and (length or not self._silent):
                framing = "Content-Length: %d\r\n" % length
            elif self._silent:
                pass  # HEAD: how long the body would be is not known
            elif one_zero:
                self.close = True
            else:
                framing = "Transfer-Encoding: chunked\r\n"
                self._chunked = True
        if self.close:
            framing += "Connection: close\r\n"
        elif one_zero:
            framing += "Connection: keep-alive\r\n"
        return ("HTTP/1.1 %s\r\n%s%s\r\n" % (self.status, self._block, framing)).encode("latin-1")


def _check_status(status: str) -> None:
    if _STATUS.fullmatch(status) is None:
        raise ValueError("the status is not three digits from 200 and a phrase")
    if len(_statuses) < 100:
        _statuses.add(status)
