"""A Slurm cluster of one node on this machine, all of it in one folder and on the loopback interface.

Nothing in ``/etc`` is read or written. The three daemons belong to the test that started them, and end with it. A job
that is queued again may begin once the credentials of its first start have expired: here ten seconds, elsewhere two minutes.
"""

from __future__ import annotations

import getpass
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

USER = getpass.getuser()

CONFIGURATION = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
JobRequeue=1
SchedulerParameters=bf_interval=2,sched_interval=2
MinJobAge=300
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def running(command: list[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon in the foreground of a process of its own, ended on the way out."""
    with log.open("wb") as file:
        daemon = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
        try:
            yield daemon
        finally:
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Start the daemons; yields the environment in which Slurm's commands reach them."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    folder.chmod(0o755)  # munge refuses a socket in a folder that others may write to
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    configuration = CONFIGURATION.format(
        folder=folder,
        host=socket.gethostname().partition(".")[0],
        user=USER,
        ports=(free_port(), free_port()),
        cores=os.cpu_count(),
    )
    (folder / "slurm.conf").write_text(configuration)
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    munged = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder / 'munge.socket'}"]
    munged += [f"--{name}-file={folder / f'munge.{name}'}" for name in ("pid", "log", "seed")]
    daemons = [munged, ["slurmctld", "-D", "-c"], ["slurmd", "-D"]]
    with ExitStack() as stack:
        for command in daemons:
            daemon = stack.enter_context(running(command, environment, folder / f"{command[0]}.out"))
            time.sleep(1)
            if daemon.poll() is not None:
                raise RuntimeError((folder / f"{command[0]}.out").read_text())
        wait_until(lambda: "idle" in answer(["sinfo", "-h", "-o", "%T"], environment), 60)
        try:
            yield environment
        finally:  # a job outlives its daemon
            answer(["scancel", f"--user={USER}"], environment)
            wait_until(lambda: not answer(["squeue", "-h"], environment), 60)


def answer(command: list[str], environment: dict[str, str]) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout


def wait_until(reached: Callable[[], bool], seconds: float) -> None:
    """Wait until ``reached()`` is true."""
    end = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.5)
