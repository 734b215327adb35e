"""Other names for models: ``aliases`` of a key."""

from typing import Any, Dict, Mapping

from . import validate
from ..errors import ConfigError

__all__ = ["read"]

# What else an alias of Bifrost's may say; it is for other providers, or for people.
_OTHERS = (
    "anthropic_version", "api_version", "description", "endpoint", "force_single_region", "inference_profile_arn",
    "model_family", "model_name", "project_id", "project_number", "region", "use_anthropic_endpoints",
    "use_deployments_endpoint",
)


def read(value: Any, path: str) -> Dict[str, str]:
    """Return the name that each alias stands for, given as it is or as Bifrost's object with a ``model_id``."""
    found = {} if value is None else validate.mapping(value, path)
    return {alias: _model_id(name, "%s.%s" % (path, validate.quoted(alias))) for alias, name in found.items()}


def _model_id(value: Any, path: str) -> str:
    if not isinstance(value, Mapping):
        return validate.text(value, path)
    given = validate.mapping(value, path)
    if "model_id" not in validate.known(given, ("model_id",), _OTHERS, path):
        raise ConfigError("%s: needs a model_id" % path)
    return validate.text(given["model_id"], path + ".model_id")
