#!/usr/bin/env bash
# Runs what harness/README.md and README.md show, and the shell steps of harness/examples/gate.yml; follows their links.
# shellcheck disable=SC2016  # backticks of Markdown
# usage: readme_test.sh DSV2 SOURCE_DIR WORK_DIR
#
# Each sh block of harness/README.md is run in order, in one shell with set -e, with MODEL=tiny-mla in place of the
# model shown. A line that ends in "# exit 4" must exit with 4; "# exit 0 or 3": with one of them.
set -euo pipefail
dsv2=$(realpath "$1") source=$(realpath "$2") work=$3
rm -rf "$work"
mkdir -p "$work/bin" "$work/home"
work=$(realpath "$work")
ln -s "$dsv2" "$work/bin/dsv2"
export PATH=$work/bin:$PATH HOME=$work/home MODEL=tiny-mla

die() {
  echo "error: $*" >&2
  exit 1
}

# checkout FOLDER: what commands shown expect to be started in. scripts/ are copies: they find their root by themselves.
checkout() {
  mkdir -p "$1/build/release/harness"
  cp -r "$source/scripts" "$source/reports" "$1"
  ln -s "$source/golden" "$1/golden"
  ln -s "$dsv2" "$1/build/release/harness/dsv2"
}

# shell_blocks FILE: its sh blocks as a script in which each line keeps its number.
shell_blocks() {
  awk '
    /^```sh$/ { inside = 1; print "#"; next }
    /^```/    { inside = 0 }
    !inside   { print "#"; next }
    match($0, /# exit [0-9]( or [0-9])*$/) {
      codes = substr($0, RSTART + 7)
      gsub(/ or /, "|", codes)
      print "code=0; { " substr($0, 1, RSTART - 1) "; } || code=$?; exited \"" codes "\""
      next
    }
    { print }' "$1"
}

# run_script NAME SCRIPT: with set -e, in the current folder; says which line of NAME failed.
run_script() {
  local name=$1 script=$2 log=$2.log
  cat >"$script.start" <<'START'
set -eEuo pipefail
trap 'echo "failed: line $LINENO: $BASH_COMMAND" >&2' ERR
exited() { [[ $code =~ ^($1)$ ]] || { echo "line ${BASH_LINENO[0]}: exit code $code, not $1" >&2; return 1; }; }
START
  BASH_ENV=$script.start bash "$script" >"$log" 2>&1 || {
    tail -n 25 "$log" >&2
    die "$name: a command shown does not work, see above"
  }
  echo "$name: $(grep -cE '(^|[ {])(dsv2|scripts/[a-z]+) ' "$script") lines with a command ran"
}

# ---- harness/README.md
checkout "$work/checkout"
cd "$work/checkout"
shell_blocks "$source/harness/README.md" >"$work/harness.sh"
(($(grep -c 'dsv2 ' "$work/harness.sh") >= 15)) || die "harness/README.md: its sh blocks were not found"
run_script harness/README.md "$work/harness.sh"

# ---- README.md: the dsv2 lines of its sh blocks, and the runs that its excerpts come from, at a small size. Left out
# are what needs torch (make_golden.py) and the commands that only a sentence names.
{
  echo 'dsv2 init --preset tiny-mla --seed 1 --dtype bf16 --out DIR >/dev/null'
  echo 'dsv2 bench --model DIR --prompt 8 --generate 2 --repetitions 1 --json RUN.json >/dev/null'
  shell_blocks "$source/README.md" | grep '^dsv2 ' | sed 's/--prompt 512 --depth 512,4096/--prompt 64 --depth 64,128/'
  grep -oE '`dsv2 (check golden|check --op|bench --preset)[^`]*`' "$source/README.md" | tr -d '`' | sed 's/deepseek-ocr/tiny-mla/'
} >"$work/readme.sh"
(($(grep -c '^dsv2 ' "$work/readme.sh") >= 9)) || die "README.md: its commands were not found"
mkdir "$work/readme"
cp -r "$source/golden" "$work/readme"
cd "$work/readme"
run_script README.md "$work/readme.sh"

# ---- links of both, and the keys that harness/README.md explains
for page in README.md harness/README.md; do
  while read -r link; do
    [[ -e $source/$(dirname "$page")/$link ]] || die "$page: links to $link, which is not there"
  done < <(grep -oE '\]\([^)#:]+\)' "$source/$page" | sed 's/^](//; s/)$//')
done
keys=0
while read -r key; do
  grep -q "\"$key\"" "$source/reports/schema.json" || die "harness/README.md: explains $key, which is not in reports/schema.json"
  ((keys += 1))
done < <(sed -n 's/^| `\([a-z_]*\)`.*/\1/p' "$source/harness/README.md")
((keys >= 6)) || die "harness/README.md: its table of keys was not found"

# ---- harness/examples/gate.yml
workflow=$source/harness/examples/gate.yml
excerpt=$(sed -n '/^```yaml$/,/^```$/p' "$source/harness/README.md" | grep -v '^```')
[[ -n $excerpt && $(<"$workflow") == *"$excerpt"* ]] || die "harness/README.md: its excerpt of gate.yml is not in gate.yml"
# Each step's script as NN.sh, its condition as NN.if.
awk -v folder="$work/steps" '
  BEGIN { system("mkdir -p " folder) }
  { match($0, /^ */); indent = RLENGTH }
  script != "" && $0 !~ /^ *$/ && indent <= level { script = "" }
  script != "" { print > script; next }
  /^      - / { step++ }
  step && /^ +(- )?if: / { print > sprintf("%s/%02d.if", folder, step) }
  step && /^ +(- )?run: / {
    file = sprintf("%s/%02d.sh", folder, step)
    line = $0
    sub(/^ +(- )?run: /, "", line)
    if (line == "|") { script = file; level = indent } else print line > file
  }' "$workflow"
steps=("$work"/steps/*.sh)
if python3 -c 'import yaml' 2>/dev/null; then
  runs=$(python3 - "$workflow" <<'PYTHON'
import sys, yaml
gate = yaml.safe_load(open(sys.argv[1]))
steps = gate["jobs"]["gate"]["steps"]
assert all(("run" in s) != ("uses" in s) for s in steps), "a step either runs or uses something"
assert gate["jobs"]["gate"]["defaults"]["run"]["shell"] == "bash"
print(sum("run" in s for s in steps))
PYTHON
  ) || die "gate.yml: not a workflow, see above"
  ((${#steps[@]} == runs)) || die "gate.yml: ${#steps[@]} shell steps were read where YAML has $runs"
else
  echo "gate.yml: not read as YAML: python3 has no yaml"
fi
((${#steps[@]} >= 7)) || die "gate.yml: its shell steps were not found"

# In place of installing and building, which the machine that runs the tests has behind it.
mkdir "$work/stubs"
printf '#!/bin/sh\nexit 0\n' | tee "$work/stubs/apt-get" >"$work/stubs/cmake"
printf '#!/bin/sh\necho installed\n' >"$work/stubs/dpkg-query"
chmod +x "$work"/stubs/*

# gate FOLDER: the job in a checkout, as on main: its result, and the first step that failed. A cached base is the
# folder `base`.
gate() {
  local step line code failed='' path=$work/stubs:$PATH
  cd "$1"
  : >path
  for step in "${steps[@]}"; do
    [[ -z $failed ]] || grep -qs 'cancelled()' "${step%.sh}.if" || continue
    while read -r line; do path=$line:$path; done <path
    : >path
    : >summary
    env PATH="$path" GITHUB_PATH="$PWD/path" GITHUB_STEP_SUMMARY="$PWD/summary" \
      bash --noprofile --norc -eo pipefail "$step" >>log 2>&1 || {
      code=$?
      failed=${failed:-$(basename "$step" .sh) with exit code $code}
    }
    cat summary >>summaries
  done
  cd "$work"
  [[ -z $failed ]] || {
    echo "step $failed"
    return 1
  }
}
has() { grep -q -- "$2" "$1" || die "gate.yml: $1 does not have: $2"; }

checkout "$work/gate"
failed=$(gate "$work/gate") || die "gate.yml, first run: $failed: $(tail -n 5 "$work/gate/log")"
reports=$work/gate/build/release/reports
has "$work/gate/log" 'no base report yet'
has "$work/gate/summaries" 'dsv2 bench'
for file in check.json check.xml bench.json bench.xml page.html; do [[ -s $reports/$file ]] || die "gate.yml: no $file"; done
cmp -s "$reports/bench.json" "$work/gate/base/bench.json" || die "gate.yml: the base was not kept"

failed=$(gate "$work/gate") || die "gate.yml, with a base: $failed: $(tail -n 5 "$work/gate/log")"
has "$reports/compare/compare.json" '"verdict"'
has "$work/gate/summaries" 'correctness regressions'

# A wrong expectation: the job fails with the check, the page is made all the same, and there is no new base.
checkout "$work/wrong"
rm "$work/wrong/golden"
mkdir "$work/wrong/golden"
cp -r "$source/golden/cases/mla_tiny" "$work/wrong/golden"
tensors=$work/wrong/golden/mla_tiny/golden.safetensors
printf '\x00\x00\x80\x3f\x00\x00\x80\x3f' | dd of="$tensors" bs=1 seek=$(($(stat -c %s "$tensors") - 8)) conv=notrunc status=none
if failed=$(gate "$work/wrong"); then die "gate.yml: passes with a wrong expectation"; fi
[[ $failed == *'with exit code 1' ]] || die "gate.yml: a wrong expectation ends in $failed: $(tail -n 5 "$work/wrong/log")"
has "$work/wrong/build/release/reports/check.json" '"exit_code": 1'
has "$work/wrong/build/release/reports/check.xml" '<failure'
[[ -s $work/wrong/build/release/reports/page.html ]] || die "gate.yml: no page of a failure"
[[ ! -e $work/wrong/base ]] || die "gate.yml: a failure became the base"
echo "gate.yml: passes, compares with its base, and fails with a page where an expectation is wrong"
