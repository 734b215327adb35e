"""The session that carries calls, and its adapter over connections of our own (`http1.pool`)."""

from types import FunctionType
from typing import Any, Dict, Iterable, Mapping, NamedTuple, Optional, Tuple, Union
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


class Target(NamedTuple):
    """An address taken apart: whom to connect to, and how the request begins. `host` is the Host line."""

    origin: Origin
    path: str
    host: str


class OwnSession(requests.Session):
    """A session that looks at no ``Location``: requests would read a redirect's whole body to see where it leads."""

    def __init__(self, network: NetworkConfig, verify: Union[bool, str]) -> None:
        super().__init__()
        self.trust_env = False
        self.cert = network.client_cert
        self.adapter = Adapter(network, verify)
        self.mount("http://", self.adapter)
        self.mount("https://", self.adapter)

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Return ``None``: nothing is followed."""


class Request(requests.PreparedRequest):
    """A request of ours on its way through a session: the call goes with it.

    `prepared` are the attributes of a request to the same address, with neither headers nor a body.
    """

    def __init__(self, prepared: Dict[str, Any], call: Call) -> None:
        self.__dict__.update(prepared)
        self.call = call
        self.headers = CaseInsensitiveDict(call.headers)
        self.body = call.body


class Adapter(HTTPAdapter):
    """Send over connections of our own what needs no proxy.

    It steps aside, for requests' own way, while somebody has put himself below it: `responses`, VCR.py and
    instrumentation replace the functions and classes of requests and urllib3.
    """

    def __init__(self, network: NetworkConfig, verify: Union[bool, str]) -> None:
        kept = min(network.max_conns_per_host, 256)  # idle connections, not connections allowed
        super().__init__(pool_connections=100, pool_maxsize=kept)  # 100 servers
        bundle = DEFAULT_CA_BUNDLE_PATH if verify is True else verify
        self.pool = Pool(network.keep_alive_timeout_in_seconds, kept, bundle, network.client_cert)
        self._targets: Dict[str, Optional[Target]] = {}
        self._names: Mapping[str, str] = {}

    def name_servers(self, names: Mapping[str, str]) -> None:
        """Take the servers at some addresses (``host:port``) for hosts with these names, as their certificates do."""
        self._names = names
        self._targets = {}

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
        call = request.call
        target = None if proxies else self.target(call.url)
        if target is not None:
            return _as_requests_has_it(request, self.carry(call, target, request.headers.items()))
        if call.body is not None and type(call.body) is not bytes:
            request.body = WatchedBody(call.body, call)  # type: ignore[assignment]
        return super().send(
            request, stream=stream, timeout=within(call), verify=verify, cert=cert, proxies=proxies
        )

    def close(self) -> None:
        """Close all idle connections."""
        self.pool.close()
        super().close()

    def target(self, url: str) -> Optional[Target]:
        """Return how to reach an address over connections of our own; ``None`` where that is not to be done.

        That there is no proxy is for the caller to know.
        """
        send: Any = HTTPAdapter.send
        urlopen: Any = HTTPConnectionPool.urlopen
        # What is below an adapter has to be requests' and urllib3's own. A proxy object (wrapt) would show the module
        # of what it wraps.
        if (
            type(send) is not FunctionType or send.__globals__ is not _SEND_IN
            or type(urlopen) is not FunctionType or urlopen.__globals__ is not _URLOPEN_IN
            or HTTPConnectionPool.ConnectionCls.__module__ != "urllib3.connection"
            or HTTPSConnectionPool.ConnectionCls.__module__ != "urllib3.connection"
        ):
            return None
        return self._targets.get(url) or self._target(url)

    def carry(self, call: Call, target: Target, headers: Iterable[Tuple[str, str]]) -> Response:
        """Send a request over a connection of our own."""
        try:
            fields = field_block(headers)
        except ValueError as error:
            raise BadRequestError(str(error), param="headers") from None
        host = "" if "Host" in call.headers else target.host
        head = "%s %s HTTP/1.1\r\n%s%s\r\n" % (call.method, target.path, host, fields)
        return self.pool.request(target.origin, call.method, head.encode("latin-1"), call.body, call)

    def _target(self, url: str) -> Optional[Target]:
        if len(self._targets) >= _URLS:
            self._targets.clear()
        self._targets[url] = target = _taken_apart(url, self._names)
        return target


_SEND_IN = requests.adapters.__dict__
_URLOPEN_IN = urllib3.connectionpool.__dict__


def _taken_apart(url: str, names: Mapping[str, str]) -> Optional[Target]:
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
    name = names.get(parts.netloc)
    origin = Origin(parts.scheme, name or host, port or usual, None if name is None else host)
    return Target(origin, path, "Host: %s\r\n" % shown)


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

    def __init__(self, body: Any, exchange: Exchange) -> None:
        self._body = body
        self._exchange = exchange
        body.rewind()

    def __len__(self) -> int:
        return len(self._body)

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, and remember what reading them raises."""
        try:
            data: bytes = self._body.read(size)
        except BaseException as error:
            self._exchange.raised = error
            raise
        return data


def within(call: Call) -> Any:
    """Return the connect and the read timeout, no longer than what is left of the deadline."""
    left = Limits(None, None, call.deadline).left()
    if left is None:
        return call.timeout
    return tuple(left if limit is None else min(limit, left) for limit in call.timeout)
