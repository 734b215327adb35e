"""Errors of the connection, of requests and of urllib3, turned into ours. What others have raised meanwhile is not."""

import http.client
import os
import re
import socket
from typing import TYPE_CHECKING, Any, Dict, Iterator, Optional, Union
from urllib.parse import urlsplit

import requests
import urllib3

from ..config.redaction import credentials
from ..errors import (
    APIConnectionError,
    APITimeoutError,
    BridgeError,
    ConfigError,
    RequestCancelledError,
    ResponseDecodeError,
)
from ..http1.connection import HungUp, NotConnected, is_own
from ..http1.head import ProtocolError
from ..http1.limits import TimedOut
from .retry import CONNECTION_NOT_MADE, TLS_ERROR

if TYPE_CHECKING:
    from .reply import Call

__all__ = ["bad_proxy", "cancelled_error", "cause_of", "foreign_within", "translated"]

LACKING = "out_of_resources"  # the code of an error that is this machine's own: no descriptor, port or memory left
_DEADLINE = "deadline"

# What requests raises for an address that it cannot use.
_BAD_ADDRESS = (
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.MissingSchema,
    urllib3.exceptions.LocationValueError,
)
_TIMEOUTS = (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError, socket.timeout, TimeoutError)
_NEVER_LEFT = (
    requests.exceptions.ConnectTimeout,
    requests.exceptions.ProxyError,
    urllib3.exceptions.ConnectTimeoutError,  # and so NewConnectionError
    urllib3.exceptions.NewConnectionError,
    urllib3.exceptions.ProxyError,
    socket.gaierror,
)
_UNREADABLE = (urllib3.exceptions.DecodeError, urllib3.exceptions.InvalidHeader, requests.exceptions.InvalidHeader)
_OF_HTTP = (requests.RequestException, urllib3.exceptions.HTTPError, http.client.HTTPException)
_OURS = (TimedOut, NotConnected, HungUp, ProtocolError)
_ALL = _OURS + _OF_HTTP + (OSError,)


def translated(error: Exception, call: "Call", verify: Union[bool, str]) -> Optional[BridgeError]:
    """Return our error for one that the connection has raised, ``None`` for one that is not the connection's."""
    if isinstance(error, RequestCancelledError):
        error.url, error.request_id = call.url, call.request_id
        return error
    if not isinstance(error, _OURS if call.carried else _ALL):  # requests' and urllib3's are of many kinds
        return None
    if call.cancelled is not None:
        return cancelled_error(call.cancelled, call)
    if isinstance(error, TimedOut):
        return _timed_out(call, error.which)
    if isinstance(error, NotConnected):
        return _not_connected(call, error.kind, str(error), verify)
    if isinstance(error, HungUp):
        return _hung_up(call, str(error))
    if isinstance(error, ProtocolError):
        return _unreadable(call, error.message)
    return _of_requests(error, call, verify)


def cancelled_error(why: str, call: "Call") -> RequestCancelledError:
    """Return the error for a call that was broken off from this side."""
    return RequestCancelledError(why, request_id=call.request_id, url=call.url)


def foreign_within(error: BaseException) -> Optional[BaseException]:
    """Return what a signal's handler raised while requests or urllib3 were at work, who wrap every OSError."""
    found = [inner for inner in _chain(error) if not is_own(inner)]
    return found[-1] if found else None  # urllib3 gives its own error the traceback of the one below


def cause_of(error: BaseException, call: "Call") -> Optional[BaseException]:
    """Return the cause to show in a traceback: none that quotes the key, or a proxy's address with its password."""
    secrets = credentials(call.headers) + call.secrets
    if isinstance(error, _BAD_ADDRESS) or any(secret in str(inner) for inner in _chain(error) for secret in secrets):
        return None
    return error


def bad_proxy(url: str) -> ConfigError:
    """Return the error for a proxy's address that cannot be used; it is not quoted, for it may hold a password."""
    return ConfigError("proxy: the proxy for %s, set in the environment, cannot be used" % origin_of(url), url=url)


def origin_of(url: str) -> str:
    """Return the scheme, host and port of an address."""
    return "%s://%s" % urlsplit(url)[:2]


# ---------------------------------------------------------------- our errors


def _timed_out(call: "Call", which: str) -> APITimeoutError:
    code = None
    if which == "connect":
        code = CONNECTION_NOT_MADE
        text = "no connection to %s within %s s (connect timeout); raise it with timeout=(connect, read)" % (
            origin_of(call.url), _seconds(call.timeout[0]))
    elif which == _DEADLINE:
        code = _DEADLINE
        text = "the call was not complete within its total time; raise it with with_options(deadline=seconds)"
    else:
        text = (
            "%s sent nothing for %s s (read timeout); raise it with timeout=(connect, read) or "
            "default_request_timeout_in_seconds" % (origin_of(call.url), _seconds(call.timeout[1])))
    return APITimeoutError(text, code=code, **_place(call))


def _not_connected(call: "Call", kind: str, reason: str, verify: Union[bool, str]) -> BridgeError:
    where = origin_of(call.url)
    if kind == "tls":
        bundle = verify if isinstance(verify, str) else "requests' own CA bundle"
        if isinstance(verify, str) and not os.path.exists(verify):
            return APIConnectionError(
                "TLS with %s failed: the CA bundle %s is not there" % (where, bundle), code=TLS_ERROR, **_place(call))
        return APIConnectionError(
            "TLS with %s failed: %s (certificates checked against %s; set ca_cert_pem or REQUESTS_CA_BUNDLE)"
            % (where, _line(reason), bundle),
            code=TLS_ERROR, **_place(call))
    if kind == "lacking":
        return APIConnectionError(
            "no connection to %s could be made for a lack on this machine: %s" % (where, _line(reason)),
            code=LACKING, **_place(call))
    way = " through the proxy" if kind == "proxy" else ""
    return APIConnectionError(
        "cannot connect to %s%s: %s; is the server running there, and is base_url right?" % (where, way, _line(reason)),
        code=CONNECTION_NOT_MADE, **_place(call))


def _hung_up(call: "Call", reason: str) -> BridgeError:
    text = "%s hung up without a complete reply: %s" % (origin_of(call.url), _line(reason))
    return APIConnectionError(text, **_place(call))


def _unreadable(call: "Call", reason: str) -> BridgeError:
    text = "%s sent a reply that cannot be read: %s" % (origin_of(call.url), _line(reason))
    return ResponseDecodeError(text, **_place(call))


def _place(call: "Call") -> Dict[str, Any]:
    return {"request_id": call.request_id, "url": call.url}


def _line(text: str) -> str:
    """Return a reason on one line, without object addresses."""
    text = re.sub(r"<[^<>]* object at 0x[0-9a-f]+>(: )?", "", text[:65536])
    return " ".join(re.sub(r"[^ -~]", " ", text).split())


def _seconds(value: Optional[float]) -> str:
    return "%g" % value if value is not None else "unlimited"


# ---------------------------------------------------------------- what requests and urllib3 mean


def _of_requests(error: Exception, call: "Call", verify: Union[bool, str]) -> BridgeError:
    chain = list(_chain(error))
    innermost = chain[-1]
    reason = str(getattr(innermost, "strerror", None) or innermost) or type(innermost).__name__
    if isinstance(error, _BAD_ADDRESS):
        return bad_proxy(call.url)  # the server's own address has been checked
    proxy = any(isinstance(inner, (requests.exceptions.ProxyError, urllib3.exceptions.ProxyError)) for inner in chain)
    # In urllib3 a refused connection is a NewConnectionError, and that a ConnectTimeoutError.
    refused = any(isinstance(inner, urllib3.exceptions.NewConnectionError) for inner in chain)
    timed_out = any(isinstance(inner, _TIMEOUTS) for inner in chain) and not refused
    never_left = any(isinstance(inner, _NEVER_LEFT) for inner in chain)
    if timed_out:
        which = call.over().which
        return _timed_out(call, "connect" if never_left and which == "silence" else which)
    if isinstance(error, requests.exceptions.SSLError) or _no_bundle(error, call, verify):
        return _not_connected(call, "tls", reason, verify)
    if never_left:
        return _not_connected(call, "proxy" if proxy else "refused", reason, verify)
    for inner in chain:
        hung_up = (http.client.RemoteDisconnected, http.client.IncompleteRead)
        if isinstance(inner, _UNREADABLE) or (
            isinstance(inner, http.client.HTTPException) and not isinstance(inner, hung_up)
        ):
            return _unreadable(call, reason)
    return _hung_up(call, reason)


def _no_bundle(error: Exception, call: "Call", verify: Union[bool, str]) -> bool:
    """Tell whether requests has found no CA bundle: it raises a bare OSError."""
    return call.url.startswith("https") and isinstance(verify, str) and not os.path.exists(verify)


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
        if inner is None and isinstance(error, _OF_HTTP) and not error.__suppress_context__:
            inner = error.__context__  # of the socket's own error it may be what the caller was just handling
        error = inner  # type: ignore[assignment]
