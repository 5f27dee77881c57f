"""A SLURM of one node on loopback: munge, slurmctld and slurmd as processes of this user, their files in one folder.

Run as a program it starts one, prints its SLURM_CONF, and ends it at the end of its input.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "srun")
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])

CONFIGURATION = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=15
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort={controller}
SlurmdPort={daemon}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0
ReturnToService=2
MpiDefault=none
KillWait=5
MinJobAge=300
SlurmdTimeout=20
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES State=UP PriorityTier=1 PreemptMode=REQUEUE
PartitionName=urgent Nodes={host} State=UP PriorityTier=10 PreemptMode=OFF
"""


def missing():
    """Why SLURM cannot be started here; None where it can."""
    gone = [program for program in NEEDED if shutil.which(program, path=PATH) is None]
    if gone:
        return f"{', '.join(gone)} not installed (Debian: apt-get install slurm-wlm munge)"
    return None if os.geteuid() == 0 else "slurmd starts as root alone"


def _free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class SlurmCluster:
    """``with SlurmCluster() as cluster``: afterwards every process of it is gone."""

    def __init__(self, cpus=3):
        self.cpus, self.processes = cpus, {}

    def __enter__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: sockets have names of 107 bytes
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        self.conf = self.folder / "slurm.conf"
        self.conf.write_text(CONFIGURATION.format(
            host=socket.gethostname().split(".")[0], user="root", folder=self.folder, cpus=self.cpus,
            controller=_free_port(), daemon=_free_port()))
        (self.folder / "munge.key").write_bytes(os.urandom(1024))
        (self.folder / "munge.key").chmod(0o400)
        self.environment = os.environ | {"SLURM_CONF": str(self.conf), "PATH": PATH}
        try:
            self._start("munged", "--foreground", "--force", f"--key-file={self.folder}/munge.key",
                        f"--socket={self.folder}/munge.socket", f"--pid-file={self.folder}/munge.pid",
                        f"--log-file={self.folder}/munge.log", f"--seed-file={self.folder}/munge.seed")
            self._wait(lambda: (self.folder / "munge.socket").exists(), "munged")
            self._start("slurmctld", "-D", "-i")
            self._wait(lambda: self.call("scontrol", "ping", check=False).returncode == 0, "slurmctld")
            self.start_node()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self, program, *arguments):
        log = (self.folder / f"{program}.out").open("ab")
        self.processes[program] = subprocess.Popen(
            [shutil.which(program, path=PATH), *arguments], stdout=log, stderr=log, env=self.environment,
            start_new_session=True)
        log.close()

    def _wait(self, ready, what):
        if not self._comes(ready, what):
            raise RuntimeError(f"{what} does not start: {self.logs()}")

    def _comes(self, ready, what):
        deadline = time.monotonic() + 60
        while not ready():
            if time.monotonic() > deadline or self.processes.get(what, self.processes["munged"]).poll() is not None:
                return False
            time.sleep(0.1)
        return True

    def logs(self):
        states = [self.call(*command, check=False).stdout for command in (("sinfo",), ("squeue",))]
        return "\n".join([*states, *(path.read_text(errors="replace")[-1500:]
                                     for path in self.folder.glob("*.[lo][ou][gt]"))])

    def start_node(self):
        """Start slurmd and wait until the node takes jobs.

        A daemon that dies as it starts a job leaves a node that can stay unready; the next daemon registers it anew.
        """
        for _ in range(3):
            self._start("slurmd", "-D")
            if self._comes(lambda: any(word in self.call("sinfo", "--noheader", "-o", "%T", check=False).stdout
                                       for word in ("idle", "mixed", "alloc")), "slurmd"):
                return
            said = self.logs()
            self.stop_node()
        raise RuntimeError(f"slurmd does not start: {said}")

    def stop_node(self):
        """Kill slurmd; the jobs that it started go on."""
        self.processes["slurmd"].kill()
        self.processes.pop("slurmd").wait()

    def call(self, *command, check=True):
        return subprocess.run([shutil.which(command[0], path=PATH), *command[1:]], env=self.environment, text=True,
                              capture_output=True, check=check, timeout=60)

    def __exit__(self, *_):
        with contextlib.suppress(Exception):
            self.call("scancel", "--full", "--signal=KILL", f"--user={os.environ.get('USER', 'root')}", check=False)
            self.call("scancel", f"--user={os.environ.get('USER', 'root')}", check=False)
            deadline = time.monotonic() + 15
            while self.call("squeue", "--noheader", check=False).stdout.strip() and time.monotonic() < deadline:
                time.sleep(0.2)
        for name in ("slurmd", "slurmctld", "munged"):
            process = self.processes.pop(name, None)
            if process:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


if __name__ == "__main__":
    with SlurmCluster() as cluster:
        print(cluster.conf, flush=True)
        sys.stdin.read()
