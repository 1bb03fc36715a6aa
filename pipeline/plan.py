"""The dry run: what a run would be, counted with the same code that seals, writing nothing.

Owns the numbers of `batchmill plan`; the render, the cuts and the token estimate are the sealing's own.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pipeline.build.image_rows import image_rows
from pipeline.build.packer import Limits
from pipeline.build.seal import seal
from pipeline.build.writer import named_rows
from pipeline.console import service_words

if TYPE_CHECKING:
    from pipeline.opening import Job, Options


_BASE64 = re.compile(r"(data:image/\w+;base64,)([A-Za-z0-9+/=]{100,})")


def plan_of(job: Job, options: Options, *, show: int) -> dict[str, Any]:
    """Count what a run would be.

    Args:
        job: source, template and settings.
        options: what the command line said.
        show: how many of the first requests to render, at most.

    Returns:
        Rows, requests, shards, bytes and tokens, the template's path, and the first requests as text.
    """
    settings = job.settings
    rows = requests = shards = total_bytes = tokens = 0
    spans = seal(
        image_rows(job.source, job.template),
        job.template,
        Limits(settings.lines_max, settings.bytes_max, settings.tokens_max),
        rows_dir=None,
        model=settings.model,
        url=settings.url,
        custom_id_prefix=settings.id_prefix,
        id_column=settings.id_column,
        limit_rows=settings.limit_rows,
        refuse_nulls=settings.on_null == "error",
    )
    for span in spans:
        rows = span.stop_row
        for shard in span.shards:
            shards += 1
            requests += shard.requests
            total_bytes += shard.bytes
            tokens += shard.tokens
    return {
        "data": settings.data_path,
        "prompt": settings.prompt_name,
        "service": settings.service.value,
        "model": settings.model,
        "deployments": [spec.name for spec in options.specs],
        "url": settings.url,
        "fingerprint": settings.fingerprint,
        "rows": rows,
        "requests": requests,
        "skipped": rows - requests,
        "shards": shards,
        "request_bytes": total_bytes,
        "estimated_tokens": tokens,
        "quota_tokens": options.quota_tokens or sum(spec.quota_tokens or 0 for spec in options.specs) or None,
        "columns_prefix": settings.columns_prefix,
        "template": "fast" if job.template.fast else "row by row",
        "template_reason": job.template.reason,
        "first_requests": _first_requests(job, show) if show else [],
    }


def _first_requests(job: Job, show: int) -> list[str]:
    """The first sendable rows' request lines, among the first rows of the source."""
    for block in image_rows(job.source, job.template).blocks():
        head, ids = named_rows(block.slice(0, 1_000), 0, job.settings.id_prefix, job.settings.id_column)
        lines = job.template.render(head, ids, model=job.settings.model, url=job.settings.url).lines
        return [_shortened(line) for line in lines.drop_null().slice(0, show).to_pylist()]
    return []


def _shortened(line: str) -> str:
    """A request line as a person reads it: images by their size."""
    return _BASE64.sub(lambda found: f"{found[1]}…({len(found[2]):,} characters)", line.rstrip("\n"))


def plan_table(found: dict[str, Any]) -> dict[str, Any]:
    """The plan's numbers with the names a person reads."""
    from pipeline.config import ServiceKind

    reason = f"row by row ({found['template_reason']})" if found["template_reason"] else "fast path"
    table = {
        "rows": found["rows"],
        "requests": found["requests"],
        "skipped": found["skipped"],
        "shards": found["shards"],
        "request bytes": found["request_bytes"],
        "input tokens (estimate)": found["estimated_tokens"],
        "service": service_words(ServiceKind(found["service"])),
        "deployments" if found["deployments"] else "model": ", ".join(found["deployments"]) or found["model"],
        "template": reason,
    }
    if found["quota_tokens"]:
        table["quota tokens"] = found["quota_tokens"]
    if found["columns_prefix"]:
        table["own columns"] = f"prefixed {found['columns_prefix']}"
    return table
