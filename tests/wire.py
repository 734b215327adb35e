"""The transcripts of real vLLM servers under tests/data/, each named after the version it came from."""

import json
import pathlib
from typing import Any, Dict, List

DATA = pathlib.Path(__file__).parent / "data"
VERSION = "vllm-0.32.0"


class Transcript:
    """One recorded exchange: what was asked, and the bytes that came back."""

    def __init__(self, record: Dict[str, Any]) -> None:
        self.name: str = record["name"]
        self.request: Dict[str, Any] = record["request"]
        self.status_line: str = record["status_line"] or ""
        self.headers: List[List[str]] = record["headers"] or []
        self.frames: List[bytes] = [frame.encode("utf-8", "surrogatepass") for frame in record["frames"]]
        self.end: str = record["end"]

    @property
    def status(self) -> int:
        return int(self.status_line.split()[1])

    @property
    def body(self) -> bytes:
        return b"".join(self.frames)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def content_type(self) -> str:
        return dict((name.lower(), value) for name, value in self.headers).get("content-type", "")

    @property
    def streams(self) -> bool:
        return self.content_type.startswith("text/event-stream")

    @property
    def payloads(self) -> List[Any]:
        """The JSON of every ``data:`` line but ``[DONE]``, read without the project's own reader."""
        lines = [line[5:].strip() for line in self.body.split(b"\n") if line.startswith(b"data:")]
        return [json.loads(line) for line in lines if line and line != b"[DONE]"]


def load(name: str) -> Transcript:
    return Transcript(json.loads((DATA / VERSION / (name + ".json")).read_text(encoding="utf-8")))


def names(prefix: str = "") -> List[str]:
    return sorted(path.stem for path in (DATA / VERSION).glob(prefix + "*.json"))
