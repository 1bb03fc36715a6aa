"""The prompt file: what is read, what is refused, and in which words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.build.image_tokens import ImageTokens
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
    body = MESSAGES if kind == "chat" else "input: hello"
    assert load(tmp_path, f"url: {url}\nbody: {{{body}}}\n").kind == kind


def test_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    """A file saved with a byte order mark is read like any other."""
    assert load(tmp_path, b"\xef\xbb\xbf" + CHAT.encode()).kind == "chat"


REFUSED: list[tuple[str, str | bytes, str]] = [
    ("unknown key", CHAT + "bdy: 1\n", "unknown key 'bdy', did you mean body?; known keys: url, body, answer,"),
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
    ("answer unknown", CHAT + "answer: yes please\n", "answer 'yes please' is not known; write text, json, a JSON"),
    ("answer no mapping", CHAT + "answer: [a]\n", "answer must be text, json, a JSON Schema (a mapping) or the path"),
    ("answer file absent", CHAT + "answer: s.json\n", "answer names s.json, and there is no"),
    (
        "text no mapping",
        "url: responses\nbody: {input: a, text: 5}\n" + ANSWER,
        "body.text must be a mapping where answer is given",
    ),
    ("answer YAML absent", CHAT + "answer: s.yaml\n", "answer names s.yaml, and there is no"),
    ("strict no boolean", CHAT + ANSWER + "strict: 1\n", "strict is true or false, beside an answer"),
    ("strict alone", CHAT + "strict: false\n", "strict is true or false, beside an answer"),
    ("answer json unsaid", CHAT + "answer: json\n", "answer: json needs the word JSON in a message"),
    (
        "answer json said by a column",
        "body: {messages: [{role: user, content: '{{ json }} x'}]}\nanswer: json\n",
        "answer: json needs the word JSON",
    ),
    (
        "answer json of embeddings",
        "url: embeddings\nbody: {input: json}\nanswer: json\n",
        "answer cannot be used with url embeddings",
    ),
    ("image_tokens no mapping", CHAT + "image_tokens: 5\n", "image_tokens must be characters, or a mapping with base"),
    ("image_tokens key", CHAT + "image_tokens: {bse: 5}\n", "the unknown key 'bse', did you mean base?"),
    ("image_tokens value", CHAT + "image_tokens: {tile: -1}\n", "image_tokens.tile must be a whole number from 0"),
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
        CHAT + "answer: {type: object, properties: {a: {type: array, items: {type: object, "
        "properties: {b: {type: 'null'}}}}}}\n",
    )
    inner = {"type": "object", "properties": {"b": {"type": "null"}}, "additionalProperties": False, "required": ["b"]}
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
        "properties": {"a": {"type": "array", "items": {"type": "object", "properties": {"b": {"type": "null"}}}}},
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
        {"type": "object", "properties": {"a": {}, "b": {}}, "required": ["a"]},
        {"type": "object", "additionalProperties": {"type": "integer"}},
    ],
)
def test_strict_can_be_switched_off(tmp_path: Path, schema: dict[str, Any]) -> None:
    """Optional properties and open objects, which strict mode refuses, are sent without it and unchanged."""
    with pytest.raises(PromptError, match="or write `strict: false` beside answer"):
        load(tmp_path, CHAT + f"answer: {json.dumps(schema)}\n")
    prompt = load(tmp_path, CHAT + f"answer: {json.dumps(schema)}\nstrict: false\n")
    assert prompt.body["response_format"]["json_schema"] == {"name": "answer", "strict": False, "schema": schema}
    assert prompt.answer == schema


@pytest.mark.parametrize("ending", ["json", "yaml", "yml"])
def test_a_schema_may_lie_in_a_file_of_its_own(tmp_path: Path, ending: str) -> None:
    """A path starts from the prompt file's folder, and the same schema in either place is the same prompt."""
    (tmp_path / "schemas").mkdir()
    schema = {"type": "object", "properties": {"score": {"type": "integer"}}, "required": ["score"]}
    (tmp_path / "schemas" / f"s.{ending}").write_text(json.dumps(schema))
    assert load(tmp_path, CHAT + f"answer: schemas/s.{ending}\n").digest() == load(tmp_path, CHAT + ANSWER).digest()
    (tmp_path / "schemas" / "s.json").write_text("{")
    with pytest.raises(PromptError, match="s.json is no JSON"):
        load(tmp_path, CHAT + "answer: schemas/s.json\n")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(PromptError, match="folder.json cannot be read: Is a directory"):
        load(tmp_path, CHAT + "answer: folder.json\n")


def test_what_images_cost_can_be_said(tmp_path: Path) -> None:
    """Base and tile, one of them, or characters; it leaves alone what is asked."""
    assert load(tmp_path, CHAT + "image_tokens: {base: 5, tile: 7}\n").image_tokens == ImageTokens(5, 7)
    assert load(tmp_path, CHAT + "image_tokens: {tile: 7}\n").image_tokens == ImageTokens(85, 7)
    assert load(tmp_path, CHAT + "image_tokens: characters\n").image_tokens == ImageTokens(characters=True)
    assert load(tmp_path, CHAT + "image_tokens: characters\n").digest() == load(tmp_path, CHAT).digest()


def test_answer_text_and_answer_json(tmp_path: Path) -> None:
    """Text is what there is without an answer; json asks for an object and takes any JSON for one."""
    assert load(tmp_path, CHAT + "answer: text\n").digest() == load(tmp_path, CHAT).digest()
    asks = "[{role: user, content: 'JSON of {{ q }}'}]"
    chat = load(tmp_path, f"body: {{messages: {asks}}}\nanswer: json\n")
    assert (chat.body["response_format"], chat.answer) == ({"type": "json_object"}, {"title": "any JSON"})
    responses = load(tmp_path, f"url: responses\nbody: {{input: {asks}}}\nanswer: json\n")
    assert responses.body["text"] == {"format": {"type": "json_object"}}


def test_digest_is_of_what_is_asked(tmp_path: Path) -> None:
    """Model and file name leave the digest alone; url, body, answer and the order of keys change it."""
    base = load(tmp_path, CHAT)
    assert load(tmp_path, f"body: {{model: m, {MESSAGES}}}\n").digest() == base.digest()
    assert len(base.digest()) == 64
    others = [
        load(tmp_path, f"body: {{{MESSAGES}, temperature: 0}}\n").digest(),
        load(tmp_path, f"body: {{temperature: 0, {MESSAGES}}}\n").digest(),
        load(tmp_path, CHAT + ANSWER).digest(),
        load(tmp_path, "url: responses\nbody: {input: a}\n").digest(),
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
    with pytest.raises(PromptError, match="cannot be named in a template because a column named row exists"):
        default_prompt(pa.schema({"my text": pa.string(), "row": pa.int64()}))
    assert default_prompt(pa.schema({"none": pa.string()}))[0].body["messages"][0]["content"] == '{{ row["none"] }}'
