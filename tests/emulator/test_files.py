"""The files of the service through the official SDK: uploads, expiry in both spellings, caps, ranges, retention."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.emulator.serving import URLS, Served, serving

DAY_S = 86_400


def expiring(days: float) -> dict[str, Any]:
    """An expiry, as the SDK takes it (it sends `expires_after[seconds]`)."""
    return {"expires_after": {"anchor": "created_at", "seconds": int(days * DAY_S)}}


def dotted(served: Served, seconds: int, anchor: str = "created_at") -> Any:
    """An upload with the spelling of the REST reference."""
    return served.client().post(
        "/files", cast_to=openai.types.FileObject,
        body={"purpose": "batch", "expires_after.seconds": str(seconds), "expires_after.anchor": anchor},
        files={"file": ("in.jsonl", b"x")}, options={"headers": {"Content-Type": "multipart/form-data"}},
    )  # fmt: skip


@pytest.mark.parametrize("profile", ["azure", "azure-v1", "openai"])
def test_an_expiry_in_either_spelling_is_read_back_and_kept(tmp_path: Path, profile: str) -> None:
    """`expires_at` is the creation plus the seconds; from then on the file is 404 and off the list."""
    with serving(tmp_path / "state", profile) as served:
        client = served.client()
        for file in (served.upload(b"x", **expiring(14)), dotted(served, 14 * DAY_S)):
            assert file.expires_at - file.created_at == 14 * DAY_S
            assert client.files.retrieve(file.id).expires_at == file.expires_at
        served.clock.now += 14 * DAY_S
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(file.id)
        with pytest.raises(openai.NotFoundError):
            client.files.content(file.id)
        assert client.files.list().data == []
        assert served.upload(b"x") and list((tmp_path / "state" / "files").iterdir()) != []
        assert not (tmp_path / "state" / "files" / file.id).exists(), "its content is gone from the disk, too"
        with pytest.raises(openai.BadRequestError):
            dotted(served, 14 * DAY_S, anchor="last_used_at")


@pytest.mark.parametrize(
    ("profile", "usual_days", "days", "taken"),
    [
        ("azure", None, 3, True), ("azure", None, 30, True), ("azure", None, 2.9, False), ("azure", None, 31, False),
        ("openai", 30, 1 / 24, True), ("openai", 30, 30, True), ("openai", 30, 0.01, False), ("openai", 30, 31, False),
    ],
)  # fmt: skip
def test_each_service_has_its_bounds_and_its_usual_expiry(
    tmp_path: Path, profile: str, usual_days: int | None, days: float, taken: bool
) -> None:
    """Azure: 3 to 30 days, and none unless asked; OpenAI: an hour to 30 days, and 30 days where none was asked for."""
    with serving(tmp_path / "state", profile) as served:
        file = served.upload(b"x")
        usual = None if file.expires_at is None else (file.expires_at - file.created_at) / DAY_S
        assert usual == usual_days
        if taken:
            assert served.upload(b"x", **expiring(days)).expires_at
        else:
            with pytest.raises(openai.BadRequestError):
                served.upload(b"x", **expiring(days))


def test_old_versions_ignore_an_expiry_in_silence(tmp_path: Path) -> None:
    """Before 2025-03-01-preview `expires_at` stays null (§2)."""
    with serving(tmp_path / "state") as served:
        for version, kept in (("2024-10-21", False), ("2025-01-01-preview", False), ("2025-03-01-preview", True)):
            client = openai.AzureOpenAI(azure_endpoint=served.url, api_version=version, api_key="k")
            file = client.files.create(file=("in.jsonl", b"x"), purpose="batch", **expiring(14))
            assert (file.expires_at is not None) == kept


@pytest.mark.parametrize(("cap", "more"), [(500, {}), (10_000, expiring(14))], ids=["without", "with"])
def test_input_files_are_capped_with_and_without_an_expiry(tmp_path: Path, cap: int, more: dict[str, Any]) -> None:
    """500 and 10,000, apart from each other: `quotaExceeded`; deleting one makes room; result files are not counted."""
    with serving(tmp_path / "state") as served:
        done = served.finished(served.request_lines(2))
        served.client().files.delete(done.input_file_id)
        first = served.upload(b"x", **more)
        doc = served.service._files.doc(first.id)
        with served.service._store.guard:  # as many as the cap, less one, put there without a request each
            served.service._store._db.execute("BEGIN")
            for number in range(cap - 1):
                served.service._store.add_file({**doc, "id": f"file-{number}"})
            served.service._store._db.execute("COMMIT")
        with pytest.raises(openai.BadRequestError) as told:
            served.upload(b"x", **more)
        assert told.value.code == "quotaExceeded"
        words = "without expiry" if not more else "with expiry"
        assert f"The quota for files {words} is reached. The maximum is {cap}." in str(told.value)
        assert served.upload(b"x", **({} if more else expiring(14))).id
        served.client().files.delete(first.id)
        assert served.upload(b"x", **more).id


def test_openai_has_no_cap_on_files_but_wants_their_name(tmp_path: Path) -> None:
    """`.jsonl`, or 400; lines are not looked at before there is a batch."""
    with serving(tmp_path / "state", "openai") as served:
        with pytest.raises(openai.BadRequestError, match="Must be .jsonl"):
            served.upload(b"x", name="in.txt")
        assert served.upload(b"{malformed", name="in.jsonl").id.startswith("file-")


@pytest.mark.parametrize("profile", ["azure", "openai"])
def test_ids_look_as_each_services_do(tmp_path: Path, profile: str) -> None:
    """Azure: 32 hexadecimal digits for inputs, with dashes for results; OpenAI: letters and digits."""
    with serving(tmp_path / "state", profile) as served:
        now = served.finished(served.request_lines(1))
        hexadecimal, dashes = len(now.input_file_id) == 5 + 32, now.output_file_id.count("-")
        assert (hexadecimal, dashes >= 5) == ((True, True) if profile == "azure" else (False, False))
        assert now.id.startswith("batch_")


def test_a_file_is_pending_then_processed_and_a_batch_waits_for_that(tmp_path: Path) -> None:
    """Azure refuses a batch on a pending file in words that a client may wait on; OpenAI takes it (§2)."""
    for profile in ("azure", "azure-v1", "openai"):
        with serving(tmp_path / profile, profile) as served:
            client = served.client()
            file = client.files.create(file=("in.jsonl", served.request_lines(1)), purpose="batch")
            assert file.status == "pending"
            asked: dict[str, Any] = {
                "input_file_id": file.id, "endpoint": URLS[profile], "completion_window": "24h",
            }  # fmt: skip
            if profile == "openai":
                assert client.batches.create(**asked).id
                continue
            with pytest.raises(openai.BadRequestError, match="in 'pending' state. Only files with status 'Processed'"):
                client.batches.create(**asked)
            served.clock.now += 100
            assert client.files.retrieve(file.id).status == "processed"
            assert client.batches.create(**asked).id


def test_content_is_given_in_ranges_and_streams(tmp_path: Path) -> None:
    """206 with its place for a range, 416 beyond the end; a stream is the file."""
    content = os.urandom(300_000)
    with serving(tmp_path / "state") as served:
        client, file = served.client(), served.upload(content)
        raw = client.files.with_raw_response.content(file.id, extra_headers={"Range": "bytes=1000-1999"})
        assert raw.status_code == 206 and raw.headers["content-range"] == "bytes 1000-1999/300000"
        assert raw.content == content[1_000:2_000]
        rest = client.files.content(file.id, extra_headers={"Range": "bytes=299000-"})
        assert rest.read() == content[299_000:]
        with pytest.raises(openai.APIStatusError) as told:
            client.files.content(file.id, extra_headers={"Range": "bytes=300000-"})
        assert told.value.status_code == 416
        with client.files.with_streaming_response.content(file.id) as answer:
            assert b"".join(answer.iter_bytes(4_096)) == content


def test_results_expire_only_when_that_was_asked_for(tmp_path: Path) -> None:
    """`output_expires_after` counts from the result's own creation; else Azure keeps them and OpenAI for 30 days."""
    for profile in ("azure", "azure-v1", "openai"):
        with serving(tmp_path / profile, profile) as served:
            client, asked = served.client(), {"anchor": "created_at", "seconds": 3_600}
            kept, gone = (served.finished(served.request_lines(1), **more) for more in
                          ({}, {"output_expires_after": asked}))  # fmt: skip
            told = client.files.retrieve(gone.output_file_id)
            assert told.expires_at - told.created_at == 3_600
            served.clock.now += 4_000
            assert served.lines_of(kept.output_file_id)
            with pytest.raises(openai.NotFoundError):
                client.files.content(gone.output_file_id)
            usual = client.files.retrieve(kept.output_file_id).expires_at
            assert (usual is None) == (profile != "openai")
            for wrong in ({**asked, "seconds": 3_599}, {**asked, "anchor": "x"}, {**asked, "seconds": 2_592_001}):
                with pytest.raises(openai.BadRequestError):
                    served.create(served.request_lines(1), output_expires_after=wrong)


@pytest.mark.parametrize(
    ("metadata", "taken"),
    [
        ({str(n): "v" for n in range(16)}, True), ({str(n): "v" for n in range(17)}, False),
        ({"k" * 64: "v" * 512}, True), ({"k" * 65: "v"}, False), ({"k": "v" * 513}, False), ({"": "v"}, False),
        ({"k": 7}, False), ({"k": None}, False), ({"ключ": "€" * 512}, True), ([], False), ("text", False),
    ],
    ids=range(11),
)  # fmt: skip
def test_metadata_has_its_rules(tmp_path: Path, metadata: Any, taken: bool) -> None:
    """At most 16 pairs of text, keys of 1 to 64 and values to 512 characters; it comes back as it was given."""
    with serving(tmp_path / "state") as served:
        if not taken:
            with pytest.raises(openai.BadRequestError):
                served.create(served.request_lines(1), metadata=metadata)
            return
        batch = served.create(served.request_lines(1), metadata=metadata)
        assert served.client().batches.retrieve(batch.id).metadata == metadata


def test_an_upload_that_is_too_large_or_malformed_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """400 in a sentence; no file in the list, and no scrap on the disk."""
    from dataclasses import replace

    from pipeline.emulator import settings

    small = replace(settings.PROFILES["azure"], file_bytes_max=1_000)
    monkeypatch.setitem(settings.PROFILES, "azure", small)
    settings._habits.cache_clear()
    try:
        with serving(tmp_path / "state") as served:
            client = served.client()
            assert served.upload(b"x" * 1_000).bytes == 1_000
            with pytest.raises(openai.BadRequestError, match="File is too large"):
                served.upload(b"x" * 1_001)
            with pytest.raises(openai.BadRequestError, match="purpose"):
                client.files.create(file=("in.jsonl", b"x"), purpose="fine-tune")
            half = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nab'
            for body in (b"", b"--x\r\n", half, half + b"\r\n--x--\r\n"):
                answer = httpx2.post(
                    f"{served.url}/openai/files?api-version=2024-10-21", content=body,
                    headers={"api-key": "k", "content-type": "multipart/form-data; boundary=x"},
                )  # fmt: skip
                assert answer.status_code == 400 and answer.json()["error"]["code"] == "invalidPayload"
            assert len(client.files.list().data) == 1
            assert list((tmp_path / "state").glob("upload.*")) == []
    finally:
        settings._habits.cache_clear()
