"""llm-batch-py through its public API; runs in an environment of its own: BASE_URL DATA OUT."""

from __future__ import annotations

import sys
from pathlib import Path

import llm_batch_py.token_estimation
import polars as pl
from llm_batch_py import (
    BatchConfig,
    OpenAIConfig,
    ResultCacheStoreConfig,
    Runner,
    StructuredOutputJob,
    structured_template,
)
from pydantic import BaseModel


class Answer(BaseModel):
    """What is asked for."""

    label: str


class NoCount:
    """In place of its token count, whose vocabulary comes from the network: in its favour."""

    def encode(self, text: str) -> str:
        """As long as the text."""
        return text


def main() -> None:
    """Submit until every row has its answer, and write them."""
    base_url, data, out = sys.argv[1:4]
    llm_batch_py.token_estimation._encoding_for_model = lambda model: NoCount()
    rows = pl.read_parquet(data)
    job = StructuredOutputJob(
        name="bench",
        key_cols=["id"],
        input_df=rows,
        prompt_builder=structured_template(
            system="Answer in one sentence.",
            messages="Title: {{ row.title }} ({{ row.year }})\n{{ row.text }}",
            name="bench",
            version="v1",
        ),
        output_model=Answer,
        provider=OpenAIConfig(model="gpt-4o-mini", api_key="k", base_url=base_url, timeout=600.0),
        result_cache=ResultCacheStoreConfig(root_uri=str(Path(out).with_suffix(".cache"))),
        batch=BatchConfig(batch_size=50_000),
    )
    runner = Runner()
    for _ in range(20):
        found = runner.run(job, metadata_columns=["llm_batch_py_status"])
        done = found.filter(pl.col("llm_batch_py_status") == "completed").height
        if done == rows.height:
            break
    else:
        raise SystemExit(f"{done} of {rows.height} rows are answered")
    found.write_parquet(out)


if __name__ == "__main__":
    main()
