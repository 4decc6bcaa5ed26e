#!/bin/bash
# lint.sh checks what a compiler does not: form, suspicious code, and the rules of
# this tree that a reviewer would otherwise have to remember.
set -uo pipefail
cd "$(dirname "$0")/.."
export PATH="$(dirname "$(.ci/go.sh)"):$PATH"
go=$(command -v go) || exit 1
status=0
complain() { echo "lint: $*" >&2; status=1; }

files=$(git ls-files --cached --others --exclude-standard '*.go')
bad=$("$(dirname "$go")/gofmt" -l $files)
[ -z "$bad" ] || complain "not in gofmt's form:"$'\n'"$bad"
"$go" vet ./... || complain "go vet found something"

# The device holds no encoder, image builder, broker, QEMU, go-tuf or test package
# (DESIGN.md, Layout). zstd's package has decoder and encoder; delta may not link
# the latter, which the size check below shows.
closure=$("$go" list -deps ./updater/cmd/updater ./bootctl/cmd/init)
for forbidden in mkdelta mkrelease mktrust boards/image tandem/qemu mochi-mqtt go-tuf testify testscript disktest boottest tpmtest mqtttest text/template; do
  hits=$(grep -F "$forbidden" <<<"$closure")
  [ -z "$hits" ] || complain "the device program contains $hits"
done

# Whoever writes files has to think about power cuts: on the device only these
# packages do. Renaming or truncating what a bootloader reads is how devices are lost.
writers='^(bootctl/bootreport|bootctl/early|bootctl/grubenv|partition|tpm|updater/journal|updater/trust|updater/external|updater/control|updater/cmd/updater|boards)/'
ours=$(sed -n 's|^github.com/tandem-ota/tandem/||p' <<<"$closure")
for package in $ours; do
  hits=$(grep -HnE '\bos\.(WriteFile|Rename|Truncate|Create|OpenFile)\(' "$package"/*.go 2>/dev/null | grep -v '_test\.go:' | grep -v O_RDONLY | grep -vE "$writers")
  [ -z "$hits" ] || complain "writes files, but is not in the list of .ci/lint.sh:"$'\n'"$hits"
done

# staticcheck takes minutes to build: only for those who ask (STATICCHECK=1), or
# who have asked before.
tool=honnef.co/go/tools/cmd/staticcheck@v0.8.2
if [ -n "${STATICCHECK:-}" ] && [ ! -x .cache/staticcheck ]; then
  GOBIN=$PWD/.cache GOFLAGS=-mod=mod "$go" install "$tool" || complain "staticcheck could not be built"
fi
if [ -x .cache/staticcheck ]; then
  .cache/staticcheck -checks 'all,-ST1000,-ST1005' ./... || complain "staticcheck found something"
fi
exit $status
