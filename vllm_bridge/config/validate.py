"""Checking one setting: a value and its path in, the value ready for use out, or ``ConfigError``.

Every message begins with the path of the field. A value that may be a secret is never quoted.
"""

import ipaddress
import re
import socket
from typing import Any, Dict, Iterable, List, Mapping, Optional, Tuple, Union
from urllib.parse import urlsplit

from ..errors import ConfigError
from ..http1.head import FIELD_VALUE

__all__ = ["base_urls", "bypasses_proxy", "is_address", "is_this_machine", "normalise_base_url", "normalise_timeout"]

_MOST = 1000000  # poll() counts milliseconds in an int and wraps round after 24.8 days
_CONNECT_SECONDS = 5.0
DNS = "dns+"  # before a URL whose host is a name that stands for many servers
_SHOWN = 60  # characters of a wrong value that a message quotes

_CONTROL = r"[\x00-\x20\x7f-\xa0\u2028\u2029]"
_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\Z"
_URL_PATH = r"[A-Za-z0-9._~!$&'()*+,;=:%/-]*\Z"
_OPERATIONS = ("/completions", "/embeddings", "/rerank", "/responses", "/models", "/transcriptions")
_KINDS = {bool: "a boolean", int: "a number", float: "a number", str: "a string", type(None): "null",
          list: "a list", tuple: "a list"}


def wrong(path: str, expected: str, value: Any, secret: bool = False) -> ConfigError:
    """Return the error for a value that is not what was `expected`."""
    return ConfigError("%s: expected %s, got %s" % (path, expected, _shown(value, secret)))


def _shown(value: Any, secret: bool) -> str:
    kind = _KINDS.get(type(value))
    if kind is None:
        return "an object" if isinstance(value, Mapping) else type(value).__name__
    if secret:
        return kind
    if value is None:
        return "null"
    if type(value) is int and value.bit_length() > 128:  # repr() of a huge one raises since 3.11
        return "a number of %d bits" % value.bit_length()
    return quoted(value)


def quoted(value: Any) -> str:
    """Return the repr of a string or number on one line, cut to a readable length."""
    if isinstance(value, str) and len(value) > _SHOWN:
        return ascii(value[:_SHOWN]) + "…"
    return ascii(value)


# ---------------------------------------------------------------- plain values


def number(value: Any, path: str, *, positive: bool = False, most: float = _MOST) -> float:
    """Return a finite number of 0 or more, or above 0, and at most `most`."""
    expected = "a number %s" % ("above 0" if positive else "of 0 or more")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise wrong(path, expected, value)
    if value != value or value < 0 or (positive and value == 0):
        raise wrong(path, expected, value)
    if value > most:
        raise wrong(path, "at most %d" % most, value)
    return value


def whole(value: Any, path: str, *, least: int = 0, most: int = _MOST) -> int:
    """Return a whole number between `least` and `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise wrong(path, "a whole number from %d to %d" % (least, most), value)
    return value


def flag(value: Any, path: str) -> bool:
    """Return a boolean; text such as ``"false"`` is refused, for it would read as true."""
    if not isinstance(value, bool):
        raise wrong(path, "true or false", value)
    return value


def text(value: Any, path: str, *, secret: bool = False) -> str:
    """Return a string."""
    if not isinstance(value, str):
        raise wrong(path, "a string", value, secret)
    return value


def names(value: Any, path: str) -> Tuple[str, ...]:
    """Return a list of names as a tuple."""
    if not isinstance(value, (list, tuple, set, frozenset)):
        raise wrong(path, "a list of names", value)
    return tuple(text(item, "%s[%d]" % (path, index)) for index, item in enumerate(value))


def mapping(value: Any, path: str) -> Dict[str, Any]:
    """Return an object, its names being strings, as a new dict."""
    if type(value) is not dict and not isinstance(value, Mapping):  # the second is slow
        raise wrong(path, "an object", value, secret=True)
    for name in value:
        if not isinstance(name, str):
            raise wrong(path, "names that are strings", name)
    return dict(value)


def known(found: Iterable[str], allowed: Iterable[str], ignored: Iterable[str], path: str) -> List[str]:
    """Return those of the names that are `allowed`; raise for one that is in neither list.

    Names beginning with ``$`` or ``_`` are remarks (``$schema``, ``_comment``).
    """
    allowed = list(allowed)
    skipped = frozenset(ignored)
    kept = []
    for name in found:
        if name in allowed:
            kept.append(name)
        elif name not in skipped and not name.startswith(("$", "_")):
            import difflib  # only a mistake needs it

            near = difflib.get_close_matches(name, allowed, 1)
            hint = "did you mean %r?" % near[0] if near else "known are %s" % ", ".join(sorted(allowed))
            raise ConfigError("%s: unknown setting %s; %s" % (path, quoted(name), hint))
    return kept


def header_text(value: str, path: str) -> str:
    """Return a string that may stand in a header; the message does not quote it."""
    value = value.strip(" \t")
    if re.fullmatch(FIELD_VALUE, value) is None:
        raise ConfigError("%s: has a line break or another character that no HTTP header can carry" % path)
    return value


# ---------------------------------------------------------------- timeouts


def normalise_timeout(
    value: Any, path: str, connect: Optional[float] = _CONNECT_SECONDS
) -> Tuple[Optional[float], Optional[float]]:
    """Return the (connect, read) limits in seconds, ``None`` meaning no limit.

    A number is the read limit, the silence allowed between two bytes; connecting then may take
    that long too, but not longer than `connect`. ``None`` lifts both limits.
    """
    if value is None:
        return None, None
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ConfigError("%s: expected a number or a pair (connect, read), got %d values" % (path, len(value)))
        first, second = (
            None if part is None else float(number(part, "%s[%d]" % (path, index), positive=True))
            for index, part in enumerate(value)
        )
        return first, second
    read = float(number(value, path, positive=True))
    return (read if connect is None else min(connect, read)), read


# ---------------------------------------------------------------- addresses


def normalise_base_url(url: Any, path: str, *, secret: bool = False) -> str:
    """Return ``scheme://host[:port][/prefix]`` without a trailing ``/`` or ``/v1``.

    ``http://`` is added where there is no scheme; ``dns+`` before it, for all addresses of a name, stays. Credentials
    in the URL are refused, for a URL is shown in errors and logs. With `secret` a message quotes nothing of the value.
    """
    url = text(url, path, secret=secret)
    dns = url[:len(DNS)].lower() == DNS
    scheme, host, prefix = split_url(url[len(DNS):] if dns else url, path, ("http", "https"), secret=secret)
    if dns and is_address(urlsplit("//" + host).hostname or ""):
        raise ConfigError("%s: %s is for a name that has addresses, and this is an address; leave it out" % (path, DNS))
    prefix = prefix.rstrip("/")
    if prefix.endswith("/v1"):
        prefix = prefix[:-3].rstrip("/")
    elif prefix.endswith(_OPERATIONS) and "/v1/" in prefix:
        raise ConfigError(
            "%s: is the URL of one operation; give the server's alone, up to the port: http://host:8000" % path
        )
    return "%s%s://%s%s" % (DNS if dns else "", scheme, host, prefix)


def base_urls(urls: Any, path: str, *, secret: bool = False) -> str:
    """Return one or several base URLs, commas between them, each once and as `normalise_base_url` has it."""
    found = [normalise_base_url(url.strip(), path, secret=secret) for url in text(urls, path, secret=secret).split(",")]
    return ",".join(dict.fromkeys(found))


def split_url(url: str, path: str, schemes: Tuple[str, ...], *, secret: bool = False) -> Tuple[str, str, str]:
    """Split a URL into scheme, ``host[:port]`` and path; `schemes[0]` stands where none is given."""
    expected = "a URL such as %s://host:8000, with a host name or an address (IPv6 in brackets)" % schemes[0]
    secret = secret or "@" in url or "?" in url
    if not url or re.compile(_CONTROL).search(url) or "\\" in url:
        found = "nothing" if not url else "white space, a control character or a backslash in it"
        raise ConfigError("%s: expected %s, got %s" % (path, expected, found))
    scheme, mark, rest = url.partition("://")
    if not mark:
        scheme, rest = schemes[0], url
    scheme = scheme.lower()
    if scheme not in schemes:
        raise ConfigError(
            "%s: expected a URL beginning with %s" % (path, " or ".join("%s://" % name for name in schemes))
            + ("" if secret else ", got %s" % quoted(url))
        )
    try:
        parts = urlsplit("%s://%s" % (scheme, rest))
    except ValueError:  # brackets that do not pair, characters that NFKC makes into others
        raise wrong(path, expected, url, secret) from None
    if "@" in parts.netloc:
        raise ConfigError("%s: must not hold a user and password; give them apart (a key's value, extra_headers, "
                          "a proxy's username and password)" % path)
    if "?" in url or "#" in url:
        raise ConfigError("%s: must not hold a query or a fragment (? or #)" % path)
    if not re.compile(_URL_PATH).match(parts.path):
        raise wrong(path, "a path of ASCII letters, others percent-encoded", url, secret)
    host, colon, port = _host_and_port(parts.netloc)
    host = _host(host)
    if not host:
        raise wrong(path, expected, url, secret)
    if colon:
        if not re.match(r"[0-9]{1,5}\Z", port) or not 0 < int(port) < 65536:
            raise wrong(path, "a port from 1 to 65535 behind the host", url, secret)
        host = "%s:%d" % (host, int(port))
    return scheme, host, parts.path


def _host_and_port(netloc: str) -> Tuple[str, str, str]:
    if netloc.startswith("["):
        host, _, rest = netloc.partition("]")
        return host + "]", rest[:1], rest[1:] if rest.startswith(":") else "?"
    return netloc.partition(":")


def _host(host: str) -> str:
    """Return a host in the form that goes on the wire, or "" if it is none."""
    if host.startswith("["):
        try:
            ipaddress.IPv6Address(host[1:-1].partition("%")[0])
        except ValueError:
            return ""
        return host.lower()
    try:
        host = host.encode("idna").decode("ascii") if not host.isascii() else host
    except UnicodeError:
        return ""
    labels = host[:-1].split(".") if host.endswith(".") else host.split(".")
    return host.lower() if all(re.compile(_LABEL).match(label) for label in labels) else ""


def host_name(value: Any, path: str) -> str:
    """Return the name of a host, without a port."""
    found = _host(text(value, path))
    if not found or found.startswith("["):
        raise wrong(path, "a host name", value)
    return found


def is_this_machine(host: str, *, listening: bool = False) -> bool:
    """Tell whether a host name or an address, in any spelling that the resolver takes, is this machine.

    ``0.0.0.0`` and ``::`` are, for a caller; for a server that listens they are all of its networks.
    """
    found = _ip_address(host)
    if found is None:
        return re.match(r"([a-z0-9_-]+\.)*localhost\.?\Z", host.lower()) is not None
    return found.is_loopback or (found.is_unspecified and not listening)


def is_address(host: str) -> bool:
    """Tell whether a host is an address and no name, in any spelling that the resolver takes."""
    return _ip_address(host) is not None


def bypasses_proxy(host: str, port: int, no_proxy: str) -> bool:
    """Tell whether the variable ``no_proxy`` names a server: ``*``, names, their ends, addresses, networks, ports."""
    found = _ip_address(host)
    name = _bare(host)
    for entry in no_proxy.lower().replace(",", " ").split():
        if entry == "*":
            return True
        match = re.match(r"(\[.*\]|[^:]*):0*([0-9]+)\Z", entry)  # not the last part of a bare IPv6 address
        target, wanted = match.groups() if match else (entry, str(port))
        if wanted != str(port):
            continue
        if found is not None:
            if _holds(target, found):
                return True
            continue
        target = _bare(target[1:] if target.startswith("*.") else target).lstrip(".")
        if target and ("." + name).endswith("." + target):
            return True
    return False


_IPAddress = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]


def _ip_address(host: str) -> Optional[_IPAddress]:
    """Return the address that a host is: ``127.1``, ``0x7f.1`` and ``[::ffff:127.0.0.1%lo]`` are 127.0.0.1."""
    host = _bare(host)
    try:
        if re.match(r"[0-9a-fx.]+\Z", host):
            return ipaddress.IPv4Address(socket.inet_aton(host))
        found = ipaddress.IPv6Address(host.partition("%")[0])
    except (OSError, ValueError):
        return None
    return found.ipv4_mapped or found


def _bare(host: str) -> str:
    """Return a host in lower case without brackets or the dot of the root."""
    host = host.lower()
    if host.startswith("[") and host.endswith("]"):
        return host[1:-1]
    host = host if host.isascii() else _host(host)
    return host[:-1] if host.endswith(".") else host


def _holds(target: str, address: _IPAddress) -> bool:
    """Tell whether an entry of ``no_proxy`` is an address, or a network around it."""
    target, slash, prefix = target.replace("[", "").replace("]", "").partition("/")
    network = _ip_address(target)
    try:
        return network == address or (slash != "" and address in ipaddress.ip_network(
            "%s/%s" % (network, prefix), strict=False))
    except ValueError:
        return False
