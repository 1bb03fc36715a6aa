"""Which files a source is made of: listed, sorted bytewise, and frozen.

Owns what DATA may be (a file, a folder, a glob, several of them), what is left out of a folder (hidden, temporary,
marker files, run folders), the endings that are read, and partition columns in the names of folders. Opens no file;
what is in one is the business of the modules of its format.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from pipeline.errors import SourceError

FORMATS = {
    ".parquet": "parquet", ".pq": "parquet",
    ".csv": "csv", ".tsv": "tsv", ".tab": "tsv",
    ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".arrow": "arrow", ".arrows": "arrow", ".ipc": "arrow", ".feather": "arrow",
}  # fmt: skip
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
READ = ".parquet, .csv, .tsv, .jsonl and .arrow (.csv, .tsv and .jsonl also as .gz or .zst)"
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
_TEMPORARY = (".tmp", ".temp", ".part", ".partial", ".crdownload", ".swp", ".inprogress", ".crc", "~")
_PARTITION = re.compile(r"^([^=]+)=(.*)$", re.DOTALL)
_WILD = re.compile(r"[*?\[]")
_INTEGER = re.compile(r"^(0|-?[1-9][0-9]{0,17})$", re.ASCII)


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells that a file was changed: never part of a source's identity, only compared while it is read."""

    size_bytes: int
    changed_ns: int
    inode: int


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file of the frozen list.

    Attributes:
        path: where it is, as the user named it.
        format: `parquet`, `csv`, `tsv`, `jsonl` or `arrow`, by its ending.
        compression: `gzip`, `zstd` or None, by its ending.
        stamp: size and state when the list was frozen.
        partitions: names and values that the folders above it say, outermost first; None: a null.
    """

    path: Path
    format: str
    compression: str | None
    stamp: Stamp
    partitions: tuple[tuple[str, str | None], ...] = ()

    def check_unchanged(self) -> None:
        """Make sure that it is the file that was listed.

        Raises:
            SourceError: it has changed or vanished since.
        """
        try:
            now = stamp_of(self.path)
        except OSError as error:
            raise SourceError(f"{self.path} has vanished since the run began: put it back and start again.") from error
        if now != self.stamp:
            raise SourceError(f"{self.path} has changed since the run began: wait until it is whole and start again.")


def stamp_of(path: Path) -> Stamp:
    """A file's size and state now."""
    found = path.stat()
    return Stamp(found.st_size, found.st_mtime_ns, found.st_ino)


def list_files(data: Sequence[Path]) -> tuple[InputFile, ...]:
    """Every file that the arguments mean, each once, in bytewise order of the paths.

    Args:
        data: files, folders and globs. A name that exists is never taken as a glob.

    Raises:
        SourceError: nothing is there; a file is named twice, of a kind that is not read, or of another than the rest.
    """
    found: dict[str, InputFile] = {}
    for argument in data:
        for path in _expanded(argument):
            name = os.path.realpath(path)
            if name in found:
                raise SourceError(f"{path} is named twice: name each file once.")
            found[name] = _input_file(path)
    files = tuple(sorted(found.values(), key=lambda file: os.fsencode(file.path)))
    for file in files:
        if file.format != files[0].format:
            raise SourceError(
                f"{files[0].path} and {file.path} are of different kinds: name files of one kind, or a glob such as "
                f"'folder/*{_ending(files[0].path)[0]}'."
            )
    return files


def source_name(data: Sequence[Path]) -> str:
    """What a run over these is called: the first argument's name without its ending and wildcards."""
    first = data[0]
    if not first.exists() and _WILD.search(str(first)):
        fixed = [part for part in first.parts if not _WILD.search(part)]
        name = fixed[-1] if fixed else "data"
    else:
        name = first.name if first.name not in ("", "..") else first.resolve().name
    path = Path(name)
    while path.suffix.lower() in (*FORMATS, *COMPRESSIONS) and path.stem:
        path = Path(path.stem)
    return _WILD.sub("_", path.name).strip("/ ") or "data"


def partition_value(values: Iterable[str | None]) -> bool:
    """Whether all values of a partition column are whole numbers as one writes them, so that nothing is lost by reading
    them as such (`01` is text)."""
    return all(value is None or _INTEGER.match(value) for value in values)


def _expanded(argument: Path) -> Iterator[Path]:
    if argument.is_dir():
        files = list(_walk(argument))
        if not files:
            raise SourceError(f"{argument} is a folder without files to read: it reads {READ}.")
        yield from files
    elif argument.exists() or not _WILD.search(str(argument)):
        if not argument.exists():
            raise SourceError(f"{argument} does not exist: name a file, a folder or a glob of {READ}.")
        yield argument
    else:
        yield from _matching(argument)


def _matching(pattern: Path) -> Iterator[Path]:
    """The data files that a glob matches, and those beneath the folders that it matches, each once."""
    fixed = next(index for index, part in enumerate(pattern.parts) if _WILD.search(part))
    found: dict[Path, None] = {}
    runs: dict[Path, bool] = {}
    for match in glob.iglob(str(pattern), recursive=True):
        path = Path(match)
        if any(_left_out(part) for part in path.parts[fixed:]):
            continue
        if any(runs.setdefault(above, _is_run(above)) for above in path.parents if len(above.parts) > fixed):
            continue
        found.update(dict.fromkeys(_walk(path) if path.is_dir() else [path]))
    if not found:
        raise SourceError(f"No file matches {pattern}: correct the glob; it reads {READ}.")
    yield from found


def _is_run(folder: Path) -> bool:
    """Whether a folder is a run's: it holds copies of rows, of whatever source."""
    return (folder / "run.db").exists()


def _walk(folder: Path) -> Iterator[Path]:
    """The data files beneath a folder; links to folders are followed once."""
    seen: set[str] = set()
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        real = os.path.realpath(here)
        if real in seen:
            continue
        seen.add(real)
        if _is_run(here):
            continue
        for entry in os.scandir(here):
            if _left_out(entry.name):
                continue
            path = here / entry.name
            if entry.is_dir():
                waiting.append(path)
            else:
                yield path


def _left_out(name: str) -> bool:
    """Hidden files, markers such as `_SUCCESS`, and files that are still being written; a folder `_a=1` is data."""
    return name.startswith(".") or (name.startswith("_") and "=" not in name) or name.lower().endswith(_TEMPORARY)


def _ending(path: Path) -> tuple[str, str | None]:
    suffix = path.suffix.lower()
    if suffix in COMPRESSIONS:
        return Path(path.stem).suffix.lower(), suffix
    return suffix, None


def _input_file(path: Path) -> InputFile:
    ending, packed = _ending(path)
    kind = FORMATS.get(ending)
    if kind is None:
        hint = "; rename it to .jsonl if it has one object a line" if ending == ".json" else ""
        raise SourceError(f"{path} ends in {path.suffix or 'nothing'}: what is read is {READ}{hint}.")
    if packed and kind in ("parquet", "arrow"):
        raise SourceError(f"{path} is compressed as a whole, which {ending} files never are: unpack it first.")
    try:
        stamp = stamp_of(path)
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror}): check that it is there.") from error
    if not path.is_file():
        raise SourceError(f"{path} is no file: a source is read twice, so copy what it gives into a file first.")
    if stamp.size_bytes == 0:
        raise SourceError(f"{path} is empty (zero bytes): write it again, or leave it out.")
    return InputFile(path, kind, COMPRESSIONS.get(packed or ""), stamp, _partitions(path))


def _partitions(path: Path) -> tuple[tuple[str, str | None], ...]:
    found = []
    for part in path.parts[:-1]:
        if matched := _PARTITION.match(part):
            value = unquote(matched[2])
            found.append((unquote(matched[1]), None if value == NULL_PARTITION else value))
    return tuple(found)
