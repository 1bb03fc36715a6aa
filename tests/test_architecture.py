"""The house's rules, read from the imports themselves.

Every module of `pipeline` is parsed, never imported, so that an import inside a function or under TYPE_CHECKING counts
like any other. Each rule is a function from a module to its breaches, and each is shown to bite.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

STAGES = ("pipeline.build", "pipeline.submit", "pipeline.merge")
"""The three that never import each other."""

LOOK_ACROSS = frozenset(
    {
        "run",
        "plan",
        "opening",
        "connecting",
        "operating",
        "cleaning",
        "retrying",
        "taking",
        "rounds",
        "publish",
        "status",
        "cli",
        "report",
    }
)
"""Top-level modules and packages that may import the stages: `run`, the parts it is composed of, and the commands."""

PURE = frozenset(
    {
        "pipeline.errors",
        "pipeline.shard",
        "pipeline.outcome",
        "pipeline.quota",
        "pipeline.submit.schedule",
        "pipeline.submit.settle",
        "pipeline.build.packer",
    }
)
"""Modules that decide and compute only."""

IMPURE_IMPORTS = (
    "os", "io", "sqlite3", "pathlib", "time", "threading", "subprocess", "socket", "shutil", "tempfile",
    "pyarrow", "polars", "httpx", "httpx2", "openai", "azure",
)  # fmt: skip

LINES_MAX = 450
EMPTY_NAMES = frozenset({"utils", "util", "common", "helpers", "helper", "manager", "managers"})


@dataclass(frozen=True, slots=True)
class Module:
    """A module as its text shows it.

    Attributes:
        name: dotted name; a package goes by its own name.
        imports: dotted names of everything it imports, at any depth; `from a import b` counts as `a` and `a.b`.
        lines: number of lines.
    """

    name: str
    imports: frozenset[str]
    lines: int


def _under(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def parsed(name: str, text: str, *, is_package: bool = False) -> Module:
    """The module of that name and text, relative imports resolved."""
    here = name.split(".") if is_package else name.split(".")[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            head = here[: len(here) - node.level + 1] if node.level else []
            origin = ".".join([*head, *([node.module] if node.module else [])])
            found.add(origin)
            found.update(f"{origin}.{alias.name}" for alias in node.names)
    return Module(name, frozenset(found), len(text.splitlines()))


def modules() -> list[Module]:
    """Every module of the package that there is."""
    found = []
    for path in sorted((ROOT / "pipeline").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        found.append(parsed(name, path.read_text(encoding="utf-8"), is_package=is_package))
    return found


def stages_apart(module: Module) -> Iterator[str]:
    """Build, submit and merge know nothing of each other."""
    for stage in STAGES:
        if _under(module.name, stage):
            yield from (name for name in module.imports for other in STAGES if other != stage and _under(name, other))


def few_look_across(module: Module) -> Iterator[str]:
    """Only the composing modules import a stage from outside it; the stages import nothing that composes them."""
    parts = module.name.split(".")
    part = parts[1] if len(parts) > 1 else ""
    if any(_under(module.name, stage) for stage in STAGES):
        composers = [f"pipeline.{name}" for name in LOOK_ACROSS]
        yield from (name for name in module.imports for composer in composers if _under(name, composer))
    elif part not in LOOK_ACROSS:
        yield from (name for name in module.imports for stage in STAGES if _under(name, stage))


def nobody_imports_cli(module: Module) -> Iterator[str]:
    """The command line is nobody's library; only `python -m pipeline` starts it."""
    if module.name != "pipeline.__main__" and not _under(module.name, "pipeline.cli"):
        yield from (name for name in module.imports if _under(name, "pipeline.cli"))


def emulator_alone(module: Module) -> Iterator[str]:
    """The emulator shares no code with the client, and only its command imports it."""
    if _under(module.name, "pipeline.emulator"):
        yield from (n for n in module.imports if _under(n, "pipeline") and not _under(n, "pipeline.emulator"))
    elif not _under(module.name, "pipeline.cli"):
        yield from (name for name in module.imports if _under(name, "pipeline.emulator"))


def one_seam_to_the_network(module: Module) -> Iterator[str]:
    """Only the service module imports the SDK and the credentials."""
    if module.name != "pipeline.submit.service":
        yield from (name for name in module.imports if _under(name, "openai") or _under(name, "azure"))


def pure_modules_touch_nothing(module: Module) -> Iterator[str]:
    """A pure module imports nothing that reads, writes, waits or speaks."""
    if module.name in PURE:
        yield from (name for name in module.imports for impure in IMPURE_IMPORTS if _under(name, impure))


def no_hidden_imports(module: Module) -> Iterator[str]:
    """Nothing is imported by a name made at run time, which the other rules could not see."""
    yield from (name for name in module.imports if name == "importlib.import_module" or _under(name, "runpy"))


def small_files(module: Module) -> Iterator[str]:
    """A file stays small enough to be one noun."""
    if module.lines > LINES_MAX:
        yield f"{module.lines} lines, at most {LINES_MAX}"


def telling_names(module: Module) -> Iterator[str]:
    """A module is called after what it owns."""
    yield from (part for part in module.name.split(".") if part in EMPTY_NAMES)


RULES: list[Callable[[Module], Iterator[str]]] = [
    stages_apart,
    few_look_across,
    nobody_imports_cli,
    emulator_alone,
    one_seam_to_the_network,
    pure_modules_touch_nothing,
    no_hidden_imports,
    small_files,
    telling_names,
]

BREACHES = [
    (stages_apart, "pipeline.build.writer", "def f():\n    from pipeline.submit import schedule"),
    (stages_apart, "pipeline.merge.output", "from ..build import tokens"),
    (few_look_across, "pipeline.ledger", "from pipeline import merge"),
    (few_look_across, "pipeline.submit.runner", "import pipeline.run"),
    (nobody_imports_cli, "pipeline.run", "from . import cli"),
    (emulator_alone, "pipeline.emulator.store", "from pipeline.errors import UsageError"),
    (emulator_alone, "pipeline.embedded", "import pipeline.emulator"),
    (one_seam_to_the_network, "pipeline.submit.runner", "from azure.identity import DefaultAzureCredential"),
    (one_seam_to_the_network, "pipeline.run", "import openai"),
    (pure_modules_touch_nothing, "pipeline.shard", "from os import path"),
    (pure_modules_touch_nothing, "pipeline.build.packer", "import pyarrow.compute as pc"),
    (no_hidden_imports, "pipeline.run", "from importlib import import_module"),
    (small_files, "pipeline.run", "\n" * (LINES_MAX + 1)),
    (telling_names, "pipeline.build.utils", ""),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_rule_holds(rule: Callable[[Module], Iterator[str]]) -> None:
    """No module of the package breaks the rule."""
    breaches = {module.name: found for module in modules() if (found := sorted(set(rule(module))))}
    assert breaches == {}, rule.__doc__


@pytest.mark.parametrize(("rule", "name", "text"), BREACHES)
def test_the_rule_bites(rule: Callable[[Module], Iterator[str]], name: str, text: str) -> None:
    """A module that breaks the rule is found out, however the import is written."""
    assert list(rule(parsed(name, text)))


def test_every_rule_is_shown_to_bite() -> None:
    """There is a breach on show for each rule."""
    assert {rule for rule, _, _ in BREACHES} == set(RULES)


def test_the_modules_are_found() -> None:
    """The rules look at the real package, not at an empty list."""
    assert {"pipeline", "pipeline.errors", "pipeline.shard", "pipeline.ledger"} <= {module.name for module in modules()}
