#!/bin/bash
# size.sh builds the device programs as they are shipped, static and stripped, and
# fails if updater is larger than the budget. Then it prints what takes the room, by
# feature, and the memory that a device reported in the last run of the stories.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$(dirname "$(.ci/go.sh)"):$PATH"
go=$(command -v go)
budget=8388608
version=$(git describe --tags --always --dirty 2>/dev/null || echo unknown)
mkdir -p build/bin
status=0
printf '%-28s %12s %12s\n' program bytes budget
for arch in amd64 arm64; do
  out=build/bin/updater-$arch
  VERSION=$version .ci/updater.sh "$out" "$arch"
  n=$(stat -c %s "$out")
  printf '%-28s %12d %12d\n' "updater, linux/$arch" "$n" "$budget"
  if ((n > budget)); then
    echo "size: updater for $arch is $((n - budget)) bytes too large" >&2
    status=1
  fi
  out=build/bin/init-$arch
  CGO_ENABLED=0 GOARCH=$arch "$go" build -trimpath -buildvcs=false -ldflags '-s -w -buildid=' -o "$out" ./bootctl/cmd/init
  printf '%-28s %12d\n' "init, linux/$arch" "$(stat -c %s "$out")"
done

# What each feature takes: code and data by package, from the symbols of the same program
# before it is stripped. What is left are tables of functions (for stack traces and the
# garbage collector), types and strings, which have no symbols and grow with the lines above:
# about as much again.
symbols=build/bin/updater-symbols
STRIP= VERSION=$version .ci/updater.sh "$symbols" amd64
bss=$(readelf -SW "$symbols" | sed -n 's/.* \.bss *NOBITS *0*\([0-9a-f]*\) .*/\1/p')
echo
"$go" tool nm -size "$symbols" | awk -v bss="$bss" -v file="$(stat -c %s build/bin/updater-amd64)" -f .ci/features.awk
rm -f "$symbols"
echo
# Static means: no interpreter asks for a C library.
if readelf -l build/bin/updater-amd64 2>/dev/null | grep -q INTERP; then
  echo "size: updater is not static" >&2
  status=1
fi
if [ -f build/memory.txt ]; then
  echo
  cat build/memory.txt
else
  echo "memory: no figures yet; the stories measure it (make test)"
fi
exit $status
