"""Rendering request lines: columns at once, the same by Jinja2, and what one would write by hand.

One core (polars is given one thread), texts of 600 bytes, the time the process itself used. The loops by hand are
`str.format` with orjson and a compiled Jinja2 template with orjson, over the same rows; each figure is the best of
several, in megabytes of request lines a second.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("POLARS_MAX_THREADS", "1")

import jinja2
import orjson
import pyarrow as pa

from benchmarks.corpus import WORDS
from pipeline.build.prompt import Prompt
from pipeline.build.template import compile_template
from pipeline.ids import custom_ids

URL = "/chat/completions"
SYSTEM = "You grade answers."
CASES = {
    "one column": ("Question: {{ text }}", lambda row: f"Question: {row['text']}"),
    "filters and ifs": (
        "{% if year > 2000 %}New: {% else %}Old: {% endif %}{{ title | upper }} ({{ year }})\n{{ text | trim }}"
        "{{ ' [' ~ score ~ ']' if score >= 0.5 else '' }}",
        lambda row: (
            f"{'New: ' if row['year'] > 2000 else 'Old: '}{row['title'].upper()} ({row['year']})\n{row['text'].strip()}"
            f"{' [' + str(row['score']) + ']' if row['score'] >= 0.5 else ''}"
        ),
    ),
}


def table_of(rows: int, text_bytes: int, extra: str) -> pa.Table:
    """Rows of a text, a title, a year and a score."""
    chance = random.Random(7)
    long = " ".join(chance.choices([word for word in WORDS if word.isascii()], k=rows // 8 + text_bytes))
    starts = [chance.randrange(len(long) - text_bytes) for _ in range(rows)]
    return pa.table(
        {
            "text": [f" {long[start : start + text_bytes]}{extra} " for start in starts],
            "title": [f"Title {index}" for index in range(rows)],
            "year": pa.array([1990 + index % 30 for index in range(rows)], pa.int32()),
            "score": [index % 100 / 100 for index in range(rows)],
        }
    )


def best(work: Callable[[], Any], repeats: int) -> float:
    """Least seconds of processor time."""
    found = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def body_of(content: str) -> dict[str, Any]:
    """The body of a line."""
    return {"messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": content}]}


def loop(table: pa.Table, ids: list[str], fill: Callable[[dict[str, Any]], str]) -> list[bytes]:
    """The same lines by hand."""
    return [
        orjson.dumps(
            {
                "custom_id": custom_id,
                "method": "POST",
                "url": URL,
                "body": {"model": "m", **body_of(fill(row))},
            }
        )
        + b"\n"
        for custom_id, row in zip(ids, table.to_pylist(), strict=True)
    ]


def measure(name: str, table: pa.Table, repeats: int) -> dict[str, Any]:
    """The figures of a case; all ways must give the same lines."""
    source, by_format = CASES[name]
    template = compile_template(Prompt("chat", body_of(source), None, None, "p.yaml"), table.schema)
    assert template.fast, template.reason
    slow = template.by_jinja()
    ids = custom_ids("1a2b3c4d", pa.array(range(table.num_rows), pa.int64()))
    listed = ids.to_pylist()
    jinja = jinja2.Environment(keep_trailing_newline=True).from_string(source)
    lines = template.render(table, ids, model="m", url=URL).lines
    content = "".join(lines.to_pylist()).encode()
    fill = {"format": by_format, "jinja": lambda row: jinja.render(**row)}
    for way in fill.values():
        assert b"".join(loop(table, listed, way)) == content
    seconds = {
        "fast": best(lambda: template.render(table, ids, model="m", url=URL), repeats),
        "fallback": best(lambda: slow.render(table, ids, model="m", url=URL), 2),
        **{f"{key}_loop": best(lambda way=way: loop(table, listed, way), 2) for key, way in fill.items()},
    }
    megabytes = len(content) / 1e6
    speeds = {f"{key}_mb_s": round(megabytes / value) for key, value in seconds.items()}
    ratios = {
        f"{ours}_to_{loops}": round(seconds[loops] / seconds[ours], 2)
        for ours in ("fast", "fallback")
        for loops in ("format_loop", "jinja_loop")
    }
    return {"figure": name, "mb": round(megabytes, 1), **speeds, **ratios}


def main() -> None:
    """Measure and print a line of JSON for each figure."""
    parser = argparse.ArgumentParser("render")
    parser.add_argument("--rows", type=int, default=25_000)
    parser.add_argument("--text-bytes", type=int, default=600)
    parser.add_argument("--repeats", type=int, default=15)
    given = parser.parse_args()
    for words, extra in (("", ""), (", not ASCII", " café “x” 😀")):
        table = table_of(given.rows, given.text_bytes, extra)
        for name in CASES:
            found = measure(name, table, given.repeats)
            sys.stdout.write(json.dumps({**found, "figure": name + words}, ensure_ascii=False) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
