"""Names as an operator allows them, with ``*`` for any part but a slash."""

from typing import Iterable, List

__all__ = ["Patterns"]


class Patterns:
    """Hosts, origins or header names, in whatever case; the time to match one is linear in its length."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._all = [pattern.lower().split("*") for pattern in patterns]

    def match(self, name: str) -> bool:
        """Tell whether a name is one of them."""
        name = name.lower()
        return any(_matches(name, parts) for parts in self._all)


def _matches(name: str, parts: List[str]) -> bool:
    """Tell whether a name is these parts with something, but no slash, between them."""
    first, last = parts[0], parts[-1]
    if len(parts) == 1:
        return name == first
    if not name.startswith(first) or name.count("/") != "".join(parts).count("/"):
        return False
    at = len(first)
    for part in parts[1:-1]:  # the first place will do: no way back has to be tried
        at = name.find(part, at) + len(part)
        if at < len(part):
            return False
    return name.endswith(last) and len(name) - len(last) >= at
