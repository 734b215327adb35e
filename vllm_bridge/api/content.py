"""Content parts of a message made of files: an image, a piece of sound."""

import base64
import os
from typing import TYPE_CHECKING, Any, Optional, Tuple

from ..errors import BadRequestError

if TYPE_CHECKING:
    from .parameters import ContentPart

__all__ = ["audio", "image"]

# Each format as vLLM is to read its name, its first bytes, and where they stand.
_IMAGES = (
    ("png", b"\x89PNG\r\n\x1a\n", 0), ("jpeg", b"\xff\xd8\xff", 0), ("gif", b"GIF8", 0), ("webp", b"WEBP", 8),
    ("bmp", b"BM", 0), ("tiff", b"II*\0", 0), ("tiff", b"MM\0*", 0), ("avif", b"ftypavif", 4), ("heic", b"ftypheic", 4),
)
_SOUNDS = (
    ("wav", b"WAVE", 8), ("mp3", b"ID3", 0), ("flac", b"fLaC", 0), ("ogg", b"OggS", 0), ("m4a", b"ftyp", 4),
    ("webm", b"\x1aE\xdf\xa3", 0), ("mp3", b"\xff\xfb", 0), ("mp3", b"\xff\xf3", 0), ("mp3", b"\xff\xf2", 0),
)


def image(source: Any, *, detail: Optional[str] = None) -> "ContentPart":
    """Return a message's part that shows an image: a path, bytes, a binary file, or a URL.

    >>> image("https://example.com/cat.png")
    {'type': 'image_url', 'image_url': {'url': 'https://example.com/cat.png'}}

    A file goes up as a ``data:`` URL; vLLM itself fetches what another URL names. `detail` is OpenAI's ``auto``,
    ``low`` or ``high``. Raises `BadRequestError` for a file that cannot be read or is no image.
    See https://platform.openai.com/docs/guides/images-vision.
    """
    url = source if _is_url(source) else "data:image/%s;base64,%s" % _encoded(source, "image", _IMAGES)
    return {"type": "image_url", "image_url": {"url": url} if detail is None else {"url": url, "detail": detail}}


def audio(source: Any, *, format: Optional[str] = None) -> "ContentPart":
    """Return a message's part that holds sound: a path, bytes, a binary file, or a URL.

    >>> audio(b"RIFF\\x24\\0\\0\\0WAVE")
    {'type': 'input_audio', 'input_audio': {'data': 'UklGRiQAAABXQVZF', 'format': 'wav'}}

    `format` (``wav``, ``mp3``, ``flac``, ...) is told by the first bytes unless it is given. A URL becomes vLLM's
    ``audio_url``. Raises `BadRequestError` for a file that cannot be read or is no sound.
    See https://platform.openai.com/docs/guides/audio.
    """
    if _is_url(source):
        return {"type": "audio_url", "audio_url": {"url": source}}
    kind, data = _encoded(source, "audio", _SOUNDS, format)
    return {"type": "input_audio", "input_audio": {"data": data, "format": kind}}


def kind_of(data: bytes) -> Optional[str]:
    """Return "image" or "audio" if the first bytes of a file say that it is one."""
    for kind, formats in (("image", _IMAGES), ("audio", _SOUNDS)):
        if _format_of(data, formats) is not None:
            return kind
    return None


def _is_url(source: Any) -> bool:
    return isinstance(source, str) and source.partition(":")[0].lower() in ("http", "https", "data")


def _encoded(source: Any, what: str, formats: Any, given: Optional[str] = None) -> Tuple[str, str]:
    """Return the name of a file's format, and its bytes in base64."""
    data = _read(source, what)
    found = given or _format_of(data, formats)
    if found is None:
        known = ", ".join(sorted({name for name, _, _ in formats}))
        raise BadRequestError("%s: %s is none that is known by its first bytes (%s)" % (
            what, "this" if isinstance(source, bytes) else repr(source), known), param=what)
    return found, base64.b64encode(data).decode("ascii")


def _format_of(data: bytes, formats: Any) -> Optional[str]:
    return next((name for name, mark, at in formats if data[at:at + len(mark)] == mark), None)


def _read(source: Any, what: str) -> bytes:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    if isinstance(source, (str, os.PathLike)):
        try:
            with open(os.fsdecode(source), "rb") as file:
                return file.read()
        except (OSError, ValueError) as error:  # ValueError: a NUL, or what no file system can name
            why = getattr(error, "strerror", None) or str(error)
            raise BadRequestError("%s: cannot read %r: %s" % (what, os.fsdecode(source), why), param=what) from error
    data = source.read() if callable(getattr(source, "read", None)) else None
    if not isinstance(data, bytes):
        raise BadRequestError("%s must be a path, a URL, bytes or a binary file object, got %s" % (
            what, type(source).__name__), param=what)
    return data
