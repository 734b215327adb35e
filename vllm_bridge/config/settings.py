"""The settings of a provider, from keywords or from a config file's objects.

Every setting is checked when it is given: a wrong one is a ``ConfigError`` that begins with its
path. Strings ``env.NAME`` stand for environment variables and are filled in at that moment. The
objects are read-only; ``replace(...)`` makes a changed copy.
"""

import logging
import os
from typing import Any, Callable, Dict, FrozenSet, Iterable, Mapping, Optional, Tuple, Type, TypeVar, Union, cast
from urllib.parse import quote

from . import environment, validate
from .aliases import read as read_aliases
from .redaction import HIDDEN
from ..errors import ConfigError

__all__ = ["DEFAULT_BASE_URL", "Key", "NetworkConfig", "ProviderConfig", "ProxyConfig", "ROUTING", "routing"]

DEFAULT_BASE_URL = "http://localhost:8000"
MAX_CONNS_PER_HOST = 5000
ROUTING = ("expected_wait", "random", "round_robin", "least_requests")  # the first one is the default

_log = logging.getLogger("vllm_bridge")
_warned = False  # that a setting is obsolete is said once in a process

_S = TypeVar("_S", bound="_Settings")
_T = TypeVar("_T")
_Environ = Optional[Mapping[str, str]]


class _Setting:
    """How the value of one setting is read: by a check that takes it, its path and perhaps the environment."""

    def __init__(self, check: Callable[..., Any], from_environment: bool, limits: Dict[str, Any]) -> None:
        self.check = check
        self.from_environment = from_environment
        self.limits = limits

    def read(self, value: Any, path: str, environ: _Environ) -> Any:
        if not self.from_environment:
            return self.check(value, path, **self.limits)
        return self.check(value, path, os.environ if environ is None else environ)


def _setting(check: Callable[..., _T], **limits: Any) -> _T:
    """Declare a setting of a class; in its objects stands what the check returns."""
    return cast(_T, _Setting(check, False, limits))


def _from_environment(check: Callable[[Any, str, Mapping[str, str]], _T]) -> _T:
    """Declare a setting that may be ``env.NAME``."""
    return cast(_T, _Setting(check, True, {}))


class _Settings:
    """A read-only group of settings: compared by value, printed without secrets."""

    _table: Dict[str, _Setting] = {}
    _also: Tuple[str, ...] = ()  # other names for some of them
    _secret: FrozenSet[str] = frozenset()
    _ignored: Iterable[str] = ()  # Bifrost's settings that mean nothing here; a file may have them all the same
    _renamed: Dict[str, str] = {}

    def __init_subclass__(cls) -> None:
        cls._table = {name: value for name, value in vars(cls).items() if isinstance(value, _Setting)}

    @classmethod
    def from_dict(cls: Type[_S], mapping: Any, path: str, environ: _Environ = None) -> _S:
        """Read the settings of a JSON object; an unknown one is a ``ConfigError``."""
        given = validate.mapping(mapping, path)
        for old, new in cls._renamed.items():
            if old in given and new in given:
                raise ConfigError("%s.%s: is the same setting as %s; keep one" % (path, old, new))
        allowed = (*cls._table, *cls._also, *cls._renamed)
        chosen = {
            cls._renamed.get(name, name): given[name]
            for name in validate.known(given, allowed, cls._ignored, path)
            if given[name] is not None
        }
        return cls(path=path, environ=environ, **chosen)  # type: ignore[call-arg]

    def replace(self: _S, **changes: Any) -> _S:
        """Return a copy with some settings changed, checked like new ones."""
        return type(self)(**{**self.__dict__, **changes})

    def _take(self, given: Dict[str, Any]) -> None:
        """Check the arguments of ``__init__``, and keep them."""
        path = given["path"]
        for name, setting in self._table.items():
            self.__dict__[name] = setting.read(given[name], "%s.%s" % (path, name) if path else name, given["environ"])

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
        return dict.fromkeys(value, HIDDEN) if isinstance(value, dict) else HIDDEN


# ---------------------------------------------------------------- checks of single settings


def _obsolete(value: Any, path: str) -> None:
    global _warned
    if value is None:
        return
    validate.flag(value, path)
    if not _warned:
        _warned = True
        _log.warning("%s: does nothing any more; leave it out", path)


def _proxy_type(value: Any, path: str) -> str:
    if value not in ("environment", "none", "http", "socks5"):
        raise validate.wrong(path, "environment, none, http or socks5", value)
    return str(value)


def _server_name(value: Any, path: str) -> Optional[str]:
    return None if value is None or value == "" else validate.host_name(value, path)


def _native(value: Any, path: str) -> Union[bool, str]:
    if value == "auto":
        return "auto"
    if not isinstance(value, bool):
        raise validate.wrong(path, 'true, false or "auto"', value)
    return value


def routing(value: Any, path: str) -> str:
    """Return a way of choosing servers."""
    if value not in ROUTING:
        raise validate.wrong(path, "%s or %s" % (", ".join(ROUTING[:-1]), ROUTING[-1]), value)
    return str(value)


def _group(cls: Type[_S]) -> Callable[[Any, str, Mapping[str, str]], _S]:
    """Return the check of an object that is a group of settings itself."""
    def read(value: Any, path: str, environ: Mapping[str, str]) -> _S:
        return value if isinstance(value, cls) else cls.from_dict({} if value is None else value, path, environ)

    return read


def _keys(value: Any, path: str, environ: Mapping[str, str]) -> Tuple["Key", ...]:
    if not isinstance(value, (list, tuple)):
        raise validate.wrong(path, "a list of keys", value, secret=True)
    read = _group(Key)
    keys = tuple(read(key, "%s[%d]" % (path, index), environ) for index, key in enumerate(value))
    for label in ("id", "name"):
        first: Dict[str, int] = {}
        for index, key in enumerate(keys):
            named = key.__dict__[label]
            if named is not None and first.setdefault(named, index) != index:
                raise ConfigError("%s[%d].%s: %s is that of %s[%d] already" % (
                    path, index, label, validate.quoted(named), path, first[named]))
    return keys


# ---------------------------------------------------------------- the settings


class NetworkConfig(_Settings):
    """How servers are reached: address, limits in seconds, retries, headers, TLS.

    ``base_url`` may be several addresses with commas between them; ``None`` means ``VLLM_BASE_URL``,
    else ``http://localhost:8000``.
    ``default_request_timeout_in_seconds`` limits the silence between two bytes, not the answer.
    ``ca_cert_pem`` is PEM text or the path of a bundle; ``client_cert`` the path of a certificate with its key, or one
    of each. A socket idle for longer than
    ``keep_alive_timeout_in_seconds`` is not used again: vLLM closes it after 5 s. ``lean_http`` does nothing any more.
    """

    base_url = _from_environment(environment.addresses)
    default_request_timeout_in_seconds = _setting(validate.number, positive=True)
    connect_timeout_in_seconds = _setting(validate.number, positive=True)
    max_retries = _setting(validate.whole)
    retry_backoff_initial_ms = _setting(validate.number)
    retry_backoff_max_ms = _setting(validate.number)
    stream_idle_timeout_in_seconds = _setting(validate.number, positive=True)
    extra_headers = _from_environment(environment.check_headers)
    insecure_skip_verify = _setting(validate.flag)
    ca_cert_pem = _from_environment(environment.certificates)
    client_cert = _from_environment(environment.client_certificate)
    max_conns_per_host = _setting(validate.whole, least=1, most=10000)
    keep_alive_timeout_in_seconds = _setting(validate.number)
    lean_http = _setting(_obsolete)

    _secret = frozenset(("extra_headers", "ca_cert_pem"))  # PEM text also fills a screen
    _ignored = ("allow_private_network", "beta_header_overrides", "enforce_http2", "http2_ping_interval_in_seconds")
    _renamed = {
        "retry_backoff_initial": "retry_backoff_initial_ms", "retry_backoff_max": "retry_backoff_max_ms",
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
        client_cert: Union[str, Tuple[str, str], None] = None,
        max_conns_per_host: int = MAX_CONNS_PER_HOST,
        keep_alive_timeout_in_seconds: float = 4.0,
        lean_http: Optional[bool] = None,
        *,
        path: str = "network_config",
        environ: _Environ = None,
    ) -> None:
        self._take(locals())


class ProxyConfig(_Settings):
    """Which proxy stands between: that of the environment, none, an HTTP or a SOCKS5 one."""

    type = _setting(_proxy_type)
    url = _from_environment(environment.optional)
    username = _from_environment(environment.optional)
    password = _from_environment(environment.optional)
    ca_cert_pem = _from_environment(environment.certificates)

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
        self._take(locals())
        schemes = self._schemes.get(type)
        if schemes is None:
            if self.url or self.username or self.password:
                raise ConfigError(
                    '%s.type: must be "http" or "socks5" for the url, username and password given' % path)
            return
        if self.url is None:
            raise ConfigError("%s.url: is needed for a proxy of type %s" % (path, type))
        hidden = environment.env_name(url) is not None
        parts = validate.split_url(self.url, path + ".url", schemes, secret=hidden)
        self.__dict__["url"] = "%s://%s" % parts[:2]
        if type == "socks5":
            _require_socks(path + ".type")

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
    wins. `aliases` maps a name that callers use to the model's real name. With `wake` a server that
    sleeps is woken for a model that no other has. `server_name` is the name to ask for, in ``Host`` and
    TLS, where `url` has an address.
    """

    value = _from_environment(environment.key_value)
    id = _setting(environment.optional)
    name = _setting(environment.optional)
    models = _setting(validate.names)
    blacklisted_models = _setting(validate.names)
    weight = _setting(validate.number)
    aliases = _setting(read_aliases)
    enabled = _setting(validate.flag)
    url = _from_environment(environment.address)
    model_name = _setting(environment.optional)
    wake = _setting(validate.flag)
    server_name = _setting(_server_name)

    _also = ("vllm_key_config",)
    _secret = frozenset(("value",))
    _ignored = ("config_hash", "created_at", "description", "status", "updated_at", "use_anthropic_endpoints",
                "use_for_batch_api")

    def __init__(
        self,
        value: str = "",
        *,
        id: Optional[str] = None,
        name: Optional[str] = None,
        models: Iterable[str] = ("*",),
        blacklisted_models: Iterable[str] = (),
        weight: float = 1.0,
        aliases: Optional[Mapping[str, Any]] = None,
        enabled: bool = True,
        url: Optional[str] = None,
        model_name: Optional[str] = None,
        wake: bool = False,
        server_name: Optional[str] = None,
        vllm_key_config: Optional[Mapping[str, Any]] = None,
        path: str = "key",
        environ: _Environ = None,
    ) -> None:
        given = locals()
        if vllm_key_config is not None:
            where = path + ".vllm_key_config"
            server = validate.mapping(vllm_key_config, where)
            ignored = ("use_anthropic_endpoint", "use_anthropic_endpoints")
            for label in validate.known(server, ("url", "model_name"), ignored, where):
                if server[label] in (None, ""):
                    continue
                inner = "%s.%s" % (where, label)
                if given[label] not in (None, ""):
                    raise ConfigError("%s: is given by the key's own %s already; keep one" % (inner, label))
                given[label] = self._table[label].read(server[label], inner, environ)
        self._take(given)

    def __hash__(self) -> int:
        return hash((self.value, self.id, self.name, self.url, self.model_name))


class ProviderConfig(_Settings):
    """All settings of one provider.

    `keys` may hold objects as a config file has them. `native_responses` sends Responses to
    vLLM's own ``/v1/responses`` instead of converting them. `routing` says how one of several servers is chosen that
    have a model: ``expected_wait``, ``random``, ``round_robin`` or ``least_requests``.
    """

    network_config = _from_environment(_group(NetworkConfig))
    proxy_config = _from_environment(_group(ProxyConfig))
    keys = _from_environment(_keys)
    send_back_raw_request = _setting(validate.flag)
    send_back_raw_response = _setting(validate.flag)
    native_responses = _setting(_native)
    routing = _setting(routing)

    _ignored = (
        "concurrency_and_buffer_size", "config_hash", "custom_provider_config", "description", "openai_config",
        "pricing_overrides", "status", "store_raw_request_response",
    )

    def __init__(
        self,
        network_config: Union[NetworkConfig, Mapping[str, Any], None] = None,
        proxy_config: Union[ProxyConfig, Mapping[str, Any], None] = None,
        keys: Iterable[Union[Key, Mapping[str, Any]]] = (),
        send_back_raw_request: bool = False,
        send_back_raw_response: bool = False,
        native_responses: Union[bool, str] = False,
        routing: str = ROUTING[0],
        *,
        path: str = "",
        environ: _Environ = None,
    ) -> None:
        self._take(locals())

    @classmethod
    def from_dict(cls, mapping: Any, path: str = "providers.vllm", environ: _Environ = None) -> "ProviderConfig":
        """Read a provider's object of a config file."""
        return super().from_dict(mapping, path, environ)

    def resolved_keys(self, environ: _Environ = None, plain: bool = True) -> Tuple[Key, ...]:
        """Return the keys, each with a server's URL; those made of the environment if there are none.

        Where they are not to be `plain`, ``dns+`` before a URL stays. The URL: the key's, else each of
        ``network_config.base_url``, else ``VLLM_BASE_URL``, else ``http://localhost:8000``. ``VLLM_API_KEY`` goes only
        to a provider without keys: a key without a value is meant to send none, and its server may be a stranger.
        """
        environ = os.environ if environ is None else environ
        urls = self.network_config.base_url or ""
        if not urls and not (self.keys and all(key.url for key in self.keys)):
            named = environ.get("VLLM_BASE_URL", "").strip()
            urls = validate.base_urls(named or DEFAULT_BASE_URL, "VLLM_BASE_URL")
        if not self.keys:
            value = validate.header_text(environment.content("VLLM_API_KEY", environ), "VLLM_API_KEY")
            keys = tuple(Key(value=value, url=url) for url in urls.split(","))
        else:
            keys = tuple(
                key.replace(url=url) if url else key
                for key in self.keys for url in ([""] if key.url else urls.split(","))
            )
        dns = validate.DNS
        return tuple(
            key.replace(url=key.url[len(dns):]) if plain and key.url and key.url.startswith(dns) else key
            for key in keys
        )


def _require_socks(path: str) -> None:
    import importlib

    try:
        importlib.import_module("socks")
    except ImportError:
        raise ConfigError('%s: "socks5" needs PySocks; install it with: pip install "requests[socks]"' % path) from None
