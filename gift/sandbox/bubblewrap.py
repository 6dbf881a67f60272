"""The command line of bubblewrap: what a sandboxed program sees, who it is, and how much it may use."""

import os
import secrets
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

PYTHON = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}").resolve()
"""The interpreter behind a virtual environment's."""
STANDARD = str(Path(os.__file__).resolve().parent)
NUM_FILES = 64
CAP_SYS_ADMIN = 21
NUM_USERS = 1 << 15  # of a container that has users of its own


@dataclass(frozen=True)
class Limits:
    """What one run may use. Memory is the address space of each process; the other limits hold for all together."""

    seconds: float = 6.0  # of the clock, and of processor time for each process
    memory_mib: int = 512
    processes: int = 8  # and threads, with two of the sandbox's own
    scratch_mib: int = 64
    output_kib: int = 64  # of stdout and stderr together


def command(limits: Limits, files: dict[str, int], rules: int, tells: int) -> list[str]:
    """bwrap's command line; the numbers are open files that it inherits."""
    words = [shutil.which("bwrap") or "bwrap", "--die-with-parent", "--new-session"]
    words += ["--clearenv", "--setenv", "PYTHONHASHSEED", "0"]
    words += ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    words += ["--hostname", "sandbox", "--cap-drop", "ALL", "--seccomp", str(rules), "--json-status-fd", str(tells)]
    user = _user_to_become()
    if user is not None:
        # The limit on processes does not hold for root, nor for a user namespace's root that is root outside.
        words += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        words += ["--unshare-user", "--uid", "65534", "--gid", "65534"]
    shown = [["--ro-bind", path, path] for path in _library()]
    shown += [["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]]
    shown += [["--dev-bind", path, path] for path in ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")]
    shown += [["--perms", "0444", "--ro-bind-data", str(number), path] for path, number in files.items()]
    for parent in sorted({str(parent) for *_, path in shown for parent in list(Path(path).parents)[:-1]}):
        words += ["--perms", "0755", "--dir", parent]  # which bwrap would make for root alone
    words += [word for option in shown for word in option]
    for path in ("/lib", "/lib64"):
        if Path(path).is_symlink():
            words += ["--symlink", str(Path(path).readlink()), path]
    for path in _packages():
        words += ["--tmpfs", path, "--remount-ro", path]
    words += ["--perms", "1777", "--size", str(limits.scratch_mib << 20), "--tmpfs", "/tmp"]
    words += ["--remount-ro", "/", "--chdir", "/tmp"]
    kernel = {
        "AS": limits.memory_mib << 20,
        "CORE": 0,
        "CPU": int(limits.seconds) + 1,
        "FSIZE": limits.scratch_mib << 20,
        "NOFILE": NUM_FILES,
        "NPROC": limits.processes,
    }
    python = [str(PYTHON), "-P", "-s", "-S", "-B", "-X", "utf8", "/prelude.py", "/code/main.py"]
    become = "-" if user is None else str(user)
    return [*words, *python, become, *(f"{name}={value}" for name, value in kernel.items())]


def _library() -> list[str]:
    """What Python needs to start: itself, its standard library, the shared libraries."""
    places = ["/usr/lib", "/usr/lib64", "/lib", "/lib64", str(PYTHON.parents[1] / "lib"), STANDARD]
    found = [str(PYTHON)]
    for place in places:
        path = Path(place)
        if path.is_dir() and not path.is_symlink() and not any(path.is_relative_to(other) for other in found):
            found.append(place)
    return found


def _packages() -> list[str]:
    """Folders of installed packages inside those of the library, to be hidden."""
    places = [f"{STANDARD}/site-packages", f"{STANDARD}/dist-packages", "/usr/lib/python3/dist-packages"]
    return [place for place in places if Path(place).is_dir()]


def _user_to_become() -> int | None:
    """A user number that nobody has, by chance also no other sandbox, so that its processes are counted alone.

    None where this process cannot become another user, or cannot mount without a user namespace of its own.
    """
    with Path("/proc/self/status").open(encoding="utf-8") as lines:
        effective = next(line.split()[1] for line in lines if line.startswith("CapEff:"))
    start, _, count = map(int, Path("/proc/self/uid_map").read_text(encoding="utf-8").splitlines()[-1].split())
    if os.geteuid() != 0 or not int(effective, 16) >> CAP_SYS_ADMIN & 1 or count < NUM_USERS:
        return None
    return min(start + count, 1 << 31) - 1 - secrets.randbelow(min(count // 4, 1 << 28))
