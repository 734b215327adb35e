"""Rounds → medians → one table, ratios first, and one JSON document."""

import statistics
from typing import Any, Dict, Iterable, List, Sequence

from .goals import Goal, Medians, figure, verdict


def medians(rows: Iterable[Dict[str, Any]]) -> Medians:
    """Return the median of every figure of every name."""
    values: Dict[str, Dict[str, List[float]]] = {}
    for row in rows:
        for measure, value in row.items():
            if measure not in ("name", "round") and isinstance(value, (int, float)):
                values.setdefault(row["name"], {}).setdefault(measure, []).append(value)
    return {name: {measure: statistics.median(found) for measure, found in measures.items()}
            for name, measures in values.items()}


def goal_rows(goals: Sequence[Goal], of: Medians, judged: bool) -> List[Dict[str, Any]]:
    """Return the goals with what was measured; without verdicts where the run is too short for one."""
    rows = []
    for goal in goals:
        value = figure(goal, of)
        rows.append({
            "what": goal.what, "goal": goal.goal, "bar": goal.bar, "most": goal.most, "unit": goal.unit,
            "measured": value, "verdict": verdict(goal, value) if judged else "",
        })
    return rows


def goal_table(rows: Sequence[Dict[str, Any]]) -> str:
    """Return the goals as a Markdown table."""
    lines = ["| what | measured | goal | bar | |", "|---|---|---|---|---|"]
    for row in rows:
        sign = "≤" if row["most"] else "≥"
        lines.append("| %s | %s | %s %g %s | %s %g %s | %s |" % (
            row["what"], "–" if row["measured"] is None else "%.3g %s" % (row["measured"], row["unit"]),
            sign, row["goal"], row["unit"], sign, row["bar"], row["unit"], row["verdict"],
        ))
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
