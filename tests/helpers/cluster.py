"""Run a real Slurm on this machine: `python tests/helpers/cluster.py COMMAND` runs a shell command in a new cluster.

Everything lives in namespaces of its own: /etc/slurm and /etc/hosts are mounted over, all processes end with the first one
(which ends with this program, also by SIGKILL), and each node has a host name. So several clusters run side by side, and
nothing of them stays. Nodes are daemons on the same host; their GPUs are device nodes that nothing opens.
"""

import argparse
import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

PACKAGES = {"slurmctld": "slurm-wlm", "munged": "munge", "slurmdbd": "slurmdbd", "mariadbd": "mariadb-server"}
PATH = "/usr/sbin:/sbin:/usr/bin:/bin"  # where Debian puts daemons, also for users
READY_S = 90
# All processes of the cluster descend from this one, and the kernel ends them with it. Folders above Python that are closed to other
# users (/root) are open in here, by layers over them.
FIRST = """
set -e
mount --bind {folder}/etc /etc/slurm
mount --bind {folder}/hosts /etc/hosts
hostname login
for closed in {closed}; do
  mkdir -p {folder}/open$closed/upper {folder}/open$closed/work
  mount -t overlay none -o lowerdir=$closed,upperdir={folder}/open$closed/upper,workdir={folder}/open$closed/work $closed
  chmod 755 $closed
done
exec {python} -c 'import signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); print("ready", flush=True); sys.stdin.read()'
"""
# what differs from Slurm's defaults: no cgroups, no slurm user, several nodes with more CPUs and memory than the host has; a job that is put
# back waits cred_expire (120 s) before it starts, a node that fails is noticed after SlurmdTimeout (300 s)
SLURM_CONF = """
ClusterName=test
SlurmctldHost=login(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/munge/socket,cred_expire=15
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
JobAcctGatherParams=OverMemoryKill
GresTypes=gpu
SchedulerParameters=sched_interval=2,bf_interval=2
KillWait=5
SlurmdTimeout=10
MinJobAge=7200
ReturnToService=2
SlurmdParameters=config_overrides
{accounting}
"""
NODE = "NodeName={name} NodeHostname={name} NodeAddr=127.0.0.1 Port={port} CPUs=8 RealMemory=16000 Gres=gpu:2 State=UNKNOWN\n"
ACCOUNTING = """
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={folder}/munge/socket
AccountingStorageTRES=gres/gpu
AccountingStoreFlags=job_comment
"""
SLURMDBD_CONF = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
DbdHost=login
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=root
PidFile={folder}/slurmdbd.pid
LogFile={folder}/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
"""


class Cluster:
    """A context in which a cluster runs. Its files lie in `folder`, which must be a new one.

    Attributes:
        nodes: names of the nodes (8 CPUs, 16 GB and 2 GPUs each, all of them pretended).
        log: folder of the daemons' logs.
    """

    def __init__(self, folder: Path, nodes: int = 2, accounting: bool = False, conf: str = ""):
        """Configure slurmdbd and MariaDB for sacct by `accounting`; `conf` adds lines to slurm.conf."""
        self.folder, self.accounting, self.log = folder.resolve(), accounting, folder.resolve() / "log"
        self.nodes = [f"node{i}" for i in range(nodes)]
        self._conf, self._root = conf, [] if os.geteuid() == 0 else ["sudo", "-n"]

    def __enter__(self) -> Self:
        self._install()
        self._write_files()
        with contextlib.ExitStack() as undo:
            undo.callback(self._end)
            self._begin()
            if self.accounting:
                self._start_accounting()
            self.start("slurmctld")
            for node in self.nodes:
                self.start(node)
            self.wait_until_idle()
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    # --- what runs in it -----------------------------------------------------------------------------------------------

    def popen(self, command: list[str], cwd: Path | str = "/", uid: int | None = None, **options) -> subprocess.Popen:
        """Start a command on the submit host, as this user or as `uid`. The process's pid is not the command's."""
        enter = [*self._root, "nsenter", f"--target={self._pid}", "--mount", "--pid", "--uts", f"--wdns={cwd}"]
        uid = os.getuid() if uid is None else uid
        if uid != 0:
            enter += ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))}
        environment |= {"PATH": f"{os.environ['PATH']}:{PATH}"} | options.pop("env", {})
        given = [f"{key}={value}" for key, value in environment.items()]
        return subprocess.Popen([*enter, "env", "-i", *given, *command], **options)

    def run(self, command: list[str], **options) -> str:
        """Run a command on the submit host; returns what it wrote to stdout. Raises RuntimeError where it fails."""
        process = self.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
        output, errors = process.communicate()
        if process.returncode != 0:
            raise RuntimeError(f"{shlex.join(command)}: exit code {process.returncode}: {output}{errors}")
        return output

    def jobs(self) -> list[dict[str, str]]:
        """Return all jobs that the controller remembers (of the last five minutes, and unfinished ones), as scontrol shows them."""
        lines = self.run(["scontrol", "--oneliner", "show", "job"]).splitlines()
        return [dict(re.findall(r"(\S+?)=(.*?) *(?= \S+?=|$)", line)) for line in lines if line.startswith("JobId=")]

    # --- daemons -------------------------------------------------------------------------------------------------------

    def start(self, name: str) -> None:
        """Start slurmctld or a node's slurmd."""
        node = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec slurmd -N "$0"', name]
        self._as_root(["slurmctld"] if name == "slurmctld" else node)

    def stop(self, name: str, how: str = "KILL") -> None:
        """Kill slurmctld, or a node's slurmd alone: jobs run on. A slurmctld that is killed forgets what it was last told."""
        self._as_root(["kill", f"-{how}", (self.folder / f"{name}.pid").read_text().strip()])

    def crash(self, node: str) -> None:
        """Kill a node's slurmd and everything that runs on it, as a power cut does."""
        uts = 'for p in /proc/[0-9]*; do [ "$(readlink $p/ns/uts)" = "$0" ] && kill -KILL ${p#/proc/}; done; true'
        pid = (self.folder / f"{node}.pid").read_text().strip()
        name = self._as_root(["readlink", f"/proc/{pid}/ns/uts"]).strip()
        self._as_root(["sh", "-c", uts, name])

    def wait_until_idle(self, timeout_s: float = READY_S) -> None:
        """Wait until all nodes are there and nothing runs on them.

        Raises:
            TimeoutError: with the ends of the daemons' logs.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with contextlib.suppress(RuntimeError):
                if self.run(["sinfo", "--noheader", "--Node", "--format=%T"]).split() == ["idle"] * len(self.nodes):
                    return
            time.sleep(0.2)
        ends = "\n".join(f"{path.name}:\n{path.read_text()[-1000:]}" for path in sorted(self.log.iterdir()))
        raise TimeoutError(f"{self.folder}: nodes not idle after {timeout_s:.0f} s\n{ends}")

    # --- making and ending ---------------------------------------------------------------------------------------------

    def _install(self) -> None:
        daemons = ("slurmctld", "munged", *(("slurmdbd", "mariadbd") if self.accounting else ()))
        missing = [PACKAGES[name] for name in daemons if shutil.which(name, path=PATH) is None]
        if not missing:
            return
        if shutil.which("apt-get") is None:
            raise RuntimeError(
                f"{', '.join(missing)}: not installed, and there is no apt-get; install them, then run again"
            )
        for command in (["update"], ["install", "--yes", "--no-install-recommends", *missing]):
            # no daemon starts by itself: /etc/slurm is not theirs
            quiet = ["env", "DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1", "apt-get", "-qq", *command]
            done = subprocess.run([*self._root, *quiet], capture_output=True, text=True)
            if done.returncode != 0:
                raise RuntimeError(f"{shlex.join(quiet)}: {done.stdout[-1000:]}{done.stderr[-1000:]}")

    def _write_files(self) -> None:
        ports = _free_ports(len(self.nodes) + 2)
        for name in ("etc", "munge", "state", "log", "dev", "db"):
            (self.folder / name).mkdir(parents=True)
        for node in self.nodes:
            (self.folder / "spool" / node).mkdir(parents=True)
        # jobs of all users read the configuration and talk to munged
        for path in (self.folder, self.folder / "etc", self.folder / "munge"):
            path.chmod(0o755)
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost login {' '.join(self.nodes)}\n")
        (self.folder / "munge" / "key").write_bytes(os.urandom(128))
        (self.folder / "munge" / "key").chmod(0o600)
        accounting = ACCOUNTING.format(folder=self.folder, port=ports[1]) if self.accounting else ""
        conf = SLURM_CONF.format(folder=self.folder, ports=ports, accounting=accounting) + self._conf + "\n"
        for name, port in zip(self.nodes, ports[2:], strict=True):
            conf += NODE.format(name=name, port=port)
        conf += f"PartitionName=main Nodes={','.join(self.nodes)} Default=YES MaxTime=INFINITE State=UP\n"
        (self.folder / "etc" / "slurm.conf").write_text(conf)
        (self.folder / "etc" / "gres.conf").write_text(f"Name=gpu File={self.folder}/dev/gpu[0-1]\n")
        (self.folder / "etc" / "slurmdbd.conf").write_text(SLURMDBD_CONF.format(folder=self.folder, port=ports[1]))
        (self.folder / "etc" / "slurmdbd.conf").chmod(0o600)

    def _begin(self) -> None:
        """Make the namespaces and start munged."""
        needed = [Path(name).resolve() for name in (sys.prefix, sys.base_prefix, __file__)]
        closed = {str(above) for path in needed for above in path.parents if not above.stat().st_mode & 1}
        script = FIRST.format(
            folder=shlex.quote(str(self.folder)),
            python=shlex.quote(sys.executable),
            closed=" ".join(map(shlex.quote, sorted(closed))),
        )
        spaces = ["unshare", "--mount", "--pid", "--uts", "--fork", "--mount-proc", "--propagation=private"]
        self._first = subprocess.Popen(
            [*self._root, *spaces, "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        if self._first.stdout.readline() != "ready\n":
            raise RuntimeError("no namespaces for a cluster: unshare needs root (or sudo without a password)")
        self._pid = _youngest_child(self._first.pid)
        # plugins, such as a distribution's plugstack.conf, are not wanted; devices must be device nodes
        for i in range(2):
            self._as_root(["mknod", f"{self.folder}/dev/gpu{i}", "c", "1", "3"])
        if self._root:
            self._as_root(
                ["chown", "-R", "root:root", f"{self.folder}/munge", f"{self.folder}/etc", f"{self.folder}/db"]
            )
        files = {
            "key-file": "munge/key",
            "socket": "munge/socket",
            "pid-file": "munge/pid",
            "log-file": "log/munged.log",
        }
        options = [f"--{key}={self.folder / value}" for key, value in files.items()]
        # --force: the folder lies below one that others may write to (/tmp)
        self._as_root(["munged", "--force", f"--seed-file={self.folder}/munge/seed", *options])

    def _start_accounting(self) -> None:
        data = [f"--datadir={self.folder}/db", "--user=root"]
        self._as_root(["mariadb-install-db", "--no-defaults", *data, "--auth-root-authentication-method=normal"])
        sock = f"{self.folder}/munge/mysql"
        log = f"--log-error={self.folder}/log/mariadb.log"
        server = [
            "mariadbd",
            "--no-defaults",
            *data,
            f"--socket={sock}",
            "--skip-networking",
            "--skip-grant-tables",
            log,
        ]
        self._as_root(["sh", "-c", f"{shlex.join(server)} > /dev/null 2>&1 &"])
        _wait_for(lambda: Path(sock).exists(), "MariaDB")
        self._as_root(["env", f"MYSQL_UNIX_PORT={sock}", "slurmdbd"])
        _wait_for(lambda: self._succeeds(["sacctmgr", "--immediate", "add", "cluster", "test"]), "slurmdbd")

    def _end(self) -> None:
        if not hasattr(self, "_first"):
            return
        self._first.stdin.close()
        self._first.wait()

    def _as_root(self, command: list[str]) -> str:
        return self.run(command, uid=0, stdin=subprocess.DEVNULL)

    def _succeeds(self, command: list[str]) -> bool:
        with contextlib.suppress(RuntimeError):
            self._as_root(command)
            return True
        return False


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _youngest_child(pid: int) -> int:
    """Return the last descendant: sudo and unshare wait for the first process of the new namespace."""
    while children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        pid = int(children[0])
    return pid


def _wait_for(ready, what: str) -> None:
    deadline = time.monotonic() + READY_S
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not ready after {READY_S} s")
        time.sleep(0.1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--accounting", action="store_true", help="with slurmdbd and MariaDB, so that sacct works")
    parser.add_argument("command", help="run by bash in this folder, such as 'sinfo; srun hostname'")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with (
        tempfile.TemporaryDirectory(prefix="slurm-") as folder,
        Cluster(Path(folder) / "cluster", given.nodes, given.accounting) as cluster,
    ):
        return cluster.popen(["bash", "-c", given.command], cwd=Path.cwd()).wait()


if __name__ == "__main__":
    sys.exit(main())
