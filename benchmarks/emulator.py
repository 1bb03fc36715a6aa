"""The emulator: lines validated and answered a second of one core, and the memory of a server that takes 200 MB.

Lines are worked off as a batch is: validated, answered, written and made durable. Beside it, on the same file and in
the same process, the least that anything in Python could do: `orjson.loads` and `orjson.dumps` of every line. CPU
seconds, the least of several rounds, so that other work on the machine disturbs little.

python -m benchmarks.emulator [--lines 50000] [--megabytes 195] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import orjson

from benchmarks.corpus import TEXT_BYTES, WORDS
from benchmarks.watch import anonymous_bytes
from pipeline.emulator.faults import Faults
from pipeline.emulator.lines import validate
from pipeline.emulator.settings import EmulatorSettings
from pipeline.emulator.work import Ending, work_off

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 5
SAMPLE_S = 0.05
URLS = {"plain chat": "/chat/completions", "schema": "/chat/completions", "responses": "/v1/responses"}
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["score", "why", "labels", "person"],
    "properties": {
        "score": {"type": "integer", "minimum": 1, "maximum": 5},
        "why": {"type": "string"},
        "labels": {"type": "array", "items": {"enum": ["fact", "opinion", "question"]}, "minItems": 1},
        "person": {"anyOf": [{"$ref": "#/$defs/person"}, {"type": "null"}]},
    },
    "$defs": {
        "person": {
            "type": "object",
            "additionalProperties": False,
            "required": ["name", "born"],
            "properties": {"name": {"type": "string"}, "born": {"type": ["string", "null"], "format": "date"}},
        }
    },
}


def write_lines(path: Path, kind: str, lines: int) -> None:
    """A request file of the shape that a corpus of short texts makes."""
    chance = random.Random(7)
    long = " ".join(chance.choices(WORDS, k=40_000))
    body: dict[str, Any] = {"model": "gpt-4o-batch", "temperature": 0}
    if kind == "schema":
        wanted = {"name": "answer", "strict": True, "schema": SCHEMA}
        body["response_format"] = {"type": "json_schema", "json_schema": wanted}
    with path.open("wb") as file:
        for number in range(lines):
            begin = chance.randrange(len(long) - 2 * TEXT_BYTES)
            asked = {"role": "user", "content": long[begin : begin + TEXT_BYTES]}
            texts = [{"role": "system", "content": "Answer in one sentence."}, asked]
            body["input" if kind == "responses" else "messages"] = texts
            line = {"custom_id": f"1a2b3c4d-{number}", "method": "POST", "url": URLS[kind], "body": body}
            file.write(orjson.dumps(line) + b"\n")


def least_cpu_s(work: Callable[[], object]) -> float:
    """CPU seconds of the quickest of several rounds."""
    found = []
    for _ in range(ROUNDS):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)


def measure_lines(folder: Path, kind: str, lines: int) -> dict[str, object]:
    """Lines a second a core, and the ratio to the bare loop."""
    path, out = folder / f"{kind.replace(' ', '-')}.jsonl", [folder / name for name in ("output", "errors", "charged")]
    write_lines(path, kind, lines)
    settings = EmulatorSettings(state=folder)

    def bare() -> None:
        with path.open("rb") as file, out[0].open("wb") as target:
            for line in file:
                target.write(orjson.dumps(orjson.loads(line)))

    def emulated() -> None:
        checked = validate(path, "/chat/completions", settings)
        done = work_off(path, out, settings=settings, faults=Faults(), ending=Ending())
        assert done.completed == checked.lines == lines

    bare_s, emulated_s = least_cpu_s(bare), least_cpu_s(emulated)
    return {
        "figure": f"validated and answered, {kind}",
        "lines": lines,
        "line_bytes": path.stat().st_size // lines,
        "lines_a_second_a_core": round(lines / emulated_s),
        "bare_loop_lines_a_second": round(lines / bare_s),
        "times_the_bare_loop": round(emulated_s / bare_s, 2),
    }


def measure_memory(folder: Path, megabytes: int) -> dict[str, object]:
    """A server that takes a large file, answers it and gives the results back: its peak of memory."""
    path = folder / "large.jsonl"
    write_lines(path, "plain chat", 1_000)
    lines = min(100_000, megabytes * 1_000_000 // (path.stat().st_size // 1_000 + 20))
    padding = max(0, megabytes * 1_000_000 // lines - path.stat().st_size // 1_000 - 20)
    with path.open("wb") as file:
        for number in range(lines):
            asked = [{"role": "user", "content": f"{number} " + "padding " * (padding // 8 + 80)}]
            body = {"model": "m", "messages": asked}
            line = {"custom_id": f"r-{number}", "method": "POST", "url": "/chat/completions", "body": body}
            file.write(orjson.dumps(line) + b"\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.emulator", "--state", str(folder / "state"), "--instant"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout
        url = json.loads(process.stdout.readline())["url"]
        client = openai.AzureOpenAI(azure_endpoint=url, api_version="2024-10-21", api_key="k", max_retries=0)
        idle = peak = anonymous_bytes(process.pid)
        began = time.perf_counter()
        with path.open("rb") as file:
            uploaded = client.files.create(file=file, purpose="batch")
        peak = max(peak, anonymous_bytes(process.pid))
        batch = client.batches.create(input_file_id=uploaded.id, endpoint="/chat/completions", completion_window="24h")
        while batch.status not in ("completed", "failed"):
            peak = max(peak, anonymous_bytes(process.pid))
            time.sleep(SAMPLE_S)
            batch = client.batches.retrieve(batch.id)
        assert batch.status == "completed" and batch.output_file_id, batch
        with client.files.with_streaming_response.content(batch.output_file_id) as answer:
            size = sum(len(piece) for piece in answer.iter_bytes(1 << 20))
        peak = max(peak, anonymous_bytes(process.pid))
        wall_s = time.perf_counter() - began
        resident = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    finally:
        process.terminate()
        process.wait()
    return {
        "figure": "a server, upload to download",
        "input_mb": round(path.stat().st_size / 1e6),
        "output_mb": round(size / 1e6),
        "lines": lines,
        "wall_s": round(wall_s, 1),
        "idle_mb": round(idle / 1e6),
        "peak_mb": round(peak / 1e6),
        "peak_resident_mb": round(int(resident[1]) / 1e3) if resident else None,
    }


def main() -> None:
    """Measure each kind of line and the memory of a server; print a line of JSON each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--lines", type=int, default=50_000)
    parser.add_argument("--megabytes", type=int, default=195)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
        for kind, lines in (("plain chat", given.lines), ("schema", given.lines // 4), ("responses", given.lines)):
            sys.stdout.write(json.dumps(measure_lines(Path(scratch), kind, lines)) + "\n")
            sys.stdout.flush()
        sys.stdout.write(json.dumps(measure_memory(Path(scratch), given.megabytes)) + "\n")


if __name__ == "__main__":
    main()
