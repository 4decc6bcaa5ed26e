#!/bin/bash
# fuzz.sh finds every fuzz target of the tree and runs one after the other, each for
# FUZZTIME (60s), on two cores: half an hour and more. TARGET limits it to those whose
# "package.FuzzName" contains the text. `go test` replays the kept inputs
# (testdata/fuzz) in any case; here new ones are looked for, and Go keeps those that found new
# code in its build cache. An input that fails is written to testdata/fuzz by
# go test; mend the bug and commit the input with it. KEEP=24 puts up to so many of the
# inputs in the cache, small ones and evenly by size, into testdata/fuzz to be committed.
set -uo pipefail
cd "$(dirname "$0")/.."
export PATH="$(dirname "$(.ci/go.sh)"):$PATH"
go=$(command -v go) || exit 1
time=${FUZZTIME:-60s}
target=${TARGET:-}
keep=${KEEP:-0}
least=10 # targets in the whole tree: a search that finds none must not pass
log=build/fuzz.log
mkdir -p build
: >"$log"

mapfile -t all < <(git ls-files --cached --others --exclude-standard '*_test.go' |
  xargs grep -HoE '^func Fuzz[A-Za-z0-9_]+\(' | sed -E 's|^(.*)/[^/]*:func (Fuzz[^(]+)\(|\1.\2|' | sort)
bars=1 met=0
if ((${#all[@]} >= least)); then met=1; fi
echo "${#all[@]} fuzz targets (at least $least), $time each"

keep() { # keep PACKAGE FUNCTION
  local from to all i
  from=$("$go" env GOCACHE)/fuzz/$("$go" list "./$1")/$2
  to=$1/testdata/fuzz/$2
  [ -d "$from" ] || return 0
  # At most 5,000 bytes each, so that 40 stay under 200 KiB.
  mapfile -t all < <(find "$from" -type f -size -5000c -printf '%s %f\n' | sort -n | cut -d' ' -f2)
  mkdir -p "$to"
  for ((i = 0; i < keep && i < ${#all[@]}; i++)); do
    cp "$from/${all[i * ${#all[@]} / (keep < ${#all[@]} ? keep : ${#all[@]})]}" "$to/"
  done
}

printf '%-52s %12s %10s  %s\n' target execs "new inputs" result
for name in "${all[@]}"; do
  [[ $name == *"$target"* ]] || continue
  bars=$((bars + 1))
  out=$("$go" test -vet=off -run '^$' -fuzz "^${name##*.}\$" -fuzztime "$time" -fuzzminimizetime 50x -parallel 2 "./${name%.*}" 2>&1)
  rc=$?
  { echo "== $name"; echo "$out"; } >>"$log"
  # fuzz: elapsed: 1m0s, execs: 123456 (2057/sec), new interesting: 12 (total: 40)
  last=$(grep -oE 'execs: [0-9]+.*new interesting: [0-9]+' <<<"$out" | tail -1)
  execs=$(sed -nE 's/execs: ([0-9]+).*/\1/p' <<<"$last")
  new=$(sed -nE 's/.*interesting: ([0-9]+)/\1/p' <<<"$last")
  result=ok
  # Before Go 1.27 the end of the time itself can pass for a failure
  # (https://go.dev/issue/75804); it leaves no input behind.
  if ((rc != 0)) && ! { grep -q 'context deadline exceeded' <<<"$out" && ! grep -q 'Failing input written' <<<"$out"; }; then
    result=FAILED
  elif [ -z "$execs" ] || ((execs == 0)); then
    result="did not run"
  else
    met=$((met + 1))
    ((keep == 0)) || keep "${name%.*}" "${name##*.}"
  fi
  printf '%-52s %12s %10s  %s\n' "$name" "${execs:--}" "${new:--}" "$result"
  [ "$result" != FAILED ] || grep -vE '^fuzz: elapsed' <<<"$out" | head -40 | sed 's/^/    /'
done
if ((bars == 1)); then
  echo "no target contains \"$target\"" >&2
  exit 1
fi
echo "bars: $met/$bars met"
((met == bars))
