"""What the figures should be, and whether they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.figures import Figures

MILLION = "1,000,000 rows"
PLAIN = "emulator: validated and answered, plain chat"
TYPED = "emulator: validated and answered, schema"
SERVER = "emulator: a server, upload to download"


@dataclass(frozen=True, slots=True)
class Target:
    """One number of one figure, at least or at most so much.

    Attributes:
        words: what it means.
        figure: module and figure.
        key: the number's name.
        bound: the least or greatest value.
        most: whether `bound` is the greatest.
    """

    words: str
    figure: str
    key: str
    bound: float
    most: bool = False

    def verdict(self, figures: Figures) -> str:
        """One line: whether it holds, and by how much not."""
        value = figures.get(self.figure, {}).get(self.key)
        want = f"{'at most' if self.most else 'at least'} {self.bound:,g}"
        if value is None:
            return f"not measured: {self.words}, {want}"
        holds = value <= self.bound if self.most else value >= self.bound
        return f"{'holds' if holds else 'does NOT hold'}: {self.words}, {want}: {value:,g}"


TARGETS = (
    Target("rendering against the str.format loop", f"build: render, {MILLION}", "ratio to format loop", 3.5),
    Target("rendering against the Jinja2 loop", f"build: render, {MILLION}", "ratio to jinja loop", 8),
    Target("sealing against the str.format loop", f"build: seal, {MILLION}", "ratio to format loop", 2),
    Target("sealing against the Jinja2 loop", f"build: seal, {MILLION}", "ratio to jinja loop", 4.5),
    Target(
        "CPU seconds of sealing and rendering together", f"build: seal and render, {MILLION}", "cpu_s", 6, most=True
    ),
    Target("memory of sealing, MB", f"build: seal, {MILLION}", "peak_mb", 500, most=True),
    Target("memory of rendering, MB", f"build: render, {MILLION}", "peak_mb", 500, most=True),
    Target("memory of the client end to end, MB", "end_to_end: 100,000 rows", "peak_mb", 500, most=True),
    Target("memory of the client at 10,000,000 rows, MB", "end_to_end: 10,000,000 rows", "peak_mb", 500, most=True),
    Target("reading results against the orjson loop", f"merge: parse, {MILLION}", "ratio", 2.5),
    Target("results to output against the orjson loop", f"merge: whole, {MILLION}", "ratio", 2),
    Target("memory of the merge, MB", f"merge: whole, {MILLION}", "peak_mb", 500, most=True),
    *(
        Target(f"the fast path's MB a second and core, {case}", f"render: {case}", "fast_mb_s", 400)
        for case in ("one column", "filters and ifs", "one column, not ASCII", "filters and ifs, not ASCII")
    ),
    Target("`check`, MB a CPU second", "inputs: check, lines of 200 bytes", "mb_per_cpu_s", 150),
    Target("plain chat lines of the emulator, a second and core", PLAIN, "lines_a_second_a_core", 50_000),
    Target("lines with a schema, the same", TYPED, "lines_a_second_a_core", 10_000),
    Target("memory of the emulator with a file of 190 MB", SERVER, "peak_resident_mb", 300, most=True),
    Target("memory with 2,000 images of 1 MB in a column, MB", "images: bytes, 2,000 rows", "peak_mb", 500, most=True),
    Target("memory with 2,000 images of 1 MB in files, MB", "images: files, 2,000 rows", "peak_mb", 500, most=True),
    Target("memory with a line of 150 MB of images, MB", "images: line, 21 rows", "peak_mb", 1_100, most=True),
    Target("memory with a line of 150 MB of text, MB", "images: text, 21 rows", "peak_mb", 1_100, most=True),
    Target("memory of 10,000 small files, MB", "inputs: seal small, 300,000 rows", "peak_mb", 500, most=True),
    Target("memory of one giant row group, MB", "inputs: seal giant, 300,000 rows", "peak_mb", 500, most=True),
    Target("memory of a table of 3,000 columns, MB", "inputs: seal wide, 6,000 rows", "peak_mb", 500, most=True),
    Target("seconds of `batchmill --help`", "start_up: --help", "wall_s", 0.15, most=True),
    Target("seconds of `batchmill status`", "start_up: status", "wall_s", 0.3, most=True),
    Target(
        "end to end against the better peer, rows a second",
        "peers: batchmill, 100,000 rows",
        "ratio to the better peer",
        10,
    ),
)
FLAT = (
    ("sealing", "build: seal, {} rows"),
    ("rendering", "build: render, {} rows"),
    ("the client end to end", "end_to_end: {} rows"),
    ("results to output", "merge: whole, {} rows"),
)


def verdicts(figures: Figures) -> Iterator[str]:
    """A line for each target, and one for each phase whose memory should be flat."""
    for target in TARGETS:
        yield target.verdict(figures)
    for words, name in FLAT:
        small, large = (_peak(figures, name.format(rows)) for rows in ("1,000,000", "10,000,000"))
        if small is None or large is None:
            yield f"not measured: memory of {words} the same (± 10 %) at 1,000,000 and 10,000,000 rows"
        else:
            holds = abs(large - small) <= 0.1 * small
            yield (
                f"{'holds' if holds else 'does NOT hold'}: memory of {words} the same (± 10 %) at 1,000,000 and "
                f"10,000,000 rows: {small:,g} and {large:,g} MB"
            )


def _peak(figures: Figures, name: str) -> Any:
    return figures.get(name, {}).get("peak_mb")
