"""`python -m pipeline.emulator`: serve the emulator; prints one JSON line with its address when it is ready."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.emulator.server import serve
from pipeline.emulator.service import EmulatorSettings


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments and serve."""
    parser = argparse.ArgumentParser("batchmill emulator", description="An Azure OpenAI Files + Batches service.")
    parser.add_argument("--state", type=Path, default=Path("emulator"), help="folder of its state (default: emulator)")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="default: any free one")
    parser.add_argument("--key", help="the only key it takes; default: any")
    parser.add_argument("--seed", type=int, default=0, help="of the answers")
    parser.add_argument("--speed", type=float, default=1.0, help="divides every delay")
    parser.add_argument("--instant", action="store_true", help="no delays")
    parser.add_argument("--fail-fast", action="store_true", help="validation errors refuse the create")
    parser.add_argument("--quota-tokens", type=int, help="enqueued-token limit of each deployment")
    parser.add_argument("--lines-max", type=int, default=100_000, help="lines a file")
    parser.add_argument("--deployments", default="", help="the only ones it knows: a,b")
    parser.add_argument("--die-with-parent", action="store_true", help="end when standard input ends")
    given = vars(parser.parse_args(arguments))
    given["deployments"] = tuple(name for name in given["deployments"].split(",") if name)
    try:
        serve(EmulatorSettings(**given))
    except (TimeoutError, OSError) as error:
        sys.stderr.write(f"batchmill emulator: {error}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
