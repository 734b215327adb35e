"""Header fields of a reply, found in any case."""

from typing import Any, Dict, ItemsView, Iterator, Mapping

__all__ = ["Fields"]


class Fields(Mapping[str, str]):
    """Header fields, found by their names in any case; iterating gives the names in lower case."""

    __slots__ = ("_lower",)

    def __init__(self, lower: Dict[str, str]) -> None:
        self._lower = lower

    def __getitem__(self, name: str) -> str:
        return self._lower[name.lower()]

    def get(self, name: str, default: Any = None) -> Any:
        """Return a field's value, or `default`."""
        return self._lower.get(name.lower(), default)

    def __iter__(self) -> Iterator[str]:
        return iter(self._lower)

    def __len__(self) -> int:
        return len(self._lower)

    def __repr__(self) -> str:
        return "Fields(%r)" % self._lower

    def lower_items(self) -> ItemsView[str, str]:
        """Return (lower-case name, value) of each field, as requests' own mapping does."""
        return self._lower.items()
