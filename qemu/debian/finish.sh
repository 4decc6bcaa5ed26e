#!/bin/sh
# finish.sh ROOT: makes a product's root file system of a freshly installed Debian:
# one that is never written, whose every file is the same after each build.
set -eu
root=$1

# Who this machine is belongs to the device, not to the slot: an id that changed with
# every update would make a new DHCP client and a new journal of it.
rm -f "$root/etc/machine-id" "$root/var/lib/dbus/machine-id"
ln -s /data/machine-id "$root/etc/machine-id"
# Without an id systemd takes a boot for the first one, enables what presets say and
# asks a person questions. What is enabled here is enabled by the image.
mkdir -p "$root/etc/systemd/system-preset"
echo 'disable *' >"$root/etc/systemd/system-preset/00-image.preset"
# Units that have nothing to do here: questions on a console, caches of /etc and /usr,
# writing to the root, modules (all are in the initramfs), a screen, cron's heirs, a seed that
# /var would forget. PCR 11 keeps to what is known of the kernel image at build time.
for unit in systemd-firstboot.service systemd-machine-id-commit.service \
	systemd-update-done.service systemd-hwdb-update.service systemd-journal-catalog-update.service ldconfig.service systemd-sysusers.service \
	systemd-fsck-root.service systemd-remount-fs.service systemd-repart.service systemd-pstore.service systemd-random-seed.service \
	modprobe@.service systemd-modules-load.service kmod-static-nodes.service proc-sys-fs-binfmt_misc.automount sys-fs-fuse-connections.mount sys-kernel-config.mount \
	sys-kernel-debug.mount sys-kernel-tracing.mount dev-hugepages.mount getty-static.service getty@tty1.service \
	apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
	systemd-pcrphase.service systemd-pcrphase-sysinit.service systemd-pcrphase-initrd.service; do
	ln -sf /dev/null "$root/etc/systemd/system/$unit"
	find "$root/etc/systemd/system" -path "*.wants/$unit" -delete
done
ln -sf /usr/lib/systemd/system/multi-user.target "$root/etc/systemd/system/default.target"
mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
ln -sf /usr/lib/systemd/system/systemd-networkd.service "$root/etc/systemd/system/multi-user.target.wants/systemd-networkd.service"
ln -sf ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
: >"$root/etc/fstab"
echo debian >"$root/etc/hostname"
echo LANG=C.UTF-8 >"$root/etc/default/locale"
printf '127.0.0.1 localhost\n127.0.1.1 debian\n' >"$root/etc/hosts"

# /var is a RAM disk, so the list of what is installed moves out of it: a device can
# be asked with dpkg-query what it runs.
mv "$root/var/lib/dpkg" "$root/usr/lib/dpkg-status"
rm -rf "$root/usr/lib/dpkg-status/"*-old "$root/usr/lib/dpkg-status/lock"* "$root/usr/lib/dpkg-status/updates" "$root/usr/lib/dpkg-status/parts"
find "$root/usr/lib/dpkg-status/info" -name '*.md5sums' -delete
rm -rf "$root/var" && mkdir "$root/var"

# What a build leaves behind, and what depends on its time. /dev is left alone: parts of
# it are the desk's.
rm -rf "$root/usr/share/doc-base" "$root/etc/apt" "$root/etc/.pwd.lock" "$root/etc/passwd-" "$root/etc/group-" "$root/etc/shadow-" "$root/etc/gshadow-" \
	"$root/etc/subuid-" "$root/etc/subgid-" "$root/tmp/"* "$root/run/"* "$root/boot/"* "$root/root/"*
find "$root/usr" -depth -name __pycache__ -exec rm -rf {} +
