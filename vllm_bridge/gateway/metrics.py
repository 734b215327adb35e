"""What the gateway counts, and its text for Prometheus (exposition format 0.0.4)."""

import threading
from bisect import bisect_left
from typing import Any, Callable, Dict, List, Optional, Tuple

from ..server.board import Board, Series

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_MOST_MODELS = 200  # names of models that get numbers of their own: any client may invent one
_OTHER = "other"

_FAMILIES: Tuple[Tuple[str, str, str], ...] = (
    ("vllm_bridge_requests_total", "counter", "Requests answered."),
    ("vllm_bridge_requests_in_flight", "gauge", "Requests that are being answered."),
    ("vllm_bridge_first_token_seconds", "histogram", "Time from a request to the first event of its stream."),
    ("vllm_bridge_request_duration_seconds", "histogram", "Time from a request to the end of its answer."),
    ("vllm_bridge_tokens_total", "counter", "Tokens as the servers counted them."),
    ("vllm_bridge_retries_total", "counter", "Requests sent to a server once more."),
    ("vllm_bridge_fallbacks_total", "counter", "Requests sent to a fallback model."),
    ("vllm_bridge_cooled_servers", "gauge", "Servers that could not be reached and have not answered again."),
)


class Metrics:
    """Count requests, in every process of the gateway; `workers` is their number."""

    def __init__(self, workers: int = 1) -> None:
        self._board = Board(workers)
        self._lock = threading.Lock()
        self._rows: Dict[Any, Series] = {}
        self._ends: Dict[Tuple[str, str, int], Tuple[Series, ...]] = {}
        self._models: Dict[str, str] = {}
        self.cooling = 0  # servers, as this process saw it last

    def claim(self, worker: int) -> None:
        """Count for this worker; to be called once in each process after the fork."""
        self._board.claim(worker)
        self._rows, self._ends = {}, {}
        self.cooling = 0

    def close(self) -> None:
        """Give the shared memory back."""
        self._rows, self._ends = {}, {}
        self._board.close()

    def begin(self, operation: str) -> None:
        """Count a request as running."""
        row = self._row(("vllm_bridge_requests_in_flight", operation), _in_flight)
        with self._lock:
            row.add(1)

    def end(
        self,
        operation: str,
        model: Optional[str],
        status: int,
        seconds: float,
        first: Optional[float] = None,
        tokens: Tuple[int, int] = (0, 0),
        retries: int = 0,
        fallbacks: int = 0,
    ) -> None:
        """Count a request as answered; `first` is the seconds until its first token."""
        name = self._model(model, status)
        key = (operation, name, status)
        rows = self._ends.get(key)
        if rows is None:
            rows = self._ends[key] = self._ends_of(*key)
        running, total, duration, prompt, completion = rows
        with self._lock:
            running.cells[running.at] -= 1
            total.cells[total.at] += 1
            _observe(duration, seconds)
            prompt.cells[prompt.at] += tokens[0]
            completion.cells[completion.at] += tokens[1]
            if first is not None:
                _observe(self._row(("vllm_bridge_first_token_seconds", operation, name), _histogram), first)
            if retries:
                self._row(("vllm_bridge_retries_total", operation), _by_operation).add(retries)
            if fallbacks:
                self._row(("vllm_bridge_fallbacks_total", operation), _by_operation).add(fallbacks)

    def _ends_of(self, operation: str, name: str, status: int) -> Tuple[Series, ...]:
        return (
            self._row(("vllm_bridge_requests_in_flight", operation), _in_flight),
            self._row(("vllm_bridge_requests_total", operation, name, status), _total),
            self._row(("vllm_bridge_request_duration_seconds", operation, name), _histogram),
            self._row(("vllm_bridge_tokens_total", operation, name, "prompt"), _tokens),
            self._row(("vllm_bridge_tokens_total", operation, name, "completion"), _tokens),
        )

    def cooled(self, servers: int) -> None:
        """Tell how many servers are cooling off, as this process sees it."""
        if servers != self.cooling:
            self.cooling = servers
            self._board.series("gauge vllm_bridge_cooled_servers{}").set(servers)

    def text(self) -> bytes:
        """Return the numbers of all processes."""
        totals = self._board.totals()
        lines: List[str] = []
        for name, kind, text in _FAMILIES:
            lines += ["# HELP %s %s" % (name, text), "# TYPE %s %s" % (name, kind)]
            for key in sorted(totals):
                label = key.partition(" ")[2]
                if label.partition("{")[0] == name:
                    lines += _printed(name, kind, label[len(name) + 1:-1], totals[key])
        return ("\n".join(lines) + "\n").encode("utf-8")

    def _row(self, key: Tuple[Any, ...], describe: "Callable[..., Tuple[str, int]]") -> Series:
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = self._board.series(*describe(*key))
        return row

    def _model(self, model: Optional[str], status: int) -> str:
        """Return the label of a model: its name once a server has answered for it."""
        if model is None:
            return ""
        label = self._models.get(model)
        if label is None:
            if status >= 400 or len(self._models) >= _MOST_MODELS or len(model) > 200:
                return _OTHER
            label = self._models[model] = model
        return label


def _observe(row: Series, seconds: float) -> None:
    cells, at = row.cells, row.at
    cells[at + bisect_left(_BOUNDS, seconds)] += 1
    cells[at + len(_BOUNDS) + 1] += seconds


def _labels(**labels: Any) -> str:
    return ",".join('%s="%s"' % (name, _escaped(str(value))) for name, value in labels.items())


def _escaped(text: str) -> str:
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    # Neither a line end of another kind nor half a surrogate pair may reach the text of the board.
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


def _in_flight(name: str, operation: str) -> Tuple[str, int]:
    return "gauge %s{%s}" % (name, _labels(operation=operation)), 1


def _total(name: str, operation: str, model: str, status: int) -> Tuple[str, int]:
    return "count %s{%s}" % (name, _labels(operation=operation, model=model, status=status)), 1


def _histogram(name: str, operation: str, model: str) -> Tuple[str, int]:
    return "count %s{%s}" % (name, _labels(operation=operation, model=model)), len(_BOUNDS) + 2


def _tokens(name: str, operation: str, model: str, direction: str) -> Tuple[str, int]:
    return "count %s{%s}" % (name, _labels(operation=operation, model=model, direction=direction)), 1


def _by_operation(name: str, operation: str) -> Tuple[str, int]:
    return "count %s{%s}" % (name, _labels(operation=operation)), 1


def _printed(name: str, kind: str, labels: str, row: List[float]) -> List[str]:
    if kind != "histogram":
        return ["%s%s %s" % (name, "{%s}" % labels if labels else "", _value(row[0]))]
    lines = []
    count = 0.0
    for bound, value in zip([_value(bound) for bound in _BOUNDS] + ["+Inf"], row):
        count += value
        lines.append('%s_bucket{%s,le="%s"} %s' % (name, labels, bound, _value(count)))
    lines.append("%s_sum{%s} %s" % (name, labels, _value(row[-1])))
    lines.append("%s_count{%s} %s" % (name, labels, _value(count)))
    return lines


def _value(value: float) -> str:
    return "%d" % value if value == int(value) else repr(value)
