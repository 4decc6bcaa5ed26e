#!/bin/bash
# setup.sh: brings onto a Debian 12 machine what build, tests and lab need: the
# packages of packages.txt, the Go toolchain of go.mod, Debian's kernel in
# build/kernel. It says first what it will install, and does nothing where all is
# there. It needs root, or sudo.
set -euo pipefail
cd "$(dirname "$0")/.."

missing=() moved=()
while read -r name version _; do
  case $name in ''|'#'*) continue ;; esac
  have=$(dpkg-query -W -f '${db:Status-Status} ${Version}' "$name" 2>/dev/null || true)
  case $have in
    "installed $version") ;;
    "installed "*) moved+=("$name ${have#installed } (last seen: $version)") ;;
    *) missing+=("$name") ;;
  esac
done <"${1:-.ci/packages.txt}"

if ((${#missing[@]})); then
  echo "setup: installing ${#missing[@]} Debian packages: ${missing[*]}"
  root=()
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || { echo "setup: not root, and no sudo; install them by hand" >&2; exit 1; }
    root=(sudo)
  fi
  # A mirror that hangs must not hang the build.
  apt=(timeout 900 "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Acquire::Retries=3 -o Acquire::http::Timeout=30 -o Dpkg::Use-Pty=0)
  "${apt[@]}" update
  if ! "${apt[@]}" install --no-install-recommends "${missing[@]}"; then
    echo "setup: apt-get could not install: ${missing[*]}" >&2
    exit 1
  fi
  # Debian starts mosquitto as a service; the tests start their own.
  if [ -d /run/systemd/system ]; then
    "${root[@]}" systemctl disable --now mosquitto.service >/dev/null 2>&1 || true
  fi
fi
for m in "${moved[@]}"; do echo "setup: note: $m"; done
[ $# = 0 ] || exit 0

echo "setup: $("$(.ci/go.sh)" version)"
echo "setup: kernel $(.ci/kernel.sh build/kernel)"
