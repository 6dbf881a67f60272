#!/usr/bin/env bash
# A few prompts through every stage with the real engines and real DVC, in a fresh clone of what is committed here.
# Prints one line a check and stops at the first that fails. About three minutes on two cores.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PATH="$root/.venv/bin:$PATH" DVC_NO_ANALYTICS=1
# Nothing of this machine's DVC, and no network.
export DVC_SITE_CACHE_DIR="$work/site" DVC_GLOBAL_CONFIG_DIR="$work/global" DVC_SYSTEM_CONFIG_DIR="$work/system"
export HF_HUB_OFFLINE=1 NO_COLOR=1
# On shared cores the threads of a model this small cost ten times what they give.
export OMP_NUM_THREADS=1

fail() {
  echo "FAIL $1"
  tail -n 40 "$work/said" || true
  exit 1
}
# check 'what must hold' command ...: the command must succeed.
check() {
  local what=$1
  shift
  "$@" >"$work/said" 2>&1 || fail "$what"
  echo "ok   $what"
}
# same 'what must hold' found expected
same() {
  [ "$2" = "$3" ] || { printf 'found:    %s\nexpected: %s\n' "$2" "$3" >"$work/said"; fail "$1"; }
  echo "ok   $1"
}
ran() { grep -o "Running stage '[^']*'" "$1" | cut -d"'" -f2 | sort | tr '\n' ' '; }

git clone -q "$root" "$work/project"
cd "$work/project"
rm -rf data dvc.lock
python - <<'PYTHON'
import sys
from pathlib import Path

sys.path.insert(0, "tests")
import mini
from ruamel.yaml import YAML

# The miniature of the tests, but its groups are sampled by vLLM, whose start takes longer than all its work here.
mini.write_params(Path(), mini.TINY)
mini.write_params(Path(), {"generate": {"engine": "vllm", "prompts_per_round": 24}})
# In blocks, as the shipped file is: of JSON `dvc exp run -S` makes a file that DVC cannot read.
YAML().dump(mini.read_yaml(Path("params.yaml")), Path("params.yaml"))
Path("rounds.yaml").write_text("rounds:\n  r1: {from: base}\n  r2: {from: r1}\n", encoding="utf-8")
PYTHON

round() { for stage in evaluate generate generate_eval overrides reference score update; do echo "$stage@$1"; done; }
every=$({ printf '%s\n' base check_rewards code doctor evaluate_base generate_eval_base prepare report; round r1; round r2; } | sort | tr '\n' ' ')

start=$SECONDS
check "the pipeline runs from an empty folder" dvc --wait-for-lock repro
same "every stage ran once" "$(ran "$work/said")" "$every"
echo "     $((SECONDS - start)) s"

# Twice, and the faster counts: other work on a shared machine only ever adds to it.
fastest=1000000
for run in second third; do
  start=$(date +%s%N)
  check "a $run run finishes" dvc --wait-for-lock repro
  took=$((($(date +%s%N) - start) / 1000000))
  same "a $run run runs nothing but the guard" "$(ran "$work/said")" "code "
  fastest=$((took < fastest ? took : fastest))
done
same "a run with nothing to do takes less than 5 s (it took $fastest ms)" "$((fastest < 5000))" 1

check "dvc metrics show" dvc metrics show --md
mv "$work/said" "$work/metrics"
for name in base r1 r2; do
  check "it shows the metrics of $name" grep -q "data/rounds/$name/metrics/evaluate.json" "$work/metrics"
done
check "dvc plots show --json" dvc plots show --json
check "the page of the plots is made" python -m gift.cli plots-template .dvc/plots.html
check "DVC is told of it, as make env does" dvc config --local plots.html_template plots.html
check "dvc plots show" dvc plots show
check "its charts are there" grep -q "Held-out accuracy" dvc_plots/index.html
same "its page needs no network" "$(grep -c 'src="http' dvc_plots/index.html || true)" 0

# The README's commands as typed there, on as few rounds as there are here; `make` would install an environment.
python - >"$work/lines" <<'PYTHON'
import re
from pathlib import Path

block = re.search(r"<!-- run by tests/short_repro.sh -->\n```console\n(.*?)```", Path("README.md").read_text(), re.DOTALL)
for line in block[1].splitlines():
    typed = line.partition("  #")[0].strip()
    print(typed.replace("r4", "r2").replace("gift rounds 6", "gift rounds 3").replace("make repro", "gift repro"))
PYTHON
export GIT_AUTHOR_NAME=x GIT_AUTHOR_EMAIL=x@example.org GIT_COMMITTER_NAME=x GIT_COMMITTER_EMAIL=x@example.org
gift() { python -m gift.cli "$@"; }
export -f gift
while IFS= read -r line; do
  check "$line" bash -c "$line" </dev/null
done <"$work/lines"
experiment=$(git for-each-ref --format='%(refname)' refs/exps | grep -v /exec/ | head -1)
check "the experiment is a line of the report by its name" python -m gift.cli report --with "${experiment##*/}"
check "the report has both" grep -q "${experiment##*/}" data/report/report.html
check "back to the run before" bash -c "git checkout -q . && dvc checkout -q"

same "no unfinished work is left" "$(ls data/.work)" ""
same "git is offered nothing large" "$(git ls-files --others --exclude-standard | grep -E '\.(parquet|safetensors)$' || true)" ""
check "policies open and rounds follow each other" python - <<'PYTHON'
import json
from pathlib import Path

from gift.policy.folder import read_lineage

rounds = [read_lineage(Path(f"data/rounds/{name}/policy")) for name in ("base", "r1", "r2")]
assert [each.round for each in rounds] == [0, 1, 2], rounds
assert [each.parent for each in rounds] == [None, rounds[0].digest, rounds[1].digest], rounds
assert [each.prompts_consumed for each in rounds] == [0, 24, 48], rounds
for name in ("r1", "r2"):
    gap = json.loads(Path(f"data/rounds/{name}/metrics/reference.json").read_text())
    assert gap["sampling/sampling_logp_difference/max"] < 1e-4, gap
PYTHON
echo "all is well, in $SECONDS s"
