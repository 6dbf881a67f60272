"""The system calls that a sandboxed program may not make, as the filter program that the Linux kernel runs.

Namespaces and resource limits leave a few doors: memory that belongs to no process (shared segments, memfd), reading
and steering other processes, namespaces of one's own, sockets that no network namespace holds (vsock), and parts of the
kernel that ordinary programs never use. The format is classic BPF (linux/filter.h, linux/seccomp.h; seccomp(2)).
"""

import errno
import platform
import struct

# name: (number on x86_64, number on aarch64), from asm/unistd_64.h and asm-generic/unistd.h; None: not there.
_DENIED: dict[str, tuple[int, int | None]] = {
    # memory beyond the limits of processes
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "vmsplice": (278, 75),
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    # namespaces and mounts
    "unshare": (272, 97),
    "setns": (308, 268),
    "chroot": (161, 51),
    "pivot_root": (155, 41),
    "mount": (165, 40),
    "umount2": (166, 39),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    # the kernel itself
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "fanotify_init": (300, 262),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "personality": (135, 92),
    "syslog": (103, 116),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "iopl": (172, None),
    "ioperm": (173, None),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
}
_CLONE, _CLONE3, _SOCKET = (56, 220), (435, 435), (41, 198)
_NEW_NAMESPACE = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_AF_UNIX = 1  # alone: the buffers of internet sockets would be memory beyond the limits
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # linux/audit.h
_X32 = 0x40000000  # x86_64's second table of system calls

_NUMBER, _ARCHITECTURE, _ARGUMENT = 0, 4, 16  # offsets into struct seccomp_data; the low half of the first argument
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # linux/bpf_common.h
_KILL, _ALLOW, _FAIL = 0x80000000, 0x7FFF0000, 0x00050000  # linux/seccomp.h; _FAIL + an errno


def seccomp_filter() -> bytes:
    """The filter for this machine's processor: a denied call fails with EPERM. Raises OSError on other processors."""
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise OSError(f"the sandbox knows the system calls of {' and '.join(_ARCHITECTURES)}, not of {machine}")
    column = list(_ARCHITECTURES).index(machine)
    allow, refuse = _line(_RETURN, _ALLOW), _line(_RETURN, _FAIL + errno.EPERM)
    lines = [
        _line(_LOAD, _ARCHITECTURE),
        _line(_EQUAL, _ARCHITECTURES[machine], then=1),
        _line(_RETURN, _KILL),
        _line(_LOAD, _NUMBER),
        _line(_AT_LEAST, _X32, otherwise=1),
        _line(_RETURN, _KILL),
    ]
    for numbers in _DENIED.values():
        number = numbers[column]
        if number is not None:
            lines += [_line(_EQUAL, number, otherwise=1), refuse]
    # Its flags lie in memory, where a filter cannot look; C libraries then use clone.
    lines += [_line(_EQUAL, _CLONE3[column], otherwise=1), _line(_RETURN, _FAIL + errno.ENOSYS)]
    clone = [_line(_LOAD, _ARGUMENT), _line(_ANY_BIT, _NEW_NAMESPACE, otherwise=1), refuse, allow]
    lines += [_line(_EQUAL, _CLONE[column], otherwise=len(clone)), *clone]
    fail = _line(_RETURN, _FAIL + errno.EAFNOSUPPORT)
    socket = [_line(_LOAD, _ARGUMENT), _line(_EQUAL, _AF_UNIX, otherwise=1), allow, fail]
    lines += [_line(_EQUAL, _SOCKET[column], otherwise=len(socket)), *socket, allow]
    return b"".join(lines)


def _line(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    """One struct sock_filter; `then` and `otherwise` are the lines a comparison skips."""
    return struct.pack("=HBBI", code, then, otherwise, value)
