#!/usr/bin/env bash
# run.sh CODE [+REGEX | -REGEX]... -- COMMAND...: the command must exit with CODE, and say (+) and not say (-) these.
set -uo pipefail
code=$1
shift
wanted=() unwanted=()
while [[ $1 != -- ]]; do
  case $1 in
    +*) wanted+=("${1#+}") ;;
    -*) unwanted+=("${1#-}") ;;
    *) exit 2 ;;
  esac
  shift
done
shift
output=$("$@" 2>&1)
found=$?
printf '%s\n' "$output"
failed=0
say() {
  echo "FAILED: $*"
  failed=1
}
[[ $found == "$code" ]] || say "expected exit code $code, found $found"
for regex in ${wanted[@]+"${wanted[@]}"}; do grep -qE -e "$regex" <<<"$output" || say "not said: $regex"; done
for regex in ${unwanted[@]+"${unwanted[@]}"}; do ! grep -qE -e "$regex" <<<"$output" || say "said: $regex"; done
exit $failed
