"""What every test starts from: no service configured in the environment. Knows nothing of the modules under test."""

from __future__ import annotations

import os

import pytest

FOREIGN_PREFIXES = ("AZURE_", "OPENAI_", "BATCHMILL_")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away every variable that names a service or its key, so that no test can reach a real one by accident."""
    for name in list(os.environ):
        if name.startswith(FOREIGN_PREFIXES):
            monkeypatch.delenv(name)
