"""Sources and the check: memory and shards of many small files, of one giant row group, of a wide table and of packed
text; and what `check` reads in a second of CPU time, beside a bare loop of `orjson.loads`.

Each figure is measured in a process of its own, memory as anonymous resident bytes.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.watch import watched
from pipeline.build.packer import Limits
from pipeline.build.prompt import Prompt
from pipeline.build.seal import seal
from pipeline.build.selection import Selected, Selection
from pipeline.build.source import open_source
from pipeline.build.template import compile_template
from pipeline.checking import FileCheck, Rules
from pipeline.config import ServiceKind

ROOT = Path(__file__).resolve().parents[1]
SMALL_FILES = 10_000
WIDE_COLUMNS = 3_000
LINES_MAX = 100_000


def texts(count: int, size: int, seed: int = 1) -> pa.Array:
    """So many texts of about `size` bytes."""
    chance = random.Random(seed)
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(2, 9))) for _ in range(2_000)]
    long = " ".join(chance.choices(words, k=20_000))
    starts = [chance.randrange(len(long) - size) for _ in range(count)]
    return pa.array([long[start : start + size] for start in starts])


def make_small(folder: Path, rows: int) -> None:
    """Many Parquet files of a few rows each, in a folder for each hundred."""
    each = max(1, rows // SMALL_FILES)
    column = texts(each, 500)
    for number in range(SMALL_FILES):
        path = folder / f"part={number // 100:03d}" / f"{number:06d}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"id": np.arange(each) + number * each, "text": column}), path)


def make_giant(folder: Path, rows: int) -> None:
    """One Parquet file with one row group."""
    few = texts(10_000, 500)
    table = pa.table({"id": np.arange(rows), "text": pa.concat_arrays([few] * (-(-rows // 10_000))).slice(0, rows)})
    pq.write_table(table, folder / "giant.parquet", row_group_size=rows, use_dictionary=False)


def make_wide(folder: Path, rows: int) -> None:
    """A table of thousands of columns, of which a prompt uses two."""
    rows = max(1, rows // 50)
    numbers = {f"n{index}": np.arange(rows) + index for index in range(WIDE_COLUMNS - 2)}
    table = pa.table({"id": np.arange(rows), "text": texts(rows, 300), **numbers})
    pq.write_table(table, folder / "wide.parquet", row_group_size=5_000)


def make_packed(folder: Path, rows: int) -> None:
    """A gzipped CSV file with quotes and line breaks."""
    column = texts(1_000, 500).to_pylist()
    with gzip.open(folder / "packed.csv.gz", "wt", compresslevel=1) as file:
        file.write("id,text\n")
        for row in range(rows):
            file.write(f'{row},"{column[row % 1_000]}\n""q"""\n')


SOURCES: dict[str, Callable[[Path, int], None]] = {
    "small": make_small,
    "giant": make_giant,
    "wide": make_wide,
    "packed": make_packed,
}


def seal_all(folder: Path) -> dict[str, Any]:
    """Seal whatever is in a folder; rows, shards, and how full the shards are but for the last."""
    source = Selected(open_source(folder / "data"), Selection(), numbered=True)
    body = {"messages": [{"role": "user", "content": "{{ id }}: {{ text }}"}]}
    template = compile_template(Prompt("chat", body, "m", None, "p"), source.schema)
    limits = Limits(LINES_MAX, 200_000_000, None)
    (folder / "rows").mkdir()
    spans = seal(
        source, template, limits, rows_dir=folder / "rows", model="m", url="/chat/completions",
        custom_id_prefix="abcdef01", id_column=None,
    )  # fmt: skip
    shards = [shard for span in spans for shard in span.shards]
    rows = sum(shard.stop_row - shard.first_row for shard in shards)
    full = min((shard.requests / LINES_MAX for shard in shards[:-1]), default=1.0)
    return {"rows": rows, "shards": len(shards), "least_full": full}


def make_requests(path: Path, lines: int, size: int) -> None:
    """A batch input file."""
    column = texts(1_000, size).to_pylist()
    with path.open("wb") as file:
        for number in range(lines):
            messages = [{"role": "user", "content": f"Größe {number}: {column[number % 1_000]}"}]
            body = {"model": "gpt-4o", "messages": messages, "temperature": 0}
            line = {"custom_id": f"abcdef01-{number}", "method": "POST", "url": "/chat/completions", "body": body}
            file.write(orjson.dumps(line) + b"\n")


def check_all(folder: Path) -> dict[str, Any]:
    """Check the file; CPU time of this process alone, the best of three."""
    path, few = folder / "requests.jsonl", folder / "few.jsonl"
    make_requests(few, 10, 200)
    list(FileCheck(few, Rules.of(ServiceKind.AZURE)).blocks())  # what is imported at the first use is no part of it
    speeds = []
    for _ in range(3):
        looking = FileCheck(path, Rules.of(ServiceKind.AZURE))
        start = time.process_time()
        faults = sum(len(looked.faults) for looked in looking.blocks())
        speeds.append(path.stat().st_size / 1e6 / (time.process_time() - start))
    return {"faults": faults, "lines": looking.lines, "mb_per_cpu_s": round(max(speeds))}


def loop_all(folder: Path) -> dict[str, Any]:
    """Nothing but `orjson.loads` on each line, the best of three."""
    path, speeds = folder / "requests.jsonl", []
    for _ in range(3):
        start, lines = time.process_time(), 0
        with path.open("rb") as file:
            for line in file:
                orjson.loads(line)
                lines += 1
        speeds.append(path.stat().st_size / 1e6 / (time.process_time() - start))
    return {"lines": lines, "mb_per_cpu_s": round(max(speeds))}


WORK: dict[str, Callable[[Path], dict[str, Any]]] = {"seal": seal_all, "check": check_all, "loop": loop_all}


def figure(name: str, folder: Path) -> dict[str, Any]:
    """What a way gives, with its time and memory, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.inputs", "--work", name, "--folder", folder]
    seen = watched(command, cwd=folder, env={"PYTHONPATH": str(ROOT)})
    told = json.loads((folder / "figure.json").read_text())
    return {**told, "cpu_s": round(seen.cpu_s, 1), "peak_mb": round(seen.peak_bytes / 1e6)}


def _say(found: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Measure and print a line of JSON for each figure."""
    parser = argparse.ArgumentParser("inputs")
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--work", choices=sorted(WORK), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        (given.folder / "figure.json").write_text(json.dumps(WORK[given.work](given.folder)))
        return
    for name, make in SOURCES.items():
        folder = Path(tempfile.mkdtemp(prefix="batchmill-inputs-"))
        try:
            (folder / "data").mkdir()
            make(folder / "data", given.rows)
            _say({"figure": f"seal {name}", **figure("seal", folder)})
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    for size in (200, 800, 4_000):
        folder = Path(tempfile.mkdtemp(prefix="batchmill-inputs-"))
        try:
            make_requests(folder / "requests.jsonl", min(100_000, 150_000_000 // size), size)
            ours, loop = figure("check", folder), figure("loop", folder)
            ratio = round(ours["mb_per_cpu_s"] / loop["mb_per_cpu_s"], 2)
            told = {"figure": f"check, lines of {size} bytes", **ours, "loop_mb_per_cpu_s": loop["mb_per_cpu_s"]}
            _say({**told, "ratio": ratio})
        finally:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
