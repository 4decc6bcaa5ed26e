// Package factory makes what stories, demo and benchmarks run on: keys, disk
// images of devices that leave the factory with release 1.0.0, and the
// releases that are then thrown at them, good ones and bad ones.
//
// Everything is made once and kept in build/factory/<key>/, where the key is a
// hash of all that goes in, so that a second run starts with the first story.
//
//	../programs/    updater, tiny's program, the first program
//	trust/          keys and TUF metadata of a pretended vendor (package mktrust)
//	slots/<name>/   the images of a system
//	release/<name>/ the signed release of it, an OCI layout
//	disk/<name>.img a device that left the factory with that release
//
// Package factory builds with the desk's own packages, as `tandem image` and
// `tandem release` do. No device links it.
package factory

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/tandem-ota/tandem/boards"
	"github.com/tandem-ota/tandem/boards/image"
	"github.com/tandem-ota/tandem/qemu/tiny"
	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/release"
	"github.com/tandem-ota/tandem/updater/release/mkrelease"
	"github.com/tandem-ota/tandem/updater/trust/mktrust"
)

// Product is what the pretended vendor calls its product.
const Product = "tiny"

// Factory is a folder with everything made.
type Factory struct {
	dir   string
	board boards.Board
}

// Open returns the factory's folder of the module at root, and makes what is
// not there yet; what it does goes to log. The kernel must be in
// root/build/kernel (.ci/kernel.sh). Several processes may call it at once.
func Open(ctx context.Context, root string, log io.Writer) (*Factory, error) {
	f, err := open(ctx, root, log)
	if err != nil {
		return nil, fmt.Errorf("make releases to test with: %w", err)
	}
	return f, nil
}

func open(ctx context.Context, root string, log io.Writer) (*Factory, error) {
	board, err := boards.Get("qemu-x86_64")
	if err != nil {
		return nil, err
	}
	base := filepath.Join(root, "build", "factory")
	if err := os.MkdirAll(base, 0o755); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(base, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return nil, err
	}
	began := time.Now()
	p, err := compile(ctx, root, filepath.Join(base, "programs"))
	if err != nil {
		return nil, err
	}
	key, err := p.key(root)
	if err != nil {
		return nil, err
	}
	f := &Factory{dir: filepath.Join(base, key), board: board}
	if _, err := os.Stat(f.dir); err == nil {
		return f, nil
	}
	fmt.Fprintf(log, "factory: programs compiled in %.0f s\n", time.Since(began).Seconds())
	temp := f.dir + ".new"
	if err := os.RemoveAll(temp); err != nil {
		return nil, err
	}
	made := &Factory{dir: temp, board: board}
	if err := made.build(ctx, p, log); err != nil {
		return nil, err
	}
	fmt.Fprintf(log, "factory: everything made in %.0f s\n", time.Since(began).Seconds())
	return f, os.Rename(temp, f.dir)
}

// Release is the folder of a release, by its name in the catalogue.
func (f *Factory) Release(name string) string { return filepath.Join(f.dir, "release", name) }

// Slots is the folder with the images of a release.
func (f *Factory) Slots(name string) string { return filepath.Join(f.dir, "slots", name) }

// Disk is the disk image of a device that left the factory with a release: "one"
// or "two".
func (f *Factory) Disk(name string) string { return filepath.Join(f.dir, "disk", name+".img") }

// Bin is the folder with the desk program, tandem.
func (f *Factory) Bin() string { return filepath.Join(f.dir, "..", "..", "bin") }

// Trust is the vendor's trust folder. Stories that publish have their own copy.
func (f *Factory) Trust() string { return filepath.Join(f.dir, "trust") }

// Board is the board that everything is made for.
func (f *Factory) Board() boards.Board { return f.board }

// Spec returns what the catalogue says about a release.
func Spec(name string) (Item, error) {
	for _, i := range catalogue {
		if i.Name == name {
			return i, nil
		}
	}
	return Item{}, fmt.Errorf("the factory makes no release %q", name)
}

// programs are the compiled programs that go into images, and where the kernel is.
type programs struct {
	updater, tiny, init string
	tandem              string // the desk program
	kernel, modules     string
}

func compile(ctx context.Context, root, dir string) (programs, error) {
	p := programs{updater: filepath.Join(dir, "updater"), tiny: filepath.Join(dir, "tiny"), init: filepath.Join(dir, "init"), tandem: filepath.Join(root, "build", "bin", "tandem")}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return p, err
	}
	// The device program as it is shipped, so that the stories try what is shipped.
	if out, err := exec.CommandContext(ctx, filepath.Join(root, ".ci", "updater.sh"), p.updater).CombinedOutput(); err != nil {
		return p, fmt.Errorf("compile the device program: %w: %s", err, out)
	}
	for out, program := range map[string]string{
		p.tiny:   tiny.Program,
		p.init:   "github.com/tandem-ota/tandem/bootctl/cmd/init",
		p.tandem: "github.com/tandem-ota/tandem/updater/cmd/tandem",
	} {
		if err := tiny.Compile(ctx, out, program); err != nil {
			return p, err
		}
	}
	kernels, err := filepath.Glob(filepath.Join(root, "build/kernel/pkg/boot/vmlinuz-*"))
	if err != nil {
		return p, err
	}
	if len(kernels) != 1 {
		return p, fmt.Errorf("%d kernels in build/kernel, want one; hint: .ci/kernel.sh fetches it", len(kernels))
	}
	p.kernel = kernels[0]
	p.modules = filepath.Join(root, "build/kernel/pkg/lib/modules", strings.TrimPrefix(filepath.Base(p.kernel), "vmlinuz-"))
	return p, nil
}

// key is a hash of everything that goes into the factory's products: the
// programs, the kernel, and what makes them, which is in the desk program too
// except for this package.
func (p programs) key(root string) (string, error) {
	h := sha256.New()
	names, err := filepath.Glob(filepath.Join(root, "tests", "factory", "*.go"))
	if err != nil {
		return "", err
	}
	for _, name := range append(names, p.updater, p.tiny, p.init, p.tandem, p.kernel) {
		f, err := os.Open(name)
		if err != nil {
			return "", err
		}
		_, err = io.Copy(h, f)
		f.Close()
		if err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:16], nil
}

func (f *Factory) build(ctx context.Context, p programs, log io.Writer) error {
	for _, d := range []string{"slots", "release", "disk"} {
		if err := os.MkdirAll(filepath.Join(f.dir, d), 0o755); err != nil {
			return err
		}
	}
	folder, err := mktrust.Init(ctx, f.Trust(), time.Now(), mktrust.InitOptions{})
	if err != nil {
		return err
	}
	keys, err := os.ReadFile(filepath.Join(f.Trust(), "release-keys.json"))
	if err != nil {
		return err
	}
	root, err := os.ReadFile(filepath.Join(f.Trust(), "root.json"))
	if err != nil {
		return err
	}
	w := &workshop{Factory: f, programs: p, keys: keys, root: root, log: log}
	// Images and payloads take the time and do not depend on each other, except
	// that deltas start from "one", or from a release that starts from it.
	if err := w.make(ctx, catalogue[0]); err != nil {
		return err
	}
	var next, last []Item
	for _, i := range catalogue[1:] {
		if i.Base == "" {
			next = append(next, i)
		} else {
			last = append(last, i)
		}
	}
	if err := w.makeAll(ctx, next); err != nil {
		return err
	}
	if err := w.makeAll(ctx, last); err != nil {
		return err
	}
	// In the order of the catalogue: each signing makes newer metadata, which
	// goes into the release, and a device takes no older metadata afterwards.
	for _, i := range catalogue {
		if i.Unsigned {
			continue
		}
		if _, err := mkrelease.Sign(ctx, f.Release(i.Name), folder); err != nil {
			return err
		}
	}
	for _, name := range disks {
		if err := w.disk(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// workshop is a factory while it makes things.
type workshop struct {
	*Factory
	programs
	keys, root []byte
	mu         sync.Mutex
	log        io.Writer
}

// makeAll makes several items, two at a time: compression uses one core each.
func (w *workshop) makeAll(ctx context.Context, items []Item) error {
	const together = 2
	room := make(chan bool, together)
	errs := make([]error, len(items))
	var all sync.WaitGroup
	for n, i := range items {
		room <- true
		all.Go(func() {
			errs[n] = w.make(ctx, i)
			<-room
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

func (w *workshop) make(ctx context.Context, i Item) error {
	began := time.Now()
	if err := w.item(ctx, i); err != nil {
		return fmt.Errorf("%s: %w", i.Name, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	fmt.Fprintf(w.log, "factory: %-12s %s made in %.1f s\n", i.Name, i.Version, time.Since(began).Seconds())
	return nil
}

func (w *workshop) item(ctx context.Context, i Item) error {
	stage, err := os.MkdirTemp(w.dir, "stage-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(stage)
	tree := filepath.Join(stage, "tree")
	err = tiny.Build(ctx, tree, tiny.Options{Version: i.Version, Fault: i.Fault, Program: w.tiny, Updater: w.updater})
	if err != nil {
		return err
	}
	board := w.board
	if i.OtherBoard {
		board.Name = "another-board"
	}
	first := w.init
	if i.KernelHangs {
		// Without a first program the kernel panics, and without panic= it then
		// stands still for ever: nothing but hardware can help.
		board.Kernel.Cmdline = strings.ReplaceAll(board.Kernel.Cmdline, "panic=5", "panic=0")
		first = filepath.Join(stage, "nothing")
		if err := os.WriteFile(first, []byte("not a program\n"), 0o755); err != nil {
			return err
		}
	}
	device, err := deviceFile(w.board.Name)
	if err != nil {
		return err
	}
	_, err = image.Slots(ctx, image.SlotOptions{
		Board: board, Kernel: w.kernel, Modules: w.modules, Init: first, Root: tree, Keys: w.keys, Date: image.Epoch,
		RootFiles: append([]image.File{
			{Path: image.DevicePath, Mode: 0o644, Data: device},
			{Path: image.TrustRootPath, Mode: 0o644, Data: w.root},
		}, i.Files...),
		Out: w.Slots(i.Name),
	})
	if err != nil {
		return err
	}
	var bases []string
	if i.Name != catalogue[0].Name && !i.NoDelta {
		bases = []string{w.Release(cmp.Or(i.Base, catalogue[0].Name))}
	}
	_, err = mkrelease.Create(ctx, mkrelease.Options{
		Out: w.Release(i.Name), Product: Product, Version: i.Version, Sequence: i.Sequence, Epoch: i.Epoch,
		Slots: w.Slots(i.Name), Bases: bases, NoIndex: !i.Index, Policy: i.policy(), Level: 1,
		Provenance: manifest.Provenance{Source: "https://github.com/tandem-ota/tandem", Builder: "tests/factory"},
	})
	return err
}

// disk makes the image of a device with a release, and an empty data partition,
// as it comes from the factory.
func (w *workshop) disk(ctx context.Context, name string) error {
	r, err := release.Open(w.Release(name))
	if err != nil {
		return err
	}
	defer r.Close()
	envelope, err := r.Manifest(ctx)
	if err != nil {
		return err
	}
	return image.Build(ctx, image.DiskOptions{
		Board: w.board, BootImage: filepath.Join(w.Slots(name), "boot.img"), RootImage: filepath.Join(w.Slots(name), "root.img"),
		Envelope: bytes.TrimSpace(envelope),
	}, w.Disk(name))
}
