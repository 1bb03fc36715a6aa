"""Operators' commands on a run that is there, without a process of their own: what they refuse, and what they ask."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import ServiceKind
from pipeline.console import Screen
from pipeline.errors import RunFolderError, UnreachableError, UsageError
from pipeline.folder import RunFolder
from pipeline.ledger import Ledger
from pipeline.opening import Options, find_folder, open_run
from pipeline.operating import clean, opened, retry
from pipeline.shard import BatchState
from tests.submit.world import PROMPT, World

Making = Callable[..., World]
ROOT = Path(__file__).resolve().parents[2]


def noted(world: World, **values: str) -> None:
    """Set values of the run."""
    ledger = Ledger(world.folder.ledger)
    for key, value in values.items():
        ledger.put(key, value)
    ledger.close()


@pytest.fixture
def azure(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Points the environment at an address."""

    def pointing(url: str) -> None:
        monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", url)
        monkeypatch.setenv("AZURE_OPENAI_API_KEY", "k")

    return pointing


@pytest.mark.parametrize(
    ("named", "word"),
    [
        ({"limit": 5}, "selection of rows"),
        ({"id_column": "text"}, "selection of rows"),
        ({"service": "emulator"}, "service"),
        ({"max_lines": 7}, "--max-lines"),
        ({"max_bytes": 7}, "--max-bytes"),
        ({"prefix": "x_"}, "--prefix"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_makes_a_run_this_run_is_not_ignored_without_data(make: Making, named: dict[str, Any], word: str) -> None:
    """`--run-dir` alone goes on; what would have made another run is refused by name."""
    world = make()
    assert open_run(Options(run_dir=world.folder.path), Screen())[1] is None
    with pytest.raises(RunFolderError, match=word):
        open_run(Options(run_dir=world.folder.path, **named), Screen())


def test_another_prompt_is_noticed_without_data(make: Making, tmp_path: Path) -> None:
    """The prompt file that the run began with may be named, another one may not."""
    world = make()
    (tmp_path / "same.yaml").write_text(PROMPT)
    (tmp_path / "other.yaml").write_text(PROMPT.replace("{{ text }}", "Now: {{ text }}"))
    open_run(Options(run_dir=world.folder.path, prompt=tmp_path / "same.yaml"), Screen())
    with pytest.raises(RunFolderError, match="prompt"):
        open_run(Options(run_dir=world.folder.path, prompt=tmp_path / "other.yaml"), Screen())


def test_an_unfinished_run_of_the_same_data_is_named_whatever_it_is_called(make: Making, tmp_path: Path) -> None:
    """Also beside folders that are no readable runs, and for data whose name has brackets."""
    world = make()
    runs = tmp_path / "runs"
    runs.mkdir()
    world.folder.path.rename(runs / "data[1]-11111111")
    (runs / "broken").mkdir()
    (runs / "broken" / "run.db").write_bytes(b"not a ledger" * 100)
    other = type(world.settings)(**{**_fields(world.settings), "limit_rows": 3})
    with pytest.raises(RunFolderError, match=r"data\[1\]-11111111 is an unfinished run .* selection of rows"):
        find_folder(Options(), other, runs)
    assert find_folder(Options(new_run=True), other, runs).path.parent == runs


def _fields(settings: Any) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in type(settings).__dataclass_fields__}


def test_a_retry_of_a_run_that_nobody_agreed_to_asks(make: Making, azure: Callable[[str], None]) -> None:
    """Cancelled before anything was sent, its rows would be paid for by the retry."""
    world = make()
    azure(world.urls["m"])
    noted(world, finished="1", cancelled="1")
    with pytest.raises(UsageError, match="--yes"):
        retry(world.folder.path, Options(), Screen(quiet=True), codes=(), may_pay_again=False)
    assert not world.services["m"].books()["batches"]
    ledger = Ledger(world.folder.ledger)
    assert ledger.get("finished") and ledger.get("cancelled"), "nothing was opened again"
    ledger.close()


def test_cleaning_without_a_service_is_one_sentence(make: Making, azure: Callable[[str], None]) -> None:
    """Nothing is recorded as deleted that is not."""
    world = make(texts=["a"])
    assert world.go()
    azure("http://127.0.0.1:9")
    with pytest.raises(UnreachableError, match="no answer"):
        clean(world.folder.path, Options(), Screen(quiet=True), remote=True, local=False)
    azure(world.urls["m"])
    assert clean(world.folder.path, Options(), Screen(quiet=True), remote=True, local=False).remote_files == 2
    assert world.services["m"].files(None)["data"] == []


def test_the_deployment_that_was_named_last_stays(make: Making) -> None:
    """A later command that names none goes where the last one went."""
    world = make()
    for named, used in ((None, "m"), ("other", "other"), (None, "other")):
        with opened(RunFolder(world.folder.path), Options(model=named), Screen(quiet=True)) as run:
            assert run.settings.model == used
            assert run.settings.service is ServiceKind.AZURE


def test_a_real_services_listings_are_given_five_minutes_however_often_one_polls(make: Making) -> None:
    """What listens on this machine is no real service, and has five polls."""
    world = make()
    with opened(RunFolder(world.folder.path), Options(), Screen(quiet=True)) as run:
        run.ledger.add_deployment("m", "m", "http://127.0.0.1:1", None)
        assert run._grace_s(0.2) == 1.0
        run.ledger.add_deployment("m", "m", "https://east.openai.azure.com", None)
        assert (run._grace_s(0.2), run._grace_s(600.0)) == (300.0, 3_000.0)


def test_a_signal_at_the_question_ends_the_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is under way that would have to be finished first."""
    from pipeline.errors import InterruptedBySignal

    class Nobody:
        def readline(self) -> str:
            signal.raise_signal(signal.SIGTERM)
            return "y"

    monkeypatch.setattr(Screen, "interactive", True)
    monkeypatch.setattr("sys.stdin", Nobody())
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(InterruptedBySignal) as stopped:
        Screen().ask("Go?")
    assert stopped.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_that_uses_a_lost_batchs_rows_again_says_so(make: Making) -> None:
    """Rows of a lost batch are asked again only by a retry that agrees to pay again."""
    world = make(texts=["a", "b"])
    with world.start() as life:
        while not life.queued():
            life.pass_once()
        world.services["m"]._store._db.execute("DELETE FROM batch")
        life.to_the_end()
        life.ledger.put("finished", "1")
        life.ledger.put("consent", "1")
        assert life.ledger.batch(1).state is BatchState.DONE
    with pytest.raises(UsageError, match="no failed rows"):
        retry(world.folder.path, Options(), Screen(quiet=True), codes=(), may_pay_again=False)


def test_the_sdk_is_loaded_only_by_who_speaks_to_a_service() -> None:
    """It takes a second: plan, status, merge and everything that is refused do without."""
    words = "import sys, pipeline.opening, pipeline.run, pipeline.operating; sys.exit('openai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", words], cwd=ROOT, check=False).returncode == 0
