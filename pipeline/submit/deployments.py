"""The deployments file: where batches may go, under which names and with whose credentials.

```yaml
deployments:
  - name: east                       # how it is called here; default: the deployment's name
    endpoint: https://east.openai.azure.com
    deployment: gpt-4o-batch
    key_env: EAST_KEY                # the name of an environment variable; without one Entra ID is used
    quota_tokens: 5000000
    api_version: 2025-04-01-preview
    base_model: gpt-4o               # for prices
```

Holds no secret: a key stands in the environment, its variable's name here.
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from pipeline.errors import UsageError

_KEYS = frozenset({"name", "endpoint", "deployment", "key_env", "quota_tokens", "api_version", "base_model"})


@dataclass(frozen=True, slots=True)
class DeploymentSpec:
    """One place for batches.

    Attributes:
        name: its name in this run, unique.
        deployment: the `model` of its requests.
        endpoint: root of the resource; None: from the environment.
        key_env: environment variable that holds its key; None: the usual variable, or Entra ID.
        quota_tokens: its enqueued-token quota, or None.
        api_version: of the classic root, or None for the default.
        base_model: model behind it, for prices, or None.
    """

    name: str
    deployment: str
    endpoint: str | None = None
    key_env: str | None = None
    quota_tokens: int | None = None
    api_version: str | None = None
    base_model: str | None = None


def load_deployments(path: Path) -> tuple[DeploymentSpec, ...]:
    """Read a deployments file.

    Raises:
        UsageError: it cannot be read, or says something wrong; names the place and what to change.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--deployments {path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"--deployments {path}{where}: not readable as YAML.") from error
    listed = found.get("deployments") if isinstance(found, dict) and set(found) == {"deployments"} else None
    if not isinstance(listed, list) or not listed:
        raise UsageError(f"--deployments {path}: it must hold one key, deployments, with a list of at least one.")
    specs = tuple(_spec(path, number, entry) for number, entry in enumerate(listed, 1))
    names = [spec.name for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"--deployments {path}: {name!r} stands twice; give each a name of its own (name: …).")
    places = [(spec.endpoint, spec.deployment) for spec in specs]
    for place in places:
        if places.count(place) > 1:
            raise UsageError(
                f"--deployments {path}: {place[1]!r} at {place[0]} stands twice; its quota would be counted twice."
            )
    if any((urlsplit(spec.endpoint or "").hostname or "").endswith("api.openai.com") for spec in specs):
        raise UsageError(f"--deployments {path}: it is for Azure deployments; for OpenAI use --service openai.")
    kinds = {(spec.endpoint or "").rstrip("/").endswith("/openai/v1") for spec in specs}
    if len(kinds) > 1:
        raise UsageError(
            f"--deployments {path}: some endpoints end in /openai/v1 and others do not; a run takes one kind."
        )
    return specs


def _spec(path: Path, number: int, entry: Any) -> DeploymentSpec:
    where = f"--deployments {path}, entry {number}"
    if not isinstance(entry, dict):
        raise UsageError(f"{where}: an entry is a mapping with endpoint and deployment.")
    for key in entry:
        if key not in _KEYS:
            near = difflib.get_close_matches(str(key), _KEYS, 1)
            raise UsageError(f"{where}: unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else "."))
    for key in ("endpoint", "deployment"):
        if not isinstance(entry.get(key), str) or not entry[key]:
            raise UsageError(f"{where}: {key} is missing.")
    if not re.match(r"https?://[^/\s]+", entry["endpoint"]):
        raise UsageError(
            f"{where}: endpoint {entry['endpoint']!r} is no address such as https://NAME.openai.azure.com."
        )
    quota = entry.get("quota_tokens")
    if quota is not None and (not isinstance(quota, int) or isinstance(quota, bool) or quota < 1):
        raise UsageError(f"{where}: quota_tokens must be a whole number above 0.")
    key_env = entry.get("key_env")
    if key_env is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(key_env)):
        # Never echo the value: somebody may have put the key itself here.
        raise UsageError(f"{where}: key_env takes the name of an environment variable, not a key.")
    if key_env is not None and not os.environ.get(str(key_env)):
        raise UsageError(f"{where}: the environment variable {key_env} is not set.")
    text = {key: None if entry.get(key) is None else str(entry[key]) for key in ("api_version", "base_model")}
    return DeploymentSpec(
        name=str(entry.get("name") or entry["deployment"]),
        deployment=entry["deployment"],
        endpoint=entry["endpoint"].rstrip("/"),
        key_env=None if key_env is None else str(key_env),
        quota_tokens=quota,
        **text,
    )
