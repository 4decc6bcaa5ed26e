package tests

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/tandem-ota/tandem/qemu"
)

// plug plugs in a memory stick, and makes it of the files the first time:
// device plug NAME FILE….
func (s *story) plug(ts *testscript.TestScript, d *qemu.Device, name string, files []string) error {
	stick := ts.MkAbs(name + ".img")
	if _, made := s.sticks[stick]; !made {
		var paths []string
		for _, f := range files {
			paths = append(paths, ts.MkAbs(f))
		}
		if err := qemu.MakeStick(s.ctx, stick, paths...); err != nil {
			return err
		}
		sum, err := s.wholeStick(stick)
		if err != nil {
			return err
		}
		if s.sticks == nil {
			s.sticks = map[string]string{}
		}
		s.sticks[stick] = sum
	}
	return d.Plug(s.ctx, name, stick, qemu.USB)
}

// stick untouched NAME compares a stick, which is not plugged in, with what it was
// when it was made. The guest could have written it.
func stickCmd(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	if neg || len(args) != 2 || args[0] != "untouched" {
		ts.Fatalf("usage: stick untouched NAME")
	}
	stick := ts.MkAbs(args[1] + ".img")
	before, made := s.sticks[stick]
	if !made {
		ts.Fatalf("there is no stick %s: device plug makes it", args[1])
	}
	now, err := s.wholeStick(stick)
	ts.Check(err)
	if now != before {
		ts.Fatalf("stick %s has SHA-256 %s, had %s", args[1], now, before)
	}
}

// wholeStick is the SHA-256 of a stick whose file system fsck.vfat finds whole.
func (s *story) wholeStick(image string) (string, error) {
	parts, err := qemu.Partitions(s.ctx, image)
	if err != nil {
		return "", err
	}
	// The partitions of this kind of table have no names.
	p, ok := parts[""]
	if !ok || len(parts) != 1 {
		return "", fmt.Errorf("%s has %d partitions, want one", image, len(parts))
	}
	file := filepath.Join(s.logs, "stick-partition")
	defer os.Remove(file)
	if err := copyPart(file, image, p); err != nil {
		return "", err
	}
	if out, err := exec.CommandContext(s.ctx, "fsck.vfat", "-n", file).CombinedOutput(); err != nil {
		return "", fmt.Errorf("fsck.vfat of %s: %w: %s", image, err, out)
	}
	out, err := exec.CommandContext(s.ctx, "sha256sum", image).Output()
	if err != nil {
		return "", err
	}
	sum, _, _ := strings.Cut(string(out), " ")
	return sum, nil
}

// copyPart copies a partition out of an image.
func copyPart(to, image string, p qemu.Partition) error {
	in, err := os.Open(image)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, io.NewSectionReader(in, p.Start, p.Size))
	return errors.Join(err, out.Close())
}
