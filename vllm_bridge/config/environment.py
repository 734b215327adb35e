"""Settings that may stand in an environment variable, written ``env.NAME`` in its place."""

import logging
import os
import re
from typing import Any, Callable, Dict, Mapping, Optional, Tuple, Union

from . import validate
from ..errors import ConfigError
from ..http1.head import HOP_BY_HOP, TOKEN

__all__ = [
    "address", "addresses", "certificates", "check_headers", "client_certificate", "content", "env_name", "env_text",
    "key_value", "optional",
]

_ENV = r"env\.([A-Za-z_][A-Za-z0-9_]*)\Z"
# What the connection itself sets. A proxy in front of the server may be given a login.
_FRAMING = HOP_BY_HOP - {"proxy-authenticate", "proxy-authorization"} | {"content-length", "expect"}
_log = logging.getLogger("vllm_bridge")


def env_name(value: Any) -> Optional[str]:
    """Return the variable that a value ``env.NAME`` names, else ``None``."""
    match = re.compile(_ENV).match(value) if isinstance(value, str) else None
    return match.group(1) if match else None


def content(name: str, environ: Mapping[str, str], secret: bool = True) -> str:
    """Return what is in an environment variable, without white space around it (as a mounted file ends).

    A secret in quotation marks gives a warning: ``docker --env-file`` takes them as they stand, unlike a shell.
    """
    found = environ.get(name, "").strip()
    if secret and len(found) > 1 and found[0] == found[-1] and found[0] in "\"'":
        _log.warning("%s: the key in this variable stands in quotation marks, which are taken as a part of it; leave "
                     "them out (docker's --env-file keeps them)", name)
    return found


def env_text(value: Any, path: str, environ: Mapping[str, str], *, secret: bool = False) -> str:
    """Return a string, the variable's content in place of ``env.NAME``; an unset one is an error."""
    name = env_name(value)
    if name is None:
        return validate.text(value, path, secret=secret)
    found = content(name, environ, secret)
    if not found:
        state = "empty" if name in environ else "not set"
        raise ConfigError("%s: the environment variable %s is %s; set it" % (path, name, state))
    return found


def check_headers(headers: Any, path: str, environ: Optional[Mapping[str, str]] = None) -> Dict[str, str]:
    """Return headers as a new dict, checked; with `environ`, ``env.NAME`` values are filled in.

    Headers that frame the message (``Content-Length``, ``Transfer-Encoding``, ``Connection``, ...)
    are refused: the connection sets them.
    """
    checked: Dict[str, str] = {}
    seen = set()
    for name, value in validate.mapping({} if headers is None else headers, path).items():
        folded = name.lower()
        if folded in seen or folded in _FRAMING or re.fullmatch(TOKEN, name) is None:
            raise _unfit(name, path, folded in seen)
        seen.add(folded)
        where = "%s.%s" % (path, name)
        if environ is not None:
            value = env_text(value, where, environ, secret=True)
        checked[name] = validate.header_text(validate.text(value, where, secret=True), where)
    return checked


def _unfit(name: str, path: str, twice: bool) -> ConfigError:
    """Say why a header may not have this name."""
    if re.fullmatch(TOKEN, name) is None:
        return ConfigError("%s.%s: is no header name; letters, digits and - are" % (path, validate.quoted(name)))
    if twice:
        return ConfigError("%s.%s: is there twice, in different case" % (path, name))
    return ConfigError("%s.%s: is set by the connection itself; leave it out" % (path, name))


def addresses(value: Any, path: str, environ: Mapping[str, str]) -> Optional[str]:
    """Return base URLs with commas between them, normalised, or ``None`` for an empty text."""
    return address(value, path, environ, validate.base_urls)


def address(
    value: Any, path: str, environ: Mapping[str, str], normalise: Callable[..., str] = validate.normalise_base_url
) -> Optional[str]:
    """Return a server's base URL, normalised, or ``None`` for an empty one."""
    if value is None or value == "":
        return None
    # What a variable holds may be a secret put in the wrong place.
    from_variable = env_name(value) is not None
    return normalise(env_text(value, path, environ), path, secret=from_variable)


def optional(value: Any, path: str, environ: Optional[Mapping[str, str]] = None) -> Optional[str]:
    """Return a string, or ``None`` for an empty one; with `environ`, ``env.NAME`` is filled in."""
    if value is None or value == "":
        return None
    if environ is None:
        return validate.text(value, path)
    return env_text(value, path, environ, secret=True)


def key_value(value: Any, path: str, environ: Mapping[str, str]) -> str:
    """Return an API key; a variable that is not set gives none, and a warning that names it.

    vLLM started without ``--api-key`` needs none, so that is no error.
    """
    value = validate.text(value, path, secret=True).strip()
    name = env_name(value)
    if name is not None:
        if name not in environ:
            _log.warning("%s: the environment variable %s is not set, so no API key is sent", path, name)
        value = content(name, environ)
    return validate.header_text(value, path)


def certificates(value: Any, path: str, environ: Mapping[str, str]) -> Optional[str]:
    """Return PEM text, or the path of a bundle, after reading it once."""
    pem = optional(value, path, environ)
    if pem is None:
        return None
    import ssl  # only a private authority needs it

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if "-----BEGIN" in pem:
            context.load_verify_locations(cadata=pem)
            return pem
        pem = os.path.expanduser(pem)
        if os.path.isdir(pem):
            context.load_verify_locations(capath=pem)
        else:
            context.load_verify_locations(cafile=pem)
    except FileNotFoundError:
        raise ConfigError("%s: there is no such file, and it is no PEM text" % path) from None
    except (OSError, TypeError, ValueError):  # ssl.SSLError is an OSError
        raise ConfigError("%s: holds no certificate that can be read (PEM)" % path) from None
    return pem


def client_certificate(value: Any, path: str, environ: Mapping[str, str]) -> Union[str, Tuple[str, str], None]:
    """Return the path of a certificate with its key, or one of each, after reading them once."""
    if isinstance(value, (list, tuple)):
        if len(value) != 2:
            raise validate.wrong(path, "a path, or the paths of a certificate and its key", value)
        paths = [optional(each, path, environ) for each in value]
    else:
        paths = [optional(value, path, environ)]
        if paths == [None]:
            return None
    files = [os.path.expanduser(each or "") for each in paths]
    import ssl  # only who has one needs it

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(files[0], files[-1], password="")
    except FileNotFoundError:
        raise ConfigError("%s: there is no such file: %s" % (path, ", ".join(files))) from None
    except (OSError, TypeError, ValueError):  # ssl.SSLError is an OSError
        problem = "%s: holds no certificate with its key that can be read (PEM, without a password)"
        raise ConfigError(problem % path) from None
    return files[0] if len(files) == 1 else (files[0], files[1])
