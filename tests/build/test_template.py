"""The template: columns at once and Jinja2 row by row give the same bytes, and a bad row is a code."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from typing import Any

import jinja2
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.build.body import dumps
from pipeline.build.fallback import WHITE_SPACE
from pipeline.build.prompt import Prompt, default_prompt
from pipeline.build.template import Measured, Rendered, Template, compile_template
from pipeline.errors import PromptError
from pipeline.ids import custom_ids

URL = "/chat/completions"
AWKWARD = [
    'a "quoted" word',
    "back\\slash \\n \\u0041",
    "nul \x00 inside",
    "".join(map(chr, range(0x20))) + "\x7f",
    "line\u2028separator\u2029",
    "emoji 😀 👩‍👩‍👧",
    "שלום مرحبا \u202e",
    "{{ a }} {% raw %} {# x #}",
    '{"messages":[{"role":"user"}]}',
    "\r\n\t",
    "\ufeff\ufffe\uffff",
    "'x'}}",
]


def chat(content: Any, **parameters: Any) -> Prompt:
    """A chat prompt of one system and one user message."""
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
    return Prompt("chat", {"messages": messages, **parameters}, None, None, "p.yaml")


def render(prompt: Prompt, table: pa.Table, *, fast: bool | None = None, model: str | None = "m") -> Rendered:
    """Compile and render a table, on the chosen path."""
    template = compile_template(prompt, table.schema)
    if fast is not None:
        assert template.fast or not fast, template.reason
        template = template if fast else template.by_jinja()
    return render_with(template, table, model=model)


def render_with(template: Template, table: pa.Table, *, model: str | None = "m") -> Rendered:
    """Render a table with ids t-0, t-1, ...; measuring alone must tell the same of it, whatever the template."""
    ids = custom_ids("t", pa.array(range(table.num_rows), pa.int64()))
    found = template.render(table, ids, model=model, url=URL)
    told = template.measure(table, ids, model=model, url=URL)
    assert told == Measured(found.line_bytes, found.tokens, found.skip_code, found.skip_message)
    return found


def content_of(rendered: Rendered, row: int = 0) -> Any:
    """The user message of a line."""
    return json.loads(rendered.lines[row].as_py())["body"]["messages"][1]["content"]


texts = st.one_of(st.sampled_from(AWKWARD), st.text(max_size=30), st.sampled_from(["", " ", "\u3000\n", "\x1c"]))
fixed = st.text(max_size=12).map(lambda text: text.replace("{", "(").replace("}", ")"))
places = st.lists(
    st.one_of(fixed, st.sampled_from(["{{ a }}", "{{b}}", "{{ n }}", "{{ flag }}", '{{ row["b"] }}'])), max_size=6
)
rows = st.lists(
    st.tuples(st.none() | texts, texts, st.integers(-(2**63), 2**63 - 1), st.booleans()), min_size=1, max_size=5
)


@settings(max_examples=60, deadline=None)
@given(
    parts=places,
    rows=rows,
    kind=st.sampled_from([pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]),
)
def test_fast_path_fallback_and_plain_jinja_agree(
    parts: list[str], rows: list[tuple[Any, ...]], kind: pa.DataType
) -> None:
    """Text and columns give the same bytes on both paths, and each line parses to what plain Jinja2 prints."""
    source = "".join(parts)
    columns = [list(column) for column in zip(*rows, strict=True)]
    table = pa.table(
        {
            "a": pa.array(columns[0], pa.string()).cast(kind),
            "b": columns[1],
            "n": pa.array(columns[2], pa.int64()),
            "flag": columns[3],
        }
    )
    prompt = chat(source, temperature=0, metadata={"k": "{{ b }}", "fixed": 'q"'}, user="u-{{ n }}")
    fast = render(prompt, table, fast=True)
    assert fast == render(prompt, table, fast=False)
    plain = jinja2.Environment(keep_trailing_newline=True)
    template = compile_template(prompt, table.schema)
    for index, (a, b, n, flag) in enumerate(rows):
        line = fast.lines[index].as_py()
        if a is None and "a" in template.columns:
            assert (line, fast.skip_code[index].as_py()) == (None, "null_value")
            continue
        values = {"a": a, "b": b, "n": n, "flag": flag, "row": {"b": b}}
        content = plain.from_string(source).render(values) if "{{" in source else source
        if "{{" in source and not content.strip(WHITE_SPACE):
            assert (line, fast.skip_code[index].as_py()) == (None, "empty_prompt")
            continue
        assert fast.skip_code[index].as_py() is None
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
        body = {
            "model": "m",
            "messages": messages,
            "temperature": 0,
            "metadata": {"k": b, "fixed": 'q"'},
            "user": f"u-{n}",
        }
        expected = {"custom_id": f"t-{index}", "method": "POST", "url": URL, "body": body}
        assert line == dumps(expected) + "\n"
        assert json.loads(line) == expected
        assert fast.line_bytes[index].as_py() == len(line.encode())
        assert fast.tokens[index].as_py() == -(-len(dumps(body).encode()) // 4)


@pytest.mark.parametrize("fast", [True, False])
def test_every_unicode_character_survives(fast: bool) -> None:
    """Each of the 1,112,064 characters comes back from the line as it went in, with the same bytes on both paths."""
    scalars = [chr(point) for point in range(0x110000) if not 0xD800 <= point <= 0xDFFF]
    pieces = ["".join(scalars[start : start + 4096]) for start in range(0, len(scalars), 4096)]
    rendered = render(chat("<{{ a }}>"), pa.table({"a": pieces}), fast=fast)
    assert [content_of(rendered, row) for row in range(len(pieces))] == [f"<{piece}>" for piece in pieces]
    raw = [dumps(piece)[1:-1] for piece in pieces]
    assert all(text in line for text, line in zip(raw, rendered.lines.to_pylist(), strict=True))


def test_white_space_is_the_same_on_both_paths() -> None:
    """Both paths agree for each character of the first plane whether a prompt of it alone is empty."""
    table = pa.table({"a": [chr(point) for point in range(0x10000) if not 0xD800 <= point <= 0xDFFF]})
    fast = render(chat("{{ a }}"), table, fast=True)
    assert fast == render(chat("{{ a }}"), table, fast=False)
    assert fast.skip_code.to_pylist().count("empty_prompt") == len(WHITE_SPACE)


def test_value_buffer_is_the_file() -> None:
    """The value buffer of the lines is the request file: skipped rows leave nothing in it."""
    lines = render(chat("{{ a }}"), pa.table({"a": ["x" * 40, None, "  ", "y" * 20]})).lines
    assert isinstance(lines, pa.LargeStringArray)
    offsets = memoryview(lines.buffers()[1]).cast("q")[lines.offset : lines.offset + len(lines) + 1]
    file = bytes(memoryview(lines.buffers()[2])[offsets[0] : offsets[-1]])
    assert file == "".join(line for line in lines.to_pylist() if line).encode()
    assert file.count(b"\n") == 2


@pytest.mark.parametrize("source", ["{{ a }}", "{{ a | upper }}"])
def test_empty_block_gives_empty_arrays(source: str) -> None:
    """No rows give five empty arrays of the right types."""
    rendered = render(chat(source), pa.table({"a": pa.array([], pa.string())}))
    assert [len(array) for array in (rendered.lines, rendered.line_bytes, rendered.tokens)] == [0, 0, 0]
    assert (rendered.lines.type, rendered.line_bytes.type, rendered.tokens.type) == (
        pa.large_string(),
        pa.int64(),
        pa.int64(),
    )
    assert (rendered.skip_code.type, rendered.skip_message.type) == (pa.string(), pa.string())


def test_slices_and_chunks_change_nothing() -> None:
    """A block cut out of a table of many chunks renders like the same rows alone."""
    table = pa.concat_tables(
        [pa.table({"a": ["zero", "one"], "b": [1, 2]}), pa.table({"a": ["two", None], "b": [3, 4]})]
    )
    rows = table.slice(1, 3)
    for source in ("{{ a }}{{ b }}", "{{ a | upper }}{{ b }}"):
        assert render(chat(source), rows) == render(chat(source), pa.table(rows.to_pydict()))


def test_custom_ids_with_quotes_are_escaped() -> None:
    """Ids from a column may hold any printable character; the line stays JSON and the estimate leaves them out."""
    template = compile_template(chat("{{ a }}"), pa.schema({"a": pa.string()}))
    plain = template.render(pa.table({"a": ["x"]}), pa.array(["abcd"]), model=None, url=URL)
    rendered = template.render(pa.table({"a": ["x"]}), pa.array(['a"\\d']), model=None, url=URL)
    assert json.loads(rendered.lines[0].as_py())["custom_id"] == 'a"\\d'
    assert rendered.tokens == plain.tokens


def test_model_is_first_in_the_body_or_absent() -> None:
    """The model is the body's first key; without one there is none."""
    table = pa.table({"a": ["x"]})
    assert list(json.loads(render(chat("{{ a }}"), table).lines[0].as_py())["body"]) == ["model", "messages"]
    assert list(json.loads(render(chat("{{ a }}"), table, model=None).lines[0].as_py())["body"]) == ["messages"]


def test_prompt_without_any_template() -> None:
    """A body that uses no column is sent as it is for every row."""
    rendered = render(chat("Tell a joke."), pa.table({"a": ["x", None]}))
    assert [content_of(rendered, row) for row in range(2)] == ["Tell a joke."] * 2
    assert compile_template(chat("Tell a joke."), pa.schema({"a": pa.string()})).columns == ()


@pytest.mark.parametrize("source", ["{{ a }}", "{{ a | trim }}"])
def test_embeddings_and_lists(source: str) -> None:
    """Templates work at the top of the body and inside lists."""
    prompt = Prompt("embeddings", {"input": [source, "fixed"], "user": source, "dimensions": 256}, None, None, "p.yaml")
    body = json.loads(render(prompt, pa.table({"a": ['x"']})).lines[0].as_py())["body"]
    assert body == {"model": "m", "input": ['x"', "fixed"], "user": 'x"', "dimensions": 256}


def test_answer_schema_is_no_template() -> None:
    """Braces inside an answer schema are sent as they are."""
    form = {"type": "json_schema", "json_schema": {"schema": {"description": "{{ nothing }}"}}}
    prompt = Prompt("chat", {**chat("{{ a }}").body, "response_format": form}, None, {"type": "object"}, "p.yaml")
    rendered = render(prompt, pa.table({"a": ["x"]}), fast=True)
    assert json.loads(rendered.lines[0].as_py())["body"]["response_format"] == form


@pytest.mark.parametrize(
    ("source", "column", "expected"),
    [
        ("{{ v | upper }}", pa.array(["é"]), "É"),
        ("{% if v > 1 %}many{% else %}one{% endif %}", pa.array([2]), "many"),
        ("{% for x in v %}{{ x }};{% endfor %}", pa.array([["a", "b"]]), "a;b;"),
        ("{{ v.name }}", pa.array([{"name": "n"}]), "n"),
        ("{{ v }}", pa.array([1.5]), "1.5"),
        ("{{ v }}", pa.array([0.1], pa.float32()), "0.1"),
        ("{{ v }}", pa.array([datetime.date(2024, 2, 29)]), "2024-02-29"),
        ("{{ v }}", pa.array([1_000_000_001], pa.timestamp("ns")), "1970-01-01 00:00:01"),
        ("{{ v }}", pa.array([Decimal("1.50")]), "1.50"),
        ("{{ v | tojson }}", pa.array([{"k": [1, None]}]), '{"k": [1, null]}'),
        ("{{ v }}", pa.array([7], pa.uint64()).dictionary_encode(), "7"),
        ("{{ v }} {{ 1 + 1 }}\n", pa.array(["x"]), "x 2\n"),
        ("{% raw %}{{ v }}{% endraw %}", pa.array(["x"]), "{{ v }}"),
        ("{# gone #}{{ v }}", pa.array(["x"]), "x"),
    ],
)
def test_expressions_as_jinja_prints_them(source: str, column: pa.Array, expected: str) -> None:
    """What columns alone cannot fill goes through Jinja2 and prints as Jinja2 prints it."""
    assert content_of(render(chat(source), pa.table({"v": column}))) == expected


REASONS = [
    ("{{ a }} {{ n }}", ""),
    ("{{ a | upper | trim }}{% if f > 1 and n %}{{ f }}{% endif %}", ""),
    ("{{ a | title }}", "uses the filter title"),
    ("{% for x in [1] %}{{ a }}{% endfor %}", "has a for loop"),
    ("{{ a.startswith('x') }}", "calls a function"),
    ("{{ d * 2 }}", "computes decimals * whole numbers"),
    ("{{ n ** 2 }}", "computes whole numbers ** whole numbers"),
    ("{{ a < n }}", "compares text with whole numbers"),
    ("{% macro m() %}{% endmacro %}{{ m() }}{{ a }}", "has a block of macro"),
    ("{{ a | replace(n, 'x') }}", "uses the filter replace with computed arguments"),
    ("{{ s.missing }}", "reads missing, a field that is not there"),
]


@pytest.mark.parametrize(("source", "reason"), REASONS)
def test_reason_of_the_fallback(source: str, reason: str) -> None:
    """A template that needs Jinja2 says where and why, in words of the template; the others say nothing."""
    schema = pa.schema(
        {
            "a": pa.string(),
            "f": pa.float64(),
            "n": pa.int64(),
            "d": pa.decimal128(9, 2),
            "s": pa.struct({"x": pa.string()}),
        }
    )
    found = compile_template(chat(source), schema)
    assert found.reason == (f"body.messages[1].content {reason}" if reason else "")
    assert found.fast == (not reason)


def test_strings_that_need_jinja_do_not_slow_the_others() -> None:
    """One string of a prompt needs Jinja2, the others are filled at once, and only the one is named."""
    table = pa.table({"a": ["x", "y"], "n": [1, 2]})
    prompt = chat("{{ a }}{{ n }}", user="{{ a | title }}", seed="{{ n }}")
    template = compile_template(prompt, table.schema)
    assert template.reason == "body.user uses the filter title"
    assert render_with(template, table) == render_with(template.by_jinja(), table)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ n }}", 7),
        ("{{ n / 2 }}", 3.5),
        ("{{ n > 3 }}", True),
        ("{{- -n -}}", -7),
        ("{{ a }}", "x"),
        ("{{ n }} ms", "7 ms"),
    ],
)
def test_numbers_keep_their_type_outside_texts(source: str, expected: object) -> None:
    """A parameter that is one expression keeps a number or boolean; in metadata or with text around it is text."""
    prompt = chat("{{ a }}", seed=source, metadata={"s": source})
    body = json.loads(render(prompt, pa.table({"a": ["x"], "n": [7]})).lines[0].as_py())["body"]
    assert body["seed"] == expected
    assert type(body["seed"]) is type(expected)
    assert body["metadata"]["s"] == str(expected)


SKIPPED: list[tuple[str, pa.Array, str, str]] = [
    ("{{ v }}", pa.array([None], pa.string()), "null_value", "column v is null"),
    ("{{ v | upper }}", pa.array([None], pa.string()), "null_value", "column v is null"),
    ("{{ v }}", pa.array([None], pa.null()), "null_value", "column v is null"),
    ("{{ v }}", pa.array([None], pa.bool_()), "null_value", "column v is null"),
    ("{{ v }}", pa.array([None], pa.string()).dictionary_encode(), "null_value", "column v is null"),
    ("{{ v }}", pa.array([float("nan")]), "unrenderable", "column v is not a finite number"),
    ("{{ v }}", pa.array([float("-inf")], pa.float32()), "unrenderable", "column v is not a finite number"),
    ("{{ v[0] }}", pa.array([[float("nan")]]), "unrenderable", "column v holds a number that is not finite"),
    ("{{ v }}", pa.array([{"x": [float("inf")]}]), "unrenderable", "column v holds a number that is not finite"),
    ("{{ 1 // v }}", pa.array([0]), "unrenderable", "body.messages[1].content: integer division or modulo by zero"),
    ("{{ v.absent }}", pa.array([{"a": 1}]), "unrenderable", "has no attribute 'absent'"),
    ("{{ v | map('upper') }}", pa.array([["a"]]), "unrenderable", "a generator cannot be printed"),
    ("{{ v.upper }}", pa.array(["a"]), "unrenderable", "cannot be printed"),
    ("{{ v }}{{ '\\ud800' }}", pa.array(["a"]), "unrenderable", "surrogates not allowed"),
    ("{% for i in range(v) %}{% endfor %}", pa.array([10**9]), "unrenderable", "Range too big"),
    ("{{ v.__class__ }}", pa.array(["a"]), "unrenderable", "unsafe"),
    ("{{ v }}", pa.array([10**15], pa.timestamp("s")), "unrenderable", "column v cannot be read"),
    ("{{ v }}", pa.array([" \n\u3000"]), "empty_prompt", "the prompt has nothing but white space"),
    ("{{ v | trim }}", pa.array([" "]), "empty_prompt", "the prompt has nothing but white space"),
    (" {{ v }}\n{{ v }}", pa.array([""]), "empty_prompt", "the prompt has nothing but white space"),
]


@pytest.mark.parametrize(("source", "column", "code", "message"), SKIPPED)
def test_bad_rows_are_skipped_with_a_code(source: str, column: pa.Array, code: str, message: str) -> None:
    """A row that cannot be sent has a code, a sentence, no line and no cost."""
    rendered = render(chat(source), pa.table({"v": column}))
    assert rendered.skip_code.to_pylist() == [code]
    assert message in rendered.skip_message[0].as_py()
    assert rendered.lines.to_pylist() == [None]
    assert (rendered.line_bytes.to_pylist(), rendered.tokens.to_pylist()) == ([0], [0])


@pytest.mark.parametrize("fast", [True, False])
def test_text_that_is_not_utf8_costs_its_row_only(fast: bool) -> None:
    """Bytes that are not UTF-8 skip their row and leave its neighbours."""
    offsets = pa.array([0, 2, 4, 6], pa.int32()).buffers()[1]
    column = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"ab\xff\xfecd")])
    rendered = render(chat("{{ v }}"), pa.table({"v": column}), fast=fast)
    assert rendered.skip_code.to_pylist() == [None, "unrenderable", None]
    assert rendered.skip_message[1].as_py() == "column v is not valid UTF-8"
    assert [content_of(rendered, 0), content_of(rendered, 2)] == ["ab", "cd"]


def test_unused_columns_may_hold_anything() -> None:
    """Nulls and binaries in columns that the template does not use change nothing."""
    table = pa.table({"a": ["x"], "raw": [b"\xff"], "none": pa.nulls(1)})
    rendered = render(chat("{{ a }}"), table)
    assert rendered.skip_code.to_pylist() == [None]
    assert compile_template(chat("{{ a }}"), table.schema).columns == ("a",)


def test_a_parameter_with_text_does_not_hide_an_empty_prompt() -> None:
    """Only the prompt's own templates decide whether it is empty."""
    rendered = render(chat("{{ a }}", metadata={"id": "{{ n }}"}), pa.table({"a": [" "], "n": [1]}))
    assert rendered.skip_code.to_pylist() == ["empty_prompt"]


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("line one\n{{ a ", "body.messages[1].content, line 2 of the template: "),
        ("{% if a %}", "line 1 of the template: Unexpected end of template"),
        (
            "{{ qestion }}",
            "there is no column qestion, did you mean question? (the columns are: a, question, raw, My Col)",
        ),
        ("{{ zzz }}", "there is no column zzz; the columns are: a, question, raw, My Col"),
        ('{{ row["my col"] }}', "there is no column my col, did you mean My Col?"),
        ("{{ row }}", 'row can only be used as row["column name"]'),
        ("{{ a | uper }}", "line 1 of the template: there is no filter uper, did you mean upper?"),
        ("{% if a is defind %}{% endif %}", "there is no test defind, did you mean defined?"),
        ("{{ a | random }}", "there is no filter random"),
        ("{% include 'x' %}", "a prompt cannot load other templates"),
        ("{{ self }}", 'self has a meaning of its own in Jinja2; write row["self"]'),
        ("{{ raw }}", "column raw is of type binary, which has no text; write {{ raw | b64encode }} for base64"),
        ("{{ deep }}", "there is no column deep"),
    ],
)
def test_wrong_templates_are_refused_in_one_sentence(source: str, sentence: str) -> None:
    """A wrong template is one line that names the file, the place and the remedy, before any row is seen."""
    schema = pa.schema({"a": pa.string(), "question": pa.string(), "raw": pa.binary(), "My Col": pa.string()})
    with pytest.raises(PromptError) as caught:
        compile_template(chat(source), schema)
    assert sentence in str(caught.value)
    assert "p.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


PICTURE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


@pytest.mark.parametrize(
    ("source", "column", "expected"),
    [
        ("{{ v | b64encode }}", pa.array([b"\x89PNG"]), "iVBORw=="),
        ("{{ v | b64encode }}", pa.array([b"\x89PNG"], pa.binary(4)), "iVBORw=="),
        ("{{ v | b64encode }}", pa.array([b"\x89PNG"], pa.binary_view()), "iVBORw=="),
        ("{{ v | b64encode }}", pa.array(["é"]), "w6k="),
        ("{{ v.bytes | b64encode }} {{ v.path }}", pa.array([{"bytes": b"\xff", "path": "p"}], PICTURE), "/w== p"),
        ("{{ v | length }}", pa.array([b"abc"]), "3"),
    ],
)
def test_binary_becomes_base64_on_request(source: str, column: pa.Array, expected: str) -> None:
    """Bytes are encoded where the template says so, the same on both paths."""
    table = pa.table({"v": column})
    template = compile_template(chat(source), table.schema)
    assert template.fast
    assert content_of(render_with(template, table)) == expected
    assert render_with(template, table) == render_with(template.by_jinja(), table)


@pytest.mark.parametrize(
    "source", ["{{ v }}", "{{ v.bytes }}", "{{ v.bytes | upper }}", "{{ v | b64encode }}", "{{ v ~ 1 }}"]
)
def test_bytes_inside_a_struct_are_never_printed(source: str) -> None:
    """Printing a struct with bytes in it, or encoding more than the bytes, is refused before any row is seen."""
    with pytest.raises(PromptError, match="column v is of type"):
        compile_template(chat(source), pa.schema({"v": PICTURE}))


@pytest.mark.parametrize("name", ["range", "dict", "loop", "row", "t0", "id", "skip", "context", "class"])
def test_columns_may_have_names_that_jinja_or_we_use(name: str) -> None:
    """A column shadows what Jinja2 has under its name, on both paths."""
    table = pa.table({name: ["v"]})
    rendered = render(chat("{{ " + name + " }}"), table, fast=True)
    assert content_of(rendered) == "v"
    assert rendered == render(chat("{{ " + name + " }}"), table, fast=False)


def test_names_that_jinja_has_are_no_columns() -> None:
    """What Jinja2 offers itself works where no column has that name."""
    table = pa.table({"n": [3]})
    assert content_of(render(chat("{% for i in range(n) %}{{ i }}{% endfor %}"), table)) == "012"
    assert compile_template(chat("{% for row in [n] %}{{ row }}{% endfor %}"), table.schema).columns == ("n",)


def test_nested_binary_and_repeated_columns_are_refused() -> None:
    """A list of binaries has no text either, and a name that two columns share says nothing."""
    with pytest.raises(PromptError, match="column v is of type list<"):
        compile_template(chat("{{ v }}"), pa.schema({"v": pa.list_(pa.binary())}))
    with pytest.raises(PromptError, match="more than one column v"):
        compile_template(chat("{{ v }}"), pa.schema([("v", pa.string()), ("v", pa.string())]))


@pytest.mark.parametrize("name", ["text column", 'a "q" \\ 😀', "none", "été", "x}}y"])
def test_default_prompt_reaches_any_column_name(name: str) -> None:
    """The default prompt of a column works whatever its name, on the fast path."""
    table = pa.table({name: ["hello"]})
    prompt, _ = default_prompt(table.schema)
    template = compile_template(prompt, table.schema)
    assert template.fast
    assert json.loads(render_with(template, table).lines[0].as_py())["body"]["messages"] == [
        {"role": "user", "content": "hello"}
    ]
