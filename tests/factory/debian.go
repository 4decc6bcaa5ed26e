package factory

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/tandem-ota/tandem/boards"
	"github.com/tandem-ota/tandem/boards/image"
	"github.com/tandem-ota/tandem/qemu/debian"
	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/release/mkrelease"
	"github.com/tandem-ota/tandem/updater/trust/mktrust"
)

// debianItem is a release of the system `debian`. Names and versions are those of
// the catalogue.
type debianItem struct {
	name  string // Item with this name has the version and the sequence
	lock  int    // debian.Releases
	files []image.File
}

var debianCatalogue = []debianItem{
	{name: "one", lock: 1},
	{name: "two", lock: 2},
	// The system comes up, and its updater stands still: nothing feeds the watchdog.
	{name: "hang", lock: 2, files: []image.File{{
		Path: "/usr/lib/systemd/system/updater.service.d/99-hang.conf", Mode: 0o644,
		Data: []byte("[Service]\nType=simple\nExecStart=\nExecStart=/bin/sleep infinity\n"),
	}}},
}

// OpenDebian is Open for the system `debian`: the releases "one", "two" and "hang".
// Packages and root file systems are kept in root/build/debian; the first time it
// needs a Debian mirror.
func OpenDebian(ctx context.Context, root string, log io.Writer) (*Factory, error) {
	f, err := openDebian(ctx, root, log)
	if err != nil {
		return nil, fmt.Errorf("make Debian releases to test with: %w", err)
	}
	return f, nil
}

func openDebian(ctx context.Context, root string, log io.Writer) (*Factory, error) {
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
	systems := make(map[int]debian.System)
	for _, n := range debian.Releases {
		if systems[n], err = debian.Build(ctx, filepath.Join(root, "build", "debian"), n, log); err != nil {
			return nil, err
		}
	}
	own, err := debian.Files(debian.Agent, p.updater, p.tiny)
	if err != nil {
		return nil, err
	}
	key, err := p.key(root)
	if err != nil {
		return nil, err
	}
	key = debianKey(key, systems, own)
	f := &Factory{dir: filepath.Join(base, "debian-"+key), board: board}
	if _, err := os.Stat(f.dir); err == nil {
		return f, nil
	}
	temp := f.dir + ".new"
	if err := os.RemoveAll(temp); err != nil {
		return nil, err
	}
	made := &Factory{dir: temp, board: board}
	if err := made.buildDebian(ctx, p, systems, own, log); err != nil {
		return nil, err
	}
	fmt.Fprintf(log, "factory: Debian releases made in %.0f s\n", time.Since(began).Seconds())
	return f, os.Rename(temp, f.dir)
}

// debianKey adds to the key of the programs what only these releases are made of.
func debianKey(key string, systems map[int]debian.System, own []image.File) string {
	h := sha256.New()
	io.WriteString(h, key)
	for _, n := range debian.Releases {
		// The name of the root file system is made of all that is in it.
		fmt.Fprintln(h, filepath.Base(systems[n].Root), filepath.Base(systems[n].Kernel))
	}
	for _, f := range own {
		fmt.Fprintf(h, "%s %o %x\n", f.Path, f.Mode, sha256.Sum256(f.Data))
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}

func (f *Factory) buildDebian(ctx context.Context, p programs, systems map[int]debian.System, own []image.File, log io.Writer) error {
	for _, d := range []string{"slots", "release", "disk"} {
		if err := os.MkdirAll(filepath.Join(f.dir, d), 0o755); err != nil {
			return err
		}
	}
	folder, err := mktrust.Init(ctx, f.Trust(), time.Now(), mktrust.InitOptions{})
	if err != nil {
		return err
	}
	w := &workshop{Factory: f, programs: p, log: log}
	if w.keys, err = os.ReadFile(filepath.Join(f.Trust(), "release-keys.json")); err != nil {
		return err
	}
	if w.root, err = os.ReadFile(filepath.Join(f.Trust(), "root.json")); err != nil {
		return err
	}
	for _, d := range debianCatalogue {
		began := time.Now()
		made, err := w.debian(ctx, d, systems[d.lock], own)
		if err != nil {
			return fmt.Errorf("%s: %w", d.name, err)
		}
		if _, err := mkrelease.Sign(ctx, f.Release(d.name), folder); err != nil {
			return err
		}
		fmt.Fprintf(log, "factory: debian %s made in %.1f s\n", d.name, time.Since(began).Seconds())
		for _, pay := range made.Payloads {
			fmt.Fprintf(log, "factory:   %-4s %-5s %6.1f MiB of %6.1f MiB %s\n", pay.Image, pay.Kind, float64(pay.Size)/(1<<20), float64(pay.ImageSize)/(1<<20), pay.Dropped)
		}
	}
	return w.disk(ctx, debianCatalogue[0].name)
}

// debian makes one release.
func (w *workshop) debian(ctx context.Context, d debianItem, s debian.System, own []image.File) (mkrelease.Result, error) {
	var made mkrelease.Result
	item, err := Spec(d.name)
	if err != nil {
		return made, err
	}
	device, err := json.MarshalIndent(map[string]any{"board": w.board.Name, "product": debianProduct, "watchdog": debian.Agent}, "", "  ")
	if err != nil {
		return made, err
	}
	files := []image.File{
		{Path: image.DevicePath, Mode: 0o644, Data: device},
		{Path: image.TrustRootPath, Mode: 0o644, Data: w.root},
	}
	_, err = image.Slots(ctx, image.SlotOptions{
		Board: w.board, Kernel: s.Kernel, Modules: s.Modules, Init: w.init, Root: s.Root, Keys: w.keys, Date: image.Epoch,
		RootFiles: append(append(files, own...), d.files...), Out: w.Slots(d.name),
	})
	if err != nil {
		return made, err
	}
	var bases []string
	if first := debianCatalogue[0].name; d.name != first {
		bases = []string{w.Release(first)}
	}
	return mkrelease.Create(ctx, mkrelease.Options{
		Out: w.Release(d.name), Product: debianProduct, Version: item.Version, Sequence: item.Sequence,
		Slots: w.Slots(d.name), Bases: bases, Policy: debianPolicy(), Level: 1,
		NoIndex:    true, // all devices here run the first one; to make and prove it takes minutes
		Provenance: manifest.Provenance{Source: "https://github.com/tandem-ota/tandem", Builder: "tests/factory"},
	})
}

const debianProduct = "debian"

// debianPolicy is what a product might ask of a system with services. The deadline
// is for a loaded machine that emulates the device.
func debianPolicy() mkrelease.Policy {
	p := mkrelease.DefaultPolicy()
	p.Trial = manifest.Trial{Tries: 1, DeadlineSeconds: 420, WindowSeconds: 10, Network: manifest.NetworkIgnore}
	p.Health = []manifest.Check{
		{Name: "network", Kind: manifest.CheckUnit, Target: "systemd-networkd.service", TimeoutSeconds: 30},
		{Name: "names", Kind: manifest.CheckUnit, Target: "systemd-resolved.service", TimeoutSeconds: 30},
		{Name: "updater", Kind: manifest.CheckUnit, Target: "updater.service", TimeoutSeconds: 30},
		{Name: "cryptography", Kind: manifest.CheckCommand, Target: "/usr/bin/openssl", Args: []string{"version"}, TimeoutSeconds: 60},
	}
	return p
}
