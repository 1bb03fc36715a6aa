"""`.prompty` files: both shapes of the front matter, role sections, images, and all that is refused or told by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.build.prompt import load_prompt
from pipeline.errors import PromptError

OLD = """\
---
name: Customer help
description: Answers questions of customers
authors: [somebody]
tags: [a]
version: "1.0"
model:
  api: chat
  configuration:
    type: azure_openai
    azure_deployment: gpt-4o-batch
  parameters:
    max_tokens: 300
    temperature: 0.2
  response: first
inputs:
  question: {type: string}
sample:
  question: What is the meaning of life?
template: jinja2
---
system:
You help {{ firstName }}.

# Rules
system is no role.
Tool:
{{ question }}:

user[name="customer"]:
{{ question }}

assistant:
Let me think.
# user:
And?
"""
NEW = """\
---
name: customer-help
metadata: {authors: [somebody], version: "2"}
model:
  id: gpt-4o-batch
  provider: azure
  apiType: chat
  options:
    temperature: 0.2
    topP: 0.9
    maxOutputTokens: 300
    stopSequences: [END]
    additionalProperties: {seed: 7, user: "{{ id }}"}
inputs:
  - {name: question, kind: string}
template:
  format: {kind: jinja2}
  parser: {kind: prompty}
---
system:
You help.
user:
{{ question }}
"""
SECTION = "---\nHEAD\n---\nuser:\n{{ q }}\n"


def load(tmp_path: Path, text: str) -> Any:
    """Load a `.prompty` of this text."""
    (tmp_path / "p.prompty").write_text(text)
    return load_prompt(tmp_path / "p.prompty")


def test_the_first_front_matter(tmp_path: Path) -> None:
    """Deployment and parameters are carried over, sections become messages, and a role can have a name."""
    prompt = load(tmp_path, OLD)
    assert (prompt.kind, prompt.model, prompt.answer, prompt.notes) == ("chat", "gpt-4o-batch", None, ())
    assert prompt.body == {
        "max_tokens": 300,
        "temperature": 0.2,
        "messages": [
            {
                "role": "system",
                "content": "You help {{ firstName }}.\n\n# Rules\nsystem is no role.\nTool:\n{{ question }}:",
            },
            {"role": "user", "content": "{{ question }}", "name": "customer"},
            {"role": "assistant", "content": "Let me think."},
            {"role": "user", "content": "And?"},
        ],
    }


def test_the_second_front_matter(tmp_path: Path) -> None:
    """Options get the service's names; what stands under additionalProperties passes untouched."""
    prompt = load(tmp_path, NEW)
    assert (prompt.model, prompt.notes) == ("gpt-4o-batch", ())
    assert prompt.body == {
        "temperature": 0.2, "top_p": 0.9, "max_completion_tokens": 300, "stop": ["END"], "seed": 7, "user": "{{ id }}",
        "messages": [{"role": "system", "content": "You help."}, {"role": "user", "content": "{{ question }}"}],
    }  # fmt: skip


@pytest.mark.parametrize("text", ["{{ q }}", "---\n---\n{{ q }}\n", "---\nmodel: m\n---\n\n{{ q }}"])
def test_text_before_any_role_is_the_system_message(tmp_path: Path, text: str) -> None:
    """As in Prompty itself; the front matter may be short, empty or absent."""
    prompt = load(tmp_path, text)
    assert prompt.body == {"messages": [{"role": "system", "content": "{{ q }}"}]}
    assert prompt.model == ("m" if "model" in text else None)


def test_responses(tmp_path: Path) -> None:
    """The api responses takes the messages as its input, with its own names."""
    head = "model: {id: m, apiType: responses, options: {maxOutputTokens: 9}}"
    prompt = load(tmp_path, SECTION.replace("HEAD", head).replace("{{ q }}", "See ![p]({{ photo }})"))
    assert prompt.kind == "responses"
    parts = [{"type": "input_text", "text": "See"}, {"type": "input_image", "image_url": "{{ photo | image }}"}]
    assert prompt.body == {"max_output_tokens": 9, "input": [{"role": "user", "content": parts}]}


def test_images_become_parts(tmp_path: Path) -> None:
    """A column is shown as an image, an address is kept, a file beside the prompt is taken in."""
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(16))
    text = "Look: ![a]({{ photo }}) and ![b](https://example.com/b.jpg) and ![c](a.png 'c') and ![d]({{ a.b|image }})."
    parts = load(tmp_path, f"user:\n{text}\n").body["messages"][0]["content"]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    png = "data:image/png;base64,iVBORw0KGgoAAAAAAAAAAAAAAAAAAAAA"
    assert urls == ["{{ photo | image }}", "https://example.com/b.jpg", png, "{{ a.b|image }}"]
    assert [part["text"] for part in parts if part["type"] == "text"] == ["Look:", "and", "and", "and", "."]


def test_the_deployment_may_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that is set, its default, or a note that names it."""
    head = "model: {configuration: {azure_deployment: '${env:DEPLOYMENT}'}}"
    unset = load(tmp_path, SECTION.replace("HEAD", head))
    assert unset.model is None
    assert unset.notes == (
        "Prompt file p.prompty: the model is that of the variable DEPLOYMENT, which is not set; name it with --model.",
    )
    assert load(tmp_path, SECTION.replace("HEAD", head.replace("MENT}", "MENT:other}"))).model == "other"
    monkeypatch.setenv("DEPLOYMENT", "mine")
    assert load(tmp_path, SECTION.replace("HEAD", head)).model == "mine"


def test_a_parameter_may_lie_in_a_file(tmp_path: Path) -> None:
    """`${file:…}` starts from the prompt's folder."""
    (tmp_path / "tools.json").write_text('[{"type": "function", "function": {"name": "f"}}]')
    prompt = load(tmp_path, SECTION.replace("HEAD", "model: {parameters: {tools: '${file:tools.json}'}}"))
    assert prompt.body["tools"] == [{"type": "function", "function": {"name": "f"}}]


@pytest.mark.parametrize(
    ("head", "note"),
    [
        (
            "model: {configuration: {type: azure_openai, azure_endpoint: x, api_version: y, azure_deployment: d}}",
            "model.configuration (azure_endpoint, api_version) is not used; the service comes from --service",
        ),
        ("model: {connection: {kind: key, endpoint: x, apiKey: y}}", "model.connection (endpoint, apiKey) is not used"),
        ("model: {connection: '${file:shared.json}'}", "model.connection (${file:shared.json}) is not used"),
        ("model: {response: all}", "model.response all is not used; --raw keeps whole responses"),
        ("inputs: {a: {type: string, default: x}, b: World}", "the defaults of inputs (a, b) are not used"),
        ("inputSchema: {properties: [{name: a, default: x}]}", "the defaults of inputs (a) are not used"),
        ("outputs: [{name: a, kind: string}]", "outputs is not carried over; answers are text unless response_format"),
        ("outputs: {a: {type: string}}", "outputs is not carried over"),
    ],
)
def test_what_changes_no_request_is_told_by_name(tmp_path: Path, head: str, note: str) -> None:
    """A note for the person who runs it."""
    notes = load(tmp_path, SECTION.replace("HEAD", head)).notes
    assert len(notes) == 1
    assert notes[0].startswith("Prompt file p.prompty: ") and note in notes[0]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (SECTION.replace("HEAD", "base: other.prompty"), "base is not carried over; write out what it inherits"),
        (SECTION.replace("HEAD", "tools: [{name: a}]"), "tools is not carried over; write them as the service takes"),
        (SECTION.replace("HEAD", "modell: m"), "unknown key 'modell' in the front matter, did you mean model?"),
        (SECTION.replace("HEAD", "model: {idd: m}"), "unknown key model.idd, did you mean id?"),
        (SECTION.replace("HEAD", "model: [m]"), "model must be a mapping or a name, found a list"),
        (SECTION.replace("HEAD", "model: {api: completion}"), "model.api completion cannot be carried over; only chat"),
        (SECTION.replace("HEAD", "model: {api: embedding}"), "model.api embedding cannot be carried over"),
        (SECTION.replace("HEAD", "model: {provider: anthropic}"), "model.provider anthropic is no OpenAI service"),
        (
            SECTION.replace("HEAD", "model: {configuration: {type: serverless}}"),
            "model.configuration.type serverless is no OpenAI service",
        ),
        (SECTION.replace("HEAD", "model: {parameters: 5}"), "model.parameters must be a mapping, found a number"),
        (
            SECTION.replace("HEAD", "model: {parameters: {user: '${env:USER}'}}"),
            "model.parameters.user takes a variable of the environment, which a run cannot keep; write the value",
        ),
        (
            SECTION.replace("HEAD", "model: {parameters: {tools: '${file:absent.json}'}}"),
            "model.parameters.tools names absent.json, and there is no",
        ),
        (
            SECTION.replace("HEAD", "model: {parameters: {tools: [{name: f, kind: function}]}}"),
            "model.parameters.tools[0] has no type; write it as the service takes it",
        ),
        (SECTION.replace("HEAD", "model: {options: {topK: 4}}"), "model.options.topK is not carried over; put it"),
        (SECTION.replace("HEAD", "model: {parameters: {stream: true}}"), "body.stream cannot be used"),
        (SECTION.replace("HEAD", "inputs: [{name: c, kind: thread}]"), "inputs.c is a thread, which is not carried"),
        (SECTION.replace("HEAD", "template: mustache"), "template.format mustache cannot be used; only jinja2 can"),
        (SECTION.replace("HEAD", "template: {parser: mcs}"), "template.parser mcs cannot be used; only prompty can"),
        (SECTION.replace("HEAD", "template: [a]"), "template must be a mapping or a name, found a list"),
        (SECTION.replace("HEAD", "- a"), "the front matter must be a mapping, found a list"),
        (SECTION.replace("HEAD", "a: 1\na: 2"), "p.prompty, line 3: the key a is given twice"),
        ("---\nname: a\n---\n", "there is no message; write one under a line user:"),
        ("user:\nhi\n![thread]\n", "in the line '![thread]': ![thread] is not carried over"),
        ("{% for m in h %}\n{{ m.role }}:\n{{ m.content }}\n{% endfor %}\n", "in the line '{{ m.role }}:': the role"),
        ("tools:\n- name: x\nuser:\nx\n", "a section tools: is not carried over; only system, user and assistant are"),
        ("function:\nx\n", "a section function: is not carried over; only system, user and assistant are"),
        ("user[id=\"5\"]:\nx\n", 'the attributes [id="5"] of user: are not carried over; only name is'),
        ("user:\n![a](absent.png)\n", "the image absent.png cannot be read: No such file or directory"),
        ("user:\n![a](p.prompty)\n", "the image p.prompty is no PNG, JPEG, GIF or WEBP"),
        ("\n \n", "p.prompty has no text; write the message in it"),
    ],
)
def test_what_cannot_be_carried_over_is_refused_by_name(tmp_path: Path, text: str, sentence: str) -> None:
    """One sentence that names the file, the key and what to do."""
    with pytest.raises(PromptError) as caught:
        load(tmp_path, text)
    assert sentence in str(caught.value)
    assert "p.prompty" in str(caught.value) and "\n" not in str(caught.value)
