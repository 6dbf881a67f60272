"""Two hosts on one machine: network namespaces with names and addresses of their own, and SLURM's commands on them."""

import os
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAMES = ("hosta", "hostb")
ADDRESSES = ("10.77.0.1", "10.77.0.2")
SRUN = """#!/bin/bash
# One task on each of two hosts; options of srun are passed over.
while [[ $1 == -* ]]; do echo "$1" >> "$SRUN_SAID"; shift; done
rank=0
for host in hosta hostb; do
    export SLURM_PROCID=$rank SLURM_LOCALID=0 SLURM_STEP_NUM_TASKS=2 GLOO_SOCKET_IFNAME=$host
    ip netns exec $PREFIX$host unshare --uts sh -c 'hostname $0; exec "$@"' $host "$@" & tasks[$rank]=$!
    rank=$((rank + 1))
done
trap 'kill ${tasks[*]}; wait; exit 143' TERM
wait ${tasks[0]}; first=$?
wait ${tasks[1]} && exit $first
"""


def why_not() -> str | None:
    """Why this machine cannot have them; None: it can."""
    try:
        made = subprocess.run(["ip", "netns", "add", f"try{os.getpid()}"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "no `ip` here"
    if made.returncode:
        return f"no network namespaces here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", f"try{os.getpid()}"], check=True)
    return None


@contextmanager
def two_hosts(folder: Path) -> Iterator[dict[str, str]]:
    """The environment for what runs on the first: `srun` starts a task on both, which reach each other alone."""
    prefix = f"gift{os.getpid()}"
    spaces = [prefix + name for name in NAMES]

    def ip(words: str) -> None:
        subprocess.run(["ip", *shlex.split(words)], check=True)

    try:
        for space in spaces:
            ip(f"netns add {space}")
        # An interface is called as its host.
        ip(f"-n {spaces[0]} link add {NAMES[0]} type veth peer name {NAMES[1]} netns {spaces[1]}")
        for space, name, address in zip(spaces, NAMES, ADDRESSES, strict=True):
            ip(f"-n {space} address add {address}/24 dev {name}")
            ip(f"-n {space} link set {name} up")
            ip(f"-n {space} link set lo up")
        programs = folder / "slurm"
        programs.mkdir()
        for name, script in (("srun", SRUN), ("scontrol", f"#!/bin/sh\necho {ADDRESSES[0]}\n")):
            (programs / name).write_text(script)
            (programs / name).chmod(0o755)
        yield {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PREFIX": prefix,
            "SRUN_SAID": str(programs / "said"),
            "SLURM_JOB_NODELIST": "host[a-b]",
            "SLURM_JOB_ID": str(os.getpid()),
        }
    finally:
        for space in spaces:
            subprocess.run(["ip", "netns", "delete", space], check=False, capture_output=True)


def on_first(environment: dict[str, str], command: list[str]) -> list[str]:
    """A command as one of the first host's."""
    space = f"{environment['PREFIX']}{NAMES[0]}"
    return ["ip", "netns", "exec", space, "unshare", "--uts", "sh", "-c", 'hostname $0; exec "$@"', NAMES[0], *command]
