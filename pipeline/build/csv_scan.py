"""The shape of a CSV file, in one pass over its bytes: how many records, how long the longest, what is broken.

Owns the reading of quotes. A quoted field ends at a quote that is followed by a delimiter, a line end or the end of the
file; anything else after it is a fault, and so is a quote that is never closed: both would make a reader swallow
records. Quotes inside a field that is not quoted are text. Pieces without oddities are looked at as arrays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_LF, _CR = 10, 13
Positions = NDArray[np.int64]


class BrokenQuote(Exception):  # noqa: N818 - a finding
    """A quote that is not closed, or closed amid a field.

    Args:
        line: where the field begins (never closed) or where it goes on after its end; from 1.
        words: what is wrong there.
    """

    def __init__(self, line: int, words: str) -> None:
        super().__init__(f"line {line}: {words}")
        self.line, self.words = line, words


@dataclass(slots=True)
class CsvScan:
    """What is known of a file after the pieces so far; `finish` ends it.

    Attributes:
        delimiter, quote: one ASCII character each; quote "": there are no quoted fields.
        blank_records: whether a blank line is a record (in a file of one column) or nothing.
        records: complete records, the header among them.
        longest_bytes: of a record.
        lines: line ends so far.
    """

    delimiter: str
    quote: str
    blank_records: bool
    records: int = 0
    longest_bytes: int = 0
    lines: int = 0
    _inside: bool = False
    _opened_line: int = 0
    _open_bytes: int = 0
    _last: int = _LF
    _held: bytes = b""

    def add(self, piece: bytes) -> None:
        """Look at the next bytes.

        Raises:
            BrokenQuote: text follows a closing quote.
        """
        piece = self._held + piece
        # What a quote or a return at the very end means depends on the byte after it.
        kept = piece.rstrip((self.quote + "\r").encode())
        self._held = piece[len(kept) :]
        self._look(kept, following=self._held[:1])

    def finish(self) -> int:
        """The file has ended; how many records it has.

        Raises:
            BrokenQuote: a quote was never closed.
        """
        held, self._held = self._held, b""
        self._look(held, following=b"")
        if self._inside:
            raise BrokenQuote(self._opened_line, "a quote opens there and is never closed; close it, or double it")
        if self._open_bytes:
            self.records += 1
            self.longest_bytes = max(self.longest_bytes, self._open_bytes)
        return self.records

    def _look(self, piece: bytes, following: bytes) -> None:
        if not piece:
            return
        data = np.frombuffer(piece, np.uint8)
        ends = np.flatnonzero(data == _LF)
        if b"\r" in piece:
            returns = np.flatnonzero(data == _CR)
            alone = returns[_after(data, returns, following, 0) != _LF]
            ends = np.sort(np.concatenate([ends, alone]))
        toggles = self._toggles(piece, data, ends, following)
        begins_inside = self._inside
        if len(toggles) or begins_inside:
            inside = (np.searchsorted(toggles, ends) + begins_inside) % 2 == 1
            record_ends = ends[~inside]
            self._inside = bool((len(toggles) + begins_inside) % 2)
            if self._inside and len(toggles):
                self._opened_line = self.lines + int(np.searchsorted(ends, toggles[-1])) + 1
        else:
            record_ends = ends
        self._count(piece, data, record_ends)
        self.lines += len(ends)
        self._last = int(data[-1])

    def _count(self, piece: bytes, data: NDArray[np.uint8], record_ends: Positions) -> None:
        if not len(record_ends):
            self._open_bytes += len(piece)
            return
        lengths = np.diff(record_ends, prepend=-1) - 1
        lengths[0] += self._open_bytes
        # A return before the line end belongs to it, so a line of it alone is blank.
        before = np.where(record_ends > 0, data[record_ends - 1], self._last)
        content = lengths - ((data[record_ends] == _LF) & (before == _CR) & (lengths > 0))
        self.records += len(content) if self.blank_records else int(np.count_nonzero(content))
        self.longest_bytes = max(self.longest_bytes, int(lengths.max()))
        self._open_bytes = len(piece) - 1 - int(record_ends[-1])

    def _toggles(self, piece: bytes, data: NDArray[np.uint8], ends: Positions, following: bytes) -> Positions:
        """Where quoted fields begin and end (a doubled quote ends one and begins it again)."""
        none = np.empty(0, np.int64)
        if not self.quote or self.quote.encode() not in piece:
            return none
        quotes = np.flatnonzero(data == ord(self.quote))
        before = np.where(quotes > 0, data[quotes - 1], self._last)
        after = _after(data, quotes, following, _LF)
        apart = np.array([ord(self.delimiter), _LF, _CR], np.uint8)
        at_start, at_end = np.isin(before, apart), np.isin(after, apart)
        doubled_before, doubled_after = before == ord(self.quote), after == ord(self.quote)
        opening = (np.arange(len(quotes)) + self._inside) % 2 == 0
        good = np.where(opening, at_start | doubled_before, at_end | doubled_after)
        if good.all():
            return quotes
        return self._toggles_one_by_one(quotes, at_start, at_end, doubled_after, ends)

    def _toggles_one_by_one(
        self, quotes: Positions, at_start: NDArray[np.bool_], at_end: NDArray[np.bool_],
        doubled_after: NDArray[np.bool_], ends: Positions,
    ) -> Positions:  # fmt: skip
        """The same where quotes stand in fields that are not quoted."""
        toggles: list[int] = []
        inside, index = self._inside, 0
        starts, stops, doubled = at_start.tolist(), at_end.tolist(), doubled_after.tolist()
        for index, position in enumerate(quotes.tolist()):
            if index and toggles and toggles[-1] == -1:  # the second of a doubled quote
                toggles.pop()
                continue
            if inside:
                if doubled[index]:
                    toggles.append(-1)
                elif stops[index]:
                    inside = False
                    toggles.append(position)
                else:
                    line = self.lines + int(np.searchsorted(ends, position)) + 1
                    raise BrokenQuote(line, "text follows a closing quote; double the quotes inside a quoted field")
            elif starts[index]:
                inside = True
                toggles.append(position)
        return np.array(toggles, np.int64)


def _after(
    data: NDArray[np.uint8], positions: Positions, following: bytes, at_end: int
) -> NDArray[np.uint8]:
    """The byte after each position; `at_end` after the last byte of all."""
    found = data[np.minimum(positions + 1, len(data) - 1)]
    if len(positions) and positions[-1] == len(data) - 1:
        found[-1] = following[0] if following else at_end
    return found
