package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Bus is how a hot-plugged disk is connected.
type Bus string

const (
	USB    Bus = "usb"    // a memory stick; the guest needs xhci_pci, usb_storage and sd_mod
	Virtio Bus = "virtio" // the guest needs virtio-blk, which its own disk needs too
)

// Plug connects the file image as a disk. serial is the disk's serial number in
// the guest and its name for Unplug: at most 20 letters, digits and dashes.
//
// A memory stick can be written by the guest, as few of them have a switch against
// it; a virtio disk cannot.
func (d *Device) Plug(ctx context.Context, serial, image string, bus Bus) error {
	r, err := d.running()
	if err != nil {
		return fmt.Errorf("plug %s into %s: %w", serial, d.cfg.Name, err)
	}
	image, err = filepath.Abs(image)
	if err != nil {
		return err
	}
	err = r.monitor.do(ctx, "blockdev-add", map[string]any{
		"node-name": "blk-" + serial, "driver": "raw", "read-only": bus != USB,
		"file": map[string]any{"driver": "file", "filename": image},
	}, nil)
	if err != nil {
		return fmt.Errorf("plug %s into %s: %w", serial, d.cfg.Name, err)
	}
	add := map[string]any{"id": "dev-" + serial, "drive": "blk-" + serial, "serial": serial}
	port := ""
	if bus == USB {
		add["driver"], add["bus"], add["removable"] = "usb-storage", "usb.0", true
	} else {
		port = d.freePort(r)
		if port == "" {
			return fmt.Errorf("plug %s into %s: all %d ports are in use", serial, d.cfg.Name, rootPorts)
		}
		add["driver"], add["bus"] = "virtio-blk-pci", port
	}
	if err := r.monitor.do(ctx, "device_add", add, nil); err != nil {
		d.release(r, port)
		return errors.Join(fmt.Errorf("plug %s into %s: %w", serial, d.cfg.Name, err),
			r.monitor.do(ctx, "blockdev-del", map[string]any{"node-name": "blk-" + serial}, nil))
	}
	return nil
}

func (d *Device) freePort(r *run) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range rootPorts {
		p := fmt.Sprintf("rp%d", i)
		if !r.plugged[p] {
			r.plugged[p] = true
			return p
		}
	}
	return ""
}

func (d *Device) release(r *run, port string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(r.plugged, port)
}

// Unplug pulls a disk out without asking the guest's programs. It returns when
// the guest's kernel has let go of it.
func (d *Device) Unplug(ctx context.Context, serial string) error {
	r, err := d.running()
	if err != nil {
		return fmt.Errorf("unplug %s from %s: %w", serial, d.cfg.Name, err)
	}
	d.mu.Lock()
	from := len(d.events)
	d.mu.Unlock()
	if err := r.monitor.do(ctx, "device_del", map[string]any{"id": "dev-" + serial}, nil); err != nil {
		return err
	}
	err = d.until(ctx, "release of "+serial, time.Minute, func() (bool, error) {
		if d.run == nil {
			return false, ErrOff
		}
		return slices.ContainsFunc(d.events[from:], func(e Event) bool {
			return e.Name == "DEVICE_DELETED" && strings.Contains(string(e.Data), `"dev-`+serial+`"`)
		}), nil
	})
	if err != nil {
		return err
	}
	return r.monitor.do(ctx, "blockdev-del", map[string]any{"node-name": "blk-" + serial}, nil)
}

// Push copies a file of this host into the guest. The bytes travel as a
// hot-plugged disk, because a serial port is slow; the guest needs sh, head,
// cat, tr and the command port.
func (d *Device) Push(ctx context.Context, src, dst string) error {
	info, err := os.Stat(src)
	if err != nil {
		return fmt.Errorf("push to %s: %w", d.cfg.Name, err)
	}
	dir, err := os.MkdirTemp(d.cfg.Dir, "push")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	// A disk is whole sectors; the guest cuts the padding off again.
	image := filepath.Join(dir, "push.img")
	if err := CopySparse(ctx, image, src); err != nil {
		return err
	}
	if err := os.Truncate(image, (info.Size()+4095)/4096*4096+4096); err != nil {
		return err
	}
	serial := filepath.Base(dir)
	if err := d.Plug(ctx, serial, image, Virtio); err != nil {
		return err
	}
	// The wait for the disk is in the guest, where it is a look at a directory
	// and not a guess at how long hot-plug takes there.
	script := `n=0; while :; do
	for b in /sys/block/vd*; do
		[ "$(cat $b/serial 2>/dev/null)" = "$1" ] && head -c "$3" "/dev/${b##*/}" >"$2" && exit 0
	done
	n=$((n+1)); [ $n -gt 300 ] && { echo "disk $1 did not appear" >&2; exit 1; }; sleep 0.1
done`
	res, err := d.Run(ctx, Command{Argv: []string{"sh", "-c", script, "push", serial, dst, fmt.Sprint(info.Size())}, Timeout: 5 * time.Minute})
	if err == nil && res.Code != 0 {
		err = fmt.Errorf("push %s to %s:%s: exit %d: %s", src, d.cfg.Name, dst, res.Code, strings.TrimSpace(res.Stderr))
	}
	return errors.Join(err, d.Unplug(ctx, serial))
}
