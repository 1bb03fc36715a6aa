"""Any text comes through the whole pipeline unchanged: into the prompts of request files, and into carried columns."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.acceptance.command import batchmill

AWKWARD = [
    "plain",
    "nul \x00 between",
    "".join(map(chr, range(0x20))) + "\x7f",
    "".join(map(chr, range(0x80, 0xA0))),
    "\x00",
    "\ufeffbyte order mark",
    "line\u2028separator\u2029paragraph",
    "\r", "\n", "\r\n", "\x0b\x0c\x1c\x1d\x1e\x85", "ends in a newline\n", "\n begins with one",
    '"', '""', "'", "\\", "\\\\", "\\n", "\\u0041", "\\ud800", "a \"quoted\" 'word'", '\\"', "tab\tand `tick`",
    "\u200b\u200c\u200d\u2060 zero width", "\u202eright to left\u202c", "שלום עולם", "مرحبا بالعالم", "\u061c\u200f",
    "e\u0301 and é", "Z̸̢͠a̷͉͝l̶͓̄g̵͚̽o̷̬̐", "ﬁ ﬂ ß ẞ İ ı ŉ ǰ Σς", "ａｆｕｌｌ　ｗｉｄｔｈ",
    "😀", "👩‍👩‍👧‍👦", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "👍🏽", "🇩🇪🇫🇷", "\U0001f9d1\u200d\U0001f680", "1️⃣", "\U00010348 \U0010ffff",
    "\ufffe \uffff \ufdd0", "\ufffd", "\ue000 \uf8ff", "中文 日本語 한국어 ไทย",
    "{{ text }}", "{% raw %}{{ x }}{% endraw %}", "{# gone? #}", "{{ 1 / 0 }}", "{{ config.__class__ }}", "}}", "{%",
    "{% include '/etc/passwd' %}", "${HOME} $(id) `id` %s %d {0} {name}", "$1 \\1 \\g<0>",
    '{"messages":[{"role":"system","content":"x"}]}', '[1, "two", null]', '"},{"role":"system","content":"', "null",
    "true", "NaN", "1e400", "0x1F", "-0", "=1+1", "@SUM(A1)", "+1", "-1", "a,b;c\td", "<b>&amp;</b>", "]]>", "<!-- -->",
    "<|endoftext|>", "<|im_start|>system", "../../etc/passwd", "C:\\temp\\new", "'; DROP TABLE rows; --", "%00%0a",
    " spaces around ", "\u3000ideographic\u3000", "\xa0nbsp\xa0", "a" * 100_000, "😀" * 20_000,
    "\\" * 5_000, '"' * 5_000, "\x01" * 5_000,
]  # fmt: skip
PROMPT = """\
body:
  model: m
  messages:
    - {role: system, content: "<{% for t in [text] %}{{ t }}{% endfor %}>"}
    - {role: user, content: "<{{ text }}>"}
"""


def test_every_character_and_awkward_text_comes_through(tmp_path: Path) -> None:
    """Each Unicode character and each awkward text is in its request, by both paths, and in the output, unchanged."""
    scalars = [chr(point) for point in range(0x110000) if not 0xD800 <= point <= 0xDFFF]
    texts = [*AWKWARD, *("".join(scalars[start : start + 4096]) for start in range(0, len(scalars), 4096))]
    table = pa.table({"text": texts, "copy": pa.array(texts, pa.large_string()), "list": [[text] for text in texts]})
    pq.write_table(table, tmp_path / "d.parquet")
    (tmp_path / "p.yaml").write_text(PROMPT, encoding="utf-8")
    done = batchmill(
        "run", "d.parquet", "--prompt", "p.yaml", "--service", "emulator", "--keep-requests",
        "--run-dir", "r", "--out", "out.parquet", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    sent = {}
    for path in (tmp_path / "r" / "requests").glob("*.jsonl"):
        for line in path.read_bytes().removesuffix(b"\n").split(b"\n"):
            request = json.loads(line.decode())
            contents = [message["content"] for message in request["body"]["messages"]]
            sent[int(request["custom_id"].split("-")[1])] = contents
    assert sent == {row: [f"<{text}>"] * 2 for row, text in enumerate(texts)}
    output = pq.read_table(tmp_path / "out.parquet")
    assert output.select(["text", "copy", "list"]).equals(table)
    assert set(output["status"].to_pylist()) == {"succeeded"}
