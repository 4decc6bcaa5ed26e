// Package bootreport is what the first program of a boot (bootctl/cmd/init)
// tells the programs after it, and what one boot leaves behind for the next.
//
// Two files, both written by the initramfs and read by the agent:
//
//	/run/tandem/boot.json    this boot: one JSON object, gone with the power
//	/data/tandem/attempts    the last boots of either slot, see below
//
// # boot.json
//
//	slot       "a" or "b"
//	manifest   digest of the signed manifest (its payload bytes) in the slot record, "sha256:…"
//	version    the release's version, for people
//	verity     root hash of the running root file system, 64 hexadecimal digits
//	watchdog   null when the board has none, else
//	             identity    as the driver names it
//	             armed_by    "loader" when the hardware ran before the driver came, else "init"
//	             bootstatus  WDIOF_* flags of the last reset; 32 = the watchdog did it
//	             timeout_s   the time-out in effect, in seconds, read back from the driver
//	             fd          the open descriptor that /sbin/init inherits (also WATCHDOG_FD)
//	measured   null when nothing was measured, else pcr and digest (hexadecimal)
//	data       "mounted", or "missing" when /data is only a RAM disk
//	pstore     the end of the kernel log of the last panic, "" when there was none
//	boot_id    /proc/sys/kernel/random/boot_id
//	problems   what was wrong without stopping the boot, one sentence each
//
// # attempts
//
// A text file of at most MaxSize bytes, one line per event, oldest first:
//
//	<CRC-32C of the JSON text, 8 hexadecimal digits> SP <JSON object> LF
//
// A line whose sum does not match was torn by a power cut or damaged; readers
// skip it. The file is a hint for people and for the reason of a revert:
// nothing that decides which slot boots may depend on it.
//
// This package neither knows the bootloader's record nor decides anything; see
// package bootctl.
package bootreport

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/tandem-ota/tandem/partition/datafile"
)

const (
	// BootPath is where the report of this boot is.
	BootPath = "/run/tandem/boot.json"
	// AttemptsPath is where the boots before are.
	AttemptsPath = "/data/tandem/attempts"

	// CardReset is the flag in Watchdog.BootStatus that says that the watchdog
	// caused the last reset (WDIOF_CARDRESET of linux/watchdog.h).
	CardReset = 0x20

	// maxBoot bounds what ReadBoot takes, in bytes: kernel log and problems
	// are bounded by who writes them, everything else is small.
	maxBoot = 64 << 10
)

// What Boot.Data says.
const (
	DataMounted = "mounted"
	DataMissing = "missing"
)

// Boot is the content of boot.json.
type Boot struct {
	Slot     string    `json:"slot"`
	Manifest string    `json:"manifest"`
	Version  string    `json:"version"`
	Watchdog *Watchdog `json:"watchdog"`
	Verity   string    `json:"verity"`
	Measured *Measured `json:"measured"`
	Data     string    `json:"data"`
	Pstore   string    `json:"pstore"`
	BootID   string    `json:"boot_id"`
	Problems []string  `json:"problems,omitempty"`
}

// Watchdog says which watchdog guards this boot.
type Watchdog struct {
	Identity   string `json:"identity"`
	ArmedBy    string `json:"armed_by"`
	BootStatus int    `json:"bootstatus"`
	TimeoutS   int    `json:"timeout_s"`
	FD         int    `json:"fd"`
}

// Measured says what went into which PCR.
type Measured struct {
	PCR    int    `json:"pcr"`
	Digest string `json:"digest"`
}

// ReadBoot reads the report of this boot. A machine that was not started by
// Tandem's first program has none; the error then wraps fs.ErrNotExist.
func ReadBoot(path string) (Boot, error) {
	f, err := os.Open(path)
	if err != nil {
		return Boot{}, fmt.Errorf("read boot report: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxBoot+1))
	if err != nil {
		return Boot{}, fmt.Errorf("read boot report: %w", err)
	}
	if len(text) > maxBoot {
		return Boot{}, fmt.Errorf("read boot report: more than %d bytes", maxBoot)
	}
	var b Boot
	if err := json.Unmarshal(text, &b); err != nil {
		return Boot{}, fmt.Errorf("read boot report: %w", err)
	}
	return b, nil
}

// WriteBoot writes b to path. A reader sees the whole report or none.
func WriteBoot(path string, b Boot) error {
	text, err := json.Marshal(b)
	if err != nil {
		return fmt.Errorf("write boot report: %w", err)
	}
	if err := datafile.Mkdir(datafile.OS{}, filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write boot report: %w", err)
	}
	// Syncing does nothing in RAM, where the file lives and dies.
	if err := datafile.Replace(datafile.OS{}, path, append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("write boot report: %w", err)
	}
	return nil
}
