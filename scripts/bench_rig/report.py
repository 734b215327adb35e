"""Rounds → medians → one table, ratios first, and one JSON document."""

import statistics
from typing import Any, Dict, Iterable, List, Sequence

from .comparisons import Comparison, Medians, figure


def medians(rows: Iterable[Dict[str, Any]]) -> Medians:
    """Return the median of every figure of every name."""
    values: Dict[str, Dict[str, List[float]]] = {}
    for row in rows:
        for measure, value in row.items():
            if measure not in ("name", "round") and isinstance(value, (int, float)):
                values.setdefault(row["name"], {}).setdefault(measure, []).append(value)
    return {name: {measure: statistics.median(found) for measure, found in measures.items()}
            for name, measures in values.items()}


def compared(comparisons: Sequence[Comparison], of: Medians) -> List[Dict[str, Any]]:
    """Return the comparisons of which every part was measured, with what came."""
    rows = [{"what": one.what, "unit": one.unit, "measured": figure(one, of)} for one in comparisons]
    return [row for row in rows if row["measured"] is not None]


def comparison_table(rows: Sequence[Dict[str, Any]]) -> str:
    """Return the comparisons as a Markdown table."""
    lines = ["| what | measured |", "|---|---|"]
    lines += ["| %s | %.3g %s |" % (row["what"], row["measured"], row["unit"]) for row in rows]
    return "\n".join(lines)


def figure_table(title: str, of: Medians, columns: Sequence[Sequence[str]]) -> str:
    """Return the medians as a Markdown table; `columns` are pairs of a measure and its heading."""
    shown = [pair for pair in columns if any(pair[0] in found for found in of.values())]
    lines = ["| %s | %s |" % (title, " | ".join(pair[1] for pair in shown)), "|---" * (len(shown) + 1) + "|"]
    for name, found in of.items():
        cells = ["–" if pair[0] not in found else _rounded(found[pair[0]]) for pair in shown]
        lines.append("| %s | %s |" % (name, " | ".join(cells)))
    return "\n".join(lines)


def _rounded(value: float) -> str:
    return "{:,.0f}".format(value) if abs(value) >= 100 else "%.3g" % value
