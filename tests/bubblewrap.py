"""Whether bubblewrap runs on this machine at all, asked without our own code: the reason why not, or nothing."""

import shutil
import subprocess


def why_not() -> str:
    if not shutil.which("bwrap"):
        return "bubblewrap is not installed, and the sandbox is bubblewrap"
    bare = ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "true"]
    done = subprocess.run(bare, capture_output=True, text=True, check=False)
    return f"this machine forbids what bubblewrap needs: {done.stderr.strip()}" if done.returncode else ""


WHY_NOT = why_not()
