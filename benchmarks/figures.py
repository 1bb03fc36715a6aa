"""Figures of several turns: medians with their spread, the machine, and their table in the documentation."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- figures: written by `make bench ARGS=--write` -->", "<!-- end of figures -->"
PACKAGES = ("polars", "pyarrow", "numpy", "orjson", "jinja2", "openai", "starlette", "uvicorn")

Figures = dict[str, dict[str, Any]]
"""By module and figure: a median for each number, and under `spread` its least and greatest value."""


def gathered(lines: Iterable[tuple[str, Mapping[str, Any]]]) -> Figures:
    """Medians of the numbers that several turns gave for one figure.

    Args:
        lines: (module, line of JSON) each.
    """
    turns: dict[str, list[Mapping[str, Any]]] = {}
    for module, line in lines:
        name = line.get("figure", "")
        if "rows" in line and "rows" not in name:
            name = ", ".join(filter(None, (name, f"{line['rows']:,} rows")))
        name = name or module
        turns.setdefault(f"{module}: {name}", []).append(line)
    found: Figures = {}
    for name, several in turns.items():
        figure: dict[str, Any] = {"turns": len(several)}
        spread: dict[str, list[float]] = {}
        for key in dict.fromkeys(key for line in several for key in line if key != "figure"):
            values = [line[key] for line in several if key in line]
            if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
                figure[key] = round(statistics.median(values), 3)
                if len(values) > 1 and min(values) != max(values):
                    spread[key] = [min(values), max(values)]
            else:
                figure[key] = values[-1]
        found[name] = {**figure, **({"spread": spread} if spread else {})}
    return found


def machine() -> dict[str, str]:
    """What the figures are of."""
    cpu = platform.processor() or platform.machine()
    try:
        if named := re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text()):
            cpu = named[1]
        memory = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    except OSError:
        memory = "unknown"
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "processor": f"{cpu}, {os.cpu_count()} cores",
        "memory": memory,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "load when it began": f"{os.getloadavg()[0]:.1f}",
    }


def save(name: str, figures: Figures, of: Mapping[str, str]) -> None:
    """Keep a set of figures as JSON; figures of the same set stay where their module was not measured this time."""
    RESULTS.mkdir(exist_ok=True)
    modules = {figure.split(":")[0] for figure in figures}
    kept = {
        figure: value
        for figure, value in saved().get(name, {}).get("figures", {}).items()
        if figure.split(":")[0] not in modules
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": dict(of), "figures": {**kept, **figures}}, indent=2) + "\n")


def saved() -> dict[str, dict[str, Any]]:
    """Every set that was kept, by its name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}


def table(figures: Figures) -> str:
    """The figures as Markdown, a table for each module."""
    parts = []
    for module in dict.fromkeys(name.split(":")[0] for name in figures):
        rows = {name.split(": ", 1)[1]: value for name, value in figures.items() if name.split(":")[0] == module}
        keys = list(dict.fromkeys(key for value in rows.values() for key in value if key not in ("spread", "turns")))
        lines = [
            f"| {module} | " + " | ".join(key.replace("_", " ") for key in keys) + " |",
            "|---" * (len(keys) + 1) + "|",
        ]
        for name, value in rows.items():
            lines.append(f"| {name} | " + " | ".join(_cell(value, key) for key in keys) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _cell(figure: Mapping[str, Any], key: str) -> str:
    if key not in figure:
        return ""
    value = figure[key]
    text = f"{value:,}" if isinstance(value, int | float) else str(value)
    if key in figure.get("spread", {}):
        least, most = figure["spread"][key]
        text += f" ({least:,}–{most:,})"
    return text


def write_page(verdicts: Iterable[str]) -> None:
    """Renew the part of the page that is written from what was kept."""
    parts = ["## Targets\n\n" + "\n".join(f"* {line}" for line in verdicts)]
    for name, kept in saved().items():
        of = "; ".join(f"{key}: {value}" for key, value in kept["machine"].items())
        parts.append(f"## `{name}`\n\n{of}\n\n{table(kept['figures'])}")
    page = PAGE.read_text()
    head, rest = page.split(BEGIN)
    PAGE.write_text(head + BEGIN + "\n\n" + "\n\n".join(parts) + "\n\n" + END + rest.split(END)[1])
