"""The heads of received forms and their parts (RFC 7578): boundaries, names, file names, content types.

They are read strictly where readers must not differ: line ends are CRLF, lines are not folded, and the name of a field
is one that all read alike. What programs write for the name of a file is taken as Starlette, and so vLLM, takes it.
"""

import codecs
import re
from typing import Dict, List, Optional, Tuple
from urllib.parse import unquote_to_bytes

from ..errors import BadRequestError
from .head import TOKEN

__all__ = ["CONTROLS", "boundary_of", "malformed", "part_head"]

CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
# Compiled when the first form comes: every program that imports the library would pay for them at its start.
_EXACT = r'"(?:[^"\\]|\\.)*"|[^;" \t]+'  # a parameter's value that can be read in one way only
_BOUNDARY = r"[\x20-\x7e]{0,69}[\x21-\x7e]"
_NO_CHARSETS = frozenset(("idna", "punycode", "raw-unicode-escape", "unicode-escape"))  # of Python's own; two are slow

Parameters = List[Tuple[str, str]]


def malformed(what: str) -> BadRequestError:
    """Return the error for a form that cannot be read."""
    return BadRequestError("invalid multipart body: " + what)


def boundary_of(content_type: str) -> bytes:
    """Return the boundary that a request's Content-Type gives; raises `BadRequestError`."""
    kind, parameters = _parameters(content_type)
    if kind != "multipart/form-data":
        raise BadRequestError("Content-Type must be multipart/form-data, got %.100r" % content_type)
    boundary = _exact(parameters, "boundary")
    if boundary is None or not re.fullmatch(_BOUNDARY, boundary):
        raise BadRequestError("Content-Type has no boundary, or several, or one that is not 1 to 70 ASCII characters")
    return boundary.encode("ascii")


def part_head(block: bytes) -> Tuple[str, Optional[str], Optional[str]]:
    """Return name, file name and content type of a part; raises `BadRequestError`.

    Of a header that is given twice the last disposition and the first content type count, unless the names differ.
    """
    names: List[Optional[str]] = []
    filename: Optional[str] = None
    content_type: Optional[str] = None
    for line in block.decode("latin-1").split("\r\n"):
        label, colon, value = line.partition(":")
        if not colon or not re.fullmatch(TOKEN, label) or CONTROLS.search(value):
            raise malformed("bad header line %.100r" % line)
        label, value = label.lower(), value.strip(" \t")
        if label == "content-disposition":
            kind, parameters = _parameters(value)
            names.append(_exact(parameters, "name") if kind == "form-data" else None)
            filename = _filename(dict(parameters))
        elif label == "content-type":
            content_type = _text(value) if content_type is None else content_type
        # Deprecated by RFC 7578, and read by no two servers in the same way.
        elif label == "content-transfer-encoding" and value.lower() not in ("binary", "8bit", "7bit"):
            raise malformed("Content-Transfer-Encoding %.100r is not supported" % value)
    name = names[0] if len(set(names)) == 1 else None
    if name is None:
        raise malformed("a part needs one Content-Disposition: form-data with one name, in quotes")
    try:
        return name.encode("latin-1").decode("utf-8"), filename, content_type
    except UnicodeDecodeError:
        raise malformed("the name of a part is not UTF-8") from None


def _filename(parameters: Dict[str, str]) -> Optional[str]:
    given, extended = parameters.get("filename"), parameters.get("filename*")
    if given is not None:
        name = _text(_unquoted(given))
        return name.rpartition("\\")[2] if name[1:3] == ":\\" else name  # Internet Explorer sent the whole path
    if extended is None:
        return None
    # RFC 8187, which RFC 7578 forbids and older HTTP clients send: charset'language'text
    charset, *rest = _unquoted(extended).split("'", 2)
    if len(rest) < 2:
        charset, rest = "utf-8", ["", _unquoted(extended)]
    encoded = unquote_to_bytes(rest[1].encode("latin-1"))
    try:
        if codecs.lookup(charset).name.replace("_", "-") not in _NO_CHARSETS:
            return encoded.decode(charset)
    except (LookupError, ValueError):
        pass
    return _text(encoded.decode("latin-1"))


def _text(value: str) -> str:
    """Return what was read as Latin-1 as UTF-8, if it can be that."""
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:
        return value


def _parameters(text: str) -> Tuple[str, Parameters]:
    """Split ``kind; name=value; name="value"`` into the kind, in lower case, and its parameters as they are written.

    A semicolon ends a value if the quotes before it come in pairs, whatever stands between them.
    """
    kind, *pieces = text.split(";")
    values: List[List[str]] = [[]]
    quotes = 0
    for piece in pieces:
        values[-1].append(piece)
        quotes += piece.count('"') - piece.count('\\"')
        if quotes % 2 == 0:
            values.append([])
    found = [";".join(value).partition("=") for value in values]
    return kind.strip(" \t").lower(), [(name.strip(" \t").lower(), value.strip(" \t")) for name, _, value in found]


def _exact(parameters: Parameters, name: str) -> Optional[str]:
    """Return the value of a parameter that is there once and can be read in one way only."""
    values = [value for label, value in parameters if label == name]
    return _unquoted(values[0]) if len(values) == 1 and re.fullmatch(_EXACT, values[0]) else None


def _unquoted(value: str) -> str:
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value
    # Browsers leave a backslash as it is, curl escapes quote and backslash with one.
    return re.sub(r'\\(["\\])', r"\1", value[1:-1])
