"""Image rows end to end over the embedded emulator: the client's memory, by phase.

Four corpora: images in a binary column (row groups of 100), the same images as files beside the source, one request of
150 MB of images among small ones, and one of 150 MB of text. The images are noise behind a PNG's header: nothing
compresses.

python -m benchmarks.images [--rows 2000] [--image-bytes 1000000] [--folder DIR] [--only bytes|files|line|text]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.end_to_end import phase_of
from benchmarks.watch import watched

ROOT = Path(__file__).resolve().parents[1]
HEAD = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x04\x00\x00\x00\x03\x00\x08\x02\x00\x00\x00"
GROUP_ROWS = 100
"""Rows of a row group, as tools for image data sets write. A page, which readers take whole, is at most that long."""

LINE_IMAGES, LINE_IMAGE_BYTES = 8, 14_060_000
"""The one large request: 150 MB with its base64."""
LINE_TEXT_BYTES = 149_900_000

PART = '        - {{type: image_url, image_url: {{url: "{{{{ {column} | image }}}}"}}}}\n'
PROMPT = (
    "body:\n  messages:\n    - role: user\n      content:\n"
    '        - {type: text, text: "What does picture {{ id }} show?"}\n'
)


def images(count: int, size: int, seed: int) -> Iterator[bytes]:
    """Pictures of that many bytes."""
    chance = np.random.default_rng(seed)
    for _ in range(count):
        yield HEAD + chance.bytes(size - len(HEAD))


def write_bytes(folder: Path, rows: int, size: int) -> None:
    """A corpus of images in a column, in row groups as datasets of images have them."""
    schema = pa.schema([("id", pa.int64()), ("photo", pa.binary())])
    made = images(rows, size, 1)
    with pq.ParquetWriter(folder / "d.parquet", schema, compression="none", use_dictionary=False) as writer:
        for start in range(0, rows, GROUP_ROWS):
            ids = range(start, min(rows, start + GROUP_ROWS))
            pictures = pa.array([next(made) for _ in ids], pa.binary())
            writer.write_table(pa.table([pa.array(ids), pictures], schema=schema), row_group_size=GROUP_ROWS)
    (folder / "p.yaml").write_text(PROMPT + PART.format(column="photo"))


def write_files(folder: Path, rows: int, size: int) -> None:
    """A corpus of paths, and the files."""
    for number, image in enumerate(images(rows, size, 2)):
        (folder / f"{number}.png").write_bytes(image)
    pq.write_table(pa.table({"id": range(rows), "photo": [f"{n}.png" for n in range(rows)]}), folder / "d.parquet")
    (folder / "p.yaml").write_text(PROMPT + PART.format(column="photo"))


def write_line(folder: Path, rows: int, size: int) -> None:
    """A corpus of one row with eight large images among rows with eight small ones."""
    columns: dict[str, pa.Array] = {"id": pa.array(range(21))}
    for number, large in enumerate(images(LINE_IMAGES, LINE_IMAGE_BYTES, 3)):
        small = list(images(20, 3_000, 4 + number))
        columns[f"photo{number}"] = pa.array([*small[:10], large, *small[10:]], pa.binary())
    pq.write_table(pa.table(columns), folder / "d.parquet", compression="none")
    (folder / "p.yaml").write_text(PROMPT + "".join(PART.format(column=f"photo{n}") for n in range(LINE_IMAGES)))


def write_text(folder: Path, rows: int, size: int) -> None:
    """A corpus of one row with a very long text among rows with short ones."""
    text = ("A line of text, with words enough to be a paragraph of its own. " * 2_500_000)[:LINE_TEXT_BYTES]
    table = pa.table({"id": range(21), "text": [*["short"] * 10, text, *["short"] * 10]})
    pq.write_table(table, folder / "d.parquet", use_dictionary=False)
    (folder / "p.yaml").write_text('body:\n  messages:\n    - {role: user, content: "{{ id }}: {{ text }}"}\n')


CORPORA = {"bytes": write_bytes, "files": write_files, "line": write_line, "text": write_text}


def measure(name: str, rows: int, size: int, folder: Path) -> dict[str, object]:
    """Run a corpus end to end and say what it took."""
    CORPORA[name](folder, rows, size)
    run = folder / "run"
    seen = watched(
        [sys.executable, "-m", "pipeline", "run", "d.parquet", "--prompt", "p.yaml", "--service", "emulator",
         "--run-dir", run, "--out", "o.parquet", "--keep-requests"],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT)},
        mark=lambda: phase_of(run / "run.db"),
    )  # fmt: skip
    statuses = pq.read_table(folder / "o.parquet", columns=["status"])["status"].to_pylist()
    assert set(statuses) == {"succeeded"}, set(statuses)
    (sealed_s, sealing_peak), (answered_s, submitting_peak) = seen.marks["sealed"], seen.marks["answered"]
    requests = sum(path.stat().st_size for path in (run / "requests").iterdir())
    return {
        "figure": name,
        "rows": len(statuses),
        "request_mb": round(requests / 1e6),
        "longest_line_mb": round(longest_line(run / "requests") / 1e6),
        "seal_s": round(sealed_s, 1),
        "submit_and_collect_s": round(answered_s - sealed_s, 1),
        "merge_s": round(seen.wall_s - answered_s, 1),
        "peak_mb": round(seen.peak_bytes / 1e6),
        "peak_mb_sealing": round(sealing_peak / 1e6),
        "peak_mb_submitting": round(submitting_peak / 1e6),
    }


def longest_line(folder: Path) -> int:
    """Bytes of the longest line of any file in a folder."""
    longest = 0
    for path in folder.iterdir():
        with path.open("rb") as file:
            for line in file:
                longest = max(longest, len(line))
    return longest


def main() -> None:
    """Measure each corpus in a folder of its own; print a line of JSON each."""
    parser = argparse.ArgumentParser("images")
    parser.add_argument("--rows", type=int, default=2_000)
    parser.add_argument("--image-bytes", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", choices=sorted(CORPORA))
    given = parser.parse_args()
    for name in [given.only] if given.only else list(CORPORA):
        with tempfile.TemporaryDirectory(prefix="batchmill-images-", dir=given.folder) as scratch:
            found = measure(name, given.rows, given.image_bytes, Path(scratch))
            sys.stdout.write(json.dumps(found) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
