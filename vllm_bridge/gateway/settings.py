"""The gateway's settings: a flag beats the environment (``VLLM_BRIDGE_...``), the environment beats the config file.

`SETTINGS` is the one list of them; the flags of the command line are made from it.
"""

import os
import re
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple, Union

from ..config import environment, file as config_file, validate
from ..config.settings import ROUTING, Key, ProviderConfig, routing
from ..errors import ConfigError
from ..http1.head import TOKEN
from .headers import OURS_DOWN, OURS_UP
from .patterns import Patterns
from .proxies import networks

if TYPE_CHECKING:
    from argparse import ArgumentParser

__all__ = ["SETTINGS", "Setting", "Settings", "add_arguments", "read"]

PREFIX = "VLLM_BRIDGE_"
_MIB = 1024 * 1024
_WORDS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}

# Bifrost's settings of the same section that mean nothing here; a file that has them is read all the same.
_OTHERS = frozenset((
    "allow_direct_keys async_job_result_ttl compat disable_content_logging drop_excess_requests "
    "enable_governance enable_litellm_fallbacks enable_logging enforce_auth_on_inference enforce_governance_header "
    "header_filter_config hide_deleted_virtual_keys_in_filters initial_pool_size log_retention_days logging_headers "
    "mcp_agent_depth mcp_tool_execution_timeout prometheus_labels required_headers whitelisted_routes"
).split())
_RENAMED = {"allowed_origins": "allowed_origin", "api_keys": "api_key", "max_request_body_size_mb": "max_body_mb",
            "upstreams": "upstream", "aliases": "alias",
            "allowed_hosts": "allowed_host", "allowed_headers": "allowed_header",
            "passed_headers": "passed_header"}


# ---------------------------------------------------------------- one value; text from a flag or the environment


def _text(value: Any, path: str) -> str:
    found = validate.text(value, path).strip()
    if not found:
        raise ConfigError("%s: must not be empty" % path)
    return found


def _prefix(value: Any, path: str) -> str:
    return validate.text(value, path).strip()


def _host_name(value: Any, path: str) -> str:
    name = _text(value, path).lower()
    if ":" in name or "/" in name:
        raise validate.wrong(path, "a name without scheme and port, such as gateway.example or *.example", value)
    return name[:-1] if name.endswith(".") else name


def _header_name(ours: Patterns) -> Callable[[Any, str], str]:
    def check(value: Any, path: str) -> str:
        name = _text(value, path).lower()
        if re.fullmatch(TOKEN, name) is None:
            raise validate.wrong(path, "the name of a header", value)
        if ours.match(name):
            raise ConfigError("%s: %s is the gateway's own in every message; leave it out" % (path, name))
        return name

    return check


def _proxies(value: Any, path: str) -> str:
    text = _text(value, path)
    try:
        return ",".join(networks(text))
    except ValueError:
        raise validate.wrong(path, "addresses and networks such as 10.0.0.0/8, or *", value) from None


def _alias(value: Any, path: str) -> Tuple[str, str]:
    name, _, model = _text(value, path).partition("=")
    if not name.strip() or not model.strip():
        raise validate.wrong(path, "NAME=MODEL", value)
    return name.strip(), model.strip()


def _number(value: Any, path: str) -> float:
    return validate.number(_plain(value, float), path)


def _positive(value: Any, path: str) -> float:
    return validate.number(_plain(value, float), path, positive=True)


def _port(value: Any, path: str) -> int:
    return validate.whole(_plain(value, int), path, most=65535)


def _count(value: Any, path: str) -> int:
    return validate.whole(_plain(value, int), path, least=1)


def _switch(value: Any, path: str) -> bool:
    return validate.flag(_WORDS.get(value.strip().lower(), value) if isinstance(value, str) else value, path)


def _native(value: Any, path: str) -> Union[bool, str]:
    return "auto" if value == "auto" else _switch(value, path)


def _routing(value: Any, path: str) -> str:
    return routing(value.strip() if isinstance(value, str) else value, path)


def _log_format(value: Any, path: str) -> str:
    if value not in ("text", "json"):
        raise validate.wrong(path, "text or json", value)
    return str(value)


def _plain(value: Any, kind: Callable[[str], Any]) -> Any:
    """Return the number that a text stands for; what is none stays as it is, for its check to refuse."""
    if isinstance(value, str):
        try:
            return kind(value.strip())
        except ValueError:
            pass
    return value


class Setting(NamedTuple):
    """One setting: its name in the file (``max_body_mb``; the flag is ``--max-body-mb``) and what it may be."""

    name: str
    read: Callable[[Any, str], Any]
    default: Any
    metavar: str
    help: str
    many: bool = False
    secret: bool = False


SETTINGS: Tuple[Setting, ...] = (
    Setting("host", _text, "127.0.0.1", "HOST", "address to listen on (default: 127.0.0.1)"),
    Setting("port", _port, 8080, "PORT", "port to listen on; 0 takes a free one (default: 8080)"),
    Setting("upstream", _text, (), "URL", "a vLLM server; may be given several times (default: http://localhost:8000)",
            many=True),
    Setting("upstream_key", _text, None, "KEY", "API key for the servers given by --upstream; the process list shows "
            "it, the environment (VLLM_BRIDGE_UPSTREAM_KEY) and the config file do not", secret=True),
    Setting("alias", _alias, (), "NAME=MODEL", "another name for a model; a * in it stands for anything, as in "
            "claude-*=Qwen/Qwen3-Coder; may be given several times", many=True),
    Setting("api_key", _text, (), "KEY", "API key that clients must send; may be given several times; the process "
            "list shows it, --api-key-file and the environment (VLLM_BRIDGE_API_KEY) do not", many=True, secret=True),
    Setting("api_key_file", _text, None, "FILE", "file with such keys, one a line"),
    Setting("timeout", _positive, None, "SECONDS", "longest silence of a server before its answer (default: 300)"),
    Setting("stream_idle_timeout", _positive, None, "SECONDS", "longest silence within a stream (default: 120)"),
    Setting("config", _text, None, "FILE", "JSON config file"),
    Setting("sse_keep_alive_interval", _number, 0, "SECONDS", "silence of a server after which a stream's client gets "
            "a comment; 0 sends none but the server's own (default: 0)"),
    Setting("workers", _count, 1, "N", "processes (default: 1)"),
    Setting("max_body_mb", _positive, 100, "MIB", "longest request body (default: 100)"),
    Setting("max_parsed_mb", _positive, 2, "MIB", "most of a JSON body that may stand outside of strings, which takes "
            "long to read (default: 2)"),
    Setting("max_connections", _count, 1000, "N", "requests that each process carries at once (default: 1000)"),
    Setting("max_queued", _count, None, "N", "requests that each server gets at once, be they running or queued there; "
            "beyond that the answer is 429 at once (default: what the connections allow)"),
    Setting("allowed_origin", _text, (), "ORIGIN", "origin whose web pages may call; * allows all; may be given "
            "several times (default: those of this machine)", many=True),
    Setting("allowed_host", _host_name, (), "NAME", "name under which a gateway without API keys may be asked, beside "
            "addresses, this machine's own and those without a dot; *.example allows all under example; may be given "
            "several times", many=True),
    Setting("allowed_header", _header_name(OURS_UP), (), "NAME", "header of clients that goes on to the servers, "
            "beside those of tracing and vLLM's own; x-team-* allows all that begin so; may be given several times",
            many=True),
    Setting("passed_header", _header_name(OURS_DOWN), (), "NAME", "header of the servers' replies that clients get, "
            "beside rate limits, openai-* and x-vllm-*; may be given several times", many=True),
    Setting("forwarded_allow_ips", _proxies, (), "IPS", "addresses and networks of the proxies in front, with commas "
            "between them, whose X-Forwarded-For says who a client is; * for all (default: nobody's)", many=True),
    Setting("model_prefix", _prefix, "vllm/", "TEXT", "stands before the models' ids in /v1/models; \"\" for none "
            "(default: vllm/); requests may have it or not"),
    Setting("log_format", _log_format, "text", "FORMAT", "text or json (default: text)"),
    Setting("graceful_timeout", _number, 30, "SECONDS", "time that running answers get to finish (default: 30)"),
    Setting("keep_alive_timeout", _positive, 75, "SECONDS", "pause between two requests after which a connection is "
            "closed; longer than that of the balancer in front (default: 75)"),
    Setting("header_timeout", _positive, 20, "SECONDS", "time for the head of a request (default: 20)"),
    Setting("body_timeout", _positive, 30, "SECONDS", "longest silence within the body of a request (default: 30)"),
    Setting("write_timeout", _positive, 60, "SECONDS", "time that a client may take nothing of its answer "
            "(default: 60)"),
    Setting("insecure", _switch, False, "", "listen on other addresses than this machine's without an API key"),
    Setting("routing", _routing, None, "WAY", "how one of several servers that have a model is chosen: %s, %s, %s or "
            "%s (default: %s)" % (*ROUTING, ROUTING[0])),
    Setting("native_responses", _native, None, "", "send Responses to the servers' own /v1/responses; "
            "auto: where they have it"),
)


class Settings:
    """All settings, checked; `provider` says how the servers are reached."""

    def __init__(self, provider: ProviderConfig, api_keys: Tuple[str, ...] = (), **values: Any) -> None:
        unknown = sorted(set(values) - _SERVED)
        if unknown:
            raise ConfigError("Settings: unknown setting %r" % unknown[0])
        chosen = {setting.name: setting.default for setting in SETTINGS if setting.name in _SERVED}
        chosen.update(values)
        self.provider = provider
        self.api_keys = api_keys
        self.host: str = chosen["host"]
        self.port: int = chosen["port"]
        self.workers: int = chosen["workers"]
        self.max_body = int(chosen["max_body_mb"] * _MIB)  # bytes
        self.max_connections: int = chosen["max_connections"]
        self.max_queued: Optional[int] = chosen["max_queued"]
        self.allowed_origins: Tuple[str, ...] = tuple(chosen["allowed_origin"])
        self.allowed_hosts: Tuple[str, ...] = tuple(chosen["allowed_host"])
        self.allowed_headers: Tuple[str, ...] = tuple(chosen["allowed_header"])
        self.passed_headers: Tuple[str, ...] = tuple(chosen["passed_header"])
        self.forwarded_allow_ips: Tuple[str, ...] = tuple(chosen["forwarded_allow_ips"])
        self.model_prefix: str = chosen["model_prefix"]
        self.log_format: str = chosen["log_format"]
        self.max_parsed = int(chosen["max_parsed_mb"] * _MIB)  # bytes
        self.graceful_timeout: float = chosen["graceful_timeout"]
        self.keep_alive_timeout: float = chosen["keep_alive_timeout"]
        self.header_timeout: float = chosen["header_timeout"]
        self.body_timeout: float = chosen["body_timeout"]
        self.write_timeout: float = chosen["write_timeout"]
        self.sse_keep_alive_interval: float = chosen["sse_keep_alive_interval"]
        self.insecure: bool = chosen["insecure"]

    def check_address(self) -> None:
        """Raise `ConfigError` if everybody on the network could use the gateway without anybody having said so."""
        if not (self.api_keys or self.insecure or validate.is_this_machine(self.host, listening=True)):
            raise ConfigError(
                "host: %s can be reached from other machines; give an api_key or an api_key_file for the clients, "
                "or insecure to serve everybody" % validate.quoted(self.host)
            )

    def __repr__(self) -> str:
        return "Settings(%s:%d, %r)" % (self.host, self.port, self.provider)


_SWITCHES = frozenset(("insecure", "native_responses"))  # flags that stand for "true" without a word behind them
_MAY_BE_EMPTY = frozenset(("model_prefix",))  # for all others an empty variable is none
_SERVED = frozenset((
    "host port workers max_body_mb max_parsed_mb max_connections allowed_origin allowed_host allowed_header "
    "passed_header forwarded_allow_ips model_prefix log_format graceful_timeout insecure keep_alive_timeout "
    "header_timeout body_timeout write_timeout sse_keep_alive_interval max_queued"
).split())


def add_arguments(parser: "ArgumentParser") -> None:
    """Add the gateway's flags to a parser; what is not given stays ``None``."""
    parser.add_argument("--check-config", action="store_true", help="say whether the configuration is good, and end")
    for setting in SETTINGS:
        options: Dict[str, Any] = {"dest": setting.name, "default": None, "help": setting.help}
        if setting.name in _SWITCHES:
            options.update(nargs="?", const="true", metavar="WORD")
        else:
            options["metavar"] = setting.metavar
        if setting.many:
            options["action"] = "append"
        parser.add_argument(_flag_path(setting.name), **options)


def read(flags: Optional[Mapping[str, Any]] = None, environ: Optional[Mapping[str, str]] = None) -> Settings:
    """Return the settings of a command line, the environment and the config file that one of them names.

    `flags` maps names of `SETTINGS` to text (a list of texts where a flag may be repeated); ``None`` is not given.
    Raises `ConfigError`, which begins with the flag, the variable or the path in the file.
    """
    environ = os.environ if environ is None else environ
    given = _from_flags(flags or {})
    given.update(_from_environment(environ, given))
    provider = None
    if "config" in given:
        file = config_file.load(given["config"][1], environ)
        provider = file.provider
        from_file = _from_file(file.client, environ)
        if "upstream" in from_file and provider.keys:
            raise ConfigError("%s: the keys of providers.vllm name the servers already; keep one"
                              % from_file["upstream"][0])
        for name, value in from_file.items():
            given.setdefault(name, value)
    values = {name: value for name, (_, value) in given.items()}
    keys = _api_keys(given, environ)
    served = {name: value for name, value in values.items() if name in _SERVED}
    return Settings(_provider(provider, given, environ), keys, **served)


_Given = Dict[str, Tuple[str, Any]]  # name → (path for messages, checked value)


def _from_flags(flags: Mapping[str, Any]) -> _Given:
    return {
        setting.name: (_flag_path(setting.name), _checked(setting, flags[setting.name], _flag_path))
        for setting in SETTINGS
        if flags.get(setting.name) is not None
    }


def _from_environment(environ: Mapping[str, str], flags: _Given) -> _Given:
    given: _Given = {}
    for setting in SETTINGS:
        name = _variable_path(setting.name)
        value: Any = environment.content(name, environ, setting.secret and setting.name not in flags)
        if setting.name == "port" and "://" in value:
            # Kubernetes and Docker put NAME_PORT=tcp://10.43.12.7:80 into every container beside a service NAME.
            continue
        if (value or name in environ and setting.name in _MAY_BE_EMPTY) and setting.name not in flags:
            if setting.many:
                value = value.replace(",", " ").split()
            given[setting.name] = (name, _checked(setting, value, _variable_path))
    return given


def _from_file(client: Dict[str, Any], environ: Mapping[str, str]) -> _Given:
    allowed = [setting.name for setting in SETTINGS if setting.name != "config"] + list(_RENAMED)
    chosen: Dict[str, Tuple[str, Any]] = {}
    for label in validate.known(client, allowed, _OTHERS, "client"):
        name = _RENAMED.get(label, label)
        if name in chosen:
            raise ConfigError("client.%s: is the same setting as %s; keep one" % (label, chosen[name][0]))
        if client[label] is not None:
            chosen[name] = ("client." + label, client[label])
    given: _Given = {}
    for setting in SETTINGS:
        if setting.name in chosen:
            path, value = chosen[setting.name]
            if setting.many and isinstance(value, str):
                value = [value]
            if setting.secret or setting.name == "upstream":
                value = _filled(value, path, environ, setting.secret)
            given[setting.name] = (path, _checked(setting, value, lambda _: path))
    return given


def _filled(value: Any, path: str, environ: Mapping[str, str], secret: bool) -> Any:
    if isinstance(value, (list, tuple)):
        return [environment.env_text(item, path, environ, secret=secret) for item in value]
    return environment.env_text(value, path, environ, secret=secret)


def _flag_path(name: str) -> str:
    return "--" + name.replace("_", "-")


def _variable_path(name: str) -> str:
    return PREFIX + name.upper()


def _checked(setting: Setting, value: Any, path_of: Callable[[str], str]) -> Any:
    path = path_of(setting.name)
    if not setting.many:
        return _one(setting, value, path)
    if not isinstance(value, (list, tuple)):
        raise validate.wrong(path, "a list", value, setting.secret)
    return tuple(_one(setting, item, path) for item in value)


def _one(setting: Setting, value: Any, path: str) -> Any:
    if setting.secret:
        found = validate.header_text(validate.text(value, path, secret=True).strip(), path)
        if not found:
            raise ConfigError("%s: must not be empty" % path)
        return found
    return setting.read(value, path)


def _api_keys(given: _Given, environ: Mapping[str, str]) -> Tuple[str, ...]:
    keys: List[str] = list(given["api_key"][1]) if "api_key" in given else []
    if "api_key_file" in given:
        path, name = given["api_key_file"]
        try:
            with open(os.path.expanduser(name), "rb") as file:
                lines = file.read().decode("utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8"
            raise ConfigError("%s: cannot read %s: %s" % (path, validate.quoted(name), reason)) from None
        found = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
        if not found:
            raise ConfigError("%s: there is no key in %s" % (path, validate.quoted(name)))
        keys += [validate.header_text(key, path) for key in found]
    return tuple(dict.fromkeys(keys))


def _provider(provider: Optional[ProviderConfig], given: _Given, environ: Mapping[str, str]) -> ProviderConfig:
    """Return the provider's settings with those of the gateway laid over them."""
    config = provider if provider is not None else ProviderConfig(environ=environ)
    network = {
        theirs: given[ours][1]
        for ours, theirs in (
            ("timeout", "default_request_timeout_in_seconds"), ("stream_idle_timeout", "stream_idle_timeout_in_seconds")
        )
        if ours in given
    }
    changes: Dict[str, Any] = {}
    if network:
        changes["network_config"] = config.network_config.replace(**network)
    for name in ("native_responses", "routing"):
        if name in given:
            changes[name] = given[name][1]
    if "upstream" in given:
        path, urls = given["upstream"]
        secret = given["upstream_key"][1] if "upstream_key" in given else environment.content("VLLM_API_KEY", environ)
        servers = validate.base_urls(",".join(urls), path).split(",")
        changes["keys"] = [Key(secret, url=url, path=path, environ=environ) for url in servers]
    elif "upstream_key" in given:
        if config.keys:
            raise ConfigError("%s: the servers of the config file have keys of their own; put it there"
                              % given["upstream_key"][0])
        changes["keys"] = [Key(given["upstream_key"][1], path=given["upstream_key"][0], environ=environ)]
    config = config.replace(**changes) if changes else config
    if "alias" in given:
        aliases = dict(given["alias"][1])
        keys = [key.replace(aliases={**aliases, **key.aliases}) for key in config.resolved_keys(environ)]
        config = config.replace(keys=keys)
    return config
