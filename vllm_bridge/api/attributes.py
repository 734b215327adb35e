"""A JSON object with attribute reads.

A record is the JSON object itself: ``json.dumps(reply)``, ``reply["choices"]`` and
``reply.choices[0].message.content`` all work. What its subclasses annotate are its declared fields: one that the
server left out reads ``None``. A field that nobody declared is there all the same.
"""

from itertools import islice
from typing import TYPE_CHECKING, Any, Callable, Dict, List, NoReturn, Optional, Tuple, Type, TypeVar

if TYPE_CHECKING:
    _Base = Dict[str, Any]
else:
    _Base = dict

__all__ = ["Came", "Record", "Shape", "Whole", "note"]

R = TypeVar("R", bound="Record")
W = TypeVar("W", bound="Whole")

_KEYS_SHOWN = 30
# In a notebook: characters of a text, items of a list, levels.
_TEXT_SHOWN = 1000
_ITEMS_SHOWN = 5
_DEPTH_SHOWN = 12

# The id of a request, the reply's headers, the server's URL, seconds; and what `Whole.parsed` is to be.
Came = Tuple[Optional[str], Dict[str, str], Optional[str], Optional[float], Any]


class Record(_Base):
    """A JSON object with attribute reads. Names of dict methods mean the methods: ``reply["items"]`` is the field.

    Attributes cannot be set: ``reply["name"] = value`` sets a field.
    """

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        cls = type(self)
        if name[:2] == "__":  # copy, pickle and others ask for such names; a server's field is no protocol of Python
            raise AttributeError("%s is no attribute; a field of that name is record[%r]" % (name, name))
        try:
            value = self[name]
        except KeyError:
            if name in _declared(cls):
                return None
            raise AttributeError("%s has no field %r; it has: %s" % (cls.__name__, name, _names(self))) from None
        kind = type(value)
        if kind is dict:
            value = self[name] = (_declared(cls).get(name) or Record)(value)
        elif kind is list and value:
            shape = _declared(cls).get(name, Record)
            if shape is not None and any(type(item) is dict for item in value):
                value[:] = [shape(item) if type(item) is dict else item for item in value]
        return value

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError("attributes of a %s are read-only: set record[%r]" % (type(self).__name__, name))

    def __dir__(self) -> List[str]:
        return sorted({*super().__dir__(), *(key for key in self if isinstance(key, str)), *_declared(type(self))})

    def __repr__(self) -> str:
        return "%s(%s)" % (type(self).__name__, super().__repr__())

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Print a record in a notebook: long lists and texts shortened."""
        printer.text("%s(...)" % type(self).__name__ if cycle else "%s(%s)" % (type(self).__name__, _shortened(self)))

    def __reduce__(self) -> Tuple[Any, ...]:
        return type(self), (dict(self),)

    def copy(self: R) -> R:
        """Return a shallow copy of the same class."""
        return type(self)(self)


def _shortened(record: Record) -> str:
    """Return the JSON of a record on a few lines, as a person wants to see it."""
    import json

    def short(value: Any, depth: int) -> Any:
        if isinstance(value, str) and len(value) > _TEXT_SHOWN:
            return "%s... (%d characters)" % (value[:_TEXT_SHOWN], len(value))
        if isinstance(value, dict):
            return {key: short(item, depth + 1) for key, item in value.items()} if depth < _DEPTH_SHOWN else "{...}"
        if isinstance(value, list):
            if depth >= _DEPTH_SHOWN and value:
                return "[...]"
            shown = [short(item, depth + 1) for item in value[:_ITEMS_SHOWN]]
            return shown + ["... (%d in all)" % len(value)] if len(value) > _ITEMS_SHOWN else shown
        return value

    return json.dumps(short(record, 0), indent=1, ensure_ascii=False, default=repr)


def _names(record: Record) -> str:
    names = [str(name) for name in islice(record, _KEYS_SHOWN)]
    more = len(record) - len(names)
    return (", ".join(names) + (" and %d more" % more if more else "")) or "none"


_shapes: Dict[Type[Record], Dict[str, Optional[Type[Record]]]] = {}


def _declared(cls: Type[Record]) -> Dict[str, Optional[Type[Record]]]:
    """Return the declared fields of a record class, each with the class of its objects; ``None`` if it has none."""
    try:
        return _shapes[cls]
    except KeyError:
        pass
    shapes: Dict[str, Optional[Type[Record]]] = {}
    for base in reversed(cls.__mro__):
        for name, hint in getattr(base, "__annotations__", {}).items():
            shapes[name] = _record_in(hint)
    _shapes[cls] = shapes
    return shapes


def _record_in(hint: Any) -> Optional[Type[Record]]:
    """Return the record class inside ``X``, ``Optional[X]``, ``List[X]`` and their like; `Record` for ``Any``."""
    if isinstance(hint, type) and issubclass(hint, Record):
        return hint
    if hint is Any:
        return Record
    for inner in getattr(hint, "__args__", ()):
        found = _record_in(inner)
        if found is not None:
            return found
    return None


class Shape(Record):
    """A record whose fields are known: for a type checker an attribute beside them is a mistake.

    What else the server sends reads like them, and is ``reply["name"]`` for a checker.
    """

    __slots__ = ()

    if TYPE_CHECKING:
        __getattr__: None  # type: ignore[assignment, misc]


class Whole(Shape):
    """A reply as such, which also knows how it came; that is no part of its JSON. What is not known is ``None``.

    `request_id` is the id under which the server logs the request, `headers` are the reply's by their names in lower
    case, `server` is the URL of the one that answered, `elapsed` how many seconds it took.
    """

    __slots__ = ("_came",)

    @property
    def request_id(self) -> Optional[str]:
        """The id under which the server logs the request."""
        return self._way[0]

    @property
    def headers(self) -> Dict[str, str]:
        """The headers of the reply, by their names in lower case."""
        return self._way[1]

    @property
    def server(self) -> Optional[str]:
        """The URL of the server that answered."""
        return self._way[2]

    @property
    def elapsed(self) -> Optional[float]:
        """The seconds between the request to that server and the end of its reply."""
        return self._way[3]

    def is_to_be(self, wanted: Any) -> None:
        """Note what the answer's text is to be read as, by whoever asks for it."""
        self.came(self._way[:4] + (wanted,))

    @property
    def _way(self) -> Came:
        try:
            came: Came = _came.__get__(self)
        except AttributeError:
            return None, {}, None, None, None
        return came

    def __setstate__(self, came: Came) -> None:
        _came.__set__(self, came)

    came = __setstate__

    def __reduce__(self) -> Tuple[Any, ...]:
        return type(self), (dict(self),), self._way

    def copy(self: W) -> W:
        """Return a shallow copy of the same class."""
        other = type(self)(self)
        other.came(self._way)
        return other


_came: Any = Whole.__dict__["_came"]  # the slot; an attribute of a record cannot be set
note: Callable[[Whole, Came], None] = _came.__set__  # as `Whole.came`, for the way of each call
