"""What a caller asks of the stand-in: ``!name argument ...`` at the beginning of a text."""

import re
from typing import Any, Callable, Dict, Optional, Tuple

from .refusal import plain_bad_request

_WORD = re.compile(r"\s*(\S+)")

# name -> how each argument is read; the attribute of Plan has the same name. The package's docstring says what they do.
_DIRECTIVES: Dict[str, Tuple[Callable[[str], Any], ...]] = {
    **dict.fromkeys(("!die", "!comments", "!abort", "!empty", "!think", "!broken-call"), ()),
    **dict.fromkeys(("!error", "!error-in-200", "!retry-after", "!die-after", "!cut-after", "!count", "!call"), (int,)),
    **dict.fromkeys(("!stall", "!slow"), (float,)),
    "!error-after": (int, int), "!stall-after": (int, float),
}


class Plan:
    """What one request shall meet, and the text that is left when its directives are taken off."""

    def __init__(self, text: str = "") -> None:
        self.text = text
        self.error: Optional[int] = None
        self.error_in_200: Optional[int] = None
        self.error_after: Optional[Tuple[int, int]] = None
        self.retry_after: Optional[int] = None
        self.die = False
        self.die_after: Optional[int] = None
        self.cut_after: Optional[int] = None
        self.stall = 0.0
        self.stall_after: Optional[Tuple[int, float]] = None
        self.slow: Optional[float] = None
        self.comments = False
        self.abort = False
        self.empty = False
        self.count: Optional[int] = None
        self.think = False
        self.call = 0
        self.broken_call = False


def parse(text: str) -> Plan:
    """Read the directives that ``text`` begins with.

    Raises Refusal (400) when a directive lacks an argument or has one that is no number. A word that is no
    directive ends them: it and everything behind it is ordinary text.

    >>> plan = parse("!slow 0.5 !error-after 3 500 Hello !error 503")
    >>> plan.slow, plan.error_after, plan.text
    (0.5, (3, 500), 'Hello !error 503')
    """
    plan = Plan()
    at = 0
    while True:
        found = _WORD.match(text, at)
        if found is None or found.group(1) not in _DIRECTIVES:
            break
        name, at = found.group(1), found.end()
        readers = _DIRECTIVES[name]
        values = []
        for read in readers:
            argument = _WORD.match(text, at)
            try:
                values.append(read(argument.group(1) if argument else ""))
            except ValueError:
                raise plain_bad_request("echo: %s takes %d number%s, see help(vllm_bridge.echo)" % (
                    name, len(readers), "" if len(readers) == 1 else "s")) from None
            at = argument.end() if argument else at
        value = values if len(values) > 1 else values[0] if values else True
        setattr(plan, name[1:].replace("-", "_"), tuple(value) if isinstance(value, list) else value)
    plan.text = text[at:].lstrip() if at else text
    return plan
