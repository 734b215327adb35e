"""Where a body stays that has to be read twice."""

import io
import tempfile
from typing import IO

__all__ = ["spool"]


def spool(limit: int) -> IO[bytes]:
    """Return a file that is in memory up to `limit` bytes, and for good where no folder takes temporary files."""
    try:
        tempfile.gettempdir()
    except OSError:  # as in a container whose root is read-only
        return io.BytesIO()
    return tempfile.SpooledTemporaryFile(max_size=limit)
