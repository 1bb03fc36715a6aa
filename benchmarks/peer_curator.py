"""bespokelabs-curator through its public API; runs in an environment of its own: BASE_URL DATA OUT."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

base_url, data, out = sys.argv[1:4]
os.environ |= {
    "OPENAI_API_KEY": "k",
    "TELEMETRY_ENABLED": "false",
    "CURATOR_DISABLE_CACHE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "true",
}

from bespokelabs import curator  # noqa: E402 - reads the environment when it is imported
from datasets import load_dataset  # noqa: E402


class Bench(curator.LLM):
    """The prompt of the benchmarks."""

    def prompt(self, input: dict[str, Any]) -> list[dict[str, str]]:
        """System and user message."""
        return [
            {"role": "system", "content": "Answer in one sentence."},
            {"role": "user", "content": f"Title: {input['title']} ({input['year']})\n{input['text']}"},
        ]

    def parse(self, input: dict[str, Any], response: str) -> dict[str, Any]:
        """The row with its answer."""
        return {**input, "answer": response}


def main() -> None:
    """Submit, wait, and write the answers."""
    folder = Path(out).with_suffix(".curator")
    rows = load_dataset("parquet", data_files=data, split="train", cache_dir=str(folder / "datasets"))
    llm = Bench(
        model_name="gpt-4o-mini",
        backend="openai",
        batch=True,
        backend_params={"base_url": base_url, "batch_size": 50_000, "batch_check_interval": 1},
    )
    found = llm(rows, working_dir=str(folder))
    found = getattr(found, "dataset", found)
    assert len(found) == len(rows)
    found.to_parquet(out)


if __name__ == "__main__":
    main()
