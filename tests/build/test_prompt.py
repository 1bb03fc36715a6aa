"""The prompt file: what is read, what is refused, and in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.build.prompt import Prompt, default_prompt, load_prompt
from pipeline.errors import PromptError

MESSAGES = "messages: [{role: user, content: '{{ q }}'}]"
CHAT = f"body: {{{MESSAGES}}}\n"
ANSWER = "answer: {type: object, properties: {score: {type: integer}}, required: [score]}\n"


def load(tmp_path: Path, text: str | bytes) -> Prompt:
    """Load a prompt file of this text."""
    path = tmp_path / "p.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_prompt(path)


def test_reads_the_file_of_the_design(tmp_path: Path) -> None:
    """Every parameter passes through in its order, the model is set apart, and the name is the file's."""
    prompt = load(
        tmp_path, f"url: chat\nbody:\n  model: gpt-4o-batch\n  zeta: {{k: [1, null, 2.5, true]}}\n  {MESSAGES}\n"
    )
    assert prompt.kind == "chat"
    assert prompt.model == "gpt-4o-batch"
    assert prompt.name == "p.yaml"
    assert prompt.answer is None
    assert list(prompt.body) == ["zeta", "messages"]
    assert prompt.body["zeta"] == {"k": [1, None, 2.5, True]}


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("chat", "chat"),
        ("/chat/completions", "chat"),
        ("/v1/chat/completions", "chat"),
        ("responses", "responses"),
        ("/v1/responses", "responses"),
        ("embeddings", "embeddings"),
        ("/v1/embeddings", "embeddings"),
    ],
)
def test_url_takes_kinds_and_full_paths(tmp_path: Path, url: str, kind: str) -> None:
    """A kind and the service's own paths for it mean the same."""
    assert load(tmp_path, f"url: {url}\nbody: {{{MESSAGES}, input: hello}}\n").kind == kind


def test_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    """A file saved with a byte order mark is read like any other."""
    assert load(tmp_path, b"\xef\xbb\xbf" + CHAT.encode()).kind == "chat"


REFUSED: list[tuple[str, str | bytes, str]] = [
    ("unknown key", CHAT + "bdy: 1\n", "unknown key 'bdy', did you mean body?; known keys: url, body, answer"),
    ("unknown key unlike all", CHAT + "zzzzzz: 1\n", "unknown key 'zzzzzz'; known keys"),
    ("no body", "url: chat\n", "the key body is missing"),
    ("empty file", "", "expected a mapping with the key body, found nothing"),
    ("a list", "- a\n", "found a list"),
    ("body is text", "body: hello\n", "body must be a mapping, found text"),
    ("unknown url", "url: chatt\n" + CHAT, "url 'chatt' is not known, did you mean chat?"),
    ("url no text", "url: [1]\n" + CHAT, "url [1] is not known"),
    ("no messages", "body: {mesages: []}\n", "body.messages is missing, which url chat needs, did you mean mesages?"),
    ("empty messages", "body: {messages: []}\n", "body.messages must be a list with at least one message"),
    ("messages no list", "body: {messages: hello}\n", "body.messages must be a list"),
    (
        "message no mapping",
        "body: {messages: [hello]}\n",
        "body.messages[0] must be a mapping with role and content, found text",
    ),
    ("no role", "body: {messages: [{rol: user}]}\n", "body.messages[0].role is missing, did you mean rol?"),
    ("no input", "url: responses\nbody: {a: 1}\n", "body.input is missing, which url responses needs"),
    ("empty input", "url: embeddings\nbody: {input: ''}\n", "body.input must be text or a list that is not empty"),
    ("syntax", "body:\n  messages: [\n", "p.yaml, line 3: "),
    ("tab", "body:\n\tx: 1\n", "p.yaml, line 2: "),
    ("two documents", CHAT + "---\n" + CHAT, "p.yaml, line 2: "),
    ("duplicate key", "body:\n  a: 1\n  a: 2\n", "p.yaml, line 3: the key a is given twice"),
    ("control character", "body:\n  a: \x01\n", "p.yaml, line 2: the character U+0001 is not allowed"),
    ("not UTF-8", b"body: {a: \xff}\n", "is not UTF-8 (byte 10)"),
    ("unsafe tag", "body: !!python/object:os.system {}\n", "p.yaml, line 1: "),
    ("stream", f"body: {{{MESSAGES}, stream: true}}\n", "body.stream cannot be used, as a batch gives whole answers"),
    ("n template", f"body: {{{MESSAGES}, n: '{{{{ q }}}}'}}\n", "body.n must not be a template"),
    ("n zero", f"body: {{{MESSAGES}, n: 0}}\n", "body.n must be a whole number from 1"),
    ("model template", f"body: {{{MESSAGES}, model: '{{{{ q }}}}'}}\n", "body.model must not be a template"),
    (
        "model number",
        f"body: {{{MESSAGES}, model: 4}}\n",
        "body.model must be the name of a deployment, found a number",
    ),
    (
        "date",
        f"body: {{{MESSAGES}, d: !!timestamp 2024-01-01}}\n",
        "body.d is a date, which JSON cannot hold; put it in quotes",
    ),
    ("infinity", f"body: {{{MESSAGES}, t: .inf}}\n", "body.t is inf, which JSON cannot hold"),
    ("key no text", f"body: {{{MESSAGES}, logit_bias: {{5: 1}}}}\n", "body.logit_bias has the key 5, which is no text"),
    ("huge number", f"body: {{{MESSAGES}, seed: {2**70}}}\n", "body.seed is beyond 64 bits"),
    ("lone surrogate", f'body: {{{MESSAGES}, user: "a\\ud800"}}\n', "body.user has half a surrogate pair"),
    ("alias in itself", f"body: {{{MESSAGES}, x: &a [*a]}}\n", "an alias may contain itself"),
    (
        "answer and format",
        f"body: {{{MESSAGES}, response_format: {{type: text}}}}\n" + ANSWER,
        "answer and body.response_format both",
    ),
    (
        "answer and text.format",
        "url: responses\nbody: {input: a, text: {format: {}}}\n" + ANSWER,
        "answer and body.text.format both",
    ),
    (
        "answer of embeddings",
        "url: embeddings\nbody: {input: a}\n" + ANSWER,
        "answer cannot be used with url embeddings",
    ),
    ("answer no schema", CHAT + "answer: {type: objekt}\n", "answer.type is no valid JSON Schema"),
    ("answer no mapping", CHAT + "answer: yes please\n", "answer must be a JSON Schema"),
    ("answer no object", CHAT + "answer: {type: string}\n", "answer.type must be object"),
]


@pytest.mark.parametrize(("text", "sentence"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_refuses_in_one_sentence(tmp_path: Path, text: str | bytes, sentence: str) -> None:
    """Each fault of the file is one line that names the file and the place."""
    with pytest.raises(PromptError) as caught:
        load(tmp_path, text)
    message = str(caught.value)
    assert sentence in message
    assert "p.yaml" in message
    assert "\n" not in message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("1e-3", 0.001),
        ("-1.5", -1.5),
        (".5", 0.5),
        ("12", 12),
        ("-3", -3),
        ("0x1F", 31),
        ("007", "007"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("''", ""),
    ],
)
def test_plain_words_mean_what_yaml_1_2_says(tmp_path: Path, word: str, value: object) -> None:
    """`enum: [yes, no]` stays text and `1e-3` is a number, unlike in YAML 1.1."""
    read = load(tmp_path, f"body:\n  {MESSAGES}\n  x: {word}\n").body["x"]
    assert (read, type(read)) == (value, type(value))


def test_merge_keys_and_anchors_work(tmp_path: Path) -> None:
    """A mapping can be written once and used twice."""
    body = load(tmp_path, f"body:\n  {MESSAGES}\n  a: &a {{x: 1, y: 2}}\n  b: {{<<: *a, y: 3}}\n").body
    assert body["b"] == {"x": 1, "y": 3}


def test_missing_file_and_folder(tmp_path: Path) -> None:
    """A path without a file, and a folder, are named."""
    with pytest.raises(PromptError, match="absent.yaml does not exist"):
        load_prompt(tmp_path / "absent.yaml")
    with pytest.raises(PromptError, match="cannot be read"):
        load_prompt(tmp_path)


def test_answer_sets_response_format_on_chat(tmp_path: Path) -> None:
    """On chat the schema goes to response_format, closed and strict, and the file's own schema is kept as written."""
    prompt = load(
        tmp_path,
        CHAT + "answer: {type: object, properties: {a: {type: array, items: {type: object, properties: {b: {}}}}}}\n",
    )
    inner = {"type": "object", "properties": {"b": {}}, "additionalProperties": False, "required": ["b"]}
    schema = {
        "type": "object",
        "properties": {"a": {"type": "array", "items": inner}},
        "additionalProperties": False,
        "required": ["a"],
    }
    assert prompt.body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "strict": True, "schema": schema},
    }
    assert prompt.answer == {
        "type": "object",
        "properties": {"a": {"type": "array", "items": {"type": "object", "properties": {"b": {}}}}},
    }


def test_answer_sets_text_format_on_responses(tmp_path: Path) -> None:
    """On responses the schema goes to text.format beside what else text holds."""
    prompt = load(tmp_path, "url: responses\nbody: {input: '{{ q }}', text: {verbosity: low}}\n" + ANSWER)
    form: dict[str, Any] = prompt.body["text"]["format"]
    assert prompt.body["text"]["verbosity"] == "low"
    assert (form["type"], form["name"], form["strict"]) == ("json_schema", "answer", True)
    assert form["schema"]["additionalProperties"] is False


@pytest.mark.parametrize(
    "schema",
    [
        "{type: object, properties: {a: {}, b: {}}, required: [a]}",
        "{type: object, additionalProperties: {type: integer}}",
    ],
)
def test_strict_is_off_where_the_service_would_refuse_it(tmp_path: Path, schema: str) -> None:
    """Optional properties and open objects, which strict mode refuses, are sent without it and unchanged."""
    prompt = load(tmp_path, CHAT + f"answer: {schema}\n")
    assert prompt.body["response_format"]["json_schema"]["strict"] is False


def test_digest_is_of_what_is_asked(tmp_path: Path) -> None:
    """Model and file name leave the digest alone; url, body, answer and the order of keys change it."""
    base = load(tmp_path, CHAT)
    assert load(tmp_path, f"body: {{model: m, {MESSAGES}}}\n").digest() == base.digest()
    assert len(base.digest()) == 64
    others = [
        load(tmp_path, f"body: {{{MESSAGES}, temperature: 0}}\n").digest(),
        load(tmp_path, f"body: {{temperature: 0, {MESSAGES}}}\n").digest(),
        load(tmp_path, CHAT + ANSWER).digest(),
        load(tmp_path, f"url: responses\nbody: {{{MESSAGES}, input: a}}\n").digest(),
    ]
    assert len({base.digest(), *others}) == 5


@pytest.mark.parametrize(
    ("columns", "chosen"),
    [
        ({"id": pa.int64(), "text": pa.string(), "title": pa.string()}, "text"),
        ({"question": pa.string(), "prompt": pa.large_string()}, "prompt"),
        ({"Question": pa.string(), "title": pa.string()}, "Question"),
        ({"Text": pa.string(), "text": pa.string()}, "text"),
        ({"text": pa.int64(), "body": pa.string_view()}, "body"),
        ({"id": pa.int64(), "words": pa.dictionary(pa.int32(), pa.string())}, "words"),
    ],
)
def test_default_prompt_finds_the_text_column(columns: dict[str, pa.DataType], chosen: str) -> None:
    """Known names win in their order whatever their case, else the only text column."""
    prompt, column = default_prompt(pa.schema(columns))
    assert column == chosen
    assert prompt.body == {"messages": [{"role": "user", "content": "{{ " + chosen + " }}"}]}
    assert (prompt.kind, prompt.model, prompt.answer) == ("chat", None, None)


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"a": pa.string(), "b": pa.string()}, "it is not clear which column holds the text"),
        ({"a": pa.int64()}, "no column holds text"),
        ({"Text": pa.string(), "TEXT": pa.string()}, "columns: Text (string), TEXT (string)"),
        ({}, "columns: none at all"),
    ],
)
def test_default_prompt_lists_the_columns_when_unclear(columns: dict[str, pa.DataType], sentence: str) -> None:
    """Where no column is clearly the text, the error lists them all and says what to do."""
    with pytest.raises(PromptError) as caught:
        default_prompt(pa.schema(columns))
    assert sentence in str(caught.value)
    assert "--prompt" in str(caught.value)


def test_default_prompt_quotes_names_that_are_no_identifiers() -> None:
    """A text column with a space, a quote or a reserved word in its name is reached through row."""
    assert (
        default_prompt(pa.schema({'my "text"': pa.string()}))[0].body["messages"][0]["content"]
        == '{{ row["my \\"text\\""] }}'
    )
    assert default_prompt(pa.schema({"none": pa.string()}))[0].body["messages"][0]["content"] == '{{ row["none"] }}'
