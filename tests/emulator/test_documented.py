"""What docs/emulator.md says is so: the curl session runs as written, and the tables name every fault and option."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.emulator import lines
from pipeline.emulator.__main__ import main
from pipeline.emulator.faults import BATCH_KINDS, CALLS, LINE_KINDS, OF_CALLS, OF_EVERY_CALL
from pipeline.emulator.settings import PROFILES, QUIRKS
from tests.acceptance.command import environment
from tests.acceptance.test_interruption import emulator

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "emulator.md").read_text(encoding="utf-8")


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_the_curl_session_runs_as_written(tmp_path: Path) -> None:
    """Upload, create, wait, download: a synthetic answer to the one line."""
    session = PAGE.partition("```sh\n")[2].partition("```")[0]
    with emulator(tmp_path / "state", "--instant") as url:
        done = subprocess.run(
            ["sh", "-ec", session], cwd=tmp_path, env={"URL": url, "PATH": "/usr/bin:/bin"}, capture_output=True,
            text=True, check=True, timeout=60,
        )  # fmt: skip
    line = json.loads(done.stdout)
    assert line["custom_id"] == "a"
    assert line["response"]["body"]["choices"][0]["message"]["content"].startswith("[synthetic]")


def test_every_fault_quirk_profile_and_option_is_documented() -> None:
    """By name."""
    named = set(re.findall(r"`([a-z0-9_:N]+)[`:]", PAGE))
    single = {kind for kinds in OF_CALLS.values() for kind in kinds}
    assert named >= LINE_KINDS | BATCH_KINDS | CALLS | OF_EVERY_CALL | single | QUIRKS
    for profile in PROFILES:
        assert re.search(rf"\b{profile}\b", PAGE)
    told = subprocess.run(
        [sys.executable, "-m", "pipeline.emulator", "--help"], capture_output=True, text=True, check=True
    ).stdout
    options = set(re.findall(r"--[a-z-]+", told)) - {"--help"}
    assert len(options) > 15
    assert {option for option in options if f"`{option}" not in PAGE} == set()


def test_every_code_of_validation_is_documented() -> None:
    """As the module that finds them has them."""
    text = Path(lines.__file__).read_text(encoding="utf-8")
    codes = set(re.findall(r'"((?:[a-z]+_)+[a-z]+)"', text)) - {"custom_id", "utf_8"}
    assert len(codes) >= 8
    assert {code for code in codes if f"`{code}`" not in PAGE} == set()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--quirks", "none"], "--quirks none"), (["--speed", "0"], "--speed must be above 0"),
        (["--upstream", "localhost"], "--upstream"), (["--upstream-key-env", "NO_SUCH"], "NO_SUCH"),
        (["--quota-tokens", "0"], "--quota-tokens must be at least 1"), (["--faults", "none.yaml"], "none.yaml"),
        (["--tokens-per-character", "0"], "--tokens-per-character"), (["--port", "70000"], "--port"),
        (["--concurrency", "0"], "--concurrency"),
    ],
    ids=lambda found: found[0] if isinstance(found, list) else "",
)  # fmt: skip
def test_a_wrong_option_is_one_sentence_and_exit_code_2(
    tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is served, and no folder is left."""
    with pytest.raises(SystemExit) as ended:
        main(["--state", str(tmp_path / "state"), *words])
    assert ended.value.code == 2
    assert said in (told := capsys.readouterr().err) and told.count("\n") == 1
    assert not (tmp_path / "state").exists()


@pytest.mark.slow
def test_the_live_suite_runs_against_what_its_variables_name(tmp_path: Path) -> None:
    """Here an emulator stands in for the resource: every test of the suite runs, on both roots, and none is skipped."""
    with emulator(tmp_path / "state", "--speed", "2000", "--deployments", "live-batch", "--key", "live-key") as url:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-m", "live", "-p", "no:cacheprovider",
             "tests/emulator/test_contract.py"],
            cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
            env={**environment(), "BATCHMILL_LIVE_ENDPOINT": url, "BATCHMILL_LIVE_KEY": "live-key",
                 "BATCHMILL_LIVE_DEPLOYMENT": "live-batch", "BATCHMILL_LIVE_POLL_S": "0.05"},
        )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3_000:]
    assert "skipped" not in done.stdout and re.search(r"\b20 passed", done.stdout)
