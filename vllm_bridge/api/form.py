"""A transcription's form, with its file open for the time of sending it."""

from typing import Any, BinaryIO, Dict, Optional

from ..errors import BadRequestError
from ..http1.multipart import MultipartBody
from .audio import prepare

__all__ = ["Form"]


class Form:
    """A transcription's form with its file open, for the time of sending it."""

    def __init__(self, given: Dict[str, Any]) -> None:
        fields, part = prepare(given)
        self._opened: Optional[BinaryIO] = None
        if part.path is not None:
            try:
                self._opened = open(part.path, "rb")
            except (OSError, ValueError) as error:  # ValueError: a NUL, or what no file system can name
                why = getattr(error, "strerror", None) or str(error)
                raise BadRequestError("file: cannot read %r: %s" % (part.path, why), param="file") from error
            part = part.opened(self._opened)
        try:
            self._body = MultipartBody(fields, part)
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> MultipartBody:
        return self._body

    def __exit__(self, *exc_info: object) -> None:
        if self._opened is not None:
            self._opened.close()
        if hasattr(self, "_body"):
            self._body.close()
