#!/bin/bash
# updater.sh OUT [ARCH]: builds the device program as it is shipped: static, stripped,
# without HTTP/2, and inlined only where it is hot. Inlining everything costs 0.7 MB;
# what is left in is what touches every byte of an image. Functions begin at multiples
# of 16, as Go has them on arm64 and C compilers everywhere; its 32 on amd64 costs 0.1 MB.
# STRIP= keeps the symbols, for those who ask what takes the room (size.sh).
set -euo pipefail
out=$(realpath -m "${1:?usage: updater.sh OUT [ARCH]}")
cd "$(dirname "$0")/.."
ours=github.com/tandem-ota/tandem
CGO_ENABLED=0 GOOS=linux GOARCH=${2:-amd64} exec "$(.ci/go.sh)" build -trimpath -buildvcs=false -tags nethttpomithttp2 \
  -gcflags=all=-l -gcflags=github.com/klauspost/compress/...= -gcflags=$ours/updater/delta= -gcflags=$ours/updater/delta/recode= \
  -gcflags=$ours/updater/delta/predict= -gcflags=$ours/updater/delta/blocks= -gcflags=$ours/partition= -gcflags=crypto/internal/fips140/sha256= -gcflags=encoding/binary= -gcflags=internal/byteorder= \
  -ldflags "${STRIP--s -w} -funcalign=16 -buildid= -X main.version=${VERSION:-development}" -o "$out" ./updater/cmd/updater
