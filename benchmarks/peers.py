"""End to end beside two other tools, over the same loopback server, the same input and in the same run.

Each peer is installed from the package index into an environment of its own below `--environments` (kept from run to
run). A peer that cannot be installed or does not get to the end is told with what it said, and not measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.corpus import PROMPT, write_corpus
from benchmarks.watch import watched

ROOT = Path(__file__).resolve().parents[1]
PEERS = {
    "llm-batch-py": ("llm-batch-py==0.1.8", "peer_llm_batch_py.py"),
    "bespokelabs-curator": ("bespokelabs-curator==0.1.31", "peer_curator.py"),
}


@contextmanager
def _server(folder: Path) -> Iterator[str]:
    folder.mkdir()
    command = [sys.executable, "-m", "benchmarks.loopback", str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"
        finally:
            process.kill()


def _environment(folder: Path, requirement: str) -> Path:
    """The Python of an environment that has the requirement.

    Raises:
        RuntimeError: it cannot be made.
    """
    python, stamp = folder / "bin" / "python", folder / ".installed"
    if not stamp.exists() or stamp.read_text() != requirement:
        for command in (
            [sys.executable, "-m", "venv", folder],
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", requirement],
        ):
            seen = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
            if seen.returncode:
                raise RuntimeError(f"{requirement} could not be installed: {seen.stderr[-300:]}")
        stamp.write_text(requirement)
    return python


def measure(name: str, folder: Path, rows: int, environments: Path) -> dict[str, object]:
    """One tool over a server of its own.

    Raises:
        RuntimeError: it did not get to the end.
    """
    data, out = folder / "corpus.parquet", folder / f"{name}.parquet"
    with _server(folder / f"{name}.server") as url:
        env = {"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": url, "PYTHONPATH": str(ROOT)}
        if name == "batchmill":
            command: list[object] = [
                sys.executable, "-m", "pipeline", "run", data, "--prompt", folder / "prompt.yaml", "--yes",
                "--service", "openai", "--model", "gpt-4o-mini", "--poll-seconds", "0.2", "--run-dir", folder / "run",
                "--out", out,
            ]  # fmt: skip
        else:
            requirement, script = PEERS[name]
            python = _environment(environments / name, requirement)
            command = [python, ROOT / "benchmarks" / script, url, data, out]
            env.pop("PYTHONPATH")
        seen = watched(command, cwd=folder, env=env)
    answered = pq.read_metadata(out).num_rows
    if answered != rows:
        raise RuntimeError(f"{answered} rows of {rows} came out")
    return {
        "rows": rows,
        "wall_s": round(seen.wall_s, 2),
        "rows_per_s": round(rows / seen.wall_s),
        "cpu_s": round(seen.cpu_s, 2),
        "cpu_us_per_row": round(seen.cpu_s / rows * 1e6, 1),
        "peak_mb": round(seen.peak_bytes / 1e6),
    }


def main() -> None:
    """Print a line of JSON for each tool; batchmill's last, with its ratio to the better peer."""
    parser = argparse.ArgumentParser("peers")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--environments", type=Path, default=ROOT / "runs" / "peer-environments")
    parser.add_argument("--folder", type=Path, help="where to work; default: the temporary folder")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="batchmill-peers-", dir=given.folder) as scratch:
        folder, best = Path(scratch), 0.0
        write_corpus(folder / "corpus.parquet", given.rows)
        (folder / "prompt.yaml").write_text(PROMPT)
        for name in (*PEERS, "batchmill"):
            try:
                found = measure(name, folder, given.rows, given.environments.resolve())
            except RuntimeError as error:
                if name == "batchmill":
                    raise
                print(json.dumps({"figure": name, "note": f"not measured: {' '.join(str(error).split())[-300:]}"}))
                continue
            speed = float(str(found["rows_per_s"]))
            if name == "batchmill" and best:
                found["ratio to the better peer"] = round(speed / best, 1)
            best = max(best, speed)
            print(json.dumps({"figure": name, **found}), flush=True)


if __name__ == "__main__":
    main()
