"""HTTP by requests: a session with an adapter over connections of our own, or a caller's session as it is.

The environment (proxies, certificates) is read once for each server. In our session requests' own ways are left out
where they surprise: ``.netrc`` never replaces the key, redirects are not followed (a 301 turns POST into GET), and a
proxy from the environment never captures this machine.
"""

import logging
import os
import tempfile
import weakref
from typing import Any, Dict, NamedTuple, Optional, Tuple, Union
from urllib.parse import urlsplit
from urllib.request import getproxies, getproxies_environment, proxy_bypass

import requests
from requests.auth import HTTPBasicAuth
from requests.utils import default_headers, select_proxy

from .authorization import Auth
from .adapter import OwnSession, Request, WatchedBody, within
from .failures import bad_proxy, cause_of, foreign_within, translated
from .log import LOG, answered, failed, sent
from .raw import RawBody
from .reply import Call, OpenReply, Reply
from ..config.settings import NetworkConfig, ProxyConfig
from ..config.validate import bypasses_proxy, is_this_machine
from ..errors import APIConnectionError, ConfigError
from ..http1.connection import Connection, HungUp
from ..http1.pool import Response
from .retry import CONNECTION_NOT_MADE

__all__ = ["Transport"]


_ROUTES = 256  # addresses whose proxies are kept


class Transport:
    """The HTTP side of one provider.

    With a call's own session its adapters, hooks, headers, cookies, auth, proxies and certificates are in use, and its
    pool; the read timeout then bounds each wait of urllib3's, and a deadline or a cancellation takes hold between two
    of them.
    """

    def __init__(self, network: NetworkConfig, proxy: ProxyConfig, auth: Auth = None) -> None:
        self._auth: Any = HTTPBasicAuth(*auth) if isinstance(auth, tuple) else auth
        self._network = network
        self._proxy = proxy
        self._routes: Dict[Tuple[str, str], _Route] = {}
        self._names: Dict[str, str] = {}  # of the hosts at some addresses
        self._verify = self._certificates()
        self._own = self._new_session()
        self._pid = Connection.process

    def send(self, call: Call) -> Reply:
        """Make a request and read its whole reply.

        Raises `APIConnectionError`, `APITimeoutError`, `APIStatusError`, `ResponseDecodeError` (a broken body) or
        `RequestCancelledError`.
        """
        return self.open(call).complete()

    def open(self, call: Call) -> OpenReply:
        """Make a request and return its reply with the body still to be read; error statuses are raised."""
        if call.cancellation is not None:
            call.cancellation.add(call)
        logs = LOG.isEnabledFor(logging.INFO)
        if logs:
            sent(call)
        try:
            reply = self._opened(call)
        except BaseException as error:
            call.drop()
            if call.cancellation is not None:
                call.cancellation.discard(call)
            failure = self._failure(error, call)
            if logs:
                failed(call, failure or error)
            if failure is None:
                raise
            raise failure from cause_of(error, call)
        if logs:
            answered(call, reply)
        if not 200 <= reply.status < 300:
            try:
                raise _by_proxy(call) if reply.status == 407 else reply.error()
            finally:
                reply.close()
        return reply

    def name_servers(self, names: Dict[str, str]) -> None:
        """Take the servers at some addresses (``host:port``) for hosts with these names."""
        if names != self._names:
            self._names, self._routes = names, {}
            self._session().adapter.name_servers(names)

    def close(self) -> None:
        """Close all idle connections; the transport opens new ones when it is used again."""
        self._own.close()

    def tidy(self) -> None:
        """Close the idle connections that are too old or have ended."""
        self._session().adapter.pool.tidy()

    def _opened(self, call: Call) -> OpenReply:
        response: Any
        if call.cancelled is not None:
            raise HungUp(call.cancelled)
        if call.session is not None:
            response = _by_session(call)
        else:
            session = self._own if self._pid == Connection.process else self._session()
            route = self._routes.get((call.method, call.url)) or self._route(call.method, call.url)
            if call.body is not None:
                call.headers["Content-Length"] = str(len(call.body))
            target = session.adapter.target(call.url) if call.direct and not route.proxies and not self._auth else None
            if target is not None:
                response = session.adapter.carry(call, target, call.headers.items())
            else:
                request = Request(route.prepared, call)
                if self._auth is not None:
                    request = _authorized(request, self._auth)
                response = session.send(
                    request, stream=True, timeout=call.timeout, verify=self._verify,
                    proxies=route.proxies, allow_redirects=False,
                )
                # A hook may have read the body already: then it is where the hook has left it.
                if type(response.raw) is Response and not response._content_consumed:
                    response = response.raw
        if type(response) is Response:
            reply = OpenReply(response.status, response.fields, response, call, self._failure)
        else:
            body = RawBody(response, call)
            headers = {name.lower(): value for name, value in response.headers.items()}
            reply = OpenReply(response.status_code, headers, body, call, self._failure)
            reply.resumes = body.resumes
            if body.decoded:
                return reply
        if "content-encoding" in reply.headers:
            reply.decode(reply.headers["content-encoding"])
        return reply

    def _session(self) -> OwnSession:
        if self._pid != Connection.process:  # forked: the parent's sockets are not ours to use
            self._own.close()  # only this process's descriptors
            self._own, self._pid = self._new_session(), Connection.process
        return self._own

    def _new_session(self) -> OwnSession:
        session = OwnSession(self._network, self._verify)
        session.adapter.name_servers(self._names)
        weakref.finalize(self, session.close)
        return session

    def _failure(self, error: BaseException, call: Call) -> Optional[BaseException]:
        """Return what to raise in the place of an error; ``None`` is the error itself."""
        if not isinstance(error, Exception):
            return None
        if not call.carried:
            foreign = call.raised or foreign_within(error)
            if foreign is not None:
                return None if foreign is error else foreign
        return translated(error, call, self._verify)

    # ------------------------------------------------------------ proxies and certificates

    def _route(self, method: str, url: str) -> "_Route":
        prepared = requests.Request(method, url).prepare().__dict__
        parts = urlsplit(url)
        named = parts._replace(netloc=self._names.get(parts.netloc, parts.netloc)).geturl()
        proxies = self._choose_proxies(named)  # exceptions are made by name
        if select_proxy(url, proxies) is None:
            proxies = {}
        if len(self._routes) >= _ROUTES:
            self._routes.clear()
        route = self._routes[method, url] = _Route(prepared, proxies)
        return route

    def _choose_proxies(self, url: str) -> Dict[str, str]:
        proxy = self._proxy
        if proxy.type in ("http", "socks5"):
            address = proxy.url_with_credentials() or ""
            return {"http": address, "https": address}
        if proxy.type == "none" or _is_direct(url):
            return {}
        named = getproxies()  # of every scheme, and no_proxy under "no"
        chosen = {name: named[name] for name in (urlsplit(url).scheme, "all") if name in named}
        if not all(_has_host(address) for address in chosen.values()):
            raise bad_proxy(url)
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
        try:
            handle, path = tempfile.mkstemp(prefix="vllm_bridge_ca_", suffix=".pem")
        except OSError as error:
            raise ConfigError("ca_cert_pem: no temporary file can be made of it (%s); give the path of a bundle" % (
                error.strerror or error)) from None
        with os.fdopen(handle, "w") as file:
            file.write(pem)
        weakref.finalize(self, _remove, path, os.getpid())
        return path


class _Route(NamedTuple):
    """What is the same for every request to an address: a prepared request's attributes, and the proxies to it."""

    prepared: Dict[str, Any]
    proxies: Dict[str, str]


def _authorized(request: Request, auth: Any) -> Request:
    """Let `auth` change a request, as requests does; what it adds is kept out of errors like a key."""
    call = request.call
    request.hooks = {"response": []}
    request = auth(request) or request
    if request.hooks["response"]:
        problem = "auth: %s waits for a challenge; set it on a requests.Session, and give that as session="
        raise ConfigError(problem % type(auth).__name__)
    call.headers.update(request.headers)
    return request


def _by_proxy(call: Call) -> APIConnectionError:
    return APIConnectionError(
        "the proxy refused the request: 407 Proxy Authentication Required; give its user name and password in "
        "proxy_config, or in its address",
        code=CONNECTION_NOT_MADE, request_id=call.request_id, url=call.url,
    )


# ---------------------------------------------------------------- a caller's session

_DEFAULTS = default_headers()


def _by_session(call: Call) -> requests.Response:
    """Send by a caller's session, whose own settings win over what we would only prefer."""
    session: requests.Session = call.session
    body = call.body
    if body is not None and type(body) is not bytes:
        body = WatchedBody(body, call)
    headers = {
        name: value for name, value in call.headers.items()
        if name not in _DEFAULTS or session.headers.get(name) in (None, _DEFAULTS[name])
    }
    try:
        return session.request(
            call.method, call.url, headers=headers, data=body, timeout=within(call), stream=True,
            allow_redirects=False,
            auth=None if session.auth or "Authorization" not in headers else _as_it_is,  # or .netrc would replace it
        )
    except requests.HTTPError as error:  # of a hook that calls raise_for_status
        if error.response is None:
            raise
        return error.response


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


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


def _has_host(address: Optional[str]) -> bool:
    try:
        parts = urlsplit(address if address is None or "://" in address else "http://" + address)
        return bool(not address or (parts.hostname and parts.port != 0))
    except ValueError:
        return False


def _remove(path: str, owner: int) -> None:
    if os.getpid() != owner:
        return  # a forked child ends; its parent still needs the file
    try:
        os.unlink(path)
    except OSError:
        pass
