"""``vllm-bridge serve``: the flags and what they start."""

import sys
from typing import TYPE_CHECKING, Any, Dict

from .settings import SETTINGS, read

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

__all__ = ["add_arguments", "run"]

_SWITCHES = {"insecure": "true", "native_responses": "true"}


def add_arguments(parser: "ArgumentParser") -> None:
    """Add the gateway's flags to a parser; what is not given stays ``None``."""
    for setting in SETTINGS:
        flag = "--" + setting.name.replace("_", "-")
        options: Dict[str, Any] = {"dest": setting.name, "default": None, "help": setting.help}
        if setting.name in _SWITCHES:
            options.update(nargs="?", const=_SWITCHES[setting.name], metavar="WORD")
        else:
            options["metavar"] = setting.metavar
        if setting.many:
            options["action"] = "append"
        parser.add_argument(flag, **options)


def run(namespace: "Namespace") -> int:
    """Run the gateway until it is told to stop; return the exit code, 2 for wrong settings."""
    from ..errors import ConfigError

    flags = {setting.name: getattr(namespace, setting.name, None) for setting in SETTINGS}
    try:
        settings = read(flags)
        settings.check_address()
    except ConfigError as error:
        print("vllm-bridge: %s" % error.message, file=sys.stderr)
        return 2
    from .run import serve

    return serve(settings)
