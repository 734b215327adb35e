"""The session that carries calls, and its adapter over connections of our own (`http1.pool`)."""

from types import FunctionType
from typing import Any, Dict, NamedTuple, Optional, Union
from urllib.parse import urlsplit

import requests
import requests.adapters
import urllib3.connectionpool
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from requests.utils import DEFAULT_CA_BUNDLE_PATH, get_encoding_from_headers
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from .reply import Call
from ..config.settings import NetworkConfig
from ..errors import BadRequestError
from ..http1.connection import Exchange, Origin
from ..http1.head import field_block
from ..http1.limits import Limits
from ..http1.pool import Pool, Response

__all__ = ["OwnSession", "Request", "WatchedBody", "within"]

_URLS = 256  # addresses taken apart and kept


class _Target(NamedTuple):
    """An address taken apart: whom to connect to, and how the request begins."""

    origin: Origin
    path: str
    host: str


class OwnSession(requests.Session):
    """A session that looks at no ``Location``: requests would read a redirect's whole body to see where it leads."""

    def __init__(self, network: NetworkConfig, verify: Union[bool, str]) -> None:
        super().__init__()
        self.trust_env = False
        self.adapter = Adapter(network, verify)
        self.mount("http://", self.adapter)
        self.mount("https://", self.adapter)

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Return ``None``: nothing is followed."""


class Request(requests.PreparedRequest):
    """A request of ours on its way through a session: the call and its exchange go with it."""

    def __init__(self, call: Call, exchange: Exchange) -> None:
        super().__init__()
        self.call = call
        self.exchange = exchange
        self.carried = False  # by our own connections
        self.raised: Optional[BaseException] = None  # by the caller's file


class Adapter(HTTPAdapter):
    """Send over connections of our own what needs no proxy.

    It steps aside, for requests' own way, while somebody has put himself below it: `responses`, VCR.py and
    instrumentation replace the functions and classes of requests and urllib3.
    """

    def __init__(self, network: NetworkConfig, verify: Union[bool, str]) -> None:
        kept = min(network.max_conns_per_host, 256)  # idle connections, not connections allowed
        super().__init__(pool_connections=100, pool_maxsize=kept)  # 100 servers
        bundle = DEFAULT_CA_BUNDLE_PATH if verify is True else verify
        self.pool = Pool(network.keep_alive_timeout_in_seconds, kept, bundle)
        self._targets: Dict[str, Optional[_Target]] = {}

    def send(  # type: ignore[override]
        self,
        request: Request,
        stream: bool = False,
        timeout: Any = None,
        verify: Any = True,
        cert: Any = None,
        proxies: Any = None,
    ) -> requests.Response:
        """Send a request and return its response with the body still to be read."""
        if not proxies and self.can_carry(request):
            return _as_requests_has_it(request, self.carry(request))
        call = request.call
        if call.body is not None and type(call.body) is not bytes:
            request.body = WatchedBody(call.body, request)  # type: ignore[assignment]
        return super().send(
            request, stream=stream, timeout=within(call), verify=verify, cert=cert, proxies=proxies
        )

    def close(self) -> None:
        """Close all idle connections."""
        self.pool.close()
        super().close()

    def can_carry(self, request: Request) -> bool:
        """Tell whether a request is this adapter's own; it may have a proxy all the same."""
        return _nobody_below() and (self._targets.get(request.call.url) or self._target(request.call.url)) is not None

    def carry(self, request: Request) -> Response:
        """Send a request over a connection of our own."""
        call = request.call
        target = self._targets[call.url]
        assert target is not None
        try:
            fields = field_block(request.headers.items())
        except ValueError as error:
            raise BadRequestError(str(error), param="headers") from None
        host = "" if "Host" in request.headers else "Host: %s\r\n" % target.host
        head = "%s %s HTTP/1.1\r\n%s%s\r\n" % (call.method, target.path, host, fields)
        request.carried = True
        return self.pool.request(target.origin, call.method, head.encode("latin-1"), call.body, request.exchange)

    def _target(self, url: str) -> Optional[_Target]:
        if len(self._targets) >= _URLS:
            self._targets.clear()
        self._targets[url] = target = _taken_apart(url)
        return target


def _nobody_below() -> bool:
    """Tell whether what is below an adapter is requests' and urllib3's own."""
    send: Any = HTTPAdapter.send
    urlopen: Any = HTTPConnectionPool.urlopen
    # A proxy object (wrapt) would show the module of what it wraps.
    return (
        type(send) is FunctionType and send.__globals__ is _SEND_IN
        and type(urlopen) is FunctionType and urlopen.__globals__ is _URLOPEN_IN
        and HTTPConnectionPool.ConnectionCls.__module__ == "urllib3.connection"
        and HTTPSConnectionPool.ConnectionCls.__module__ == "urllib3.connection"
    )


_SEND_IN = requests.adapters.__dict__
_URLOPEN_IN = urllib3.connectionpool.__dict__


def _taken_apart(url: str) -> Optional[_Target]:
    """Return how to reach an address, ``None`` for one that is better left to requests."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    host = parts.hostname
    usual = {"http": 80, "https": 443}.get(parts.scheme)
    if usual is None or not host or "@" in parts.netloc or "%" in host or not url.isascii():
        return None
    path = (parts.path or "/") + ("?" + parts.query if parts.query else "")
    if any(char < "!" or char > "~" for char in path):
        return None
    shown = "[%s]" % host if ":" in host else host
    if port not in (None, usual):
        shown = "%s:%d" % (shown, port or 0)
    return _Target(Origin(parts.scheme, host, port or usual), path, shown)


def _as_requests_has_it(request: Request, raw: Response) -> requests.Response:
    response = requests.Response()
    response.status_code = raw.status
    response.reason = raw.reason
    response.url = request.url or ""
    response.headers = CaseInsensitiveDict(raw.fields)
    response.encoding = get_encoding_from_headers(response.headers)
    response.request = request
    response.raw = raw
    return response


class WatchedBody:
    """A file on its way through urllib3, which takes what it raises for the connection's."""

    def __init__(self, body: Any, request: Request) -> None:
        self._body = body
        self._request = request
        body.rewind()

    def __len__(self) -> int:
        return len(self._body)

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, and remember what reading them raises."""
        try:
            data: bytes = self._body.read(size)
        except BaseException as error:
            self._request.raised = error
            raise
        return data


def within(call: Call) -> Any:
    """Return the connect and the read timeout, no longer than what is left of the deadline."""
    limits = Limits(None, None, call.deadline)
    left = limits.left()
    if left is None:
        return call.timeout
    return tuple(left if limit is None else min(limit, left) for limit in call.timeout)
