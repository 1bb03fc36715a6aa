"""What every test starts from: no service configured in the environment. Knows nothing of the modules under test."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

settings.register_profile("steady", derandomize=True)
"""The same cases in every run, so that a change is judged by what it does; other runs look for new cases."""

FOREIGN_PREFIXES = ("AZURE_", "OPENAI_", "BATCHMILL_")


def pytest_addoption(parser: pytest.Parser) -> None:
    """How many seeds of ten kills each the crash test of the real command takes."""
    parser.addoption("--kill-seeds", type=int, default=3, help="seeds of ten kills each (default: 3)")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give the crash test its seeds."""
    if "kill_seed" in metafunc.fixturenames:
        metafunc.parametrize("kill_seed", range(metafunc.config.getoption("--kill-seeds")))


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away every variable that names a service or its key, so that no test can reach a real one by accident."""
    for name in list(os.environ):
        if name.startswith(FOREIGN_PREFIXES):
            monkeypatch.delenv(name)
