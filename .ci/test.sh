#!/bin/bash
# test.sh builds everything, checks it, runs unit tests and stories, measures the
# device program, and prints where the time went. Everything runs even where an
# earlier part failed: one run shows all that is wrong.
set -uo pipefail
cd "$(dirname "$0")/.."
export PATH="$(dirname "$(.ci/go.sh)"):$PATH"
mkdir -p build
log=build/test.log
: >"$log"
rm -f build/memory.txt
status=0
times=()
total=$SECONDS

phase() { # phase NAME COMMAND…
  local name=$1 begin=$SECONDS rc
  shift
  echo "== $name"
  "$@" 2>&1 | tee -a "$log"
  rc=${PIPESTATUS[0]}
  times+=("$(printf '%-44s %6d s  %s' "$name" $((SECONDS - begin)) "$([ "$rc" = 0 ] && echo ok || echo FAILED)")")
  [ "$rc" = 0 ] || status=1
}

phase build go build ./...
phase lint .ci/lint.sh
# Stories have a package of their own: their two machines at a time want both cores.
# shellcheck disable=SC2046
phase "unit tests" go test -timeout 20m -skip '^TestExplorer$' $(go list ./... | grep -v '/tests$')
# It takes five minutes, and has eight (the page of make proof has a bar for it); a machine that
# is busy with something else may take longer, and that is no fault.
phase explorer env TANDEM_EXPLORE=1 go test -timeout 20m -count=1 -v -run '^TestExplorer$' ./updater
phase stories go test -timeout 50m -count=1 -v -parallel 2 -run "TestStories/${STORY:-}" ./tests
phase size .ci/size.sh

echo
echo "where the time went:"
for t in "${times[@]}"; do echo "  $t"; done
# "ok  	github.com/tandem-ota/tandem/qemu	12.345s"; packages under 5 s are not worth a line.
sed -nE 's|^(ok\|FAIL)\s+github.com/tandem-ota/tandem/?(\S*)\s+([0-9.]+)s.*|\3 \2 \1|p' "$log" | sort -rn |
  while read -r seconds name result; do
    ((${seconds%.*} < 5)) || printf '    package %-34s %6.0f s  %s\n' "$name" "$seconds" "$result"
  done
sed -nE 's/^ +--- (PASS|FAIL|SKIP): TestStories\/([^ ]+) \(([0-9.]+)s\)/\3 \2 \1/p' "$log" | sort -rn |
  while read -r seconds name result; do printf '    story   %-34s %6.0f s  %s\n' "$name" "$seconds" "$result"; done
printf '  %-44s %6d s\n' total $((SECONDS - total))
exit "$status"
