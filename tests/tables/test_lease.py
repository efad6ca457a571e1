"""Leases allow one owner, on a local path and on a real S3 server, with real processes that exit and pause."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvq_batch.domain.errors import FatalError, SpecError
from kvq_batch.domain.shard import Shard
from kvq_batch.storage.objects import ConditionalObject
from kvq_batch.tables import lease as leases
from kvq_batch.tables.lease import FILE, Holder, hold, lease_file, read_holder
from tests.support.processes import started
from tests.support.s3 import S3Location
from tests.support.stores import Store

KEEPER = """
import sys, time
from kvq_batch.tables import lease as leases
from kvq_batch.tables.lease import Holder, hold
from kvq_batch.storage.options import StorageOptions
leases.RENEW_EVERY_S = 0.3
uri, endpoint = sys.argv[1], sys.argv[2] or None
with hold(uri, StorageOptions(endpoint, "us-east-1"), Holder.this_process("keeper", "nightly")) as lease:
    print("held", flush=True)
    while lease.successor is None:
        time.sleep(0.05)
    print(f"replaced by {lease.successor}", flush=True)
"""


def me(run_id: str = "mine") -> Holder:
    return Holder.this_process(run_id, "nightly")


@pytest.fixture(autouse=True)
def short_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "LEASE_DURATION_S", 2.0)
    monkeypatch.setattr(leases, "RENEW_EVERY_S", 0.3)
    monkeypatch.setattr(leases, "_POLL_EVERY_S", 0.1)


@pytest.fixture
def keeper(store: Store) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lease until it is killed or loses it."""
    command = [sys.executable, "-c", KEEPER, store.uri, store.options.endpoint_url or ""]
    with started(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


def test_lease_is_held_and_released(store: Store) -> None:
    assert read_holder(store.uri, store.options) is None
    for run_id in ("first", "second"):
        holder = me(run_id)
        with hold(store.uri, store.options, holder) as lease:
            assert read_holder(store.uri, store.options) == holder
            time.sleep(1.0)
            lease.check()
        assert read_holder(store.uri, store.options) is None


def test_second_run_is_rejected_and_names_the_owner(store: Store, keeper: subprocess.Popen[str]) -> None:
    with (
        pytest.raises(SpecError, match=r"run keeper of job 'nightly' \(process \d+ on .* is running"),
        hold(store.uri, store.options, me()),
    ):
        pass
    assert keeper.poll() is None
    holder = read_holder(store.uri, store.options)
    assert holder is not None
    assert (holder.run_id, holder.pid) == ("keeper", keeper.pid)


def test_lease_of_dead_local_owner_is_taken_at_once(
    store: Store, keeper: subprocess.Popen[str], caplog: pytest.LogCaptureFixture
) -> None:
    keeper.kill()
    keeper.wait()
    with hold(store.uri, store.options, me()):
        holder = read_holder(store.uri, store.options)
        assert holder is not None
        assert holder.run_id == "mine"
    assert caplog.messages == []


def test_lease_of_remote_owner_is_taken_after_expiry(s3_prefix: S3Location, caplog: pytest.LogCaptureFixture) -> None:
    elsewhere = Holder("theirs", "nightly", "another-host", "another-boot", 1, 1, me().taken_at)
    s3_prefix.put(FILE, leases._text(elsewhere, 7))
    with hold(s3_prefix.uri, s3_prefix.options, me()):
        assert "run theirs" in caplog.messages[0]
        assert "may still be running" in caplog.messages[0]


def test_paused_owner_notices_that_it_lost_its_lease(s3_prefix: S3Location) -> None:
    command = [sys.executable, "-c", KEEPER, s3_prefix.uri, s3_prefix.options.endpoint_url or ""]
    with started(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        os.kill(process.pid, signal.SIGSTOP)
        with hold(s3_prefix.uri, s3_prefix.options, me()):
            os.kill(process.pid, signal.SIGCONT)
            assert process.stdout.readline().startswith("replaced by run mine of job 'nightly'")


def test_owner_that_lost_its_lease_does_not_release_it(s3_prefix: S3Location) -> None:
    thief = Holder("theirs", "other", "another-host", "another-boot", 1, 1, me().taken_at)
    with hold(s3_prefix.uri, s3_prefix.options, me()) as lease:
        s3_prefix.put(FILE, leases._text(thief, 0))
        end = time.monotonic() + 10
        while lease.successor is None and time.monotonic() < end:
            time.sleep(0.05)
        with pytest.raises(FatalError, match=r"run theirs of job 'other'.* has taken over .* Run mine stops"):
            lease.check()
    assert read_holder(s3_prefix.uri, s3_prefix.options) == thief


def test_expired_shard_leases_are_released(s3_prefix: S3Location, caplog: pytest.LogCaptureFixture) -> None:
    """Two drivers on another machine crashed, and a run without shards starts."""
    shards = [Shard(number, 2) for number in (1, 2)]
    for shard in shards:
        elsewhere = Holder(f"run-{shard}", "nightly", "another-host", "another-boot", 1, 1, me().taken_at)
        s3_prefix.put(lease_file(shard), leases._text(elsewhere, 7))
    with hold(s3_prefix.uri, s3_prefix.options, me()):
        assert sorted(text.split(" of job")[0].rpartition(" ")[2] for text in caplog.messages) == ["run-1/2", "run-2/2"]
        holder = read_holder(s3_prefix.uri, s3_prefix.options)
        assert holder is not None
        assert holder.run_id == "mine"
    for shard in shards:
        found = ConditionalObject(f"{s3_prefix.uri}/{lease_file(shard)}", s3_prefix.options).read()
        assert found is not None
        assert found[0] == b""


def test_foreign_lease_file_is_rejected(store: Store) -> None:
    store.put(FILE, b"somebody's notes")
    with pytest.raises(SpecError, match="is not a lease of this kvq-batch"), hold(store.uri, store.options, me()):
        pass


def test_store_without_conditional_writes_is_rejected() -> None:
    from kvq_batch.storage.options import StorageOptions

    with pytest.raises(SpecError, match="local path or s3://"), hold("memory://x", StorageOptions(), me()):
        pass


def test_reused_pid_is_not_the_owner(tmp_path: Path) -> None:
    holder = me()
    assert not holder.is_dead_here
    later = Holder(
        holder.run_id, holder.job, holder.host, holder.boot_id, holder.pid, holder.start_ticks - 1, holder.taken_at
    )
    assert later.is_dead_here
