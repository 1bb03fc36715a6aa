"""Results to output: result files of Azure's shape, in batches of 100,000, collected and merged.

Beside it, in the same run and from the same files, what one would write by hand: a loop of `orjson.loads`, a join by
custom_id, a Parquet file. Each figure is measured in a process of its own, memory as anonymous resident bytes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from benchmarks.watch import AS_THE_COMMAND, warm_up, watched
from pipeline.ids import custom_ids
from pipeline.merge.collect import collect_outcomes
from pipeline.merge.output import MergeShard, OutcomeFile, Shape, own_columns, write_output
from pipeline.results import RESULTS, read_results

BATCH_ROWS = 100_000
_SAFE = {"filtered": False, "severity": "safe"}
_FILTERS = {name: _SAFE for name in ("hate", "self_harm", "sexual", "violence")}
ROOT = Path(__file__).resolve().parents[1]
SOURCE = pa.schema([("question", pa.string())])


def make(folder: Path, rows: int, answer_bytes: int) -> None:
    """Row files, row lists and shuffled result files of so many rows."""
    chance = random.Random(1)
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(2, 9))) for _ in range(2_000)]
    for number, first in enumerate(range(0, rows, BATCH_ROWS)):
        count = min(BATCH_ROWS, rows - first)
        numbers = pa.array(np.arange(first, first + count))
        ids = custom_ids("1a2b3c4d", numbers)
        zeros = pa.array(np.zeros(count, dtype=np.int32))
        listed = pa.table([numbers, zeros, zeros, ids], names=["row", "attempts", "barren", "custom_id"])
        pq.write_table(listed, folder / f"{number}.list.parquet")
        sizes, none = pa.array(np.ones(count, dtype=np.int64)), pa.nulls(count, pa.string())
        question = pa.array([f"question {index}: {_text(chance, words, 120)}" for index in range(count)])
        reserved = [f"__batchmill_{name}" for name in ("bytes", "tokens", "skip_code", "skip_message")]
        table = pa.table([question, sizes, sizes, none, none], names=["question", *reserved])
        pq.write_table(table, folder / f"{number}.rows.parquet", row_group_size=50_000)
        order = list(range(count))
        chance.shuffle(order)
        with (
            (folder / f"{number}.jsonl.zst").open("wb") as raw,
            zstandard.ZstdCompressor(level=1).stream_writer(raw) as file,
        ):
            for index in order:
                file.write(_line(f"1a2b3c4d-{first + index}", _text(chance, words, answer_bytes)))


def _text(chance: random.Random, words: list[str], size: int) -> str:
    start = chance.randrange(1_000)
    few = " ".join(words[start : start + 80])
    return few[:size] if size <= len(few) else (few * (size // len(few) + 1))[:size]


@cache
def _mould() -> tuple[str, str, str]:
    """A line around its custom_id and its text."""
    message = {"role": "assistant", "content": "<text>", "refusal": None}
    choice = {"index": 0, "finish_reason": "stop", "message": message, "content_filter_results": _FILTERS}
    usage = {
        "prompt_tokens": 120,
        "completion_tokens": 90,
        "total_tokens": 210,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    body = {
        "id": "chatcmpl-Ax1AAAAAAAAAAAAAAAAAA",
        "object": "chat.completion",
        "created": 1760000100,
        "model": "gpt-4.1-2025-04-14",
        "choices": [choice],
        "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": _FILTERS}],
        "usage": usage,
    }
    response = {"status_code": 200, "request_id": "0f1c2a66-5d0e-4f0b-9a0e-2f6f1b1f9a11", "body": body}
    line = orjson.dumps({"custom_id": "<id>", "response": response, "error": None}).decode()
    head, rest = line.split("<id>")
    middle, tail = rest.split("<text>")
    return head, middle, tail


def _line(custom_id: str, text: str) -> bytes:
    """A result of Azure's shape; the text is of small letters and blanks."""
    head, middle, tail = _mould()
    return f"{head}{custom_id}{middle}{text}{tail}\n".encode()


def _numbers(folder: Path) -> range:
    return range(len(list(folder.glob("*.list.parquet"))))


def parse_ours(folder: Path) -> int:
    """Every result file to columns."""
    return sum(table.num_rows for n in _numbers(folder) for table in read_results(folder / f"{n}.jsonl.zst", "chat"))


def _loop(path: Path) -> Iterator[tuple[Any, ...]]:
    with path.open("rb") as raw, pa.input_stream(raw, compression="zstd", buffer_size=1 << 20) as stream:
        rest = b""
        while piece := stream.read(16 << 20):
            lines = (rest + piece).split(b"\n")
            rest = lines.pop()
            for line in lines:
                found = orjson.loads(line)
                response = found["response"]
                body = response["body"]
                choice, usage = body["choices"][0], body["usage"]
                yield (
                    found["custom_id"],
                    True,
                    response["status_code"],
                    None,
                    None,
                    choice["message"]["content"],
                    choice["finish_reason"],
                    usage["prompt_tokens"],
                    usage["completion_tokens"],
                    usage["prompt_tokens_details"]["cached_tokens"],
                    usage["completion_tokens_details"]["reasoning_tokens"],
                    body["model"],
                    None,
                )


def parse_loop(folder: Path) -> int:
    """The same columns by a loop of `orjson.loads`."""
    rows = 0
    for number in _numbers(folder):
        lines = _loop(folder / f"{number}.jsonl.zst")
        while block := list(itertools.islice(lines, 20_000)):
            columns = zip(*block, strict=True)
            pa.table([pa.array(c, f.type) for c, f in zip(columns, RESULTS, strict=True)], schema=RESULTS)
            rows += len(block)
    return rows


def whole_ours(folder: Path) -> int:
    """Results to outcome files, and these with the row files to one Parquet file."""
    for earlier in (folder / "ours.parquet", *folder.glob("*.outcomes.parquet")):
        earlier.unlink(missing_ok=True)
    shards, first = [], 0
    for number in _numbers(folder):
        out = folder / f"{number}.outcomes.parquet"
        summary = collect_outcomes(
            batch_rows=folder / f"{number}.list.parquet",
            result_files=[folder / f"{number}.jsonl.zst"],
            kind="chat",
            schema=None,
            end_status="completed",
            batch_error=None,
            max_attempts=3,
            out=out,
        )
        file = OutcomeFile(out, number, f"batch_{number}", "d")
        row_file = folder / f"{number}.rows.parquet"
        shards.append(MergeShard(f"000000-{number:06d}", row_file, first, first + summary.rows, (file,)))
        first += summary.rows
    counts = write_output(
        shards,
        out=folder / "ours.parquet",
        shape=Shape("chat"),
        source_schema=SOURCE,
        prefix="",
        custom_id_prefix="1a2b3c4d",
        id_column=None,
        metadata={},
    )
    assert counts.succeeded == counts.rows
    return counts.rows


def whole_loop(folder: Path) -> int:
    """The same output by hand: a loop, a dictionary, a Parquet file."""
    own = own_columns(Shape("chat"))
    rows = 0
    with pq.ParquetWriter(folder / "loop.parquet", pa.schema([*SOURCE, *own]), compression="zstd") as writer:
        for number in _numbers(folder):
            ids = pq.read_table(folder / f"{number}.list.parquet")["custom_id"].to_pylist()
            found = {line[0]: line for line in _loop(folder / f"{number}.jsonl.zst")}
            joined = [found[custom_id] for custom_id in ids]
            one = dict(zip(RESULTS.names, zip(*joined, strict=True), strict=True))
            count = len(ids)
            constant = {"status": "succeeded", "deployment": "d", "attempt": 1, "batch_id": f"batch_{number}"}
            columns = {**one, **{name: [value] * count for name, value in constant.items()}}
            question = pq.read_table(folder / f"{number}.rows.parquet", columns=["question"])["question"]
            arrays = [pa.array(columns[field.name], field.type) for field in own]
            writer.write_table(pa.table([question, *arrays], schema=pa.schema([*SOURCE, *own])))
            rows += count
    return rows


WORK: dict[str, Callable[[Path], int]] = {
    "parse_ours": parse_ours,
    "parse_loop": parse_loop,
    "whole_ours": whole_ours,
    "whole_loop": whole_loop,
}


def work(name: str, folder: Path) -> None:
    """Do one thing in this process; its time goes beside the files."""
    warm_up()
    start = time.perf_counter()
    rows = WORK[name](folder)
    found = {"rows": rows, "seconds": round(time.perf_counter() - start, 2)}
    (folder / "figure.json").write_text(json.dumps(found))


def figure(name: str, folder: Path) -> dict[str, Any]:
    """A way's time and memory, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.merge", "--work", name, "--folder", folder]
    seen = watched(command, cwd=folder, env={"PYTHONPATH": str(ROOT), **AS_THE_COMMAND})
    told = json.loads((folder / "figure.json").read_text())
    return {**told, "cpu_seconds": round(seen.cpu_s, 2), "peak_mb": round(seen.peak_bytes / 1e6)}


def main() -> None:
    """Measure and print a line of JSON for each figure."""
    parser = argparse.ArgumentParser("merge")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--answer-bytes", type=int, default=350)
    parser.add_argument("--long-rows", type=int, default=100_000, help="answers of 30 KB in one batch; 0: none")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--no-loop", action="store_true", help="ours alone, for memory at other sizes")
    parser.add_argument("--work", choices=sorted(WORK), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given.work, given.folder)
        return
    folder = Path(tempfile.mkdtemp(prefix="batchmill-merge-"))
    try:
        make(folder, given.rows, given.answer_bytes)
        for name in ("parse", "whole") * given.turns:
            found = {"figure": name, **figure(f"{name}_ours", folder)}
            if not given.no_loop:
                beside = figure(f"{name}_loop", folder)
                found |= {f"loop_{name}": beside[name] for name in ("seconds", "cpu_seconds", "peak_mb")}
                found["ratio"] = round(beside["seconds"] / found["seconds"], 2)
            sys.stdout.write(json.dumps(found) + "\n")
            sys.stdout.flush()
        if given.long_rows:
            shutil.rmtree(folder)
            folder.mkdir()
            make(folder, given.long_rows, 30_000)
            sys.stdout.write(json.dumps({"figure": "answers of 30 KB", **figure("whole_ours", folder)}) + "\n")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
