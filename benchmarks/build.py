"""Source to sealed shards, and row files to request files, beside what one would write by hand.

By hand is a loop over the rows: the prompt by `str.format` or by Jinja2, the line by `orjson.dumps`, a new file every
100,000 lines; no row files, no fsync, no ledger. Copying the finished request files is the limit of the machine. Each
way runs in a process of its own, in turns over the same corpus; each turn prints a line of JSON with the ratios of
that turn.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import orjson
import pyarrow.parquet as pq

from benchmarks.corpus import LONG_TEXT_BYTES, PROMPT, write_corpus, write_small_files, write_wide
from benchmarks.watch import AS_THE_COMMAND, warm_up, watched
from pipeline.build.packer import Limits
from pipeline.build.prompt import load_prompt
from pipeline.build.seal import seal
from pipeline.build.source import open_source
from pipeline.build.template import Template, compile_template
from pipeline.build.writer import RequestPart, write_request_file
from pipeline.errors import SourceError
from pipeline.ledger import Ledger

ROOT = Path(__file__).resolve().parents[1]
LINES_MAX = 100_000
LIMITS = Limits(LINES_MAX, 200_000_000, None)
PREFIX, MODEL, URL = "1a2b3c4d", "gpt-4o-batch", "/chat/completions"
PIECE_BYTES = 8 << 20


def _source(folder: Path) -> Path:
    return next(path for path in (folder / "corpus", folder / "corpus.parquet") if path.exists())


def _template(folder: Path) -> Template:
    return compile_template(load_prompt(folder / "prompt.yaml"), open_source(_source(folder)).schema)


def seal_ours(folder: Path) -> int:
    """Row files, fsync and ledger, as a run does it."""
    run, rows = folder / "run", 0
    shutil.rmtree(run, ignore_errors=True)
    (run / "rows").mkdir(parents=True)
    ledger = Ledger(run / "run.db", create=True)
    for span in seal(
        open_source(_source(folder)),
        _template(folder),
        LIMITS,
        rows_dir=run / "rows",
        model=MODEL,
        url=URL,
        custom_id_prefix=PREFIX,
        id_column=None,
    ):
        shards = [(s.name, s.first_row, s.stop_row, s.requests, s.skipped, s.bytes, s.tokens) for s in span.shards]
        ledger.seal_span(span.span, span.first_row, span.stop_row, shards)
        rows = span.stop_row
    ledger.close()
    return rows


def render_ours(folder: Path) -> int:
    """Every shard to its request file, as before an upload: without fsync, since a crash renders it again."""
    out = _empty(folder / "requests")
    ledger, template, rows = Ledger(folder / "run" / "run.db"), _template(folder), 0
    for shard in ledger.shards():
        row_file = folder / "run" / "rows" / f"{shard.name}.parquet"
        part = RequestPart(row_file, shard.first_row, None, PREFIX, None)
        path = out / f"{shard.shard:06d}.jsonl"
        rows += write_request_file(path, [part], template, model=MODEL, url=URL, limits=LIMITS, synced=False).lines
    ledger.close()
    return rows


def copy(folder: Path) -> int:
    """The bytes of the request files, read and written again."""
    out = _empty(folder / "copied")
    for path in sorted((folder / "requests").iterdir()):
        with path.open("rb") as source, (out / path.name).open("wb") as target:
            shutil.copyfileobj(source, target, PIECE_BYTES)
    ledger = Ledger(folder / "run" / "run.db", readonly=True)
    rows = ledger.totals().requests
    ledger.close()
    return rows


def _by_hand(folder: Path, fill: Callable[[dict[str, Any]], str]) -> int:
    out, rows = _empty(folder / "by-hand"), 0
    source = _source(folder)
    file = (out / "0.jsonl").open("wb")
    for path in sorted(source.iterdir()) if source.is_dir() else [source]:
        for batch in pq.ParquetFile(path, pre_buffer=False).iter_batches(5_000, columns=["title", "year", "text"]):
            for row in batch.to_pylist():
                if rows % LINES_MAX == 0 and rows:
                    file.close()
                    file = (out / f"{rows}.jsonl").open("wb")
                messages = [
                    {"role": "system", "content": "Answer in one sentence."},
                    {"role": "user", "content": fill(row)},
                ]
                body = {"model": MODEL, "temperature": 0, "messages": messages}
                line = {"custom_id": f"{PREFIX}-{rows}", "method": "POST", "url": URL, "body": body}
                file.write(orjson.dumps(line) + b"\n")
                rows += 1
    file.close()
    return rows


def format_loop(folder: Path) -> int:
    """A loop of `str.format` and `orjson.dumps`."""
    text = "Title: {title} ({year})\n{text}"
    return _by_hand(folder, lambda row: text.format(**row))


def jinja_loop(folder: Path) -> int:
    """A loop of Jinja2 and `orjson.dumps`."""
    template = jinja2.Template("Title: {{ title }} ({{ year }})\n{{ text }}")
    return _by_hand(folder, lambda row: template.render(**row))


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


WAYS: dict[str, Callable[[Path], int]] = {
    "seal": seal_ours,
    "render": render_ours,
    "format loop": format_loop,
    "jinja loop": jinja_loop,
    "copy": copy,
}
"""In the order of a turn: rendering needs what sealing leaves, copying what rendering leaves."""


def in_process(name: str, folder: Path) -> dict[str, float]:
    """Do one thing in a process of its own: seconds and CPU seconds of the work itself, memory of the process."""
    os.sync()
    command = [sys.executable, "-m", "benchmarks.build", "--way", name, "--folder", folder]
    seen = watched(command, cwd=folder, env={"PYTHONPATH": str(ROOT), **AS_THE_COMMAND})
    return {**json.loads((folder / "figure.json").read_text()), "peak_mb": round(seen.peak_bytes / 1e6)}


def turn(case: str, folder: Path, ways: list[str]) -> None:
    """Every way once; a line of JSON for each, with its ratios to the ways by hand of the same turn."""
    found = {way: in_process(way, folder) for way in ways}
    for way in ways:
        figure: dict[str, object] = {"figure": f"{way}, {case}", **found[way]}
        if way in ("seal", "render"):
            for loop in ("format loop", "jinja loop", "copy"):
                if loop in found:
                    ratio = found[loop]["wall_s"] / found[way]["wall_s"]
                    figure[f"ratio to {loop}"] = round(ratio, 2)
        print(json.dumps(figure), flush=True)
    both = [found[way]["cpu_s"] for way in ("seal", "render")]
    print(json.dumps({"figure": f"seal and render, {case}", "cpu_s": round(sum(both), 2)}), flush=True)


def _make(case: str, folder: Path, rows: int) -> bool:
    """Write a case's corpus; false where this checkout cannot read it."""
    (folder / "prompt.yaml").write_text(PROMPT)
    if case == "100 KB texts":
        write_corpus(folder / "corpus.parquet", rows, text_bytes=LONG_TEXT_BYTES)
    elif case == "500 columns":
        write_wide(folder / "corpus.parquet", rows)
    elif case == "many small files":
        write_small_files(folder / "corpus", rows)
        try:
            open_source(folder / "corpus")
        except SourceError:
            return False
    else:
        write_corpus(folder / "corpus.parquet", rows)
    return True


def main() -> None:
    """Measure and print a line of JSON for each way and turn."""
    parser = argparse.ArgumentParser("build")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--no-loops", action="store_true", help="ours alone, for memory at other sizes")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="where to work; default: the temporary folder")
    given = parser.parse_args()
    if given.way:
        _work(given.way, given.folder)
        return
    cases = {
        f"{given.rows:,} rows": (given.rows, given.turns, ["seal", "render"] if given.no_loops else list(WAYS)),
        "100 KB texts": (given.rows // 250, 1, ["seal", "render", "format loop", "copy"]),
        "500 columns": (given.rows // 25, 1, ["seal", "render", "format loop"]),
        "many small files": (given.rows // 10, 1, ["seal", "render", "format loop"]),
    }
    for case, (rows, turns, ways) in cases.items():
        if given.no_loops and case != f"{given.rows:,} rows":
            continue
        with tempfile.TemporaryDirectory(prefix="batchmill-build-", dir=given.folder) as scratch:
            if not _make(case, Path(scratch), rows):
                print(json.dumps({"figure": f"seal, {case}", "note": "this checkout reads single files only"}))
                continue
            for _ in range(turns):
                turn(case, Path(scratch), ways)


def _work(way: str, folder: Path) -> None:
    warm_up()
    start, cpu = time.perf_counter(), time.process_time()
    rows = WAYS[way](folder)
    wall_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu
    found = {"rows": rows, "wall_s": round(wall_s, 2), "cpu_s": round(cpu_s, 2), "rows_per_s": round(rows / wall_s)}
    (folder / "figure.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
