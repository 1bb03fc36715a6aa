"""How batches look and what a create may say of them: error words, oddities, metadata, expiry (contract §3, §5)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pipeline.emulator.refusals import refusal
from pipeline.emulator.store import Doc


def quota_text(limit: int, model: str, *, openai: bool = False) -> str:
    """The service's words for a full queue; Azure's limit is in thousands where that is exact (contract §5)."""
    if openai:
        return (
            f"Enqueued token limit reached for {model} in organization org-emulator. Limit: {limit:,} enqueued tokens. "
            "Please try again once some in_progress batches have been completed."
        )
    told = f"{limit // 1000}K" if limit % 1000 == 0 else str(limit)
    return (
        f"The number of enqueued tokens has surpassed the configured limit of {told} for the deployment "
        f"'{model}'. Please either increase the limit or try again once the current jobs have finished."
    )


def shown_batch(doc: Doc) -> dict[str, Any]:
    """A batch without what is the emulator's own."""
    return {name: value for name, value in doc.items() if not name.startswith("_")}


def odd(shown: dict[str, Any], quirks: frozenset[str]) -> dict[str, Any]:
    """A batch object with the oddities that the contract lists (§3, §4); it is changed in place."""
    if not quirks:
        return shown
    if "failed_as_completed" in quirks and shown.get("status") == "failed":
        shown.update(completed_at=shown.get("failed_at"), failed_at=None)
    if "canceled" in quirks and shown.get("status") == "cancelled":
        shown["status"] = "canceled"
    if "capitals" in quirks:
        shown["status"] = str(shown.get("status")).title()
    for quirk, name in (("null_counts", "request_counts"), ("no_metadata", "metadata"), ("null_endpoint", "endpoint")):
        if quirk in quirks:
            shown[name] = None
    if isinstance(shown.get("errors"), dict):
        shown["errors"] = _odd_errors(shown["errors"], quirks)
    for name, value in shown.items():
        if name.endswith("_at") and isinstance(value, int):
            if "iso_times" in quirks:
                shown[name] = datetime.fromtimestamp(value, UTC).isoformat()
            elif "text_times" in quirks:
                shown[name] = str(value)
        elif name.endswith("_file_id") and value == "" and "null_ids" in quirks:
            shown[name] = None
    return shown


def _odd_errors(errors: dict[str, Any], quirks: frozenset[str]) -> dict[str, Any]:
    data = [dict(entry) for entry in errors["data"]]
    if "text_lines" in quirks:
        for entry in data:
            entry["line"] = None if entry["line"] is None else str(entry["line"])
    return {**errors, "data": data[0] if "single_error" in quirks else data}


def odd_page(page: dict[str, Any], quirks: frozenset[str]) -> dict[str, Any]:
    """A page of batches with the oddities of lists (contract §3)."""
    if "bare_lists" in quirks:
        page = {name: value for name, value in page.items() if name != "object"}
    if "value_lists" in quirks:
        page = {("value" if name == "data" else name): value for name, value in page.items()}
    return page


def checked_metadata(found: Any) -> dict[str, str] | None:
    """A create's metadata: at most 16 pairs of text, keys to 64 and values to 512 characters (contract §3)."""
    if found is None:
        return None
    if not isinstance(found, dict) or len(found) > 16:
        raise refusal(400, "invalidPayload", "metadata: at most 16 pairs.")
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, str) or not 1 <= len(key) <= 64 or len(value) > 512:
            raise refusal(400, "invalidPayload", "metadata: keys to 64 and values to 512 characters, as text.")
    return found


def output_expiry(found: Any) -> int | None:
    """Seconds that a create's result files are to be kept, or None (contract §3)."""
    if found is None:
        return None
    seconds = found.get("seconds") if isinstance(found, dict) and found.get("anchor") == "created_at" else None
    if not isinstance(seconds, int) or isinstance(seconds, bool) or not 3_600 <= seconds <= 2_592_000:
        raise refusal(400, "invalidPayload", "output_expires_after: anchor created_at and 3600 to 2592000 seconds.")
    return seconds
