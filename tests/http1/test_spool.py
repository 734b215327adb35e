"""Where a body stays that has to be read twice."""

import tempfile
from pathlib import Path

import pytest

from vllm_bridge.http1.multipart import FilePart, MultipartBody
from vllm_bridge.http1.spool import spool


@pytest.fixture
def no_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A read-only root: no folder for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "none")])


def test_a_short_one_is_in_memory_and_a_long_one_on_disk() -> None:
    with spool(10) as file:
        file.write(b"x" * 10)
        assert not file._rolled  # type: ignore[attr-defined]
        file.write(b"x")
        assert file._rolled  # type: ignore[attr-defined]


@pytest.mark.usefixtures("no_folder")
def test_without_a_folder_all_stays_in_memory() -> None:
    with spool(10) as file:
        file.write(b"x" * 1000)
        file.seek(0)
        assert file.read() == b"x" * 1000


class Pipe:
    """What can be read once."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, size: int) -> bytes:
        block, self._data = self._data[:size], self._data[size:]
        return block


@pytest.mark.usefixtures("no_folder")
def test_a_file_that_cannot_be_rewound_is_sent_all_the_same() -> None:
    data = bytes(range(256)) * 10000
    body = MultipartBody([("model", "m")], FilePart("file", Pipe(data), "a.wav"))  # type: ignore[arg-type]
    sent = b"".join(iter(lambda: body.read(65536), b""))
    assert len(sent) == len(body) and data in sent
    body.close()
