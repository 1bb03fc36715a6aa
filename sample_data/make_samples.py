"""Makes questions.parquet and questions.csv: quiz questions put together from tables of facts, awkward text included.

Owns the sample's rows; every run writes the same bytes (no clock, no random numbers). The facts stand in `facts.py`.
Knows nothing of batchmill: the sample is a corpus like any other.

    python sample_data/make_samples.py [FOLDER]
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent))  # so that `facts` is found from wherever this is run

import facts  # noqa: E402

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("topic", pa.dictionary(pa.int32(), pa.string())),
        ("question", pa.string()),
        ("year", pa.int32()),
        ("difficulty", pa.int8()),
        ("asked_on", pa.date32()),
        ("asked_at", pa.timestamp("us", tz="UTC")),
        ("weight", pa.float64()),
        ("verified", pa.bool_()),
        ("tags", pa.list_(pa.string())),
        ("price", pa.decimal128(9, 2)),
    ]
)

NULL_EVERY = 19
"""Every nineteenth row has no question: nothing to send, but a row of the output all the same."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question before it has a place: its topic, its text, and the year it is about, if any."""

    topic: str
    question: str
    year: int | None = None


def _geography() -> Iterator[Asked]:
    wordings = (
        "What is the capital of {}?",
        "Name the capital city of {}.",
        "Which city is the seat of government shown as the capital of {} on most maps?",
        "{}: capital?",
    )
    for index, (country, capital) in enumerate(facts.CAPITALS):
        yield Asked("geography", wordings[index % len(wordings)].format(country))
        if index % 2:
            yield Asked("geography", f"{capital} is the capital of which country?")
    for river, mouth in facts.RIVERS:
        yield Asked("geography", f"Into which body of water does the {river} flow, the {mouth} or another?")
    yield from (Asked("geography", text) for text in facts.IN_OTHER_LANGUAGES)


def _chemistry() -> Iterator[Asked]:
    for number, (symbol, name) in enumerate(facts.ELEMENTS, start=1):
        yield Asked("chemistry", f"Which element has the symbol {symbol}?")
        if number % 2:
            yield Asked("chemistry", f"What is the atomic number of {name}?")


def _history() -> Iterator[Asked]:
    for year, event in facts.EVENTS:
        yield Asked("history", f"In which year did this happen: {event}?", year)
        yield Asked("history", f"True or false: {event} in {year + year % 3}.", year)


def _arithmetic() -> Iterator[Asked]:
    for index in range(210):
        left, right = 17 + index * 7, 3 + index * index % 41
        sums = (f"{left} + {right}", f"{left} × {right}", f"{left} − {right}", f"{left * right} ÷ {right}")
        yield Asked("arithmetic", f"Work out {sums[index % 4]}.")


def _units() -> Iterator[Asked]:
    for index, (unit, other) in enumerate(facts.UNITS):
        yield Asked("units", f"How many {other} are there in one {unit}?")
        yield Asked("units", f"{3 + index * 5} times one {unit}: how much is that in {other}?")


def _literature() -> Iterator[Asked]:
    for author, title, year in facts.BOOKS:
        yield Asked("literature", f"Who wrote “{title}”?", year)
        yield Asked("literature", f"When did {author}'s \"{title}\" first appear?", year)


def _astronomy() -> Iterator[Asked]:
    for position, (planet, moons) in enumerate(facts.PLANETS, start=1):
        yield Asked("astronomy", f"Which planet is number {position}, counted from the Sun?")
        yield Asked("astronomy", f"Does {planet} have moons, and is {moons} one of them?")


def _computing() -> Iterator[Asked]:
    for language, year in facts.LANGUAGES:
        yield Asked("computing", f"In which year did the programming language {language} first appear?", year)
    for code, meaning in facts.STATUS_CODES:
        yield Asked("computing", f"Does HTTP status {code} mean '{meaning}'?")
    for power in range(4, 34, 2):
        yield Asked("computing", f"How many values can {power} bits tell apart?")


def _mixed() -> list[Asked]:
    """All questions, the topics interleaved, awkward texts spread among them."""
    tables = [
        list(table())
        for table in (_geography, _chemistry, _history, _arithmetic, _units, _literature, _astronomy, _computing)
    ]
    tables.append([Asked("awkward", text) for text in facts.AWKWARD])
    placed = [
        ((position + 0.5) / len(table), order, asked)
        for order, table in enumerate(tables)
        for position, asked in enumerate(table)
    ]
    return [asked for _, _, asked in sorted(placed, key=lambda entry: entry[:2])]


def rows() -> list[dict[str, Any]]:
    """The sample's rows in order, one dictionary a row, keyed by the names of `SCHEMA`."""
    asked_rows: list[dict[str, Any]] = []
    start = datetime.datetime(2024, 1, 1, 6, tzinfo=datetime.UTC)
    waiting = iter(_mixed())
    asked = next(waiting, None)
    while asked is not None:
        number = len(asked_rows) + 1
        is_null = number % NULL_EVERY == 0
        moment = start + datetime.timedelta(hours=7 * number, microseconds=number * 1001)
        asked_rows.append(
            {
                "id": f"q-{number:04d}",
                "topic": asked.topic,
                "question": None if is_null else asked.question,
                "year": None if is_null else asked.year,
                "difficulty": 1 + number * 7 % 5,
                "asked_on": moment.date(),
                "asked_at": moment,
                "weight": number / 8,
                "verified": number % 3 == 0,
                "tags": [asked.topic, "odd", "long"][: number % 4],
                "price": Decimal(number * 37 % 10_000) / 100,
            }
        )
        if not is_null:
            asked = next(waiting, None)
    return asked_rows


def _csv_text(value: Any) -> str:
    """A value as the CSV has it: tags joined by `|`, times in ISO 8601, null as nothing, empty text as `""`."""
    if value is None:
        return ""
    if isinstance(value, str):
        awkward = not value or value != value.strip() or any(mark in value for mark in ',"\r\n')
        return '"' + value.replace('"', '""') + '"' if awkward else value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "|".join(value)
    if isinstance(value, datetime.datetime):
        return value.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    if isinstance(value, Decimal):
        return f"{value:.2f}"
    return str(value)


def write(folder: Path) -> None:
    """Write both files into a folder that exists.

    Args:
        folder: where they go; files of the same names are replaced.
    """
    made = rows()
    pq.write_table(
        pa.Table.from_pylist(made, schema=SCHEMA),
        folder / "questions.parquet",
        compression="zstd",
        row_group_size=250,
    )
    # Not csv.writer: it cannot quote the empty text while leaving null bare in every Python that is supported.
    lines = [",".join(SCHEMA.names), *(",".join(_csv_text(value) for value in row.values()) for row in made)]
    (folder / "questions.csv").write_bytes(("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent)
