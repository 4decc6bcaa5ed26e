#!/bin/sh
# kernel.sh DIR: fetches Debian's amd64 kernel and unpacks it into DIR/pkg, without
# installing it. It prints the version of the kernel (as in lib/modules).
#
# The kernel with drivers for watchdogs is wanted (linux-image-amd64), not the
# cloud kernel. The version is pinned, so that two builds are equal; where the
# mirror has dropped it for a newer one, that is taken and said so.
set -eu

release=6.1.0-56-amd64
version=6.1.192-2
sha256=a86e2049672f52354c4536a089203b6c82639420424d31c91cf31a181fd4d8f1

dir=${1:?usage: kernel.sh DIR}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
package=linux-image-$release

# Only a whole folder has this file.
if [ -f "$dir/version" ] && [ -d "$dir/pkg/lib/modules/$(cat "$dir/version")" ]; then
  cat "$dir/version"
  exit
fi

exec 3>&1 1>&2
rm -rf "$dir/pkg" "$dir/version" "$dir/fetch"
mkdir "$dir/fetch"
cd "$dir/fetch"
deb=${package}_${version}_amd64.deb
if [ -f "../$deb" ] && echo "$sha256  ../$deb" | sha256sum -c --status; then
  mv "../$deb" .
elif apt-get -q download "$package=$version"; then
  echo "$sha256  $deb" | sha256sum -c --status || { echo "kernel.sh: $deb is not the pinned package" >&2; exit 1; }
else
  package=$(apt-cache depends linux-image-amd64 | sed -n 's/^ *Depends: *\(linux-image-6[^ ]*\)$/\1/p' | head -n 1)
  [ -n "$package" ] || { echo "kernel.sh: no linux-image-amd64 in the package lists; run apt-get update" >&2; exit 1; }
  echo "kernel.sh: $release $version is gone from the mirror; taking the newest, $package" >&2
  apt-get -q download "$package"
  release=${package#linux-image-}
  deb=$(ls ./*.deb)
fi
dpkg-deb -x "$deb" "$dir/pkg.new"
mv "$deb" ..
cd "$dir"
mv pkg.new pkg
rmdir fetch
echo "$release" > version
cat version >&3
