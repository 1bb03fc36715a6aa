"""What a command line means for its prompt: limits by endpoint, notes, and what is refused before a row is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import ServiceKind, limits_of, request_url
from pipeline.errors import UsageError
from pipeline.opening import Job, Options, prepare
from pipeline.plan import plan_of

EMULATOR, AZURE, OPENAI = ServiceKind.EMULATOR, ServiceKind.AZURE, ServiceKind.OPENAI


def opened(
    tmp_path: Path,
    name: str | None,
    text: str,
    kind: ServiceKind = EMULATOR,
    photos: tuple[bytes, bytes] = (b"x", b"y"),
    **more: Any,
) -> tuple[Job, Options, list[str]]:
    """A job over one text column, the options it came from, and what was said to the person."""
    pq.write_table(pa.table({"text": ["a", "b"], "photo": pa.array(photos)}), tmp_path / "d.parquet")
    if name:
        (tmp_path / name).write_text(text)
    said: list[str] = []
    options = Options(data=(tmp_path / "d.parquet",), prompt=tmp_path / name if name else None, **more)
    return prepare(options, kind, said.append), options, said


EMBEDDINGS = "url: embeddings\nbody: {model: m, input: ['{{ text }}', b]}\n"


@pytest.mark.parametrize(
    ("service", "kind", "inputs", "lines", "url"),
    [
        (AZURE, "chat", 1, 100_000, "/chat/completions"),
        (AZURE, "responses", 1, 100_000, "/v1/responses"),
        (OPENAI, "chat", 1, 50_000, "/v1/chat/completions"),
        (OPENAI, "responses", 1, 50_000, "/v1/responses"),
        (OPENAI, "embeddings", 1, 50_000, "/v1/embeddings"),
        (OPENAI, "embeddings", 3, 16_666, "/v1/embeddings"),
        (OPENAI, "embeddings", 2_048, 24, "/v1/embeddings"),
        (EMULATOR, "embeddings", 1, 50_000, "/v1/embeddings"),
        (EMULATOR, "responses", 1, 100_000, "/v1/responses"),
    ],
)
def test_each_endpoint_has_its_url_and_its_limits(
    service: ServiceKind, kind: str, inputs: int, lines: int, url: str
) -> None:
    """Embeddings are limited by their inputs, all others by lines (contract §5, §7)."""
    assert limits_of(service, kind, inputs).lines_max == lines
    assert request_url(service, kind, v1=False) == url


REFUSED: list[tuple[str, str, ServiceKind, dict[str, Any], str]] = [
    ("p.yaml", EMBEDDINGS, AZURE, {}, "url: embeddings cannot be run in batches on Azure (only"),
    ("p.yaml", EMBEDDINGS, EMULATOR, {"max_lines": 25_001}, "--max-lines 25,001 is outside 1 to 25,000"),
    ("p.yaml", EMBEDDINGS, EMULATOR, {"system": Path("s.md")}, "check the path given to --system"),
    ("p.md", "{{ text }}", AZURE, {}, "No model is named: give --model NAME"),
    ("p.md", "{{ text }}", EMULATOR, {"flatten": True}, "--flatten is for typed answers"),
    (
        "p.yaml",
        "body: {messages: [{role: user, content: 'JSON: {{ text }}'}]}\nanswer: json\n",
        EMULATOR,
        {"flatten": True},
        "--flatten spreads the properties of a typed answer, and this one has none: leave it out",
    ),
    ("p.md", "{{ photo }}", EMULATOR, {}, "column photo is of type binary"),
    ("p.md", "{{ photo | image }}", EMULATOR, {}, "`image` stands alone in the URL of an image part"),
]


@pytest.mark.parametrize("case", REFUSED, ids=[case[4][:40] for case in REFUSED])
def test_refuses_before_a_row_is_read(tmp_path: Path, case: tuple[str, str, ServiceKind, dict[str, Any], str]) -> None:
    """One sentence, exit code 2."""
    name, text, kind, more, sentence = case
    with pytest.raises(UsageError) as caught:
        opened(tmp_path, name, text, kind, **more)
    assert sentence in str(caught.value)
    assert caught.value.exit_code == 2


def test_notes_of_a_prompty_are_said(tmp_path: Path) -> None:
    """What was not carried over is told once, where it is read."""
    text = "---\nmodel: {configuration: {azure_deployment: d, azure_endpoint: x}}\n---\nuser:\n{{ text }}\n"
    job, _, said = opened(tmp_path, "p.prompty", text)
    assert job.settings.model == "d"
    assert said == [
        "Prompt file p.prompty: model.configuration (azure_endpoint) is not used; the service comes from --service and "
        "the environment."
    ]


def test_system_goes_with_the_text_column_too(tmp_path: Path) -> None:
    """Without a prompt file `--system` stands before the text, and makes another run of it."""
    (tmp_path / "s.md").write_text("Be brief.\n")
    job, _, said = opened(tmp_path, None, "", system=tmp_path / "s.md")
    assert job.settings.body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "{{ text }}"},
    ]
    assert said == ["No prompt file: each request is the text of column 'text'."]
    plain, _, _ = opened(tmp_path, None, "")
    assert plain.settings.fingerprint != job.settings.fingerprint


def test_a_plan_shows_images_by_their_size(tmp_path: Path) -> None:
    """A person reads the request, not a megabyte of base64."""
    text = "body: {messages: [{role: user, content: [{type: image_url, image_url: {url: '{{ photo | image }}'}}]}]}"
    job, options, _ = opened(tmp_path, "p.yaml", text, photos=(b"GIF89a" + bytes(1000), b"no image"))
    found = plan_of(job, options, show=1)
    assert '"data:image/gif;base64,…(1,344 characters)"' in found["first_requests"][0]
    assert (found["requests"], found["estimated_tokens"]) == (1, 85 + 8 * 170 + 28), "28 are those of the text"
