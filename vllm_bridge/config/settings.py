"""The settings of a provider, from keywords or from a file's objects (SPEC §9.1, §9.2).

Every setting is checked when it is given: a wrong one is a ``ConfigError`` that begins with its
path. Strings ``env.NAME`` stand for environment variables and are filled in at that moment. The
objects are read-only; ``replace(...)`` makes a changed copy.
"""

import logging
import os
from typing import Any, Dict, FrozenSet, Iterable, Mapping, Optional, Tuple, Type, TypeVar, Union
from urllib.parse import quote

from . import environment, validate
from .environment import check_headers
from .validate import normalise_base_url, normalise_timeout
from ..errors import ConfigError

__all__ = [
    "DEFAULT_BASE_URL",
    "Key",
    "NetworkConfig",
    "ProviderConfig",
    "ProxyConfig",
    "check_headers",
    "normalise_base_url",
    "normalise_timeout",
]

DEFAULT_BASE_URL = "http://localhost:8000"
MAX_CONNS_PER_HOST = 5000

_log = logging.getLogger("vllm_bridge")
_warned = False  # that a setting is obsolete is said once in a process

_S = TypeVar("_S", bound="_Settings")
_Environ = Optional[Mapping[str, str]]

# Bifrost's settings that mean nothing here; a file that has them is read all the same.
_OTHER_OF_PROVIDER = frozenset((
    "concurrency_and_buffer_size config_hash custom_provider_config description openai_config pricing_overrides "
    "status store_raw_request_response"
).split())
_OTHER_OF_NETWORK = frozenset("allow_private_network beta_header_overrides enforce_http2".split())
_OTHER_OF_KEY = frozenset("config_hash created_at description status updated_at use_for_batch_api".split())
_OTHER_OF_SERVER = frozenset("use_anthropic_endpoint use_anthropic_endpoints".split())


class _Settings:
    """A read-only group of settings: compared by value, printed without secrets."""

    _names: Tuple[str, ...] = ()
    _secret: FrozenSet[str] = frozenset()
    _ignored: FrozenSet[str] = frozenset()
    _renamed: Dict[str, str] = {}

    @classmethod
    def from_dict(cls: Type[_S], mapping: Any, path: str, environ: _Environ = None) -> _S:
        """Read the settings of a JSON object; an unknown one is a ``ConfigError``."""
        given = validate.mapping(mapping, path)
        for old, new in cls._renamed.items():
            if old in given and new in given:
                raise ConfigError("%s.%s: is the same setting as %s; keep one" % (path, old, new))
        allowed = cls._names + tuple(cls._renamed)
        chosen = {
            cls._renamed.get(name, name): given[name]
            for name in validate.known(given, allowed, cls._ignored, path)
            if given[name] is not None
        }
        return cls(path=path, environ=environ, **chosen)  # type: ignore[call-arg]

    def replace(self: _S, **changes: Any) -> _S:
        """Return a copy with some settings changed, checked like new ones."""
        mine = {name: getattr(self, name) for name in self._names if name in self.__dict__}
        mine.update(changes)
        return type(self)(**mine)

    def _set(self, **values: Any) -> None:
        self.__dict__.update(values)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("%s is read-only; use replace(%s=...)" % (type(self).__name__, name))

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self.__dict__ == other.__dict__

    def __repr__(self) -> str:
        shown = ("%s=%r" % (name, self._mask(name, value)) for name, value in self.__dict__.items())
        return "%s(%s)" % (type(self).__name__, ", ".join(shown))

    def _mask(self, name: str, value: Any) -> Any:
        if name not in self._secret or not value:
            return value
        return {key: "***" for key in value} if isinstance(value, dict) else "***"


class NetworkConfig(_Settings):
    """How servers are reached: address, limits in seconds, retries, headers, TLS.

    ``base_url`` ``None`` means ``VLLM_BASE_URL``, else ``http://localhost:8000``.
    ``default_request_timeout_in_seconds`` limits the silence between two bytes, not the answer.
    ``ca_cert_pem`` is PEM text or the path of a bundle. A socket idle for longer than
    ``keep_alive_timeout_in_seconds`` is not used again: vLLM closes it after 5 s. ``lean_http`` does nothing any more.
    """

    base_url: Optional[str]
    default_request_timeout_in_seconds: float
    connect_timeout_in_seconds: float
    max_retries: int
    retry_backoff_initial_ms: float
    retry_backoff_max_ms: float
    stream_idle_timeout_in_seconds: float
    extra_headers: Dict[str, str]
    insecure_skip_verify: bool
    ca_cert_pem: Optional[str]
    max_conns_per_host: int
    keep_alive_timeout_in_seconds: float
    lean_http: Optional[bool]

    _names = (
        "base_url", "default_request_timeout_in_seconds", "connect_timeout_in_seconds", "max_retries",
        "retry_backoff_initial_ms", "retry_backoff_max_ms", "stream_idle_timeout_in_seconds", "extra_headers",
        "insecure_skip_verify", "ca_cert_pem", "max_conns_per_host", "keep_alive_timeout_in_seconds",
        "lean_http",
    )
    _secret = frozenset(("extra_headers", "ca_cert_pem"))  # PEM text also fills a screen
    _ignored = _OTHER_OF_NETWORK
    _renamed = {
        "retry_backoff_initial": "retry_backoff_initial_ms",
        "retry_backoff_max": "retry_backoff_max_ms",
    }

    def __init__(
        self,
        base_url: Optional[str] = None,
        default_request_timeout_in_seconds: float = 300,
        connect_timeout_in_seconds: float = 5,
        max_retries: int = 2,
        retry_backoff_initial_ms: float = 500,
        retry_backoff_max_ms: float = 5000,
        stream_idle_timeout_in_seconds: float = 120,
        extra_headers: Optional[Mapping[str, str]] = None,
        insecure_skip_verify: bool = False,
        ca_cert_pem: Optional[str] = None,
        max_conns_per_host: int = MAX_CONNS_PER_HOST,
        keep_alive_timeout_in_seconds: float = 4.0,
        lean_http: Optional[bool] = None,
        *,
        path: str = "network_config",
        environ: _Environ = None,
    ) -> None:
        at = (path + ".").__add__
        seconds = "default_request_timeout_in_seconds", "connect_timeout_in_seconds", "stream_idle_timeout_in_seconds"
        environ = os.environ if environ is None else environ
        self._set(
            base_url=environment.address(base_url, at("base_url"), environ),
            default_request_timeout_in_seconds=validate.number(
                default_request_timeout_in_seconds, at(seconds[0]), positive=True),
            connect_timeout_in_seconds=validate.number(connect_timeout_in_seconds, at(seconds[1]), positive=True),
            max_retries=validate.whole(max_retries, at("max_retries")),
            retry_backoff_initial_ms=validate.number(retry_backoff_initial_ms, at("retry_backoff_initial_ms")),
            retry_backoff_max_ms=validate.number(retry_backoff_max_ms, at("retry_backoff_max_ms")),
            stream_idle_timeout_in_seconds=validate.number(
                stream_idle_timeout_in_seconds, at(seconds[2]), positive=True),
            extra_headers=check_headers({} if extra_headers is None else extra_headers, at("extra_headers"), environ),
            insecure_skip_verify=validate.flag(insecure_skip_verify, at("insecure_skip_verify")),
            ca_cert_pem=environment.certificates(ca_cert_pem, at("ca_cert_pem"), environ),
            max_conns_per_host=validate.whole(max_conns_per_host, at("max_conns_per_host"), least=1, most=10000),
            keep_alive_timeout_in_seconds=validate.number(
                keep_alive_timeout_in_seconds, at("keep_alive_timeout_in_seconds")),
            lean_http=_obsolete(lean_http, at("lean_http")),
        )


class ProxyConfig(_Settings):
    """Which proxy stands between: that of the environment, none, an HTTP or a SOCKS5 one."""

    type: str
    url: Optional[str]
    username: Optional[str]
    password: Optional[str]
    ca_cert_pem: Optional[str]

    _names = ("type", "url", "username", "password", "ca_cert_pem")
    _secret = frozenset(("password", "ca_cert_pem"))
    _schemes = {"http": ("http", "https"), "socks5": ("socks5h", "socks5")}

    def __init__(
        self,
        type: str = "environment",
        url: Optional[str] = None,
        username: Optional[str] = None,
        password: Optional[str] = None,
        ca_cert_pem: Optional[str] = None,
        *,
        path: str = "proxy_config",
        environ: _Environ = None,
    ) -> None:
        at = (path + ".").__add__
        environ = os.environ if environ is None else environ
        if type not in ("environment", "none", "http", "socks5"):
            raise validate.wrong(at("type"), "environment, none, http or socks5", type)
        address = environment.optional(url, at("url"), environ)
        if type in self._schemes:
            if address is None:
                raise ConfigError("%s: is needed for a proxy of type %s" % (at("url"), type))
            hidden = environment.env_name(url) is not None
            address = "%s://%s" % validate.split_url(address, at("url"), self._schemes[type], secret=hidden)[:2]
        elif address or username or password:
            raise ConfigError('%s: must be "http" or "socks5" for the url, username and password given' % at("type"))
        if type == "socks5":
            _require_socks(at("type"))
        self._set(
            type=type,
            url=address,
            username=environment.optional(username, at("username"), environ),
            password=environment.optional(password, at("password"), environ),
            ca_cert_pem=environment.certificates(ca_cert_pem, at("ca_cert_pem"), environ),
        )

    def url_with_credentials(self) -> Optional[str]:
        """Return the proxy's URL as requests takes it, user and password in it; never to be shown."""
        if self.url is None or self.username is None:
            return self.url
        scheme, _, host = self.url.partition("://")
        login = quote(self.username, safe="")
        if self.password is not None:
            login += ":" + quote(self.password, safe="")
        return "%s://%s@%s" % (scheme, login, host)


class Key(_Settings):
    """An API key, and the server and models that it is for.

    `url` and `model_name` may come as ``vllm_key_config={"url": ..., "model_name": ...}``. Models are
    named without regard to case; ``["*"]`` allows all, an empty list none; ``blacklisted_models``
    wins. `aliases` maps a name that callers use to the model's real name.
    """

    value: str
    id: Optional[str]
    name: Optional[str]
    models: Tuple[str, ...]
    blacklisted_models: Tuple[str, ...]
    weight: float
    aliases: Dict[str, str]
    enabled: bool
    url: Optional[str]
    model_name: Optional[str]

    _names = (
        "value", "id", "name", "models", "blacklisted_models", "weight", "aliases", "enabled", "url", "model_name",
        "vllm_key_config",
    )
    _secret = frozenset(("value",))
    _ignored = _OTHER_OF_KEY

    def __init__(
        self,
        value: str = "",
        *,
        id: Optional[str] = None,
        name: Optional[str] = None,
        models: Iterable[str] = ("*",),
        blacklisted_models: Iterable[str] = (),
        weight: float = 1.0,
        aliases: Optional[Mapping[str, str]] = None,
        enabled: bool = True,
        url: Optional[str] = None,
        model_name: Optional[str] = None,
        vllm_key_config: Optional[Mapping[str, Any]] = None,
        path: str = "key",
        environ: _Environ = None,
    ) -> None:
        at = (path + ".").__add__
        environ = os.environ if environ is None else environ
        aliases = {} if aliases is None else validate.mapping(aliases, at("aliases"))
        server = {} if vllm_key_config is None else validate.mapping(vllm_key_config, at("vllm_key_config"))
        validate.known(server, ("url", "model_name"), _OTHER_OF_SERVER, at("vllm_key_config"))
        url, url_at = _either(url, server, "url", path)
        model_name, model_name_at = _either(model_name, server, "model_name", path)
        self._set(
            value=environment.key_value(value, at("value"), environ),
            id=environment.optional(id, at("id")),
            name=environment.optional(name, at("name")),
            models=validate.names(models, at("models")),
            blacklisted_models=validate.names(blacklisted_models, at("blacklisted_models")),
            weight=validate.number(weight, at("weight")),
            aliases={alias: validate.text(real, "%s.%s" % (at("aliases"), validate.quoted(alias)))
                     for alias, real in aliases.items()},
            enabled=validate.flag(enabled, at("enabled")),
            url=environment.address(url, url_at, environ),
            model_name=environment.optional(model_name, model_name_at),
        )

    def __hash__(self) -> int:
        return hash((self.value, self.id, self.name, self.url, self.model_name))


class ProviderConfig(_Settings):
    """All settings of one provider.

    `keys` may hold objects as a config file has them. `native_responses` sends Responses to
    vLLM's own ``/v1/responses`` instead of converting them.
    """

    network_config: NetworkConfig
    proxy_config: ProxyConfig
    keys: Tuple[Key, ...]
    send_back_raw_request: bool
    send_back_raw_response: bool
    native_responses: Union[bool, str]

    _names = (
        "network_config", "proxy_config", "keys", "send_back_raw_request", "send_back_raw_response", "native_responses",
    )
    _ignored = _OTHER_OF_PROVIDER

    def __init__(
        self,
        network_config: Union[NetworkConfig, Mapping[str, Any], None] = None,
        proxy_config: Union[ProxyConfig, Mapping[str, Any], None] = None,
        keys: Iterable[Union[Key, Mapping[str, Any]]] = (),
        send_back_raw_request: bool = False,
        send_back_raw_response: bool = False,
        native_responses: Union[bool, str] = False,
        *,
        path: str = "",
        environ: _Environ = None,
    ) -> None:
        at = (path + "." if path else "").__add__
        if not isinstance(keys, (list, tuple)):
            raise validate.wrong(at("keys"), "a list of keys", keys, secret=True)
        listed = tuple(_group(Key, key, "%s[%d]" % (at("keys"), index), environ) for index, key in enumerate(keys))
        _refuse_twins(listed, at("keys"))
        self._set(
            network_config=_group(NetworkConfig, network_config, at("network_config"), environ),
            proxy_config=_group(ProxyConfig, proxy_config, at("proxy_config"), environ),
            keys=listed,
            send_back_raw_request=validate.flag(send_back_raw_request, at("send_back_raw_request")),
            send_back_raw_response=validate.flag(send_back_raw_response, at("send_back_raw_response")),
            native_responses=_native(native_responses, at("native_responses")),
        )

    @classmethod
    def from_dict(cls, mapping: Any, path: str = "providers.vllm", environ: _Environ = None) -> "ProviderConfig":
        """Read a provider's object of a config file."""
        return super().from_dict(mapping, path, environ)

    def resolved_keys(self, environ: _Environ = None) -> Tuple[Key, ...]:
        """Return the keys, each with a server's URL; one made of the environment if there are none.

        The URL: the key's, else ``network_config.base_url``, else ``VLLM_BASE_URL``, else
        ``http://localhost:8000``. ``VLLM_API_KEY`` goes only to a provider without keys: a key
        without a value is meant to send none, and its server may be a stranger.
        """
        environ = os.environ if environ is None else environ
        url = self.network_config.base_url
        if url is None:
            url = normalise_base_url(environ.get("VLLM_BASE_URL", "").strip() or DEFAULT_BASE_URL, "VLLM_BASE_URL")
        if not self.keys:
            value = validate.header_text(environ.get("VLLM_API_KEY", "").strip(), "VLLM_API_KEY")
            return (Key(value=value, url=url),)
        return tuple(key if key.url else key.replace(url=url) for key in self.keys)


def _obsolete(value: Optional[bool], path: str) -> Optional[bool]:
    global _warned
    if value is None:
        return None
    if not _warned:
        _warned = True
        _log.warning("%s: does nothing any more; leave it out", path)
    return validate.flag(value, path)


def _native(value: Any, path: str) -> Union[bool, str]:
    if value == "auto":
        return "auto"
    if not isinstance(value, bool):
        raise validate.wrong(path, 'true, false or "auto"', value)
    return value


def _group(cls: Type[_S], value: Any, path: str, environ: _Environ) -> _S:
    if isinstance(value, cls):
        return value
    return cls.from_dict({} if value is None else value, path, environ)


def _either(own: Any, server: Mapping[str, Any], label: str, path: str) -> Tuple[Any, str]:
    """Return a value given by the key itself or by its ``vllm_key_config``, and its path."""
    inner = "%s.vllm_key_config.%s" % (path, label)
    if server.get(label) in (None, ""):
        return own, "%s.%s" % (path, label)
    if own not in (None, ""):
        raise ConfigError("%s: is given by the key's own %s already; keep one" % (inner, label))
    return server[label], inner


def _require_socks(path: str) -> None:
    import importlib

    try:
        importlib.import_module("socks")
    except ImportError:
        raise ConfigError('%s: "socks5" needs PySocks; install it with: pip install "requests[socks]"' % path) from None


def _refuse_twins(keys: Tuple[Key, ...], path: str) -> None:
    for label in ("id", "name"):
        first: Dict[str, int] = {}
        for index, key in enumerate(keys):
            value = getattr(key, label)
            if value is not None and first.setdefault(value, index) != index:
                raise ConfigError("%s[%d].%s: %s is that of %s[%d] already" % (
                    path, index, label, validate.quoted(value), path, first[value]))
