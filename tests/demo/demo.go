// Package demo is the play that `make demo` shows: a device in QEMU, with TPM and
// watchdog, takes a release over MQTT and keeps it, then takes one whose system
// hangs and comes back from it.
//
// Nothing in it is acted. The device is the disk image that an OEM would flash, the
// broker speaks TLS with certificates, the releases are published by `tandem publish`,
// and what is printed is what the device says over MQTT, what GRUB and the kernel print on
// the console, and what QEMU reports. At each turn programs of others (grub-editenv,
// sha256sum, veritysetup, tpm2_nvread) are asked whether it is so; the first "no" ends
// the play with an error.
//
//	demo.go    the order of the play
//	goods.go   releases and disk image, from package factory
//	desk.go    the operator's side
//	play.go    what happens, and what is shown of it
//	news.go    where it comes from
//	check.go   what independent tools say
//	account.go the table at the end
//	screen.go  the terminal
package demo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/tandem-ota/tandem/boards/image"
	"github.com/tandem-ota/tandem/qemu"
	"github.com/tandem-ota/tandem/transport"
)

// Run plays the demonstration with one of Systems, in build/demo/<system>/ of the module
// that the working directory is in; what an earlier one left there is removed. Nil
// means that everything that was shown was so. When ctx ends, everything that Run
// started is ended first.
func Run(ctx context.Context, system string, out *os.File) (err error) {
	goods, ok := systems[system]
	if !ok {
		return fmt.Errorf("no system %q; there are: %s", system, strings.Join(Systems(), ", "))
	}
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	if err := equipped(); err != nil {
		return err
	}
	dir, unlock, err := stage(root, system)
	if err != nil {
		return err
	}
	defer unlock()
	p := &play{screen: newScreen(out), dir: dir, news: make(chan news, 8192), seen: map[string]bool{}}
	defer p.still()
	p.chapter("Tandem: one device, one good update, one bad one (system: %s)", system)

	p.chapter("1. Build programs, keys, images and releases")
	p.goods, err = goods(ctx, root, &writer{say: func(line string) { p.line("factory", "%s", strings.TrimPrefix(line, "factory: ")) }})
	if err != nil {
		return err
	}
	for _, r := range []parcel{p.first, p.good, p.bad} {
		p.line("factory", "release %s: %s", r.m.Version, r.contents())
	}

	// The machine before the desk: a device whose broker goes away has more to say.
	ctx, stop := context.WithCancel(ctx)
	defer func() {
		if p.machine != nil {
			err = errors.Join(err, p.machine.Cut())
		}
		err = errors.Join(err, p.desk.close())
		stop()
	}()
	trust := filepath.Join(dir, "trust")
	if err := os.CopyFS(trust, os.DirFS(p.trust)); err != nil {
		return err
	}
	if err := p.setUp(ctx); err != nil {
		return err
	}
	if err := p.boot(ctx); err != nil {
		return fmt.Errorf("first boot: %w", err)
	}
	if err := p.update(ctx, trust); err != nil {
		return fmt.Errorf("update to %s: %w", p.good.m.Version, err)
	}
	if err := p.survive(ctx, trust); err != nil {
		return fmt.Errorf("bad update to %s: %w", p.bad.m.Version, err)
	}
	if err := p.inspect(ctx); err != nil {
		return fmt.Errorf("look at the device from outside: %w", err)
	}
	p.text(p.account())
	return nil
}

// setUp makes the desk and the device.
func (p *play) setUp(ctx context.Context) (err error) {
	p.chapter("2. A desk with a broker, and a device from the factory")
	if p.desk, err = openDesk(p.dir); err != nil {
		return err
	}
	p.line("broker", "listens on tls://%s; who connects is known by certificate", p.desk.broker.Addr())
	provision, err := p.desk.enroll()
	if err != nil {
		return err
	}
	if p.machine, err = qemu.New(ctx, qemu.Config{Dir: filepath.Join(p.dir, "device"), Name: "demo-" + device, Image: p.disk, TPM: true, Memory: p.memory}); err != nil {
		return err
	}
	data := filepath.Join(p.dir, "data")
	if err := os.CopyFS(filepath.Join(data, "tandem", "provision"), os.DirFS(provision)); err != nil {
		return err
	}
	if err := image.ProvisionData(ctx, p.machine.Disk(), p.board, data); err != nil {
		return err
	}
	p.line("device", "%s is enrolled and provisioned: %s", device, p.board.Title)
	p.line("console", "%s", filepath.Join(p.machine.Dir(), "console.log"))
	p.sampler = sampler{device: p.machine, say: p.say}
	return p.desk.listen(ctx, func(kind transport.Kind, payload []byte) { p.say(heard(kind, payload)) })
}

// boot turns the device on, and waits until it says what it is.
func (p *play) boot(ctx context.Context) error {
	p.chapter("3. The device boots release %s", p.first.m.Version)
	if err := p.machine.Start(ctx); err != nil {
		return err
	}
	follow(ctx, p.machine, p.say)
	err := p.await(ctx, "the first boot", bootLimit, func() (bool, error) { return p.settled("a", p.first.m.Version), nil })
	if err != nil {
		return err
	}
	return p.proven(ctx, p.first)
}

// proven asks the device for its status, and the TPM's tools whether it is true.
func (p *play) proven(ctx context.Context, r parcel) error {
	s, err := ask(ctx, p.machine)
	if err != nil {
		return err
	}
	p.last = s
	if s.TPM.Register == nil || !s.TPM.Register.Agree || s.TPM.Ledger == nil || !s.TPM.Ledger.Agree {
		return fmt.Errorf("%w: %s", errProof, strings.Join(s.TPM.Missing, "; "))
	}
	p.line("tpm", "PCR %d says that release %s runs; %d installs in the ledger, log and TPM agree", s.TPM.Register.PCR, r.m.Version, len(s.TPM.Ledger.Entries))
	return p.checkRegister(ctx, r)
}

// update publishes the good release and follows it to its commit.
func (p *play) update(ctx context.Context, trust string) error {
	p.chapter("4. Publish release %s", p.good.m.Version)
	if err := p.send(ctx, trust, p.good); err != nil {
		return err
	}
	err := p.await(ctx, "the reboot into the trial", installLimit, func() (bool, error) {
		_, err := p.ended(transport.Committed)
		return !p.now.trial.IsZero(), err
	})
	if err != nil {
		return err
	}
	err = p.await(ctx, "the commit", bootLimit+trialLimit, func() (bool, error) {
		done, err := p.ended(transport.Committed)
		return done && p.settled("b", p.good.m.Version), err
	})
	if err != nil {
		return err
	}
	if err := p.checkRecord(ctx, "good=b trying=none tries=0 bad=none"); err != nil {
		return err
	}
	if err := p.checkSlot(ctx, "b", p.good); err != nil {
		return err
	}
	return p.proven(ctx, p.good)
}

// survive publishes the release whose system hangs, and follows the device back.
func (p *play) survive(ctx context.Context, trust string) error {
	p.chapter("5. Publish release %s, whose system hangs: %s", p.bad.m.Version, p.bad.hangs.how)
	if err := p.send(ctx, trust, p.bad); err != nil {
		return err
	}
	err := p.await(ctx, "the hang", installLimit+bootLimit, func() (bool, error) {
		_, err := p.ended(transport.Reverted)
		return !p.now.hung.IsZero(), err
	})
	if err != nil {
		return err
	}
	tries := p.bad.m.Trial.Tries
	if err := p.checkRecord(ctx, fmt.Sprintf("good=b trying=a tries=%d bad=none", tries-1)); err != nil {
		return err
	}
	p.line("watchdog", "counts %d s; nobody feeds it any more", p.board.Watchdog.TimeoutSeconds)
	err = p.await(ctx, "the way back", bootLimit+revertLimit, func() (bool, error) {
		done, err := p.ended(transport.Reverted)
		return done && p.settled("b", p.good.m.Version), err
	})
	if err != nil {
		return err
	}
	if p.verdict.Reason != transport.ReasonWatchdog {
		return fmt.Errorf("the device says that it came back because of %q (%s), and it was the watchdog", p.verdict.Reason, p.verdict.Detail)
	}
	if p.now.bite.IsZero() {
		return errors.New("the device came back, but the watchdog did not bite")
	}
	return p.proven(ctx, p.good)
}

// inspect takes the power away and looks at disk and TPM.
func (p *play) inspect(ctx context.Context) error {
	p.chapter("6. Cut the power, and look at the device from outside")
	if err := p.machine.Cut(); err != nil {
		return err
	}
	p.off = qemu.ErrOff
	p.line("lab", "power is off")
	if err := p.checkRecord(ctx, "good=b trying=none tries=0 bad=a"); err != nil {
		return err
	}
	if err := p.checkSlot(ctx, "b", p.good); err != nil {
		return err
	}
	return p.checkLedger(ctx)
}

// moduleRoot is the folder of go.mod, at or above the working directory.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for at := dir; ; at = filepath.Dir(at) {
		if _, err := os.Stat(filepath.Join(at, "go.mod")); err == nil {
			return at, nil
		}
		if at == filepath.Dir(at) {
			return "", fmt.Errorf("no go.mod at or above %s: the demo runs from its source", dir)
		}
	}
}

// stage makes the empty folder of a play. Two plays in one folder would cut each
// other's power.
func stage(root, system string) (dir string, unlock func(), err error) {
	dir = filepath.Join(root, "build", "demo", system)
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", nil, err
	}
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		return "", nil, fmt.Errorf("another demo of %s is running: %s: %w", system, lock.Name(), err)
	}
	if err := os.RemoveAll(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		lock.Close()
		return "", nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		lock.Close()
		return "", nil, err
	}
	return dir, func() { lock.Close() }, nil
}
