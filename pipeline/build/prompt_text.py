"""Text files as prompts: a bare text as the user message, and `--system` as the system message.

The text is a template like any other. A newline at the very end, which editors add, is not sent; line ends are `\\n`.
Knows nothing of YAML.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.build.checked_prompt import Prompt
from pipeline.errors import PromptError

ENDINGS = (".txt", ".md", ".j2", ".jinja", ".jinja2")
_SYSTEM_ROLES = ("system", "developer")


def read_text(path: Path, flag: str) -> str:
    """A text file's content as it is sent.

    Raises:
        PromptError: missing, unreadable, not UTF-8, or without any text.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise PromptError(f"Prompt file {path} does not exist; check the path given to {flag}.") from None
    except UnicodeDecodeError as error:
        raise PromptError(f"Prompt file {path.name} is not UTF-8 (byte {error.start}); save it as UTF-8.") from None
    except OSError as error:
        raise PromptError(f"Prompt file {path} cannot be read: {error.strerror or error}.") from None
    text = text.replace("\r\n", "\n").removesuffix("\n")
    if not text.strip():
        raise PromptError(f"Prompt file {path.name} has no text; write the message in it.")
    return text


def user_message(text: str) -> dict[str, Any]:
    """The body of a chat request with one user message."""
    return {"messages": [{"role": "user", "content": text}]}


def with_system(prompt: Prompt, path: Path) -> Prompt:
    """The prompt with the text of a file as its system message, in place of one that it has.

    Raises:
        PromptError: the file cannot be read, or the requests have no system message.
    """
    text = read_text(path, "--system")
    if prompt.kind == "embeddings":
        raise PromptError("--system cannot be used with url embeddings, which takes no messages; leave it out.")
    if prompt.kind == "responses":
        body = {key: text if key == "instructions" else value for key, value in prompt.body.items()}
        return replace(prompt, body=body if "instructions" in body else {"instructions": text, **body})
    messages = list(prompt.body["messages"])
    system = [index for index, message in enumerate(messages) if message.get("role") in _SYSTEM_ROLES]
    if len(system) > 1:
        raise PromptError(
            f"Prompt file {prompt.name} has {len(system)} system messages, and --system replaces one; keep one of them."
        )
    if system:
        messages[system[0]] = {**messages[system[0]], "content": text}
    else:
        messages.insert(0, {"role": "system", "content": text})
    return replace(prompt, body={**prompt.body, "messages": messages})
