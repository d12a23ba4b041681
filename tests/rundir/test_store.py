"""A store's client, its promises, its lease and its addresses, against a real S3 server."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from fakes.object_store import BUCKET, Server

from hv15_batch.errors import Refused, StoreError
from hv15_batch.files import read_bytes
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.remote import lease as leases
from hv15_batch.rundir.remote import mirror as mirrors
from hv15_batch.rundir.remote.address import checked_url, is_url, mirror_folder
from hv15_batch.rundir.remote.client import SHORT, Client, Patience
from hv15_batch.rundir.remote.lease import Lease
from hv15_batch.rundir.remote.mirror import Mirror
from hv15_batch.rundir.remote.probe import probe
from hv15_batch.rundir.store import open_uploads, place

URL = f"s3://{BUCKET}/night"
QUICK = Patience(request_seconds=0.5, retries=0, retry_seconds=1.0)


# -- addresses --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["s3://films/a/b", "gs://films/a", "az://films/a", "S3://films/a/"]
)
def test_a_url_of_a_known_kind_is_taken(text: str) -> None:
    assert is_url(text)
    assert checked_url(text) == text.replace("S3", "s3").rstrip("/")


@pytest.mark.parametrize("text", ["outputs/a", "/data/s3", "~/a", "s3:/films/a", "C:\\films"])
def test_a_path_is_no_url(text: str) -> None:
    assert not is_url(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("http://films/a", "is a folder or s3://"),
        ("s3://films", "names a whole bucket"),
        ("s3://films/", "names a whole bucket"),
        ("s3://ab/a", "is no name of a bucket"),
        ("s3:///a", "is no name of a bucket"),
        ("s3://films/a/../b", "'..' is no name of a folder"),
        ("s3://films/a//b", "'' is no name of a folder"),
        ("s3://films/a?x=1", "is no name of a folder"),
        ("s3://films/.a", "is no name of a folder"),
    ],
)
def test_another_url_is_refused(text: str, reason: str) -> None:
    with pytest.raises(Refused, match=rf"run_dir={text.replace('?', '[?]')}: .*") as refused:
        checked_url(text)
    assert reason in str(refused.value)


def test_a_login_in_a_url_is_refused_and_not_shown() -> None:
    with pytest.raises(Refused) as refused:
        checked_url("s3://mary:hunter22@films/a")
    assert "user or a password" in str(refused.value)
    assert "hunter22" not in str(refused.value)
    assert "mary" not in str(refused.value)


def test_two_urls_have_two_working_folders_named_like_the_run() -> None:
    one, other = mirror_folder("s3://films/a/night"), mirror_folder("s3://films/b/night")
    assert one != other
    assert one.name == other.name == "night"


def test_a_foreign_folder_that_names_a_url_is_an_ordinary_folder(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / ".store.json").write_text(json.dumps({"url": "s3://theirs/night"}))
    (tmp_path / ".objects").write_text("7 clips/a.0123456789abcdef.mp4\n")
    run_dir = RunDir(tmp_path)
    assert run_dir.url is None
    assert run_dir.stored() is None
    assert run_dir.shown() == str(tmp_path)
    assert open_uploads(run_dir) is None


# -- client -----------------------------------------------------------------------------------


def test_without_obstore_a_url_is_refused_with_what_to_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(Refused, match=r"pip install 'hv15_batch\[store\]'"):
        Client(URL)


def test_an_object_is_created_read_swapped_listed_and_deleted(s3: Server, tmp_path: Path) -> None:
    client = Client(URL, SHORT)
    file = tmp_path / "clip"
    file.write_bytes(b"frames")
    etag = client.create("clips/a.mp4", file, {"sha256": "ab", "md5": "cd"})
    assert etag == hashlib.md5(b"frames").hexdigest()
    assert client.create("clips/a.mp4", b"other") is None
    item = client.head("clips/a.mp4")
    assert item is not None
    assert (item.size, item.etag, item.sha256, item.md5) == (6, etag, "ab", "cd")
    assert [i.name for i in client.list()] == ["clips/a.mp4"]
    assert client.swap("clips/a.mp4", b"later", etag)
    assert client.swap("clips/a.mp4", b"too late", etag) is None
    assert client.sha256("clips/a.mp4") == hashlib.sha256(b"later").hexdigest()
    client.delete(["clips/a.mp4"])
    assert client.head("clips/a.mp4") is None
    assert client.get("clips/a.mp4") is None


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (401, "does not know these credentials"),
        (403, "does not allow to write"),
        (500, "it answered with 500, also when asked again"),
    ],
)
def test_an_answer_of_the_server_becomes_one_message_without_the_key(
    s3: Server, status: int, reason: str
) -> None:
    s3.fail("PUT", "clips/", status)
    with pytest.raises(StoreError) as failed:
        Client(URL, QUICK).put("clips/a", b"a")
    assert reason in str(failed.value)
    assert URL in str(failed.value)
    assert "key-of-nobody" not in str(failed.value)


@pytest.mark.parametrize(
    ("url", "environ", "reason"),
    [
        ("az://films/night", {}, "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"),
        (
            "az://films/night",
            {"AZURE_STORAGE_ACCOUNT_NAME": "a", "AZURE_STORAGE_ACCOUNT_KEY": "secret-!"},
            "begin with AZURE_",
        ),
        (
            "gs://films/night",
            {"GOOGLE_APPLICATION_CREDENTIALS": "/no/such/secret-file"},
            "set GOOGLE_APPLICATION_CREDENTIALS",
        ),
        (URL, {"AWS_ACCESS_KEY_ID": "secret-id"}, "set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY"),
        (
            URL,
            {"AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "secret-"},
            "other variables that begin with AWS_",
        ),
    ],
)
def test_an_environment_that_opens_no_store_is_one_message_of_what_to_set(
    url: str, environ: dict[str, str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in os.environ if n.startswith(("AWS_", "AZURE_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Refused) as refused:
        place(url)
    message = str(refused.value)
    assert message.startswith(f"run_dir={url}: the environment does not open this store; set ")
    assert reason in message
    assert "secret-" not in message
    assert "network" not in message


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("AWS_ENDPOINT_URL", "", "AWS_ENDPOINT_URL is no address such as https://HOST:PORT"),
        ("AWS_ENDPOINT_URL", "secret-host", "AWS_ENDPOINT_URL is no address"),
        ("AWS_ENDPOINT_URL_S3", "http://u:secret-word@host", "AWS_ENDPOINT_URL_S3 is no address"),
        ("AWS_SECRET_ACCESS_KEY", "secret-key\n", "AWS_SECRET_ACCESS_KEY has a blank or a line"),
        ("AWS_SESSION_TOKEN", "secret key", "AWS_SESSION_TOKEN has a blank or a line break"),
        ("AWS_REGION", "secret<region>", "look at its other variables that begin with AWS_"),
    ],
)
def test_a_variable_that_breaks_every_request_is_named_and_not_shown(
    name: str, value: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for known in [n for n in os.environ if n.startswith("AWS_")]:
        monkeypatch.delenv(known)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "key")
    monkeypatch.setenv(name, value)
    with pytest.raises(Refused) as refused:
        place(URL)
    assert reason in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_missing_bucket_is_named(s3: Server) -> None:
    client = Client("s3://cinema/night", QUICK)
    for ask in (client.list, lambda: client.put("a", b"a"), lambda: client.get("a")):
        with pytest.raises(StoreError, match="there is no bucket cinema; create it"):
            ask()


def test_a_request_that_fails_for_a_while_is_sent_again(s3: Server) -> None:
    s3.fail("PUT", "clips/", 503, times=3)
    assert Client(URL).put("clips/a", b"a")
    assert s3.count("PUT", "clips/") == 4


def test_a_server_that_does_not_answer_gives_a_message(s3: Server) -> None:
    s3.delay("PUT", "clips/", seconds=1.0)
    with pytest.raises(StoreError, match="did not answer in time"):
        Client(URL, QUICK).put("clips/a", b"a")


# -- probe ------------------------------------------------------------------------------------


def test_a_store_that_keeps_to_conditions_is_taken_and_left_clean(s3: Server) -> None:
    probed = probe(Client(URL, SHORT))
    assert probed.etag_is_md5
    assert abs((probed.now - datetime.now(timezone.utc)).total_seconds()) < 5
    assert not s3.names("night")


@pytest.mark.parametrize(
    ("header", "what"),
    [("If-None-Match", "overwrites an object"), ("If-Match", "swaps an object with a stale etag")],
)
def test_a_store_that_ignores_a_condition_is_refused_by_name(
    s3: Server, header: str, what: str
) -> None:
    s3.ignore(header)
    with pytest.raises(Refused, match=f"{URL}: this store {what}"):
        probe(Client(URL, SHORT))
    assert not s3.names("night")


# -- lease ------------------------------------------------------------------------------------


def facts(run_id: str, **others: str) -> dict[str, Any]:
    started = "2026-01-01T00:00:00+00:00"
    return {
        **{"pid": 7, "hostname": "host-of-" + run_id, "run_id": run_id, "started_at": started},
        **{"folder": run_id, **others},
    }


class Hand:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


def lease_of(run_id: str, clock: Hand | None = None, **others: str) -> Lease:
    return Lease(Client(URL, QUICK), facts(run_id, **others), clock or time.monotonic)


def now() -> datetime:
    return datetime.now(timezone.utc)


def test_a_second_run_is_refused_and_told_who_holds_the_lease(s3: Server) -> None:
    lease_of("first").acquire(now())
    with pytest.raises(Refused) as refused:
        lease_of("second").acquire(now())
    assert "in use by process 7 on host-of-first (run first, since 2026" in str(refused.value)


def test_a_released_lease_is_taken_at_once(s3: Server) -> None:
    first, second = lease_of("first"), lease_of("second")
    first.acquire(now())
    first.release()
    second.acquire(now())
    assert second.fault() is None


def test_an_expired_lease_is_taken_and_its_holder_hears_of_it(s3: Server) -> None:
    first, second = lease_of("first"), lease_of("second")
    first.acquire(now())
    with pytest.raises(Refused):
        second.acquire(now() + timedelta(seconds=50))
    second.acquire(now() + timedelta(seconds=70))
    first.renew()
    fault = first.fault()
    assert fault is not None
    assert "the lease was lost to process 7 on host-of-second (run second" in fault
    first.release()
    assert json.loads(bytes(s3.bucket()["night/lock.json"].value))["run_id"] == "second"
    second.renew()
    assert second.fault() is None


def test_the_lease_of_this_machines_dead_run_is_taken_at_once(s3: Server) -> None:
    lease_of("first", folder="ours").acquire(now())
    lease_of("second", folder="ours").acquire(now())


def test_of_two_that_take_an_expired_lease_one_is_refused(s3: Server) -> None:
    lease_of("dead").acquire(now())
    later = now() + timedelta(seconds=70)
    second, third = lease_of("second"), lease_of("third")
    found = Client(URL, QUICK).get(leases.NAME)
    second.acquire(later)
    # What the third one read before.
    third._client.get = lambda name: found  # type: ignore[assignment,method-assign]
    with pytest.raises(Refused):
        third.acquire(later)


def test_an_answer_that_is_lost_means_held_where_the_object_has_ones_own_run(s3: Server) -> None:
    lease = lease_of("first")
    s3.lose_answer("PUT", "lock.json", times=2)
    lease.acquire(now())
    lease.renew()
    assert lease.fault() is None
    lease.renew()
    assert lease.fault() is None
    assert json.loads(bytes(s3.bucket()["night/lock.json"].value))["renewal"] == 3


def test_a_lease_that_cannot_be_renewed_gives_out_nothing_after_a_minute(s3: Server) -> None:
    clock = Hand()
    lease = lease_of("first", clock)
    lease.acquire(now())
    s3.fail("PUT", "lock.json", 503)
    clock.time = 45.0
    lease.renew()
    assert lease.fault() is None
    clock.time = 61.0
    lease.renew()
    assert "could not be renewed for 61 s" in str(lease.fault())
    s3.faults.clear()
    lease.renew()
    assert lease.fault() is None


def test_it_is_renewed_by_a_thread(s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.05)
    lease = lease_of("first")
    lease.acquire(now())
    lease.keep()
    deadline = time.monotonic() + 10
    while s3.count("PUT", "lock.json") < 4:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    lease.release()
    assert json.loads(bytes(s3.bucket()["night/lock.json"].value))["released"] is True


# -- the listing of a start ---------------------------------------------------------------------


@pytest.mark.parametrize("what", ["nothing", "a row", "too long"])
def test_the_listing_of_a_start_holds_under_the_lease_unless_a_run_has_written(
    s3: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    client = Client(URL, SHORT)
    client.put("log/a.parquet", b"rows")
    client.put("clips/a.0123456789abcdef.mp4", b"frames")
    mirror = Mirror(client, tmp_path)
    assert len(mirror.pull(is_start=True)) == 2
    client.put("clips/b.0123456789abcdef.mp4", b"frames")
    client.put("lock.json", b"{}")
    client.put("probe/0123456789abcdef", b"")
    if what == "a row":
        client.put("log/a.parquet", b"more rows")
    elif what == "too long":
        monkeypatch.setattr(mirrors, "FRESH_SECONDS", 0.0)
    s3.requests.clear()
    names = [item.name for item in mirror.pull(may_put=True)]
    assert ("clips/b.0123456789abcdef.mp4" in names) == (what != "nothing")
    assert {"clips/a.0123456789abcdef.mp4", "log/a.parquet", "lock.json"} <= set(names)
    assert (read_bytes(tmp_path / "log" / "a.parquet", 99) == b"more rows") == (what == "a row")
    later = [item.name for item in mirror.pull(may_put=True)]
    assert "clips/b.0123456789abcdef.mp4" in later, "it holds once"
