"""What a server and an application say to each other: a request, an answer, and who calls whom.

The same application runs on `server.listener` and, through `server.wsgi`, under any WSGI server.
"""

from http.client import responses
from typing import Any, Callable, Container, Dict, Iterable, Iterator, List, Protocol, Tuple, Union
from urllib.parse import unquote_to_bytes

from ..http1.wait import Client

__all__ = ["Answer", "Application", "Body", "PHRASES", "Request"]

# Python's are RFC 9110's (§15) but for two; nginx's 499 is what becomes of a client that did not wait.
PHRASES = {**responses, 413: "Content Too Large", 414: "URI Too Long", 499: "Client Closed Request"}


class Body(Protocol):
    """The body of a request, to be read at most once.

    Both raise ProtocolError with the status to answer: 413 for more than `limit` bytes (at once where the length is
    known), 408 for a client that is too slow, 400 for a body that is broken or cut; and RequestCancelledError where
    the client has left. An application may let them pass: the server answers with what `refuse` says. What the
    application leaves unread is the server's matter.
    """

    def read(self, limit: int) -> bytes:
        """Return all of it."""

    def blocks(self, limit: int) -> Iterator[bytes]:
        """Yield it piece by piece, as it arrives."""


class Request:
    """One request, read as far as its head.

    ``fields`` maps lower-case names to values (repeated ones joined with commas), Latin-1. ``path`` is
    percent-decoded; it is empty for ``*``. Of a head that could not be read they and ``method`` are what is left, if
    anything. ``client`` is the address that the connection comes from. ``gone`` is what `http1.wait` takes as `client`:
    the connection, a function that tells whether the client has left, or ``None`` where nobody can tell. ``stopping()``
    tells that the server is at the end of its time to stop; ``gone`` then looks as if the client had left, and last
    words still reach it.
    ``account`` is the application's own.
    """

    __slots__ = (
        "method", "target", "path", "query", "version", "fields", "client", "body", "gone", "stopping", "account",
    )

    def __init__(
        self,
        method: str,
        target: str,
        version: str,
        fields: Dict[str, str],
        client: str,
        body: Body,
        gone: Client = None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self.method = method
        self.target = target
        path, _, self.query = target.partition("?")
        self.path = unquote_to_bytes(path).decode("utf-8", "replace") if "%" in path else path.lstrip("*")
        self.version = version
        self.fields = fields
        self.client = client
        self.body = body
        self.gone = gone
        self.stopping = stopping
        self.account: Any = None


class Answer:
    """What is sent back: the status, header fields, and a body that is whole or comes block by block.

    `fields` say nothing of the connection or the framing (Content-Length, Date, hop-by-hop fields): that is the
    server's. The head leaves with the first block; each block leaves at once. The server closes the blocks, also when
    the client has left, and it closes them unread for HEAD.
    """

    __slots__ = ("status", "fields", "body")

    def __init__(
        self, status: int, fields: Iterable[Tuple[str, str]] = (), body: "Union[bytes, Blocks]" = b""
    ) -> None:
        self.status = status
        self.fields: List[Tuple[str, str]] = list(fields)
        self.body = body


class Blocks(Protocol):
    """The blocks of a body; a generator is one."""

    def __iter__(self) -> Iterator[bytes]:
        ...

    def close(self) -> None:
        """Be done with it, whether all blocks were taken or not."""


class Application(Protocol):
    """Answers requests, each on its connection's own thread."""

    probes: Container[str]  # paths that are no work, of which only so much is done at once

    def answer(self, request: Request) -> Answer:
        """Answer a request. An exception other than those of the body is logged, and becomes a refusal with 500."""

    def refuse(self, request: Request, status: int, message: str) -> Answer:
        """Word what the server itself refuses.

        `status` is 400, 408, 413, 414, 417, 431, 499 (the client has left), 500, 501, 503 or 505; at 503 all places
        are taken, and Retry-After belongs to the answer.
        """

    def ended(self, request: Request, answer: Answer, complete: bool) -> None:
        """Take note of the end, once for each answer; not `complete` where the client left or took nothing more."""
