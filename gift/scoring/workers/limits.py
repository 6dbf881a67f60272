"""What a worker of rewards may use: memory, sizes of files, and no core dumps."""

import resource
from pathlib import Path

FILE_BYTES = 2**30


def limit_resources(memory_gib: float | None) -> None:
    """No core dumps; below a memory limit also no file above 1 GiB. What the functions start inherits the limits."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_gib is not None:
        for kind, limit in ((resource.RLIMIT_DATA, int(memory_gib * 2**30)), (resource.RLIMIT_FSIZE, FILE_BYTES)):
            hard = resource.getrlimit(kind)[1]
            limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
            resource.setrlimit(kind, (limit, limit))


def private_bytes() -> int:
    """What RLIMIT_DATA counts, nearly: private writable memory (proc(5), statm)."""
    return int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
