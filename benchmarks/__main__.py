"""Run the benchmarks and say which targets hold.

Every module prints a line of JSON for each figure and turn; a figure that comes more than once gives a median. With
`--write` the figures are kept as JSON in benchmarks/results and the table in docs/performance.md is written from them.

python -m benchmarks [NAME ...] [--large | --peers] [--write]
"""

from __future__ import annotations

import argparse
import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import benchmarks
from benchmarks.figures import ROOT, Figures, gathered, machine, save, saved, table, write_page
from benchmarks.targets import verdicts


@dataclass(frozen=True, slots=True)
class Module:
    """A module of this package with a `main()`; a module that is not in this checkout is left out.

    Attributes:
        quick, large, peers: the arguments of each set; None: not part of it.
        turns: how often it is run; modules with turns of their own once.
    """

    name: str
    quick: tuple[str, ...] | None = ()
    large: tuple[str, ...] | None = None
    peers: tuple[str, ...] | None = None
    turns: int = 1


MODULES = (
    Module("start_up"),
    Module("build", ("--rows", "1000000"), ("--rows", "10000000", "--turns", "1", "--no-loops")),
    Module(
        "merge",
        ("--rows", "1000000", "--long-rows", "20000", "--turns", "3"),
        ("--rows", "10000000", "--no-loop", "--long-rows", "0"),
    ),
    Module("end_to_end", ("--rows", "100000"), ("--rows", "10000000"), ("--rows", "1000000")),
    Module("ledger"),
    Module("render"),
    Module("emulator"),
    Module("images"),
    Module("inputs"),
    Module("scale", None, ()),
    Module("peers", None, None, ()),
)
"""In the order in which they are run."""


def lines_of(module: Module, arguments: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run a module in a process of its own; its lines of JSON as they come.

    Raises:
        SystemExit: it failed.
    """
    command = [sys.executable, "-m", f"benchmarks.{module.name}", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            sys.stdout.write(f"{module.name}: {line}")
            sys.stdout.flush()
            if line.startswith("{"):
                yield module.name, json.loads(line)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")


def main() -> None:
    """Run the modules named, or all of the set."""
    here = {found.name for found in pkgutil.iter_modules(benchmarks.__path__)}
    known = [module.name for module in MODULES if module.name in here]
    parser = argparse.ArgumentParser("python -m benchmarks", description=f"Benchmarks: {', '.join(known)}.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="which; default: all of the set")
    parser.add_argument("--large", action="store_true", help="10,000,000 rows, for memory")
    parser.add_argument("--peers", action="store_true", help="beside other tools, in environments of their own")
    parser.add_argument("--write", action="store_true", help="keep the figures and write docs/performance.md")
    given = parser.parse_args()
    if unknown := sorted(set(given.names) - set(known)):
        parser.error(f"no benchmark {unknown[0]!r}: choose from {', '.join(known)}")
    name = "large" if given.large else "peers" if given.peers else "quick"
    figures: Figures = {}
    of = machine()
    for module in MODULES:
        arguments = getattr(module, name)
        if module.name not in here or arguments is None or (given.names and module.name not in given.names):
            continue
        lines = [line for _ in range(module.turns) for line in lines_of(module, arguments)]
        figures |= gathered(lines)
        if given.write:
            save(name, figures, of)
    everything = {key: value for kept in saved().values() for key, value in kept["figures"].items()} | figures
    told = list(verdicts(everything if given.write else figures))
    sys.stdout.write(f"\n{table(figures)}\n\n" + "\n".join(told) + "\n")
    if given.write:
        write_page(told)
        sys.stdout.write("\nkept in benchmarks/results, and written to docs/performance.md\n")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(ROOT))
    main()
