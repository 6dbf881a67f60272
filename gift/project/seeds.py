"""Seeds that depend on what they are for, and on nothing else."""

import hashlib


def seed_of(*parts: object) -> int:
    """A 63-bit seed that depends on the parts and nothing else (not on batch order, sharding or processes)."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
