"""Law: the length of a text as JSON is told exactly without making the JSON."""

from __future__ import annotations

import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.build import json_lengths
from pipeline.build.columns import all_ascii, valid_text

TEXTS = st.lists(
    st.none() | st.text(st.characters(exclude_categories=["Cs"])) | st.text(st.sampled_from('ab"\\\n\x1f\x7f\x00é😀')),
    max_size=12,
)


@given(
    texts=TEXTS, large=st.booleans(), cut=st.tuples(st.integers(0, 12), st.integers(0, 12)), piece=st.integers(1, 70)
)
def test_lengths_are_those_of_the_json(texts: list[str | None], large: bool, cut: tuple[int, int], piece: int) -> None:
    """Of any slice of any array, however its bytes are cut into pieces."""
    array = pa.array(texts, pa.large_string() if large else pa.string()).slice(*cut)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_lengths, "PIECE_BYTES", piece)
        found = json_lengths.json_lengths(array).tolist()
    kept = array.to_pylist()
    assert len(found) == len(kept)
    assert all(text is None or size == len(orjson.dumps(text)) for size, text in zip(found, kept, strict=True))


def test_every_character_has_its_length() -> None:
    """Each Unicode scalar value by itself."""
    texts = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    found = json_lengths.json_lengths(pa.array(texts, pa.large_string())).tolist()
    assert found == [len(orjson.dumps(text)) for text in texts]


BYTES = st.lists(
    st.none()
    | st.binary(max_size=8)
    | st.lists(st.sampled_from(list(b"a\xc3\xa9\x80\xe2\x82\xac\xf0\x9f\xed\xa0")), max_size=30),
    max_size=6,
)


@given(raws=BYTES, large=st.booleans(), cut=st.tuples(st.integers(0, 6), st.integers(0, 6)))
def test_texts_that_are_not_utf8_are_found(
    raws: list[bytes | list[int] | None], large: bool, cut: tuple[int, int]
) -> None:
    """Exactly those that Python cannot decode; ASCII is what Python calls so."""
    kinds = (pa.large_binary(), pa.large_string()) if large else (pa.binary(), pa.string())
    packed = pa.array([None if raw is None else bytes(raw) for raw in raws], kinds[0])
    array = pa.Array.from_buffers(kinds[1], len(packed), packed.buffers()).slice(*cut)
    values = packed.slice(*cut).to_pylist()
    texts, bad = valid_text(array)
    flags = [False] * len(values) if bad is None else bad.to_pylist()
    for raw, text, wrong in zip(values, texts.to_pylist(), flags, strict=True):
        decoded = None if raw is None else raw.decode(errors="replace")
        assert wrong == (raw is not None and decoded is not None and decoded.encode() != raw)
        assert text == (None if wrong else decoded)
    assert all_ascii(array) == all(raw is None or raw.isascii() for raw in values)
