"""The deployments file: what it says, and one sentence with the place for everything that is wrong in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import UsageError
from pipeline.submit.deployments import DeploymentSpec, load_deployments

GOOD = "{endpoint: 'https://a', deployment: d}"


def test_a_sound_file_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names fall back to the deployment's; a key stands in the environment, its variable's name here."""
    monkeypatch.setenv("EAST_KEY", "secret")
    (tmp_path / "d.yaml").write_text(
        "deployments:\n"
        "  - {name: east, endpoint: 'https://east/', deployment: d, key_env: EAST_KEY, quota_tokens: 5,\n"
        "     api_version: 2025-04-01-preview, base_model: gpt-4o}\n"
        "  - {endpoint: 'https://west', deployment: d}\n"
    )
    east, west = load_deployments(tmp_path / "d.yaml")
    assert east == DeploymentSpec("east", "d", "https://east", "EAST_KEY", 5, "2025-04-01-preview", "gpt-4o")
    assert west == DeploymentSpec("d", "d", "https://west")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("deployments: []", ["at least one"]),
        ("deployment: []", ["deployments"]),
        ("deployments: [", ["line"]),
        ("deployments: [d]", ["entry 1", "mapping"]),
        ("deployments:\n  - {deployment: d}", ["entry 1", "endpoint is missing"]),
        ("deployments:\n  - {endpoint: 'https://a', deployment: d, quota_token: 5}", ["entry 1", "quota_tokens"]),
        ("deployments:\n  - {endpoint: 'https://a', deployment: d, quota_tokens: many}", ["whole number"]),
        ("deployments:\n  - {endpoint: a, deployment: d}", ["entry 1", "no address"]),
        ("deployments:\n  - {endpoint: 'https://a', deployment: d, key_env: NOT_SET}", ["NOT_SET", "not set"]),
        (f"deployments:\n  - {GOOD}\n  - {{endpoint: 'https://b', deployment: d}}", ["twice", "name of its own"]),
        (f"deployments:\n  - {GOOD}\n  - {{name: x, endpoint: 'https://a/', deployment: d}}", ["twice", "quota"]),
        (f"deployments:\n  - {GOOD}\n  - {{endpoint: 'https://b/openai/v1', deployment: e}}", ["one kind"]),
        ("deployments:\n  - {endpoint: 'https://api.openai.com/v1', deployment: d}", ["--service openai"]),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, content: str, words: list[str]) -> None:
    """A misspelt key with the nearest, an entry with its number, a place that would be used twice."""
    (tmp_path / "d.yaml").write_text(content)
    with pytest.raises(UsageError) as told:
        load_deployments(tmp_path / "d.yaml")
    for word in ["d.yaml", *words]:
        assert word in str(told.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """With the reason."""
    with pytest.raises(UsageError, match="No such file"):
        load_deployments(tmp_path / "d.yaml")
