"""Each endpoint and each prompt format through the real command and the emulator, checked row by row.

What a row should have been asked is written out here by plain Python; what the emulator answers follows the body of the
request alone, so that an answer shows the request that it was given for.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import ServiceKind
from pipeline.emulator.answers import answer
from pipeline.opening import Options, prepare
from pipeline.plan import plan_of
from tests.acceptance.command import batchmill
from tests.acceptance.test_interruption import emulator
from tests.acceptance.test_operating import FAST, azure, books
from tests.build.test_images import GIF, as_url, jpeg, png

EMULATED = ("--service", "emulator", "--out", "o.parquet")
TEXTS = ["plain", 'qu"ote\\ and \n line', "naïve Привет 東京 👩‍👩‍👧", "{{ not a template }}", '{"json": [1]}']
SCHEMA = {"type": "object", "properties": {"score": {"type": "integer"}, "why": {"type": "string"}}}
SENT = {**SCHEMA, "additionalProperties": False, "required": ["score", "why"]}


@pytest.fixture
def data(tmp_path: Path) -> list[dict[str, Any]]:
    """A corpus of awkward texts in `d.parquet`, as its rows."""
    table = pa.table({"id": list(range(len(TEXTS))), "text": TEXTS})
    pq.write_table(table, tmp_path / "d.parquet")
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def run(tmp_path: Path, *arguments: object, **env: str) -> list[dict[str, Any]]:
    """Run over `d.parquet` and read the output."""
    done = batchmill("run", "d.parquet", *arguments, cwd=tmp_path, **env)
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = pq.read_table(tmp_path / "o.parquet").to_pylist()
    return rows


def answered(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """What the emulator says to a request."""
    found: dict[str, Any] = json.loads(answer(url, {"model": "gpt-4o-batch", **body}, 0).body)
    return found


def chat_text(body: dict[str, Any]) -> Any:
    """The text of its chat answer."""
    return answered("/chat/completions", body)["choices"][0]["message"]["content"]


def user(text: str) -> dict[str, Any]:
    """A user message."""
    return {"role": "user", "content": text}


def test_chat_with_a_typed_answer_from_a_file(tmp_path: Path, data: list[dict[str, Any]]) -> None:
    """The schema lies in a file of its own; each row has the struct that its own request was answered with."""
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "s.json").write_text(json.dumps(SCHEMA))
    (tmp_path / "prompts" / "p.yaml").write_text(
        "body: {temperature: 0, messages: [{role: user, content: 'Rate: {{ text }}'}]}\nanswer: s.json\n"
    )
    rows = run(tmp_path, "--prompt", "prompts/p.yaml", *EMULATED)
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": SENT}}
    for row, source in zip(rows, data, strict=True):
        body = {"temperature": 0, "messages": [user("Rate: " + source["text"])], "response_format": wanted}
        assert row["answer"] == json.loads(chat_text(body))
        usage = answered("/chat/completions", body)["usage"]
        assert (row["prompt_tokens"], row["completion_tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])
        assert (row["status"], row["finish_reason"], row["text"]) == ("succeeded", "stop", source["text"])


def test_responses_with_a_typed_answer(tmp_path: Path, data: list[dict[str, Any]]) -> None:
    """`text.format` carries the schema, `--system` is the instructions, and usage is that of responses."""
    (tmp_path / "p.yaml").write_text(
        "url: responses\nbody:\n  text: {verbosity: low}\n  input:\n"
        "    - {role: user, content: [{type: input_text, text: 'Rate: {{ text }}'}]}\n"
        f"answer: {json.dumps(SCHEMA)}\n"
    )
    (tmp_path / "s.md").write_text("You rate {{ id }}.\n")
    rows = run(tmp_path, "--prompt", "p.yaml", "--system", "s.md", "--max-lines", 2, *EMULATED)
    form = {"type": "json_schema", "name": "answer", "strict": True, "schema": SENT}
    for row, source in zip(rows, data, strict=True):
        parts = [{"type": "input_text", "text": "Rate: " + source["text"]}]
        body = {
            "instructions": f"You rate {source['id']}.",
            "text": {"verbosity": "low", "format": form},
            "input": [{"role": "user", "content": parts}],
        }
        found = answered("/v1/responses", body)
        assert row["answer"] == json.loads(found["output"][0]["content"][0]["text"])
        usage = found["usage"]
        assert (row["prompt_tokens"], row["completion_tokens"]) == (usage["input_tokens"], usage["output_tokens"])
        assert (row["status"], row["finish_reason"], row["reasoning_tokens"]) == ("succeeded", "stop", 0)


def test_embeddings_on_openai(tmp_path: Path, data: list[dict[str, Any]]) -> None:
    """A list of 32-bit floats a row, over an emulator that is OpenAI to the command."""
    (tmp_path / "p.yaml").write_text("url: embeddings\nbody: {input: '{{ text }}', dimensions: 5}\n")
    more = ("--prompt", "p.yaml", "--model", "gpt-4o-batch", "--out", "o.parquet", "--max-lines", 3)
    with emulator(tmp_path / "state", "--profile", "openai", "--speed", "1600") as url:
        openai = {"OPENAI_BASE_URL": url + "/v1", "OPENAI_API_KEY": "k"}
        rows = run(tmp_path, *more, "--service", "openai", "--yes", "--poll-seconds", 0.1, **openai)
    assert pq.read_schema(tmp_path / "o.parquet").field("answer").type == pa.list_(pa.float32())
    for row, source in zip(rows, data, strict=True):
        found = answered("/v1/embeddings", {"input": source["text"], "dimensions": 5})
        vector = pa.array(found["data"][0]["embedding"], pa.float32()).to_pylist()
        assert (row["status"], row["answer"]) == ("succeeded", vector)
        assert row["prompt_tokens"] == found["usage"]["prompt_tokens"]


def test_embeddings_of_several_inputs(tmp_path: Path, data: list[dict[str, Any]]) -> None:
    """Over the built-in emulator: a list of vectors, in the order of the inputs."""
    (tmp_path / "p.yaml").write_text("url: embeddings\nbody: {model: m, input: ['{{ text }}', 'b {{ id }}']}\n")
    rows = run(tmp_path, "--prompt", "p.yaml", *EMULATED)
    for row, source in zip(rows, data, strict=True):
        found = answered("/v1/embeddings", {"model": "m", "input": [source["text"], f"b {source['id']}"]})
        vectors = [pa.array(entry["embedding"], pa.float32()).to_pylist() for entry in found["data"]]
        assert row["answer"] == vectors


PROMPTY = """\
---
name: Rate
model:
  api: chat
  configuration: {type: azure_openai, azure_endpoint: https://x, azure_deployment: gpt-4o-batch}
  parameters: {max_tokens: 9}
sample: {text: hello}
---
system:
You rate {{ id }}.

user:
{{ text }}
"""


def test_a_prompty_and_a_bare_text_with_a_system_message(tmp_path: Path, data: list[dict[str, Any]]) -> None:
    """Each asks what it says, of the model that `--model` names."""
    (tmp_path / "p.prompty").write_text(PROMPTY)
    (tmp_path / "p.md").write_text("# {{ text }}\n")
    (tmp_path / "s.txt").write_text("You rate {{ id }}.\n")
    ways: list[tuple[list[str], Callable[[str], dict[str, Any]]]] = [
        (["--prompt", "p.prompty"], lambda text: {"max_tokens": 9, "messages": [user(text)]}),
        (["--prompt", "p.md", "--system", "s.txt"], lambda text: {"messages": [user("# " + text)]}),
    ]
    for number, (arguments, body_of) in enumerate(ways):
        rows = run(tmp_path, *arguments, "--model", "other", "--run-dir", f"r{number}", *EMULATED)
        for row, source in zip(rows, data, strict=True):
            body = body_of(source["text"])
            system = {"role": "system", "content": f"You rate {source['id']}."}
            assert row["answer"] == chat_text({**body, "messages": [system, *body["messages"]]})
            assert (row["status"], row["model"]) == ("succeeded", "synthetic-other")


def test_free_json_is_kept_as_text_and_checked(tmp_path: Path, data: list[dict[str, Any]]) -> None:
    """The answer is the model's own text; one that is no JSON fails, with its text beside."""
    (tmp_path / "p.yaml").write_text(
        "body: {messages: [{role: user, content: 'As JSON: {{ text }}'}]}\nanswer: json\n"
    )
    (tmp_path / "f.yaml").write_text("faults: [{on: line, kind: invalid_answer, match: '-2$'}]\n")
    with emulator(tmp_path / "state", "--speed", "1600", "--faults", str(tmp_path / "f.yaml")) as url:
        arguments = ("d.parquet", "--prompt", "p.yaml", *FAST, "--out", "o.parquet")
        done = batchmill("run", *arguments, cwd=tmp_path, **azure(url))
    assert done.returncode == 3, done.stderr
    rows = pq.read_table(tmp_path / "o.parquet").to_pylist()
    for row, source in zip(rows, data, strict=True):
        if source["id"] == 2:
            assert (row["status"], row["error_code"], row["answer"]) == ("failed", "invalid_answer", None)
            assert row["answer_text"] == "[synthetic] not what the schema asks"
            continue
        form = {"type": "json_object"}
        assert row["answer"] == chat_text({"messages": [user("As JSON: " + source["text"])], "response_format": form})
        assert (row["status"], row["answer_text"]) == ("succeeded", None)


def pictures(folder: Path, count: int, filler: int = 0) -> list[dict[str, Any]]:
    """A corpus of images as bytes, paths and addresses in `data/d.parquet`, as its rows; the files beside it."""
    (folder / "data" / "pics").mkdir(parents=True)
    fill = [bytes([n % 256]) * filler for n in range(count)]
    images = [png(1024, 768, fill[n]) if n % 3 else jpeg(30 + n, 20, fill[n][:60_000]) for n in range(count)]
    for number, image in enumerate(images):
        (folder / "data" / "pics" / f"{number}").write_bytes(image)
    where = [f"pics/{n}" if n % 4 else f"https://example.com/{n}.png" for n in range(count)]
    table = pa.table({"id": list(range(count)), "photo": pa.array(images, pa.binary()), "where": where})
    pq.write_table(table, folder / "data" / "d.parquet", row_group_size=7)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


IMAGES = """\
body:
  messages:
    - role: user
      content:
        - {type: text, text: "Compare {{ id }}"}
        - {type: image_url, image_url: {url: "{{ photo | image }}", detail: low}}
        - {type: image_url, image_url: {url: "{{ where | image }}"}}
"""


def compared(row: dict[str, Any], images: list[bytes]) -> dict[str, Any]:
    """What a row of pictures is asked."""
    where = row["where"] if row["where"].startswith("https") else as_url(images[row["id"]])
    return {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": f"Compare {row['id']}"},
                    {"type": "image_url", "image_url": {"url": as_url(row["photo"]), "detail": "low"}},
                    {"type": "image_url", "image_url": {"url": where}},
                ],
            }
        ]
    }


def test_images_of_bytes_files_and_addresses(tmp_path: Path) -> None:
    """Files are read at sealing and not needed after it; rows without a sound image are skipped with their reason."""
    data = pictures(tmp_path, 12)
    images = [row["photo"] for row in data]
    (tmp_path / "data" / "pics" / "5").unlink()
    (tmp_path / "data" / "pics" / "7").write_text("no image")
    (tmp_path / "p.yaml").write_text(IMAGES)
    options = Options(data=(tmp_path / "data" / "d.parquet",), prompt=tmp_path / "p.yaml", max_lines=4)
    plan = plan_of(prepare(options, ServiceKind.EMULATOR, print), options, show=2)
    assert (plan["requests"], plan["skipped"], plan["shards"]) == (10, 2, 3)
    assert "data:image/jpeg;base64,/9j//" in plan["first_requests"][0]
    built = batchmill("build", "data/d.parquet", "--prompt", "p.yaml", "--service", "emulator", "--run-dir", "r",
                      "--max-lines", 4, cwd=tmp_path)  # fmt: skip
    assert built.returncode == 0, built.stderr
    for picture in [*(tmp_path / "data" / "pics").iterdir(), tmp_path / "data" / "d.parquet"]:
        picture.unlink()
    done = batchmill("run", "--run-dir", "r", "--submit", "--out", "o.parquet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    output = pq.read_table(tmp_path / "o.parquet")
    assert not [name for name in output.column_names if "batchmill" in name], "hidden columns stay hidden"
    for row, source in zip(output.to_pylist(), data, strict=True):
        assert (row["id"], row["photo"], row["where"]) == (source["id"], source["photo"], source["where"])
        if row["id"] in (5, 7):
            code = "image_missing" if row["id"] == 5 else "image_format"
            assert (row["status"], row["error_code"], row["answer"]) == ("skipped", code, None)
            continue
        assert (row["status"], row["answer"]) == ("succeeded", chat_text(compared(row, images)))
    sealed = [pq.read_table(path) for path in sorted((tmp_path / "r" / "rows").iterdir())]
    assert sum(table["__batchmill_tokens"].to_numpy().sum() for table in sealed) == plan["estimated_tokens"]


@pytest.mark.slow
def test_images_on_responses_and_from_a_prompty(tmp_path: Path) -> None:
    """`input_image` on responses, `![…](…)` in a `.prompty`, a GIF, and a struct of bytes as datasets have it."""
    photos = [{"bytes": image, "path": "x"} for image in (GIF, png(), jpeg(3, 2))]
    pq.write_table(pa.table({"photo": photos}), tmp_path / "d.parquet")
    (tmp_path / "p.yaml").write_text(
        "url: responses\nbody:\n  input:\n    - role: user\n      content:\n"
        "        - {type: input_image, image_url: '{{ photo.bytes | image }}'}\n"
    )
    (tmp_path / "p.prompty").write_text("---\nmodel: m\n---\nuser:\nSee\n![photo]({{ photo.bytes }})\n")
    for row, photo in zip(run(tmp_path, "--prompt", "p.yaml", *EMULATED), photos, strict=True):
        parts: list[Any] = [{"type": "input_image", "image_url": as_url(photo["bytes"])}]
        found = answered("/v1/responses", {"input": [{"role": "user", "content": parts}]})
        assert row["answer"] == found["output"][0]["content"][0]["text"]
    for row, photo in zip(run(tmp_path, "--prompt", "p.prompty", "--new-run", *EMULATED), photos, strict=True):
        parts = [{"type": "text", "text": "See"}, {"type": "image_url", "image_url": {"url": as_url(photo["bytes"])}}]
        assert row["answer"] == chat_text({"messages": [{"role": "user", "content": parts}]})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("counted", "count", "filler"), [("{base: 85, tile: 170}", 150, 3_000), ("characters", 8, 60_000)]
)
def test_image_rows_on_a_quota_of_90000_tokens(tmp_path: Path, counted: str, count: int, filler: int) -> None:
    """More than the quota holds, as formula and as characters: batches wait for each other, each row is paid once."""
    data = pictures(tmp_path, count, filler)
    images = [row["photo"] for row in data]
    (tmp_path / "p.yaml").write_text(IMAGES + f"image_tokens: {counted}\n")
    with emulator(tmp_path / "state", "--speed", "1600", "--quota-tokens", "90000") as url:
        arguments = ("data/d.parquet", "--prompt", "p.yaml", *FAST, "--quota-tokens", 90_000, "--out", "o.parquet")
        done = batchmill("run", *arguments, cwd=tmp_path, timeout_s=300, **azure(url))
        found = books(url)
    assert done.returncode == 0, done.stderr
    assert (found["accepted_lines"], found["charged_more_than_once"]) == (count, 0)
    rows = pq.read_table(tmp_path / "o.parquet").to_pylist()
    for row in rows:
        body = {"model": "m", **compared(row, images)}
        told = json.loads(answer("/chat/completions", body, 0).body)
        assert row["answer"] == told["choices"][0]["message"]["content"]
    assert len({row["batch_id"] for row in rows}) >= 3
