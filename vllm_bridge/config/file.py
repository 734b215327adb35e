"""Reading a JSON config file: ``{"client": {the gateway's settings}, "providers": {"vllm": {a ProviderConfig}}}``."""

import json
import logging
import os
from typing import Any, Dict, List, Mapping, Optional, Tuple, Union

from . import validate
from .settings import ProviderConfig
from ..errors import ConfigError

__all__ = ["ConfigFile", "load", "loads", "provider_config"]

_log = logging.getLogger("vllm_bridge")
_Environ = Optional[Mapping[str, str]]

# Bifrost's sections that mean nothing here; a file that has them is read all the same.
_OTHER_SECTIONS = frozenset((
    "access_profiles audit_logs auth_config cluster_config config_store encryption_key env_label framework governance "
    "guardrails_config large_payload_optimization load_balancer_config logs_store mcp otel plugins saml_config "
    "scim_config server source_of_truth vector_store version websocket"
).split())


class ConfigFile:
    """What a config file says: `provider`, and `client`, the gateway's own settings as they stand."""

    def __init__(self, provider: ProviderConfig, client: Dict[str, Any]) -> None:
        self.provider = provider
        self.client = client

    def __repr__(self) -> str:
        return "ConfigFile(provider=%r, client=<%d settings>)" % (self.provider, len(self.client))


def load(path: Union[str, "os.PathLike[str]"], environ: _Environ = None) -> ConfigFile:
    """Read a JSON config file; every failure is a ``ConfigError``."""
    name = ascii(os.fspath(path))[1:-1]
    try:
        with open(path, "rb") as file:
            text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError("%s: is not UTF-8 (byte %d)" % (name, error.start)) from None
    except (OSError, ValueError) as error:
        raise ConfigError("%s: cannot be read: %s" % (name, getattr(error, "strerror", None) or error)) from None
    return loads(text, name, environ)


def loads(text: str, source: str = "config", environ: _Environ = None) -> ConfigFile:
    """Read the text of a config file; `source` names it in messages."""
    try:
        document = json.loads(text, object_pairs_hook=_pairs, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ConfigError(
            "%s, line %d, column %d: is not JSON: %s" % (source, error.lineno, error.colno, error.msg)
        ) from None
    except RecursionError:
        raise ConfigError("%s: is nested too deeply" % source) from None
    except ValueError as error:
        raise ConfigError("%s: %s" % (source, error)) from None
    try:
        return _document(validate.mapping(document, "the whole file"), environ)
    except ConfigError as error:
        raise ConfigError("%s (in %s)" % (error.message, source)) from None


def provider_config(given: Union[ProviderConfig, Mapping[str, Any]]) -> ProviderConfig:
    """Return the settings that an object holds: a provider's own, ``{"vllm": ...}`` or those of a whole config file."""
    if isinstance(given, ProviderConfig):
        return given
    found = validate.mapping(given, "config")
    if "providers" in found:
        return _document(found, None).provider
    if [name for name in found if not name.startswith(("$", "_"))] == ["vllm"]:
        return ProviderConfig.from_dict(found["vllm"], "vllm")
    return ProviderConfig.from_dict(found, "config")


def _document(document: Dict[str, Any], environ: _Environ) -> ConfigFile:
    sections: Dict[str, Dict[str, Any]] = {"client": {}, "providers": {}}
    for name in validate.known(document, sections, _OTHER_SECTIONS, "the whole file"):
        if document[name] is not None:
            sections[name] = validate.mapping(document[name], name)
    providers = sections["providers"]
    others = sorted(name for name in providers if name != "vllm" and not name.startswith(("$", "_")))
    if others and "vllm" not in providers:
        validate.known(others, ("vllm",), (), "providers")
    if others:
        _log.warning("providers other than vllm are left out: %s", ", ".join(map(validate.quoted, others)))
    found = providers.get("vllm")
    return ConfigFile(ProviderConfig.from_dict({} if found is None else found, environ=environ), sections["client"])


def _pairs(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    found: Dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError("the name %s is there twice in one object" % validate.quoted(name))
        found[name] = value
    return found


def _no_constant(name: str) -> Any:
    raise ValueError("%s is no JSON number" % name)
