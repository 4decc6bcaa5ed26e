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
for forbidden in mkdelta mkrelease mktrust boards/image tandem/qemu mochi-mqtt go-tuf testify testscript disktest datafiletest boottest tpmtest mqtttest text/template; do
  hits=$(grep -F "$forbidden" <<<"$closure")
  [ -z "$hits" ] || complain "the device program contains $hits"
done

# Whoever writes files has to think about power cuts: on the device partition/datafile
# does it for all, partition writes disks, and these files do what neither can. Renaming or
# truncating what a bootloader reads is how devices are lost. A grep sees no program
# that is run, and no function that is called under another name.
declare -A writers=(
  [partition/file_linux.go]="opens disks and partitions"
  [partition/verity/dm_linux.go]="device-mapper's control device, and the node of a new device"
  [bootctl/watchdog/watchdog.go]="the watchdog device"
  [bootctl/watchdog/kernel.go]="the watchdog device"
  [bootctl/early/early.go]="/dev/kmsg; pstore records that were read"
  [bootctl/early/mounts.go]="mount points of the first program"
  [bootctl/early/root.go]="the mount point of the new root, in RAM"
  [bootctl/early/switch.go]="gives back the RAM of the initramfs"
  [updater/control/control.go]="the control socket in /run"
  [updater/cmd/updater/device.go]="the lock file in /run"
)
verbs='OpenFile|Create|CreateTemp|WriteFile|Rename|Truncate|Mkdir|MkdirAll|MkdirTemp|Remove|RemoveAll|Link|Symlink|Chmod|Chown|Lchown|Chtimes|CopyFS'
calls='(Open|Openat|Openat2|Creat|Write|Pwrite|Writev|Pwritev|Pwritev2|Fallocate|Ftruncate|Rename|Renameat|Renameat2|Unlink|Unlinkat|Rmdir|Mkdirat|Mknod|Mknodat|Linkat|Symlinkat|Fchmod|Fchown|Sendfile|Splice|CopyFileRange|IoctlFileClone|IoctlFileCloneRange)'
writes="\b[a-zA-Z_]+\.($verbs)\(|\b(unix|syscall)\.$calls\(|\bSYS_(OPEN|CREAT|WRITE|PWRITE|RENAME|UNLINK|TRUNCATE|FTRUNCATE|FALLOCATE)|[a-zA-Z_.]+ \"(os|syscall|io/ioutil|golang.org/x/sys/unix)\""
safe=':import "|\bO_RDONLY\b|\bO_PATH\b|\bdatafile\.(Create|Mkdir)\(|\bpartition\.OpenFile\(|:[0-9]+:[[:space:]]*//'
ours=$(sed -n 's|^github.com/tandem-ota/tandem/||p' <<<"$closure")
for package in $ours; do
  [ "$package" != partition/datafile ] || continue
  for file in "$package"/*.go; do
    [[ $file != *_test.go ]] || continue
    hits=$(grep -HnE "$writes" "$file" | grep -vE "$safe")
    if [ -z "${writers[$file]:-}" ]; then
      [ -z "$hits" ] || complain "writes files, which is partition/datafile's work (see .ci/lint.sh):"$'\n'"$hits"
    elif [ -z "$hits" ]; then
      complain "$file no longer writes files: take it off the list in .ci/lint.sh"
    fi
  done
done

# A whole update is one function of its inputs, so that a test can run years of it and
# repeat each step: the core gets clock, randomness, TPM, link, watchdog and
# reboot as arguments. Timers (time.After, NewTimer, NewTicker, context.WithTimeout) are
# allowed, because testing/synctest owns them.
core='updater updater/manifest updater/trust updater/trust/strictjson updater/delta updater/delta/blocks updater/delta/leaves updater/delta/predict updater/delta/recode updater/journal bootctl bootctl/grubenv partition partition/datafile partition/verity'
world='\btime\.(Now|Since|Until|Sleep)\b|"math/rand(/v2)?"|"crypto/rand"|\bos\.(Getenv|LookupEnv|Environ|ExpandEnv|Hostname)\b|\bnet\.(Dial|Listen|Lookup)|"net/http"|"os/exec"|\b(unix|syscall)\.(ClockGettime|Gettimeofday|Getrandom|Nanosleep|Reboot)\('
for package in $core; do
  grep -qx "$package" <<<"$ours" || complain "$package is not in the device program: mend the list in .ci/lint.sh"
  hits=$(grep -HnE "$world" "$package"/*.go | grep -vE '_test\.go:|:[0-9]+:[[:space:]]*//')
  [ -z "$hits" ] || complain "the core asks the world itself, instead of its arguments:"$'\n'"$hits"
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
