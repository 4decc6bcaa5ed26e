package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tandem-ota/tandem/boards"
	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/bootctl/bootreport"
	"github.com/tandem-ota/tandem/bootctl/watchdog"
	"github.com/tandem-ota/tandem/partition/datafile"
	"github.com/tandem-ota/tandem/tpm"
	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/transport/mqtt"
	"github.com/tandem-ota/tandem/updater"
	"github.com/tandem-ota/tandem/updater/external"
	"github.com/tandem-ota/tandem/updater/health"
	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/trust"
	"github.com/tandem-ota/tandem/updater/trust/strictjson"
)

const (
	configDir = "/etc/tandem"
	dataDir   = "/data/tandem"
	lockPath  = "/run/tandem/install.lock"

	// tpmFresh is how long an answer of the TPM is good for.
	tpmFresh = 2 * time.Second
)

// errNoDevice means that the program does not run on a device that Tandem started.
var errNoDevice = errors.New("no Tandem device")

// config is /etc/tandem/device.json: what all devices of a product have in common.
type config struct {
	Board   string `json:"board"`
	Product string `json:"product"`
	// Watchdog says who owns the device: "agent", or "systemd" (RuntimeWatchdogSec=),
	// where the agent is watched by WatchdogSec= of its unit. See package watchdog.
	Watchdog      string `json:"watchdog,omitempty"`
	MemoryMiB     int64  `json:"memory_mib,omitempty"`     // for applying a payload; 24 if 0
	CheckpointMiB int64  `json:"checkpoint_mib,omitempty"` // between durable checkpoints; 4 if 0
	MaxAttempts   int    `json:"max_attempts,omitempty"`   // of one release that never gets to its trial; 5 if 0
}

// maxConfig bounds device.json, in bytes.
const maxConfig = 64 << 10

func readConfig(path string) (config, error) {
	f, err := os.Open(path)
	if err != nil {
		return config{}, fmt.Errorf("%w: %w", errNoDevice, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return config{}, err
	}
	c, err := parseConfig(data)
	if err != nil {
		return config{}, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

func parseConfig(data []byte) (config, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	c := config{Watchdog: "agent", MemoryMiB: 24, CheckpointMiB: 4, MaxAttempts: 5}
	if err := d.Decode(&c); err != nil {
		return config{}, err
	}
	// The decoder takes the last of two equal keys and stops at the end of the object:
	// what comes after it, as of two files that were joined, would be ignored.
	if err := strictjson.Check(data, strictjson.Rules{Size: maxConfig, Depth: 2, PlainKeys: true}); err != nil {
		return config{}, err
	}
	switch {
	case c.Board == "" || c.Product == "":
		return config{}, errors.New("board and product are needed")
	case c.Watchdog != "agent" && c.Watchdog != "systemd":
		return config{}, fmt.Errorf("watchdog is %q, not agent or systemd", c.Watchdog)
	case c.MemoryMiB < 1 || c.MemoryMiB > 1024 || c.CheckpointMiB < 1 || c.CheckpointMiB > 64 || c.MaxAttempts < 1:
		return config{}, errors.New("memory_mib, checkpoint_mib or max_attempts out of bounds")
	}
	return c, nil
}

// device is the machine the program runs on, opened.
type device struct {
	config config
	boot   bootreport.Boot
	parts  *boards.Parts
	id     string
	keys   trust.KeySet
	tuf    *trust.Client
	log    *slog.Logger
	tail   func() []string

	keeper *watchdog.Keeper // nil unless this is the agent

	// One goroutine at a time may ask the TPM; what it said is kept for a moment, so
	// that nobody can keep it busy by asking for the status.
	tpmLock sync.Mutex
	tpmSaid tpm.Status
	tpmWhen time.Time
	tpm     *tpm.TPM
	tpmErr  error
	ledger  *tpm.Ledger
	ledlog  *tpm.FileLog
}

// open finds everything that a device has. readOnly leaves the boot record to others.
func open(readOnly bool, log *slog.Logger) (*device, error) {
	d := &device{log: log}
	var err error
	if d.config, err = readConfig(filepath.Join(configDir, "device.json")); err != nil {
		return nil, err
	}
	if d.boot, err = bootreport.ReadBoot(bootreport.BootPath); err != nil {
		return nil, fmt.Errorf("%w: %w", errNoDevice, err)
	}
	board, err := boards.Get(d.config.Board)
	if err != nil {
		return nil, err
	}
	if err := d.openTrust(); err != nil {
		return nil, err
	}
	d.id = "unprovisioned"
	if id, err := mqtt.ID(filepath.Join(dataDir, "provision")); err == nil {
		d.id = id
	} else if !errors.Is(err, fs.ErrNotExist) {
		log.Warn("name of the device", "err", err)
	}
	d.parts, err = boards.Open(board, boards.Options{Running: bootctl.Slot(d.boot.Slot), ReadOnly: readOnly})
	if err != nil {
		return nil, err
	}
	d.openTPM(board, readOnly)
	return d, nil
}

func (d *device) openTrust() error {
	data, err := os.ReadFile(filepath.Join(configDir, "release-keys.json"))
	if err == nil {
		d.keys, err = trust.ParseKeySet(data)
	}
	if err != nil {
		return fmt.Errorf("release keys: %w", err)
	}
	anchor, err := os.ReadFile(filepath.Join(configDir, "root.json"))
	if err != nil {
		return fmt.Errorf("TUF root: %w", err)
	}
	store := filepath.Join(dataDir, "tuf")
	// The first program made dataDir, if it could write.
	if err = datafile.Mkdir(datafile.OS{}, dataDir, 0o755); err == nil {
		err = datafile.Mkdir(datafile.OS{}, store, 0o700)
	}
	if err == nil {
		d.tuf, err = trust.Open(trust.Dir(store), anchor)
	}
	if err != nil {
		// A broken data partition must not take the agent down, and the device with
		// it: what was kept is fetched again, and forgotten at the next start.
		d.log.Error("stored TUF metadata", "err", err)
		d.tuf, err = trust.Open(memory{}, anchor)
	}
	if err != nil {
		return fmt.Errorf("TUF root: %w", err)
	}
	return nil
}

// memory is a trust.Store for a device that cannot keep anything.
type memory map[string][]byte

func (m memory) Get(name string) ([]byte, error) {
	if data, ok := m[name]; ok {
		return data, nil
	}
	return nil, fs.ErrNotExist
}

func (m memory) Put(name string, data []byte) error {
	m[name] = bytes.Clone(data)
	return nil
}

func (m memory) Delete(name string) error {
	delete(m, name)
	return nil
}

// openTPM looks for the TPM. A device without one, or with a broken one, works and
// says what is missing.
func (d *device) openTPM(board boards.Board, readOnly bool) {
	if board.TPM == nil {
		d.tpmErr = tpm.ErrNoTPM
		return
	}
	if d.tpm, d.tpmErr = tpm.Open(tpm.Device); d.tpmErr != nil {
		return
	}
	var logs []tpm.Log
	if !readOnly {
		// The copy outside the data partition first: it is harder to lose.
		logs = append(logs, d.parts.Ledger())
	}
	var err error
	if d.ledlog, err = tpm.CreateLog(filepath.Join(dataDir, "ledger.log"), 64<<10); err == nil {
		logs = append(logs, d.ledlog)
	} else {
		d.log.Warn("ledger log on the data partition", "err", err)
	}
	if readOnly && len(logs) == 0 {
		logs = append(logs, d.parts.Ledger())
	}
	d.ledger = d.tpm.Ledger(tpm.LedgerOptions{Logs: logs, Index: uint32(board.TPM.Ledger)})
	if !readOnly {
		if err := d.ledger.Resume(); err != nil {
			d.log.Warn("TPM ledger", "err", err)
		}
	}
}

func (d *device) close() {
	if d.ledlog != nil {
		d.ledlog.Close()
	}
	if d.tpm != nil {
		d.tpm.Close()
	}
	d.parts.Close()
}

// core joins the core to this device.
func (d *device) core(link updater.Link, keeper *watchdog.Keeper) (*updater.Updater, error) {
	handlers := external.Handlers{Folder: external.Folder, State: filepath.Join(dataDir, "handlers"), Board: d.config.Board, Log: os.Stderr}
	prober := health.Prober{LinkUp: link.Up}
	p := updater.Parts{
		Device: d.id, Board: d.config.Board, Agent: version,
		Boot: d.boot, Record: d.parts.Store, Slots: slots{d.parts}, Store: trust.Dir(dataDir),
		Keys: d.keys, TUF: d.tuf, Link: link, Keeper: keeper,
		Handlers: handlers, Check: prober.Run, Migrate: migrate, Tail: d.tail,
		Attempts: func() ([]bootreport.Attempt, error) { return bootreport.Attempts(bootreport.AttemptsPath) },
		Lock:     lock, Reboot: d.reboot, Now: time.Now, NewID: newID,
		Memory: d.config.MemoryMiB << 20, Checkpoint: d.config.CheckpointMiB << 20, MaxBegun: d.config.MaxAttempts,
		Log: d.log, TPM: d.tpmReport, Uptime: uptime,
	}
	if d.ledger != nil {
		p.Ledger = ledger{d}
	}
	u, err := updater.New(p)
	if err != nil {
		return nil, err
	}
	if err := d.config.suits(u.Running().Manifest); err != nil {
		return nil, err
	}
	return u, nil
}

// suits refuses to go on where the running slot is of another product than the device.
func (c config) suits(m manifest.Manifest) error {
	if m.Product != c.Product {
		return fmt.Errorf("product is %s in the running slot's manifest, and %s in device.json", m.Product, c.Product)
	}
	return nil
}

// slots gives the core the partitions of the board.
type slots struct{ parts *boards.Parts }

func (s slots) Spare(role string) (updater.Disk, error) { return s.parts.OpenSpare(role) }

func (s slots) Read(slot bootctl.Slot, role string) (updater.Disk, error) {
	return s.parts.OpenRead(slot, role)
}

// ledger enters installs in the TPM's ledger.
type ledger struct{ d *device }

// Install implements updater.Ledger. A ledger whose log does not lead to what the TPM
// holds is reported in every status; it must not keep a device from its updates.
func (l ledger) Install(id string, digest [32]byte) error {
	var attempt [16]byte
	raw, err := hex.DecodeString(id)
	if err != nil || len(raw) != len(attempt) {
		return fmt.Errorf("attempt %q is no id", id)
	}
	copy(attempt[:], raw)
	l.d.tpmLock.Lock()
	defer l.d.tpmLock.Unlock()
	l.d.tpmWhen = time.Time{}
	err = l.d.ledger.Add(digest, attempt)
	if errors.Is(err, tpm.ErrLedgerMismatch) {
		l.d.log.Error("install not entered in the TPM's ledger", "err", err)
		return nil
	}
	return err
}

// uptime is the time since this boot began, that in suspension included.
func uptime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

func newID() string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails (crypto/rand)
	return hex.EncodeToString(id[:])
}

func lock() (func(), error) { return lockFile(lockPath) }

// lockFile excludes other processes that install. The kernel ends it with the process.
func lockFile(path string) (func(), error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, updater.ErrBusy
		}
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return func() { f.Close() }, nil
}

// migrate runs a release's data migration.
func migrate(ctx context.Context, hook, phase string, from, to int) error {
	return runHook(ctx, hook, phase, fmt.Sprint(from), fmt.Sprint(to))
}

// tpmStatus is what the TPM proves.
func (d *device) tpmStatus() tpm.Status {
	d.tpmLock.Lock()
	defer d.tpmLock.Unlock()
	if d.tpmWhen.IsZero() || time.Since(d.tpmWhen) > tpmFresh {
		d.tpmSaid, d.tpmWhen = d.askTPM(), time.Now()
	}
	return d.tpmSaid
}

func (d *device) askTPM() tpm.Status {
	pcr := 0
	if t := d.parts.Board.TPM; t != nil {
		pcr = t.PCR
	}
	var running *tpm.Digest
	if m := d.boot.Measured; m != nil {
		if raw, err := hex.DecodeString(m.Digest); err == nil && len(raw) == len(tpm.Digest{}) {
			digest := tpm.Digest(raw)
			running = &digest
		}
	}
	return tpm.Check(d.tpm, d.tpmErr, pcr, running, d.ledger)
}

// tpmReport is the same in short, for the fleet.
func (d *device) tpmReport() *transport.TPM {
	s := d.tpmStatus()
	r := &transport.TPM{Present: d.tpm != nil}
	if s.Register != nil {
		r.PCR = s.Register.Value.String()
		r.Agrees = s.Register.Agree
	}
	if s.Ledger != nil {
		r.Ledger = s.Ledger.Value.String()
		r.Agrees = r.Agrees && s.Ledger.Agree
	}
	return r
}

// reboot writes down that the machine goes down on purpose, and asks for it. If the
// system does not do it in time, the kernel does.
func (d *device) reboot(why string) error {
	err := bootreport.Append(bootreport.AttemptsPath, bootreport.Attempt{
		BootID: d.boot.BootID, Slot: d.boot.Slot, Manifest: d.boot.Manifest, Version: d.boot.Version, Stage: bootreport.StageClean, Cause: why,
	})
	if err != nil {
		d.log.Warn("reason of the reboot not written down", "err", err)
	}
	if d.keeper != nil {
		// From here on a shutdown that hangs ends with the watchdog.
		d.keeper.Stop()
	}
	go func() {
		time.Sleep(rebootGrace)
		go unix.Sync() // which never returns on a disk that is gone
		time.Sleep(syncGrace)
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	}()
	ctx, cancel := context.WithTimeout(context.Background(), rebootGrace)
	defer cancel()
	return runHook(ctx, "reboot")
}
