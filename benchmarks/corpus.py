"""Corpora made from a seed: rows of about 600 bytes with an id, a title, a year and a text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

WORDS = [
    *[
        "amber",
        "basalt",
        "cedar",
        "delta",
        "ember",
        "fjord",
        "garnet",
        "harbor",
        "indigo",
        "juniper",
        "kelp",
        "lagoon",
        "marble",
        "nectar",
        "onyx",
        "prairie",
    ],
    *[
        "quartz",
        "river",
        "saffron",
        "tundra",
        "umber",
        "valley",
        "willow",
        "xenon",
        "yarrow",
        "zephyr",
        "naïve",
        "Привет",
        "東京",
    ],
    '"quoted"',
    "line\nbreak",
    "back\\slash",
]
PROMPT = """\
body:
  model: gpt-4o-batch
  temperature: 0
  messages:
    - {role: system, content: Answer in one sentence.}
    - {role: user, content: "Title: {{ title }} ({{ year }})\\n{{ text }}"}
"""
TEXT_BYTES = 570
PIECE_ROWS = 50_000


def write_corpus(path: Path, rows: int, *, seed: int = 7, text_bytes: int = TEXT_BYTES) -> None:
    """Write a Parquet corpus of `rows` rows, piece by piece."""
    schema = pa.schema([("id", pa.int64()), ("title", pa.string()), ("year", pa.int32()), ("text", pa.string())])
    chance = np.random.default_rng(seed)
    # Texts are windows of one long text: as varied as the benchmark needs, and made at the speed of the disk.
    long = " ".join(WORDS[index] for index in chance.integers(0, len(WORDS), 2_000_000 // 8 + text_bytes))
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, rows, PIECE_ROWS):
            count = min(PIECE_ROWS, rows - start)
            begins = chance.integers(0, len(long) - text_bytes, count)
            sizes = chance.integers(text_bytes // 2, text_bytes + text_bytes // 2, count)
            texts = [long[begin : begin + size] for begin, size in zip(begins.tolist(), sizes.tolist(), strict=True)]
            titles = [f"Title {number}" for number in range(start, start + count)]
            years = chance.integers(1900, 2027, count).astype(np.int32)
            ids = np.arange(start, start + count)
            writer.write_table(pa.table([ids, titles, years, texts], schema=schema))


LONG_TEXT_BYTES = 100_000
WIDE_COLUMNS = 500


def write_wide(path: Path, rows: int, *, seed: int = 7) -> None:
    """Write a Parquet corpus of 500 columns, of which the prompt uses three; about 10 bytes a value."""
    chance = np.random.default_rng(seed)
    kinds = [pa.string() if index % 3 == 0 else pa.int64() if index % 3 == 1 else pa.float64() for index in range(496)]
    fields = [("id", pa.int64()), ("title", pa.string()), ("year", pa.int32()), ("text", pa.string())]
    schema = pa.schema([*fields, *((f"c{index:03d}", kind) for index, kind in enumerate(kinds))])
    words = pa.array(WORDS)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, rows, PIECE_ROWS // 10):
            count = min(PIECE_ROWS // 10, rows - start)
            picked = words.take(pa.array(chance.integers(0, len(WORDS), count)))
            whole, real = chance.integers(0, 10**9, count), chance.random(count)
            more = [
                picked if pa.types.is_string(kind) else whole if pa.types.is_int64(kind) else real for kind in kinds
            ]
            ids, years = np.arange(start, start + count), chance.integers(1900, 2027, count).astype(np.int32)
            writer.write_table(pa.table([ids, picked, years, picked, *more], schema=schema))


def write_small_files(folder: Path, rows: int, *, file_rows: int = 500) -> None:
    """Write a folder of many small Parquet files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, rows, file_rows)):
        write_corpus(folder / f"part-{number:05d}.parquet", min(file_rows, rows - start), seed=number)
