package grubenv

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	_ "embed" // the boot script's text
)

// Params is what the boot script needs to know about a board.
type Params struct {
	// Env, BootA and BootB are GPT partition numbers on the disk that GRUB was
	// loaded from: GRUB 2.06 cannot search by partition label.
	Env, BootA, BootB int
	// Serial is the 8250 unit that the script speaks to at 115200 baud, -1 for
	// whatever console the firmware offers.
	Serial int
	// Watchdog is the timer to arm before a slot starts: "i6300esb", or "" for a
	// board whose firmware has armed one or that has none GRUB can reach.
	Watchdog string
	// WatchdogSeconds is how long a slot has until its first program feeds the
	// timer, 1..2046. Twice the slowest cold boot is a good figure.
	WatchdogSeconds int
}

// ErrParams means that no script can be made from the Params: the board's data
// is wrong.
var ErrParams = errors.New("invalid boot script parameters")

// ImagePath is where the script finds the unified kernel image on a slot's boot
// partition.
const ImagePath = "/linux.efi"

// The script and the part of it that arms one kind of watchdog; words between @
// are replaced.
var (
	//go:embed grub.cfg
	script string
	//go:embed i6300esb.cfg
	i6300esb string
)

// Config returns the grub.cfg that chooses the slot on a board. It belongs into
// GRUB's own memory disk, as boot/grub/grub.cfg under the prefix
// (memdisk)/boot/grub, so that the script is loaded, measured and verified as
// one with GRUB.
func Config(p Params) (string, error) {
	switch {
	case p.Env < 1 || p.BootA < 1 || p.BootB < 1:
		return "", fmt.Errorf("%w: partition numbers %d, %d, %d", ErrParams, p.Env, p.BootA, p.BootB)
	case p.Env == p.BootA || p.Env == p.BootB || p.BootA == p.BootB:
		return "", fmt.Errorf("%w: a partition is named twice: %d, %d, %d", ErrParams, p.Env, p.BootA, p.BootB)
	case p.Serial > 3:
		return "", fmt.Errorf("%w: serial unit %d", ErrParams, p.Serial)
	case p.Watchdog != "" && p.Watchdog != "i6300esb":
		return "", fmt.Errorf("%w: watchdog %q is not known", ErrParams, p.Watchdog)
	case p.Watchdog != "" && (p.WatchdogSeconds < 1 || p.WatchdogSeconds > 2046):
		return "", fmt.Errorf("%w: watchdog %d s, want 1 to 2046", ErrParams, p.WatchdogSeconds)
	}
	serial, arm := "# The firmware's console serves.", "  true"
	if p.Serial >= 0 {
		serial = fmt.Sprintf("serial --unit=%d --speed=115200\nterminal_output serial", p.Serial)
	}
	if p.Watchdog == "i6300esb" {
		arm = strings.NewReplacer(
			"@SECONDS@", strconv.Itoa(p.WatchdogSeconds),
			// Two stages, each counting units of 1/1008 s; 512 of them for half a
			// second is what Linux's i6300esb driver takes, and errs on the late side.
			"@STAGE@", fmt.Sprintf("0x%x", p.WatchdogSeconds*512),
		).Replace(strings.TrimSuffix(i6300esb, "\n"))
	}
	return strings.NewReplacer(
		"@SERIAL@", serial,
		"@ARM@", arm,
		"@RECORDS@", recordTable(),
		"@ENV@", strconv.Itoa(p.Env),
		"@BOOT_A@", strconv.Itoa(p.BootA),
		"@BOOT_B@", strconv.Itoa(p.BootB),
		"@IMAGE@", ImagePath,
		"@COPY0@", blockList(Copy0Offset),
		"@COPY1@", blockList(Copy1Offset),
		"@CONFIRMED@", blockList(ConfirmedOffset),
	).Replace(script), nil
}

// recordTable returns the lines that put every record that can exist into
// $records, each with its check word: good-trying-tries-bad-gen=check.
func recordTable() string {
	var lines []string
	for line := range slices.Chunk(states(), generations) {
		var entries []string
		for _, c := range line {
			body := c.body()
			var values []string
			for _, variable := range strings.Fields(body)[1:] {
				_, value, _ := strings.Cut(variable, "=")
				values = append(values, value)
			}
			entries = append(entries, strings.Join(values, "-")+"="+checkWord(body))
		}
		lines = append(lines, fmt.Sprintf(`set records="$records %s"`, strings.Join(entries, " ")))
	}
	return strings.Join(lines, "\n")
}

// blockList names a copy's first sector in GRUB's syntax.
func blockList(offset int64) string { return fmt.Sprintf("%d+1", offset/SectorSize) }

// Modules returns the GRUB modules that the script needs, for grub-mkimage. The
// platform's disk driver is not among them: i386-pc needs biosdisk, EFI none.
func Modules(p Params) []string {
	modules := []string{"memdisk", "tar", "part_gpt", "fat", "normal", "loadenv", "test", "regexp", "echo", "chain", "boot", "reboot", "sleep"}
	if p.Serial >= 0 {
		modules = append(modules, "serial", "terminal")
	}
	if p.Watchdog == "i6300esb" {
		modules = append(modules, "setpci", "memrw")
	}
	return modules
}
