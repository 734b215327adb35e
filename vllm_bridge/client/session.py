"""HTTP by requests: thread-local sessions, time limits, proxies, certificates, and requests' errors turned into ours.

The environment (proxies, certificates) is read once, when a transport is made. requests' own ways of sending a request
are left out on purpose where they surprise: ``.netrc`` never replaces the key, redirects are not followed (a 301 turns
POST into GET), and a proxy from the environment never captures a loopback address.
"""

import http.client
import os
import re
import tempfile
import threading
import time
import weakref
from functools import partial
from typing import Any, Dict, Iterator, Optional, Tuple, Union
from urllib.parse import urlsplit
from urllib.request import getproxies, getproxies_environment, proxy_bypass

import requests
import urllib3
from requests.adapters import BaseAdapter
from requests.structures import CaseInsensitiveDict

from .adapter import Exchange, PoolAdapter, current
from ..config.redaction import credentials
from ..config.settings import NetworkConfig, ProxyConfig
from ..config.validate import bypasses_proxy, is_this_machine
from ..errors import APIConnectionError, APITimeoutError, BridgeError, ConfigError, ResponseDecodeError
from .lean import LeanAdapter, PlainRequest, is_own
from .reply import Call, OpenReply, Reply, Watch, cancelled_error
from .retry import CONNECTION_NOT_MADE
from ..http1.timed_socket import TIMED_OUT

__all__ = ["Transport"]

# What requests raises for an address that it cannot use.
_BAD_ADDRESS = (
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.MissingSchema,
    urllib3.exceptions.LocationValueError,
)

_SEND: Any = requests.Session.send  # as they were at import
_GET_ADAPTER: Any = requests.Session.get_adapter
_ARE_OWN = is_own(_SEND, requests.sessions) and is_own(_GET_ADAPTER, requests.sessions)

_STALE_WITHIN = 1.0  # seconds after sending in which a hang-up means that the pooled connection was stale


class _Session(requests.Session):
    """A session that looks at no ``Location``: requests would read a redirect's whole body to see where it leads."""

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """Send by the adapter alone where nothing else can happen: no hooks, redirects or cookies are in use here."""
        # Tracers and test doubles put their own functions in the place of these.
        if requests.Session.send is _SEND and requests.Session.get_adapter is _GET_ADAPTER and _ARE_OWN:
            adapter = self.adapters["http://"]
            if type(adapter) is LeanAdapter:
                del kwargs["allow_redirects"]
                return adapter.send(request, **kwargs)
        request.headers = CaseInsensitiveDict(request.headers)
        return super().send(request, **kwargs)

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None


class Transport:
    """The HTTP side of one provider: sessions per thread over one pool of connections."""

    def __init__(self, network: NetworkConfig, proxy: ProxyConfig) -> None:
        self._network = network
        self._proxy = proxy
        self._local = threading.local()
        self._routes: Dict[Tuple[str, str], Tuple[Dict[str, Any], Dict[str, Optional[str]]]] = {}
        self._verify = self._certificates()
        self._pid = os.getpid()
        self._adapter = self._new_adapter()

    def send(self, call: Call) -> Reply:
        """Make a request and read its whole reply.

        Raises `APIConnectionError`, `APITimeoutError`, `APIStatusError`, `ResponseDecodeError` (a broken body) or
        `RequestCancelledError`.
        """
        reply = self.open(call)
        try:
            body = reply.read_all()
        finally:
            reply.close()
        return Reply(reply.status, reply.headers, body, reply.url, reply.request_id, call)

    def open(self, call: Call) -> "OpenReply":
        """Make a request and return its reply with the body still to be read; error statuses are raised."""
        reply = self._exchange(call, fresh=False)
        if reply is None:
            reply = self._exchange(call, fresh=True)
            assert reply is not None  # a fresh connection is never stale
        if not 200 <= reply.status < 300:
            try:
                raise reply.error()
            finally:
                reply.close()
        return reply

    def close(self) -> None:
        """Close all idle connections; the transport opens new ones when it is used again."""
        self._adapter.close()

    def _exchange(self, call: Call, fresh: bool) -> Optional["OpenReply"]:
        """Send the request; return ``None`` if a pooled connection turned out to be closed already."""
        connect, read = call.timeout
        if call.deadline is not None:
            left = max(0.001, call.deadline - time.monotonic())
            connect = left if connect is None else min(connect, left)
        exchange = Exchange(read)
        exchange.fresh = fresh
        if type(call.body) is not bytes:
            _rewind(call.body)
        if call.cancel is not None and call.cancel.why is not None:
            raise cancelled_error(call.cancel.why, call)
        watch = Watch(exchange, call)
        current.exchange = exchange
        try:
            route = self._routes.get((call.method, call.url)) or self._route(call.method, call.url)
            response = self._session().send(
                _prepared(call, route[0]),
                stream=True,
                timeout=(connect, read),
                verify=self._verify,
                proxies=route[1],  # type: ignore[arg-type]
                allow_redirects=False,
            )
        except Exception as error:
            watch.stop()
            stale = exchange.reused and not fresh and exchange.cancelled is None
            if stale and time.monotonic() - exchange.sent_at < _STALE_WITHIN and _hung_up(error):
                return None
            failure = self._failure(exchange, call, error)
            if failure is error:  # raised by the body while it was sent
                raise
            raise failure from _shown(error, call)
        except BaseException:  # Ctrl-C: nobody will read the reply
            exchange.cancel("interrupted")
            watch.stop()
            raise
        finally:
            current.exchange = None
        return OpenReply(response, exchange, watch, call, partial(self._failure, exchange, call))

    def _session(self) -> requests.Session:
        if self._pid != os.getpid():  # forked: the parent's sockets are not ours to use
            self._pid = os.getpid()
            self._adapter = self._new_adapter()
            self._local = threading.local()
        session: Optional[requests.Session] = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = _Session()
            session.trust_env = False
            session.mount("http://", self._adapter)
            session.mount("https://", self._adapter)
        return session

    def _new_adapter(self) -> BaseAdapter:
        network = self._network
        idle_limit = network.keep_alive_timeout_in_seconds
        kept = min(network.max_conns_per_host, 256)  # idle connections, not connections allowed
        adapter: BaseAdapter = PoolAdapter(idle_limit, pool_connections=100, pool_maxsize=kept)  # 100 servers
        if network.lean_http is not False:
            adapter = LeanAdapter(adapter, idle_limit, kept)
        weakref.finalize(self, adapter.close)
        return adapter

    # ------------------------------------------------------------ proxies and certificates

    def _route(self, method: str, url: str) -> Tuple[Dict[str, Any], Dict[str, Optional[str]]]:
        """Return a prepared request's attributes for an address, and the proxies to it."""
        template = requests.Request(method, url).prepare()
        route = self._routes[method, url] = template.__dict__, self._choose_proxies(url)
        return route

    def _choose_proxies(self, url: str) -> Dict[str, Optional[str]]:
        proxy = self._proxy
        if proxy.type in ("http", "socks5"):
            return {"http": proxy.url_with_credentials(), "https": proxy.url_with_credentials()}
        if proxy.type == "none" or _is_direct(url):
            return {"http": None, "https": None}
        chosen: Dict[str, Optional[str]] = dict(getproxies())
        if not all(_has_host(address) for address in chosen.values()):
            raise _bad_proxy(url)
        return chosen

    def _certificates(self) -> Union[bool, str]:
        network, proxy = self._network, self._proxy
        if network.insecure_skip_verify:
            return False
        pem = network.ca_cert_pem or proxy.ca_cert_pem
        if pem is None:
            # requests lets the environment override Session.verify, but only in Session.request.
            return os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True
        if "-----BEGIN" not in pem:
            return pem  # a path
        handle, path = tempfile.mkstemp(prefix="vllm_bridge_ca_", suffix=".pem")
        with os.fdopen(handle, "w") as file:
            file.write(pem)
        weakref.finalize(self, _remove, path, os.getpid())
        return path

    # ------------------------------------------------------------ errors

    def _failure(self, exchange: Exchange, call: Call, error: BaseException) -> BridgeError:
        """Return our error for one of requests', urllib3's or the socket's, raised before or within a reply."""
        if isinstance(error, BridgeError):
            return error
        if exchange.cancelled is not None:
            return cancelled_error(exchange.cancelled, call)
        # A read timeout without a connection can only come from a test that stands in for requests' adapter.
        if not exchange.connected and (exchange.started or not isinstance(error, requests.exceptions.ReadTimeout)):
            return self._not_connected(call, error)
        fields: Dict[str, Any] = {"request_id": call.request_id, "url": call.url}
        where, reason = _origin(call.url), _reason(error)
        if _is_timeout(error):
            return APITimeoutError(
                "%s sent nothing for %s s (read timeout); raise it with timeout=(connect, read) or "
                "default_request_timeout_in_seconds" % (where, _seconds(call.timeout[1])),
                **fields,
            )
        if _is_unreadable(error):
            return ResponseDecodeError("%s sent a reply that cannot be read: %s" % (where, reason), **fields)
        return APIConnectionError("%s hung up without a complete reply: %s" % (where, reason), **fields)

    def _not_connected(self, call: Call, error: BaseException) -> BridgeError:
        """Return the error for a request that never left."""
        fields: Dict[str, Any] = {"request_id": call.request_id, "url": call.url}
        where, reason = _origin(call.url), _reason(error)
        if isinstance(error, _BAD_ADDRESS):
            return _bad_proxy(call.url)  # the server's own address has been checked
        bundle = self._verify if isinstance(self._verify, str) else "requests' own CA bundle"
        if where.startswith("https") and isinstance(self._verify, str) and not os.path.exists(bundle):
            return APIConnectionError(
                "TLS with %s failed: the CA bundle %s is not there" % (where, bundle), code="tls_error", **fields
            )
        if _is_timeout(error):
            return APITimeoutError(
                "no connection to %s within %s s (connect timeout); raise it with timeout=(connect, read)"
                % (where, _seconds(call.timeout[0])),
                code=CONNECTION_NOT_MADE,
                **fields,
            )
        if isinstance(error, requests.exceptions.SSLError):
            return APIConnectionError(
                "TLS with %s failed: %s (certificates checked against %s; set ca_cert_pem or REQUESTS_CA_BUNDLE)"
                % (where, reason, bundle),
                code="tls_error",
                **fields,
            )
        way = " through the proxy" if isinstance(error, requests.exceptions.ProxyError) else ""
        return APIConnectionError(
            "cannot connect to %s%s: %s; is the server running there, and is base_url right?" % (where, way, reason),
            code=CONNECTION_NOT_MADE,
            **fields,
        )


def _prepared(call: Call, template: Dict[str, Any]) -> requests.PreparedRequest:
    prepared = PlainRequest.__new__(PlainRequest)
    prepared.__dict__.update(template)  # what copy() does, less its cookies and headers
    headers = call.headers
    body = call.body
    if body is not None:
        headers["Content-Length"] = str(len(body))
    prepared.headers = headers  # type: ignore[assignment]  # as requests wants them where it gets to see them
    prepared.body = body
    return prepared


def _is_direct(url: str) -> bool:
    """Tell whether the environment, or else the system's settings, want no proxy for a server."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if is_this_machine(host):
        return True
    named = getproxies_environment()
    if not named:
        return bool(proxy_bypass(host))  # the settings of macOS and Windows
    return bypasses_proxy(host, parts.port or (443 if parts.scheme == "https" else 80), named.pop("no", ""))


def _origin(url: str) -> str:
    return "%s://%s" % urlsplit(url)[:2]


def _has_host(address: Optional[str]) -> bool:
    try:
        parts = urlsplit(address if address is None or "://" in address else "http://" + address)
        return bool(not address or (parts.hostname and parts.port != 0))
    except ValueError:
        return False


def _bad_proxy(url: str) -> ConfigError:
    # The address is not quoted: it may hold a password.
    return ConfigError("proxy: the proxy for %s, set in the environment, cannot be used" % _origin(url), url=url)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what lies under it: requests and urllib3 wrap the socket's error several times."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        inner = getattr(error, "reason", None)
        if not isinstance(inner, BaseException):
            inner = next((arg for arg in error.args if isinstance(arg, BaseException)), None)
        inner = inner or error.__cause__
        if inner is None and isinstance(error, (requests.RequestException, urllib3.exceptions.HTTPError)):
            inner = error.__context__  # of the socket's own error it may be what the caller was just handling
        error = inner  # type: ignore[assignment]


def _is_timeout(error: BaseException) -> bool:
    # In urllib3 a refused connection is a NewConnectionError, and that a ConnectTimeoutError.
    kinds = (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError, *TIMED_OUT)
    refused = urllib3.exceptions.NewConnectionError
    return any(isinstance(inner, kinds) and not isinstance(inner, refused) for inner in _chain(error))


def _is_unreadable(error: BaseException) -> bool:
    """Tell whether bytes came that are no HTTP, or no body of the announced encoding."""
    kinds = (urllib3.exceptions.DecodeError, urllib3.exceptions.InvalidHeader, requests.exceptions.InvalidHeader)
    for inner in _chain(error):
        if isinstance(inner, kinds) or (isinstance(inner, ValueError) and not isinstance(inner, OSError)):
            return True
        if isinstance(inner, http.client.HTTPException):
            return not isinstance(inner, (http.client.RemoteDisconnected, http.client.IncompleteRead))
    return False


def _shown(error: BaseException, call: Call) -> Optional[BaseException]:
    """Return the cause to show in a traceback: none that quotes the key, or a proxy's address with its password."""
    secrets = credentials(call.headers) + call.secrets
    if isinstance(error, _BAD_ADDRESS) or any(secret in str(inner) for inner in _chain(error) for secret in secrets):
        return None
    return error


def _hung_up(error: BaseException) -> bool:
    return not _is_timeout(error) and any(
        isinstance(inner, (ConnectionError, http.client.RemoteDisconnected)) for inner in _chain(error)
    )


def _reason(error: BaseException) -> str:
    """Return the words of the innermost error on one line, without object addresses."""
    innermost = list(_chain(error))[-1]
    text = getattr(innermost, "strerror", None) or str(innermost) or type(innermost).__name__
    text = re.sub(r"<[^<>]* object at 0x[0-9a-f]+>(: )?", "", str(text)[:1000])
    return " ".join(re.sub(r"[^ -~]", " ", text).split())[:200]


def _seconds(value: Optional[float]) -> str:
    return "%g" % value if value is not None else "unlimited"


def _rewind(body: Any) -> None:
    if hasattr(body, "rewind"):
        body.rewind()


def _remove(path: str, owner: int) -> None:
    if os.getpid() != owner:
        return  # a forked child ends; its parent still needs the file
    try:
        os.unlink(path)
    except OSError:
        pass
