#!/usr/bin/env bash
# Opens pages of `dsv2 report` in headless Chromium: no console message, and the numbers are there.
# usage: html_test.sh DSV2 SOURCE_DIR WORK_DIR        exit code 77: skipped, no Chromium
set -euo pipefail
dsv2=$1 source=$2 work=$3
browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome) || {
  echo "skipped: chromium is not installed (scripts/deps ci installs it)"
  exit 77
}
rm -rf "$work"
mkdir -p "$work"
die() {
  echo "error: $*" >&2
  exit 1
}

# open NAME: loads NAME.html at a phone's width, leaves NAME.shown and NAME.log. A script added to a
# copy of the page notes whether it is wider than the screen.
open() {
  sed 's|</body>|<script>document.body.dataset.wider = Math.max(0, document.documentElement.scrollWidth - innerWidth);</script></body>|' \
    "$work/$1.html" >"$work/$1.measured.html"
  timeout 120 "$browser" --headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --user-data-dir="$work/profile" \
    --window-size=390,844 --enable-logging=stderr --virtual-time-budget=5000 --dump-dom "file://$work/$1.measured.html" \
    >"$work/$1.dom" 2>"$work/$1.log" || die "$1: $browser failed: $(tail -n 3 "$work/$1.log")"
  ! grep CONSOLE "$work/$1.log" || die "$1: console messages, see above"
  grep -q 'data-ready=' "$work/$1.dom" || die "$1: the page did not finish drawing"
  grep -q 'data-wider="0"' "$work/$1.dom" || die "$1: scrolls sideways: $(grep -o 'data-wider="[^"]*"' "$work/$1.dom")"
  # The data stand in the page too: only what the script made of them counts.
  sed '/<script/,/<\/script>/d' "$work/$1.dom" >"$work/$1.shown"
}
# shows NAME TEXT...
shows() {
  local name=$1 text
  shift
  for text in "$@"; do
    grep -qF -- "$text" "$work/$name.shown" || die "$name: does not show: $text"
  done
}

"$dsv2" bench --preset tiny-mla --prompt 4,8 --depth 0,8 --generate 2 --repetitions 1 --json "$work/bench.json" >/dev/null
"$dsv2" report "$work/bench.json" --base "$work/bench.json" --html "$work/bench.html"
open bench
shows bench PASSED '4 passed of 4 records' tiny-mla/decode/cpu 'Against bench.json' '1.000 ×' 'Nearest the roof' 'Measured limits'
if grep -q 'Chart.js v' "$work/bench.html"; then
  shows bench '10 charts' 'Decode over depth' Roofline 'Time by op' 'Bytes by op' 'KV cache over context' \
    'Error budget over layers'
else
  shows bench 'Charts are left out'
fi

# A failure with markup in its text: status first, the text as text.
sed -e '0,/"status": "passed"/s//"status": "failed"/' \
  -e '0,/"reason": null/s//"reason": "a <\/script><b id=injected> in a reason"/' "$work/bench.json" >"$work/failed.json"
"$dsv2" report "$work/failed.json" --html "$work/failed.html"
open failed
shows failed FAILED '3 passed, 1 failed' 'a &lt;/script&gt;&lt;b id=injected&gt; in a reason'

"$dsv2" check "$source/golden" --json "$work/check.json" >/dev/null
"$dsv2" report "$work/check.json" "$work/bench.json" --html "$work/both.html"
open both
shows both PASSED top1 'Fastest decode' 'Run: check.json' 'Run: bench.json' 'What was checked where' 'not run' bad_input
! grep -oE '(src|href)="?https?:' "$work/both.html" || die "the page loads something from elsewhere"

# A thousand records: a table shows its first rows and offers the rest.
cp "$work/check.json" "$work/again.json"
cp "$work/check.json" "$work/third.json"
"$dsv2" report "$work"/{check,again,third}.json --html "$work/many.html"
open many
shows many PASSED 'Show all 1,' 'Run: third.json'
(($(grep -o '<tr>' "$work/many.shown" | wc -l) < 400)) || die "many: every row is drawn at once"

# What a simulator counted: recorded, as there may be no nvcc.
"$dsv2" report "$source/reports/cuda-sim-decode.json" "$source/reports/ocr.json" --html "$work/recorded.html"
open recorded
shows recorded 'Modelled, not measured' experts_act_rows 'DRAM 1.0' 'What was read' 'Wrong characters'

# Planted faults, and a gate that missed one.
"$dsv2" selftest --seeds 1 --seed 1 --json "$work/selftest.json" >/dev/null
"$dsv2" report "$work/selftest.json" --html "$work/selftest.html"
open selftest
shows selftest PASSED 'Planted faults' ' planted faults caught and located, 0 false alarms in 1 seed' 'padding visible' \
  layers.0.input_layernorm 'Smallest fault caught'
grep -qE '\b([0-9]+) of \1 planted faults' "$work/selftest.shown" || die "selftest: not all faults are shown as caught"
sed -e '0,/"caught_by": "[^"]*"/s//"caught_by": null/' -e '0,/"located": true/s//"located": false/' \
  "$work/selftest.json" >"$work/missed.json"
"$dsv2" report "$work/missed.json" --html "$work/missed.html"
open missed
shows missed FAILED 'not caught'
echo "pages open without console messages, show their numbers and fit a phone"
