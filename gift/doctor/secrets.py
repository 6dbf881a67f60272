"""Lines of a file that hold what looks like a token or a password."""

import re
from pathlib import Path

# Prefixes that services give their tokens. A commit (40 hex digits) is none of them.
_TOKEN = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
    r"|AKIA[A-Z0-9]{12,}|AIza[\w-]{20,}|xox[a-z]-[\w-]{10,}|nvapi-[\w-]{16,})|://[^/\s:@]+:[^/\s:@]+@"
)
_SECRET_KEY = re.compile(
    r"""^[\s{,]*["']?(?:\w*api_?key|\w*password|\w*secret\w*|\w*auth\w*_token|hf_token|account_key|sas_token)["']?"""
    r"""\s*[:=]\s*["']?(?!(?:null|true|false)\b|["'{\[#$])[^\s"'}]""",
    re.IGNORECASE,
)


def secret_lines(path: Path) -> list[int]:
    """Their numbers, from 1; none where there is no such file. What they hold is never shown."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return [number for number, line in enumerate(lines, 1) if _TOKEN.search(line) or _SECRET_KEY.search(line)]
