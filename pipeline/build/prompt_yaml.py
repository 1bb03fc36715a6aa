"""YAML of the prompt file, read strictly.

Owns turning the file's bytes into plain values, and every fault of the file itself into one sentence with its line. A
repeated key is refused, which YAML itself would settle in silence, and plain words mean what YAML 1.2 says: `yes`, `no`
and dates are text, `1e-3` is a number. Knows nothing of what the values mean.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import PromptError


def read_yaml(path: Path) -> Any:
    """Read one YAML document.

    Raises:
        PromptError: missing, unreadable, not UTF-8, not YAML (with its line), or a key given twice.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise PromptError(f"Prompt file {path} does not exist; check the path given to --prompt.") from None
    except UnicodeDecodeError as error:
        raise PromptError(f"Prompt file {path.name} is not UTF-8 (byte {error.start}); save it as UTF-8.") from None
    except OSError as error:
        raise PromptError(f"Prompt file {path} cannot be read: {error.strerror or error}.") from None
    return parsed_yaml(text, path.name)


def parsed_yaml(text: str, name: str) -> Any:
    """The value of one YAML document.

    Args:
        text: the document.
        name: of its file, for messages.

    Raises:
        PromptError: not YAML (with its line), or a key given twice.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)  # a SafeLoader, below
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise PromptError(f"Prompt file {name}{line}: {error.problem or error.context}.") from None
    except yaml.reader.ReaderError as error:
        line_number = text.count("\n", 0, error.position) + 1
        raise PromptError(
            f"Prompt file {name}, line {line_number}: the character U+{ord(text[error.position]):04X} is not "
            "allowed in YAML; write it as an escape in double quotes."
        ) from None
    except (ValueError, RecursionError) as error:
        raise PromptError(f"Prompt file {name} cannot be read as YAML: {error}.") from None


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice and reads plain words by YAML 1.2."""

    yaml_implicit_resolvers = {}  # filled below; empty, so that those of YAML 1.1 are not inherited

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = key_node.value
            if not isinstance(key, str) or key == "<<":
                continue
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_PLAIN_WORDS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
)
"""YAML 1.2's core schema: what an unquoted word is when it is not text, with the characters it can begin with."""

for _kind, _pattern, _first in _PLAIN_WORDS:
    _StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_pattern})$"), _first)
