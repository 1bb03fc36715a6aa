"""The sandbox: no template reaches what is outside its row, and none goes on for ever."""

from __future__ import annotations

import json
import resource
from typing import Any

import pyarrow as pa
import pytest

from pipeline.build.budget import CHARACTERS_MAX
from pipeline.build.prompt import Prompt
from pipeline.build.template import Rendered, compile_template
from pipeline.errors import PromptError
from pipeline.ids import custom_ids

TABLE = pa.table({"a": ["text"], "n": [10**9], "v": pa.array([["x", "y"]]), "s": pa.array([{"k": "w"}])})


def rendered(source: str, table: pa.Table = TABLE) -> Rendered:
    """A table's lines for one user message."""
    body = {"messages": [{"role": "user", "content": source}]}
    template = compile_template(Prompt("chat", body, None, None, "p.yaml"), table.schema)
    ids = custom_ids("t", pa.array(range(table.num_rows), pa.int64()))
    return template.render(table, ids, model="m", url="/chat/completions")


def content(source: str, table: pa.Table = TABLE) -> Any:
    """The text of the first row."""
    found = rendered(source, table)
    assert found.skip_message[0].as_py() is None
    return json.loads(found.lines[0].as_py())["body"]["messages"][0]["content"]


INSIDE = [
    "{{ a.__class__ }}",
    "{{ a.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ a | attr('__class__') }}",
    "{{ a.__init__.__globals__ }}",
    "{{ range.__self__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ joiner.__init__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ '{0.__class__}'.format(a) }}",
    "{{ '{0.__class__.__mro__}'.format_map({'0': a}) }}",
    "{{ ('%s' | format).__globals__ }}",
    "{{ dict.__subclasses__() }}",
    "{{ s.update({'k': 'z'}) }}",
    "{{ v.append('z') }}",
    "{{ v | map(attribute='__class__') | join }}",
    "{{ (1).__class__.__base__ }}",
    "{{ a.upper.__self__ }}",
    "{% for x in a.__dir__() %}{{ x }}{% endfor %}",
]


@pytest.mark.parametrize("source", INSIDE)
def test_internals_cannot_be_reached(source: str) -> None:
    """What leads to Python's internals, or would change a row, costs its row and prints nothing."""
    found = rendered(source)
    assert found.skip_code.to_pylist() == ["unrenderable"], found.lines
    assert found.lines.to_pylist() == [None]


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("{% include '/etc/passwd' %}", "cannot load other templates"),
        ("{% extends 'x' %}", "cannot load other templates"),
        ("{% import 'x' as y %}", "cannot load other templates"),
        ("{% from 'x' import y %}", "cannot load other templates"),
        ("{% for x in v recursive %}{{ loop(v) }}{% endfor %}", "a recursive loop could go on for ever"),
        ("{{ open('/etc/passwd').read() }}", "there is no column open"),
        ("{{ config }}", "there is no column config"),
        ("{{ lipsum() }}", "there is no column lipsum"),
        ("{{ a | random }}", "there is no filter random"),
        ("{{ self._TemplateReference__context }}", "self has a meaning of its own"),
        ("{% do a %}", "unknown tag 'do'"),
    ],
)
def test_what_can_be_refused_before_any_row_is(source: str, sentence: str) -> None:
    """Files, other templates and names that are not there are refused in a sentence."""
    with pytest.raises(PromptError, match=sentence):
        rendered(source)


STEPS = "the loops of the template take more than"
CHARACTERS = "the template makes more than|the template makes lists of more than"
ENDLESS = [
    ("{% for i in range(n) %}{% endfor %}", "Range too big"),
    ("{{ range(n) | list }}", "Range too big"),
    ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", STEPS),
    (
        "{% for i in range(9999) %}{% for j in v | map('trim') %}"
        "{% for k in range(999) %}{% endfor %}{% endfor %}{% endfor %}",
        STEPS,
    ),
    ("{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}", "maximum recursion depth|" + STEPS),
    ("{% macro m(i) %}{% if i %}{{ m(i - 1) }}{{ m(i - 1) }}{% endif %}{% endmacro %}{{ m(60) }}", STEPS),
    ("{{ a * n }}", CHARACTERS),
    ("{{ n * a }}", CHARACTERS),
    ("{{ v * n }}", CHARACTERS),
    ("{{ 9 ** n }}", CHARACTERS),
    ("{{ 9 ** 99999 }}", "a power is too large"),
    ("{{ a | center(n) }}", "a number above"),
    ("{{ a.center(n) }}", "a number above"),
    ("{{ a.ljust(n) }}{{ a.zfill(n) }}", "a number above"),
    ("{{ '\\t'.expandtabs(n) }}", "a number above"),
    ("{{ a | indent(n) }}", "a number above"),
    ("{{ '%1000000000d' | format(1) }}", "a width of millions"),
    ("{{ '%*d' | format(n, 1) }}", "a computed one"),
    ("{{ '%1000000000d' % 1 }}", "a width of millions"),
    ("{{ '{:1000000000}'.format(1) }}", "a width of millions"),
    ("{{ '{:{w}}'.format(1, w=n) }}", "a computed one"),
    ("{{ v | tojson(n) }}", "a number above"),
    ("{{ [1] | batch(n, 'x') | list }}", "a number above"),
    ("{{ range(99999) | map('center', 99999) | join }}", CHARACTERS),
    ("{{ range(99999) | map(attribute='x', default='y' * 99999) | list }}", CHARACTERS),
    ("{{ (a * 99999) | replace('t', 'z' * 99999) }}", CHARACTERS),
    ("{{ (a * 99999).replace('t', 'z' * 99999) }}", CHARACTERS),
    ("{{ (a * 9999).join(range(99999) | map('string')) }}", CHARACTERS),
    ("{% set ns = namespace(t=a) %}{% for i in range(99) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}", CHARACTERS),
    ("{% set ns = namespace(t=a) %}{% for i in range(99) %}{% set ns.t = ns.t + ns.t %}{% endfor %}", CHARACTERS),
    ("{% set ns = namespace(t=v) %}{% for i in range(99) %}{% set ns.t = [ns.t, ns.t] %}{% endfor %}", CHARACTERS),
    (
        "{% set ns = namespace(t=v) %}{% for i in range(99) %}{% set ns.t = {1: ns.t, 2: ns.t} %}{% endfor %}",
        CHARACTERS,
    ),
    (
        "{% set ns = namespace(t=a) %}{% for i in range(99) %}{% set ns.t %}{{ ns.t ~ ns.t }}{% endset %}{% endfor %}",
        CHARACTERS,
    ),
    ("{% for i in range(99999) %}" + "x" * 9_999 + "{% endfor %}", CHARACTERS),
    ("{% for i in range(99999) %}{% for j in range(9) %}{{ a * 999 }}{% endfor %}{% endfor %}", CHARACTERS),
]


@pytest.mark.parametrize(("source", "message"), ENDLESS)
def test_what_repeats_or_grows_is_bounded(source: str, message: str) -> None:
    """A template that would loop or grow without end costs its row, with the reason, in bounded time and memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = rendered(source)
    assert found.skip_code.to_pylist() == ["unrenderable"]
    text = found.skip_message[0].as_py()
    assert any(part in text for part in message.split("|")), text
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 3 * CHARACTERS_MAX // 1024


ORDINARY = [
    (
        "{% for x in v %}{{ loop.index }}/{{ loop.length }}{{ x }}{% if not loop.last %}, {% endif %}{% endfor %}",
        "1/2x, 2/2y",
    ),
    ("{% for k, w in s.items() %}{{ k }}={{ w }}{% else %}none{% endfor %}", "k=w"),
    ("{% for x in [] %}{% else %}none{% endfor %}", "none"),
    ("{% for x in v | reverse %}{{ x }}{% endfor %}", "yx"),
    ("{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m(a) }}{{ m('b') }}", "<text><b>"),
    ("{% macro m() %}[{{ caller() }}]{% endmacro %}{% call m() %}in{% endcall %}", "[in]"),
    ("{% set ns = namespace(c=0) %}{% for x in v %}{% set ns.c = ns.c + 1 %}{% endfor %}{{ ns.c }}", "2"),
    ("{{ '%05.1f' | format(2.25) }}|{{ '{:>6}'.format(a) }}", "002.2|  text"),
    ("{{ [a, a] | join('-') }}{{ (a, 'b')[1] }}{{ {'k': a}['k'] }}", "text-textbtext"),
    ("{{ a * 2 }}{{ 2 ** 10 }}{{ 7 % 4 }}", "texttext10243"),
    ("{{ a | b64encode }}", "dGV4dA=="),
    ("{% filter upper %}{{ a }}{% endfilter %}", "TEXT"),
    ("{% for x in range(3) if x %}{{ x }}{% endfor %}", "12"),
    ("{{ v | batch(2, '-') | list }}", "[['x', 'y']]"),
]


@pytest.mark.parametrize(("source", "expected"), ORDINARY)
def test_counting_changes_nothing(source: str, expected: str) -> None:
    """Loops, macros, literals and filters print what they print in plain Jinja2."""
    assert content(source) == expected


def test_every_row_has_a_budget_of_its_own() -> None:
    """A row that uses up what it may leaves its neighbours all of theirs."""
    table = pa.table({"n": [5, 99_999, 5]})
    source = "{% for i in range(n) %}{% for j in range(n) %}{% endfor %}{% endfor %}{{ n }}"
    assert rendered(source, table).skip_code.to_pylist() == [None, "unrenderable", None]
