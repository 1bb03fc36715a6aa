"""Images: what is found in a prompt, what its rows become on the wire, what they are taken to cost, what is refused."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.build.image_bytes import media_type, pixels
from pipeline.build.image_rows import PIECE_BYTES, image_rows
from pipeline.build.image_template import ImageTemplate, compile_prompt
from pipeline.build.image_tokens import DEFAULT, ImageTokens, tiles
from pipeline.build.images import IMAGE_BYTES_MAX
from pipeline.build.packer import Limits
from pipeline.build.prompt import Prompt
from pipeline.build.seal import seal
from pipeline.build.source import open_source
from pipeline.build.template import Template
from pipeline.build.writer import RequestPart, write_request_file
from pipeline.errors import PromptError


def png(width: int = 3, height: int = 2, filler: bytes = b"") -> bytes:
    """A PNG of that size that decoders take, with a private chunk of any content."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(height * (width + 1))) if width * height < 10_000 else b""
    chunks = [(b"IHDR", head), (b"prIv", filler), (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, content) for kind, content in chunks)


def jpeg(width: int, height: int, before: bytes = b"") -> bytes:
    """The segments of a JPEG up to its frame header, with a segment of any content before that."""
    segment = b"\xff\xe1" + struct.pack(">H", len(before) + 2) + before if before else b""
    return b"\xff\xd8" + segment + b"\xff\xff\xc0" + struct.pack(">HBHHB", 17, 8, height, width, 3) + bytes(9)


GIF = b"GIF89a" + struct.pack("<HH", 40, 30) + bytes(9)
WEBPS = [
    b"RIFF\x00\x00\x00\x00WEBPVP8X" + bytes(8) + (399).to_bytes(3, "little") + (299).to_bytes(3, "little"),
    b"RIFF\x00\x00\x00\x00WEBPVP8L" + bytes(5) + struct.pack("<I", 399 | 299 << 14) + bytes(4),
    b"RIFF\x00\x00\x00\x00WEBPVP8 " + bytes(10) + struct.pack("<HH", 400, 300),
]
SIZES = [
    (png(640, 480), "image/png", (640, 480)),
    (jpeg(1000, 700), "image/jpeg", (1000, 700)),
    (jpeg(20, 10, b"\xff\xc0" * 500), "image/jpeg", (20, 10)),
    (GIF, "image/gif", (40, 30)),
    *((webp, "image/webp", (400, 300)) for webp in WEBPS),
    (b"\xff\xd8\xff\xe0\x00", "image/jpeg", None),
    (png()[:18], "image/png", None),
    (b"GIF87a", "image/gif", None),
    (b"%PDF-1.7 and more", None, None),
    (b"RIFF\x00\x00\x00\x00WAVE", None, None),
    (b"", None, None),
]


@pytest.mark.parametrize(("image", "kind", "size"), SIZES, ids=range(len(SIZES)))
def test_the_first_bytes_tell_format_and_size(image: bytes, kind: str | None, size: tuple[int, int] | None) -> None:
    """PNG, JPEG (past segments that look like frames), GIF, the three kinds of WEBP; nothing for what is cut short."""
    assert (media_type(image), pixels(image)) == (kind, size)
    assert pixels(memoryview(image)) == size


@settings(max_examples=300, deadline=None)
@given(st.one_of(*(st.just(image) for image, _, _ in SIZES)), st.binary(max_size=60), st.integers(0, 60))
def test_no_bytes_make_the_reading_fail(image: bytes, noise: bytes, at: int) -> None:
    """Damaged images have no size, and that is all."""
    found = pixels(image[:at] + noise + image[at:])
    assert found is None or (found[0] > 0 and found[1] > 0)


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(1, 1, 1), (512, 512, 1), (513, 512, 2), (1024, 1024, 4), (2048, 4096, 6), (4096, 8192, 6), (768, 2048, 8)],
)
def test_tiles_are_those_that_the_service_charges(width: int, height: int, expected: int) -> None:
    """1,024 by 1,024 pixels are four tiles, 765 tokens; 2,048 by 4,096 are six, 1,105 (the service's own examples)."""
    assert tiles(width, height) == expected
    assert DEFAULT.of((width, height)) == 85 + 170 * expected
    assert DEFAULT.of((width, height), low=True) == 85
    assert ImageTokens(1, 2).of(None) == 17


def prompt_of(*urls: str, kind: str = "chat", text: str = "What is {{ q }}?", **more: Any) -> Prompt:
    """A prompt with a text and images of these URLs."""
    if kind == "chat":
        parts = [{"type": "image_url", "image_url": {"url": url, **more}} for url in urls]
        body: dict[str, Any] = {"messages": [{"role": "user", "content": [{"type": "text", "text": text}, *parts]}]}
    else:
        images = [{"type": "input_image", "image_url": url, **more} for url in urls]
        body = {"input": [{"role": "user", "content": [{"type": "input_text", "text": text}, *images]}]}
    return Prompt(kind=kind, body=body, model="m", answer=None, name="p.yaml")


def shown(line: bytes | str, kind: str = "chat") -> list[str]:
    """The image URLs of a request line."""
    body = orjson.loads(line)["body"]
    if kind == "chat":
        return [part["image_url"]["url"] for part in body["messages"][0]["content"] if part["type"] == "image_url"]
    return [part["image_url"] for part in body["input"][0]["content"] if part["type"] == "input_image"]


def as_url(image: bytes) -> str:
    """An image as a data URL, by the standard library."""
    return f"data:{media_type(image)};base64,{base64.b64encode(image).decode()}"


REFUSED: list[tuple[Prompt, str]] = [
    (prompt_of("{{ phot | image }}"), "body.messages[0].content[1].image_url.url: there is no column phot, did"),
    (prompt_of("{{ n | image }}"), "column n is of type int64, which holds no image; name one of URLs, paths or bytes"),
    (prompt_of("{{ hf | image }}"), "column hf is a struct, which is no image; write {{ hf.bytes | image }}"),
    (prompt_of("{{ hf.byte | image }}"), "column hf has no field byte; its type is struct<"),
    (prompt_of("{{ (photo or q) | image }}"), "`image` takes a column, or a field of one; write {{ photo | image }}"),
    (prompt_of("a{{ photo | image }}"), "body.messages[0].content[1].image_url.url: `image` stands alone in the URL"),
    (prompt_of("{{ photo | image(5) }}"), "`image` stands alone in the URL of an image part"),
    (prompt_of(text="{{ photo | image }}"), "body.messages[0].content[0].text: `image` stands alone in the URL of an"),
    (
        prompt_of(kind="responses", text="{{ photo | image }}"),
        'write it as {type: input_image, image_url: "{{ photo | image }}"}',
    ),
    (prompt_of("{{ photo | image"), "body.messages[0].content[1].image_url.url, line 1 of the template: "),
    (prompt_of(text="an image of {{ q"), "body.messages[0].content[0].text, line 1 of the template: "),
    (
        Prompt(kind="embeddings", body={"input": "{{ photo | image }}"}, model=None, answer=None, name="p.yaml"),
        "a prompt of url chat or responses, as embeddings takes no images",
    ),
]
HF = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SCHEMA = pa.schema([("q", pa.string()), ("photo", pa.binary()), ("path", pa.string()), ("n", pa.int64()), ("hf", HF)])


@pytest.mark.parametrize(("prompt", "sentence"), REFUSED, ids=[sentence[:50] for _, sentence in REFUSED])
def test_what_can_be_no_image_is_refused(prompt: Prompt, sentence: str) -> None:
    """One sentence with the place in the body, the column and what to write."""
    with pytest.raises(PromptError) as caught:
        compile_prompt(prompt, SCHEMA)
    assert sentence in str(caught.value)
    assert "p.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_a_prompt_without_images_is_compiled_as_ever() -> None:
    """Nothing stands between it and its template."""
    assert isinstance(compile_prompt(prompt_of(), SCHEMA), Template)


IMAGES = [png(), png(640, 480, b"x" * 5000), jpeg(30, 20), GIF, *WEBPS]


@pytest.mark.parametrize("kind", ["chat", "responses"])
@pytest.mark.parametrize(
    "binary", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int32(), pa.binary()), HF]
)
def test_bytes_of_every_type_come_through_unchanged(kind: str, binary: pa.DataType) -> None:
    """Each format with its media type, in either kind of request; sizes are those of the lines, measured or made."""
    values: list[Any] = [{"bytes": image, "path": "a"} for image in IMAGES] if binary == HF else IMAGES
    array = pa.array(IMAGES).dictionary_encode() if pa.types.is_dictionary(binary) else pa.array(values, binary)
    block = pa.table({"q": [f'"{i}"\n' for i in range(len(IMAGES))], "photo": array})
    name = "photo.bytes" if binary == HF else 'row["photo"]'
    template = compile_prompt(prompt_of("{{ " + name + " | image }}", kind=kind), block.schema)
    assert isinstance(template, ImageTemplate)
    ids = pa.array([f"r-{i}" for i in range(len(IMAGES))])
    made = template.render(block, ids, model="m", url="/u")
    lines = made.lines.to_pylist()
    assert [shown(line, kind) for line in lines] == [[as_url(image)] for image in IMAGES]
    assert made.line_bytes.to_pylist() == [len(line.encode()) for line in lines]
    measured = template.measure(block, ids, model="m", url="/u")
    assert (measured.line_bytes, measured.tokens) == (made.line_bytes, made.tokens)
    for line, tokens, image in zip(lines, made.tokens.to_pylist(), IMAGES, strict=True):
        text_bytes = len(line) - len('{"custom_id":"r-0","method":"POST","url":"/u","body":}\n') - len(as_url(image))
        assert tokens == -(-text_bytes // 4) + DEFAULT.of(pixels(image)), "base64 does not count as text"


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()), pa.binary(9)]
)
def test_addresses_and_bytes_in_every_layout(tmp_path: Path, kind: pa.DataType) -> None:
    """Addresses as any kind of text, and bytes of a fixed length, from a file or in memory."""
    text = not pa.types.is_fixed_size_binary(kind)
    values: list[Any] = ["https://x", None, "a.png"] if text else [b"GIF89a123", None, b"GIF87a123"]
    (tmp_path / "a.png").write_bytes(png())
    array = pa.array(values).dictionary_encode() if pa.types.is_dictionary(kind) else pa.array(values, kind)
    pq.write_table(pa.table({"q": ["1", "2", "3"], "photo": array}), tmp_path / "d.parquet")
    source = open_source(tmp_path / "d.parquet")
    template = compile_prompt(prompt_of("{{ photo | image }}"), source.schema)
    (block,) = image_rows(source, template).blocks()
    made = template.render(block, pa.array(["a", "b", "c"]), model=None, url="/u")
    expected = ["https://x", as_url(png())] if text else [as_url(values[0]), as_url(values[2])]
    assert [shown(line)[0] for line in made.lines.to_pylist() if line] == expected
    assert made.skip_code.to_pylist() == [None, "null_value", None]


def test_several_images_a_row_each_in_its_place(tmp_path: Path) -> None:
    """Two columns, one of them twice, an address between, and what rows without one cost."""
    block = pa.table(
        {
            "q": ["a", "b", None, "d", "e"],
            "photo": pa.array([png(), GIF, GIF, None, b"no image at all"], pa.binary()),
            "path": ["https://x/\"é.png", "data:image/png;base64,AAAA", "HTTP://y", "http://z", "http://z"],
        }
    )
    fixed = "https://example.com/fixed.png"
    urls = ("{{ photo | image }}", "{{path|image}}", fixed, "{{ photo | image }}")
    template = compile_prompt(prompt_of(*urls), block.schema)
    hidden = pa.array([None] * 5, pa.large_binary())
    made = template.render(
        block.append_column("__batchmill_image_1", hidden), pa.array(list("vwxyz")), model=None, url="/u"
    )
    lines = made.lines.to_pylist()
    assert shown(lines[0]) == [as_url(png()), "https://x/\"é.png", fixed, as_url(png())]
    assert shown(lines[1]) == [as_url(GIF), "data:image/png;base64,AAAA", fixed, as_url(GIF)]
    assert lines[2:] == [None] * 3
    assert made.skip_code.to_pylist() == [None, None, "null_value", "null_value", "image_format"]
    assert made.skip_message.to_pylist()[2:] == [
        "column q is null",
        "column photo is null",
        "column photo has content that is no PNG, JPEG, GIF or WEBP image",
    ]
    assert made.line_bytes.to_pylist()[2:] == made.tokens.to_pylist()[2:] == [0, 0, 0]
    assert template.render(block.slice(0, 0).append_column("__batchmill_image_1", hidden.slice(0, 0)),
                           pa.array([], pa.string()), model=None, url="/u").lines.to_pylist() == []  # fmt: skip


def test_low_detail_and_own_costs() -> None:
    """`detail: low` costs the base alone; `image_tokens` says what base and tile are."""
    block = pa.table({"q": ["a"], "photo": pa.array([png(640, 480)])})
    ids = pa.array(["r"])

    def cost(prompt: Prompt) -> Any:
        return compile_prompt(prompt, block.schema).render(block, ids, model=None, url="/u").tokens[0].as_py()

    url = "{{ photo | image }}"
    low, high = cost(prompt_of(url, detail="low")), cost(prompt_of(url, detail="high"))
    assert high - low == 340
    dear = prompt_of(url, detail="high")
    own = Prompt("chat", dear.body, None, None, "p", image_tokens=ImageTokens(0, 5667))
    assert cost(own) - high == 2 * 5667 - 85 - 340
    text = Prompt("chat", dear.body, None, None, "p", image_tokens=ImageTokens(characters=True))
    assert cost(text) - (low - 85) == -(-len(as_url(png(640, 480))) // 4), "counted as the service counts text"
    both = prompt_of("{{ photo | image }}", "https://x/a.png")
    counted = Prompt("chat", both.body, None, None, "p", image_tokens=ImageTokens(characters=True))
    assert 0 < cost(counted) - cost(text) < 40, "an address is text"
    broken = prompt_of("data:image/png;base64,%%%")
    assert cost(broken) - cost(prompt_of("https://x/a.png")) in range(-10, 10)
    fixed = prompt_of(as_url(png(640, 480)))
    assert cost(fixed) - cost(prompt_of("https://x/a.png")) in range(-6 * 170, -6 * 170 + 40)


FAULTS = [
    ("missing.png", "image_missing", "column path: there is no file 'missing.png'"),
    ("", "image_unreadable", "column path: '' is no file"),
    ("s3://bucket/a.png", "image_missing", "column path: there is no file 's3://bucket/a.png'"),
    ("pics", "image_unreadable", "column path: 'pics' is no file"),
    ("pics/a.txt", "image_format", "column path has content that is no PNG, JPEG, GIF or WEBP image"),
    ("pics/large.png", "image_too_large", "column path: 'pics/large.png' has more than 20,971,520 bytes"),
    ("a\0b", "image_missing", "column path: there is no file 'a\\x00b'"),
    ("x" * 300, "image_unreadable", f"column path: '{'x' * 200}' cannot be read (File name too long)"),
    (None, "null_value", "column path is null"),
]


def corpus(folder: Path) -> Path:
    """A corpus of paths beside its pictures: good ones, and every kind of bad one."""
    (folder / "pics").mkdir()
    for number, image in enumerate(IMAGES):
        (folder / "pics" / f"{number}.bin").write_bytes(image)
    (folder / "pics" / "a.txt").write_text("no image")
    with (folder / "pics" / "large.png").open("wb") as file:
        file.write(png())
        file.truncate(IMAGE_BYTES_MAX + 1)
    good = [f"pics/{number}.bin" for number in range(len(IMAGES))]
    paths = [*good, str(folder / "pics" / "0.bin"), "https://example.com/a.png", *(path for path, _, _ in FAULTS)]
    table = pa.table({"q": [str(i) for i in range(len(paths))], "path": paths})
    pq.write_table(table, folder / "data.parquet")
    return folder / "data.parquet"


def test_local_files_are_read_at_sealing_and_not_needed_again(tmp_path: Path) -> None:
    """Row files hold the images; what cannot be sent is skipped with its reason; requests need no picture any more."""
    source = open_source(corpus(tmp_path))
    template = compile_prompt(prompt_of("{{ path | image }}"), source.schema)
    assert isinstance(template, ImageTemplate)
    fixed: dict[str, Any] = {"model": "m", "url": "/u", "custom_id_prefix": "abcdef01", "id_column": None}
    limits = Limits(1000, 10_000_000, None)
    (tmp_path / "rows").mkdir()
    spans = list(seal(image_rows(source, template), template, limits, rows_dir=tmp_path / "rows", **fixed))
    counted = list(seal(image_rows(source, template), template, limits, rows_dir=None, **fixed))
    assert spans == counted, "a dry run counts the same"
    (shard,) = spans[0].shards
    for picture in (tmp_path / "pics").iterdir():
        picture.unlink()
    kept = pq.read_table(tmp_path / "rows" / f"{shard.name}.parquet")
    assert kept.select(["q", "path"]).equals(pq.read_table(tmp_path / "data.parquet"))
    faults = [fault for fault in kept["__batchmill_skip_code"].to_pylist() if fault]
    assert faults == [code for _, code, _ in FAULTS]
    assert [m for m in kept["__batchmill_skip_message"].to_pylist() if m] == [message for _, _, message in FAULTS]
    part = RequestPart(tmp_path / "rows" / f"{shard.name}.parquet", 0, None, "abcdef01", None)
    written = write_request_file(tmp_path / "r.jsonl", [part], template, model="m", url="/u", limits=limits)
    lines = (tmp_path / "r.jsonl").read_bytes().splitlines(keepends=True)
    expected = [*map(as_url, IMAGES), as_url(IMAGES[0]), "https://example.com/a.png"]
    assert [shown(line) for line in lines] == [[url] for url in expected]
    assert (written.lines, written.bytes, written.tokens) == (shard.requests, shard.bytes, shard.tokens)
    assert [len(line) for line in lines] == [size for size in kept["__batchmill_bytes"].to_pylist() if size]
    write_request_file(tmp_path / "s.jsonl", [part], template, model="m", url="/u", limits=limits)
    assert (tmp_path / "s.jsonl").read_bytes() == (tmp_path / "r.jsonl").read_bytes(), "the same input, the same bytes"


def test_a_file_that_vanishes_while_it_is_read_costs_its_row(tmp_path: Path) -> None:
    """Between looking at a file and reading it, anything may happen."""
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png(filler=bytes(5_000_000)))
    pq.write_table(pa.table({"q": ["x", "y"], "path": ["a.png", "b.png"]}), tmp_path / "d.parquet")
    source = open_source(tmp_path / "d.parquet")
    template = compile_prompt(prompt_of("{{ path | image }}"), source.schema)
    blocks = image_rows(source, template).blocks()
    next(blocks)
    (tmp_path / "b.png").unlink()
    made = template.render(next(blocks), pa.array(["b"]), model=None, url="/u")
    assert made.skip_code.to_pylist() == ["image_missing"]


def test_names_of_columns_do_not_get_in_the_way(tmp_path: Path) -> None:
    """A column called as a stand-in would be, and a path inside a struct."""
    (tmp_path / "a.png").write_bytes(png())
    table = pa.table({"q": ["x"], "image_0": ["text"], "hf": [{"bytes": b"", "path": "a.png"}]})
    pq.write_table(table, tmp_path / "d.parquet")
    source = open_source(tmp_path / "d.parquet")
    template = compile_prompt(prompt_of("{{ hf.path | image }}", text="{{ image_0 }}"), source.schema)
    (block,) = image_rows(source, template).blocks()
    (line,) = template.render(block, pa.array(["a"]), model=None, url="/u").lines.to_pylist()
    assert shown(line) == [as_url(png())]
    assert orjson.loads(line)["body"]["messages"][0]["content"][0]["text"] == "text"


def test_blocks_stay_bounded_whatever_the_size_of_the_files(tmp_path: Path) -> None:
    """Rows are given out in pieces of at most eight megabytes of images, or one row."""
    large = png(filler=bytes(3_000_000))
    (tmp_path / "a.png").write_bytes(large)
    pq.write_table(pa.table({"q": ["x"] * 9, "path": ["a.png"] * 9}), tmp_path / "d.parquet")
    pq.write_table(pa.table({"q": ["x"] * 9, "photo": pa.array([large] * 9)}), tmp_path / "e.parquet")
    for name, column in (("d", "path"), ("e", "photo")):
        source = open_source(tmp_path / f"{name}.parquet")
        rows = image_rows(source, compile_prompt(prompt_of("{{ " + column + " | image }}"), source.schema))
        blocks = list(rows.blocks())
        assert sum(block.num_rows for block in blocks) == 9
        assert max(block.num_rows for block in blocks) * len(large) <= PIECE_BYTES
        assert [block.num_rows for block in rows.blocks(start_row=7)] == [2]
        assert all(block.schema.equals(rows.schema) for block in blocks)


def test_a_path_that_is_not_utf8_costs_its_row(tmp_path: Path) -> None:
    """Bytes that are no text name no file."""
    bad = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(struct.pack("<ii", 0, 2)), pa.py_buffer(b"a\xff")]
    )
    sink = io.BytesIO()
    pq.write_table(pa.table({"q": ["x"], "path": bad}), sink)
    (tmp_path / "d.parquet").write_bytes(sink.getvalue())
    source = open_source(tmp_path / "d.parquet")
    template = compile_prompt(prompt_of("{{ path | image }}"), source.schema)
    (block,) = image_rows(source, template).blocks()
    made = template.render(block, pa.array(["r"]), model=None, url="/u")
    assert (made.skip_code.to_pylist(), made.lines.to_pylist()) == (["unrenderable"], [None])
