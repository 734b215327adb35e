"""What the gateway counts, and its text for Prometheus (exposition format 0.0.4)."""

from bisect import bisect_left
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple

from .counters import Counters, Row

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_MOST_MODELS = 200  # names of models that get numbers of their own: any client may invent one
_MOST_SERVERS = 200  # where they come and go under one name there may be ever others
_OTHER = "other"

_FAMILIES: Tuple[Tuple[str, str, str], ...] = (
    ("vllm_bridge_requests_total", "counter", "Requests answered."),
    ("vllm_bridge_requests_in_flight", "gauge", "Requests that are being answered."),
    ("vllm_bridge_first_token_seconds", "histogram", "Time from a request to the first event of its stream."),
    ("vllm_bridge_request_duration_seconds", "histogram", "Time from a request to the end of its answer."),
    ("vllm_bridge_tokens_total", "counter", "Tokens as the servers counted them."),
    ("vllm_bridge_retries_total", "counter", "Requests sent to a server once more."),
    ("vllm_bridge_fallbacks_total", "counter", "Requests sent to a fallback model."),
    ("vllm_bridge_upstream_authentication_errors_total", "counter", "Requests whose server refused the gateway's key."),
    ("vllm_bridge_server_requests_total", "counter", "Requests by the server that was asked last."),
    ("vllm_bridge_server_attempts_total", "counter", "Requests sent to a server, those that failed included."),
    ("vllm_bridge_server_requests_in_flight", "gauge", "Requests that are with a server."),
    ("vllm_bridge_server_delay_seconds", "histogram", "Time in the gateway before a request left for a server."),
    ("vllm_bridge_server_first_token_seconds", "histogram", "Time from a request to a server to its first event."),
    ("vllm_bridge_server_tokens_total", "counter", "Tokens as a server counted them; cached ones are of its prompts."),
    ("vllm_bridge_server_changes_total", "counter", "What happened to a server: away, back, a model gained or lost."),
    ("vllm_bridge_cooled_servers", "gauge", "Servers that could not be reached and have not answered again."),
    ("vllm_bridge_log_lines_dropped_total", "counter", "Lines of the log that nobody was there to read."),
)


class _ServerRows(NamedTuple):
    name: str
    attempts: Row
    running: Row
    delay: Row
    first: Row
    tokens: Tuple[Row, ...]
    totals: Dict[int, Row]  # by status


class Metrics:
    """Count requests, in every process of the gateway; `workers` is their number.

    Within a process the caller sees to it that one thread at a time calls.
    """

    def __init__(self, workers: int = 1) -> None:
        self._counters = Counters(workers)
        self._rows: Dict[Any, Row] = {}
        self._of_request: Dict[Tuple[str, str, int], Tuple[Row, ...]] = {}
        self._models: Dict[str, str] = {}
        self._servers: Dict[str, _ServerRows] = {}

    def claim(self, worker: int) -> None:
        """Count for this worker; to be called once in each process after the fork."""
        self._rows, self._of_request, self._servers = {}, {}, {}
        self._counters.claim(worker)

    def close(self) -> None:
        """Give the shared memory back."""
        self._rows, self._of_request, self._servers = {}, {}, {}
        self._counters.close()

    def count(
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
        name = "" if model is None else self._models.get(model) or self._model(model, status)
        key = (operation, name, status)
        rows = self._of_request.get(key)
        if rows is None:
            rows = self._of_request[key] = self._rows_of(*key)
        total, duration, prompt, completion = rows
        total[0] += 1
        prompt[0] += tokens[0]
        completion[0] += tokens[1]
        _observe(duration, seconds)
        if first is not None:
            _observe(self._row(_histogram, "first_token_seconds", operation=operation, model=name), first)
        if retries:
            self._row(_counter, "retries_total", operation=operation)[0] += retries
        if fallbacks:
            self._row(_counter, "fallbacks_total", operation=operation)[0] += fallbacks

    def count_for(
        self,
        server: str,
        status: int,
        before: Optional[float],
        first: Optional[float],
        tokens: Tuple[int, int, int],
        attempts: int = 0,
    ) -> None:
        """Count a request for the server that was asked last, and the attempts there that have not been counted yet.

        `before` is the seconds until the request left, `first` those from then to the first token.
        """
        rows = self._servers.get(server) or self._of_server(server)
        total = rows.totals.get(status)
        if total is None:
            total = rows.totals[status] = self._row(_counter, "server_requests_total", server=rows.name, status=status)
        total[0] += 1
        rows.attempts[0] += attempts
        if before is not None:
            _observe(rows.delay, before)
        if first is not None:
            _observe(rows.first, first)
        for row, count in zip(rows.tokens, tokens):
            if count:
                row[0] += count

    def attempted(self, server: str) -> None:
        """Count a request that was sent to a server, whatever became of it."""
        self._of_server(server).attempts[0] += 1

    def changed(self, server: str, change: str, times: int) -> None:
        """Count what happened to a server."""
        self._row(_counter, "server_changes_total", server=self._of_server(server).name, change=change)[0] += times

    def with_servers(self, running: Mapping[str, int]) -> None:
        """Tell how many requests are with each server; one that is not named has none."""
        for server in {**self._servers, **running}:
            rows = self._of_server(server)
            rows.running[0] = running.get(server, 0)

    def _of_server(self, server: str) -> "_ServerRows":
        rows = self._servers.get(server)
        if rows is None:
            name = server if len(self._servers) < _MOST_SERVERS else _OTHER
            rows = _ServerRows(
                name,
                self._row(_counter, "server_attempts_total", server=name),
                self._row(_gauge, "server_requests_in_flight", server=name),
                self._row(_histogram, "server_delay_seconds", server=name),
                self._row(_histogram, "server_first_token_seconds", server=name),
                tuple(self._row(_counter, "server_tokens_total", server=name, direction=direction)
                      for direction in ("prompt", "completion", "cached")),
                {},
            )
            if name is not _OTHER:
                self._servers[server] = rows
        return rows

    def refused(self, server: str) -> None:
        """Count a request whose server refused the gateway's key."""
        self._row(_counter, "upstream_authentication_errors_total", server=server)[0] += 1

    def _rows_of(self, operation: str, name: str, status: int) -> Tuple[Row, ...]:
        return (
            self._row(_counter, "requests_total", operation=operation, model=name, status=status),
            self._row(_histogram, "request_duration_seconds", operation=operation, model=name),
            self._row(_counter, "tokens_total", operation=operation, model=name, direction="prompt"),
            self._row(_counter, "tokens_total", operation=operation, model=name, direction="completion"),
        )

    def state(self, in_flight: Mapping[str, int], cooled: int, dropped: int) -> None:
        """Tell how this process stands: requests under way, servers that cool off, lines lost since the last time."""
        for operation, number in in_flight.items():
            self._row(_gauge, "requests_in_flight", operation=operation)[0] = number
        if cooled or (_gauge, "cooled_servers") in self._rows:
            self._row(_gauge, "cooled_servers")[0] = cooled
        if dropped:
            self._row(_counter, "log_lines_dropped_total")[0] += dropped

    def text(self) -> bytes:
        """Return the numbers of all processes."""
        totals = self._counters.totals()
        lines: List[str] = []
        for name, kind, text in _FAMILIES:
            lines += ["# HELP %s %s" % (name, text), "# TYPE %s %s" % (name, kind)]
            for key in sorted(totals):
                label = key.partition(" ")[2]
                if label.partition("{")[0] == name:
                    lines += _printed(name, kind, label[len(name) + 1:-1], totals[key])
        return ("\n".join(lines) + "\n").encode("utf-8")

    def _row(self, describe: "Callable[[str], Tuple[str, int]]", name: str, **labels: Any) -> Row:
        key = (describe, name, *labels.values())
        row = self._rows.get(key)
        if row is None:
            text = ",".join('%s="%s"' % (label, _escaped(str(value))) for label, value in labels.items())
            row = self._rows[key] = self._counters.row(*describe("vllm_bridge_%s{%s}" % (name, text)))
        return row

    def _model(self, model: str, status: int) -> str:
        """Return the label of a model that has none yet: its name once a server has answered for it."""
        if status >= 400 or len(self._models) >= _MOST_MODELS or len(model) > 200:
            return _OTHER
        return self._models.setdefault(model, model)


def _observe(row: Row, seconds: float) -> None:
    row[bisect_left(_BOUNDS, seconds)] += 1
    row[len(_BOUNDS) + 1] += seconds


def _escaped(text: str) -> str:
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    # Neither a line end of another kind nor half a surrogate pair may reach the names of the shared memory.
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


def _counter(name: str) -> Tuple[str, int]:
    return "count " + name, 1


def _gauge(name: str) -> Tuple[str, int]:
    return "gauge " + name, 1


def _histogram(name: str) -> Tuple[str, int]:
    return "count " + name, len(_BOUNDS) + 2


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
