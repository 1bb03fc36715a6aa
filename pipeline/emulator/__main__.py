"""`python -m pipeline.emulator`: serve the emulator, or read its books.

Prints one JSON line with its address when it is ready; all else goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.emulator.faults import load_plan
from pipeline.emulator.server import serve
from pipeline.emulator.service import Service
from pipeline.emulator.settings import PROFILES, QUIRKS, EmulatorSettings


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments and serve, or print the books."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["books"]:
        _books(words[1:])
        return
    parser = _parser()
    given = vars(parser.parse_args(words))
    try:
        serve(settings_of(given))
    except (TimeoutError, OSError, ValueError) as error:
        sys.stderr.write(f"batchmill emulator: {error}\n")
        sys.exit(2 if isinstance(error, ValueError) else 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "batchmill emulator",
        description="An Azure OpenAI Files + Batches service on loopback; `batchmill emulator books` reads its books.",
    )
    parser.add_argument("--state", type=Path, default=Path("emulator"), help="folder of its state (default: emulator)")
    parser.add_argument("--profile", choices=sorted(PROFILES), default="azure", help="limits and habits")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="default: any free one")
    parser.add_argument("--key", help="the only key it takes; default: any")
    parser.add_argument("--seed", type=int, default=0, help="of the answers")
    parser.add_argument("--speed", type=float, default=400.0, help="how much faster than Azure (default: 400)")
    parser.add_argument("--instant", action="store_true", help="no delays")
    parser.add_argument("--fail-fast", action="store_true", help="validation errors refuse the create")
    parser.add_argument("--quota-tokens", type=int, help="enqueued-token limit of each deployment")
    parser.add_argument("--others-tokens", type=int, default=0, help="tokens that others hold in each queue")
    parser.add_argument("--tokens-per-character", type=float, default=0.25, help="its estimate (default: 0.25)")
    parser.add_argument("--header-means", choices=["file", "sum"], default="file", help="deployment-enqueued-tokens")
    parser.add_argument("--lines-max", type=int, help="lines a file; default: the profile's")
    parser.add_argument("--deployments", default="", help="the only ones it knows: a,b")
    parser.add_argument("--standard-deployments", default="", help="those that are there and take no batches: c,d")
    parser.add_argument("--quirks", default="", help=f"oddities, of {','.join(sorted(QUIRKS))}")
    parser.add_argument("--faults", type=Path, help="a plan of faults (YAML)")
    parser.add_argument("--upstream", help="root of an OpenAI-compatible server that answers, http://…/v1")
    parser.add_argument("--upstream-key-env", help="environment variable that holds its key")
    parser.add_argument("--concurrency", type=int, default=8, help="requests to it at once (default: 8)")
    parser.add_argument("--die-with-parent", action="store_true", help="end when standard input ends")
    return parser


def settings_of(given: dict[str, Any]) -> EmulatorSettings:
    """The settings that the arguments mean.

    Raises:
        ValueError: one of them is wrong.
    """
    values = dict(given)
    for name in ("deployments", "standard_deployments"):
        values[name] = tuple(word for word in values[name].split(",") if word)
    values["quirks"] = frozenset(name for name in values["quirks"].split(",") if name)
    if unknown := values["quirks"] - QUIRKS:
        raise ValueError(f"--quirks {sorted(unknown)[0]}: choose from {', '.join(sorted(QUIRKS))}.")
    plan = values.pop("faults")
    if plan is not None:
        values["faults"], values["fault_seed"] = load_plan(plan)
    key_env = values.pop("upstream_key_env")
    if key_env:
        values["upstream_key"] = os.environ.get(key_env)
        if not values["upstream_key"]:
            raise ValueError(f"--upstream-key-env {key_env}: that variable is not set.")
    if not 0 < values["speed"] < math.inf or values["concurrency"] < 1:
        raise ValueError("--speed must be above 0 and --concurrency at least 1.")
    if not 0 < values["tokens_per_character"] <= 10:
        raise ValueError("--tokens-per-character must be above 0 and at most 10.")
    if values["upstream"] and not values["upstream"].startswith(("http://", "https://")):
        raise ValueError(f"--upstream {values['upstream']}: an address such as http://127.0.0.1:8000/v1 is needed.")
    for name in ("quota_tokens", "lines_max"):
        if values[name] is not None and values[name] < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1.")
    if values["others_tokens"] < 0 or not 0 <= values["port"] < 65_536:
        raise ValueError("--others-tokens must not be below 0, and --port be 0 to 65535.")
    return EmulatorSettings(**values)


def _books(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("batchmill emulator books", description="Who was charged for what, as JSON.")
    parser.add_argument("--state", type=Path, default=Path("emulator"), help="folder of a stopped emulator's state")
    parser.add_argument("--url", help="address of a running emulator, instead")
    given = parser.parse_args(words)
    try:
        if given.url:
            with urllib.request.urlopen(f"{given.url.rstrip('/')}/_emulator/books") as answer:
                found = json.load(answer)
        elif not (given.state / "service.db").exists():
            raise OSError(f"{given.state} holds no emulator's state: name its folder, or --url of a running one")
        else:
            service = Service(EmulatorSettings(state=given.state))
            try:
                found = service.books()
            finally:
                service.close()
    except (OSError, ValueError) as error:
        sys.stderr.write(f"batchmill emulator: {error}\n")
        sys.exit(1)
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
