"""One process at a time makes a run: a lock in the run's folder, kept alive by a heartbeat.

The lock is a file, so that it also holds between machines that share a file system. Its owner touches it from a
thread of its own. A process that finds the lock waits until the owner is done, or has been seen to be dead: its file
has not changed for :data:`LEASE_S` seconds of the waiting process's own monotonic clock, which neither a wrong nor a
changed clock disturbs. On the same machine, an owner whose process is gone is told at once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import LeaseCompromise, SoftFileLease, Timeout

from law.base.processes import rank
from law.runs.folder import LOCK

log = logging.getLogger(__name__)

LEASE_S = 120.0
"""An owner that has not touched its lock for so long is taken to be dead. It touches it three times as often."""

POLL_S = 1.0
"""A waiting process looks at the lock this often."""


@contextmanager
def sole(folder: Path) -> Iterator[None]:
    """Inside, no other process makes the run of ``folder``. Waits for one that does.

    Of several processes of one run, the first one holds the lock. A process that has lost it, because it was
    stopped for longer than :data:`LEASE_S` or the folder has gone, ends at once, so that it writes into no run of another.
    """
    if rank():
        yield
        return
    lease = SoftFileLease(folder / LOCK, lease_duration=LEASE_S, on_compromise=_end)
    try:
        lease.acquire(blocking=False)
    except Timeout:
        owner = lease.owner
        log.info(
            "%s is being made by %s; waiting until that has ended",
            folder,
            f"process {owner.pid} on {owner.hostname}" if owner else "another process",
        )
        lease.acquire(poll_interval=POLL_S)
    try:
        yield
    finally:
        lease.release()


def _end(lost: LeaseCompromise) -> None:
    log.critical(
        "this process has lost %s (%s): it stood still for more than %g s and another one makes the run now, or the "
        "folder has gone. It ends here, and writes nothing more. Give the command again to go on with the sweep",
        *(lost.lock_file, lost.reason, LEASE_S),
    )
    logging.shutdown()
    os._exit(1)
