// Package boottest has what a bootloader's backend is tested against: loaders
// as pure functions, a disk that loses power, and a suite of claims that every
// bootctl.Store has to keep.
//
// A model is worth what it was compared with. GRUB's is compared with Debian's
// GRUB 2.06 running the script that package grubenv generates (TestGRUB boots it
// in QEMU), and its reading and writing of blocks with grub-editenv.
//
// Nothing here is ever part of a device's program.
package boottest

import (
	"bytes"
	"fmt"
	"slices"
	"sync"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/bootctl/grubenv"
)

// World is what a loader meets beside the record.
type World struct {
	// Broken lists the slots whose image does not load.
	Broken []bootctl.Slot
	// ReadOnly means that writing to the record's storage fails.
	ReadOnly bool
}

func (w World) loads(s bootctl.Slot) bool { return !slices.Contains(w.Broken, s) }

// Boot is what a loader did.
type Boot struct {
	Slot  bootctl.Slot // the one that was started; "" if none loads
	Trial bool         // it was started as a counted trial
	Lines []string     // what the loader printed about it
	Env   []byte       // the storage as the loader leaves it; may be the input itself
}

// Loader is a bootloader's decision: the storage before, and what it met, to
// what it did. It does not change env.
type Loader func(env []byte, w World) Boot

// GRUB is the script of grubenv.Config. A damaged file system on the environment
// partition counts as one that cannot be written to, although GRUB may get by.
func GRUB(env []byte, w World) Boot {
	g := grub{Boot: Boot{Env: env}, world: w}
	g.run()
	return g.Boot
}

// GRUBInPlace is GRUB on a storage that it may write to: a million boots need no
// million copies of it.
func GRUBInPlace(env []byte, w World) Boot {
	g := grub{Boot: Boot{Env: env}, world: w, inPlace: true}
	g.run()
	return g.Boot
}

type grub struct {
	Boot
	world   World
	inPlace bool
}

func (g *grub) look(offset int) (grubenv.Copy, bool) { return look(g.Env, offset) }

// look reads a copy. Most are as a writer leaves them, and parsing them over and
// over would be most of a test's time.
func look(env []byte, offset int) (grubenv.Copy, bool) {
	sector := env[offset : offset+grubenv.SectorSize]
	if c, ok := written()[[grubenv.SectorSize]byte(sector)]; ok {
		return c, true
	}
	c, err := grubenv.Parse(sector)
	return c, err == nil
}

// written are the sectors that a writer can leave behind, with what they say.
var written = sync.OnceValue(func() map[[grubenv.SectorSize]byte]grubenv.Copy {
	all := make(map[[grubenv.SectorSize]byte]grubenv.Copy)
	for _, r := range Records() {
		for gen := range 3 {
			sector := grubenv.Copy{Record: r, Generation: gen}.Block()[:grubenv.SectorSize]
			c, err := grubenv.Parse(sector)
			if err != nil {
				panic(err) // package grubenv cannot read what it writes
			}
			all[[grubenv.SectorSize]byte(sector)] = c
		}
	}
	return all
})

func (g *grub) say(format string, args ...any) {
	g.Lines = append(g.Lines, "tandem: "+fmt.Sprintf(format, args...))
}

func (g *grub) run() {
	c0, whole0 := g.look(grubenv.Copy0Offset)
	c1, whole1 := g.look(grubenv.Copy1Offset)
	record, known := c0, whole0 || whole1
	older := grubenv.Copy1Offset
	if whole1 && (!whole0 || c1.Generation == (c0.Generation+1)%3) {
		record, older = c1, grubenv.Copy0Offset
	}

	var last bootctl.Slot
	why := "good"
	r := record.Record
	if known {
		if r.Mark(r.Good.Other()) == bootctl.OK {
			last = r.Good.Other()
		}
	} else if c, ok := g.look(grubenv.ConfirmedOffset); ok {
		r = bootctl.Record{Good: c.Record.Good}
		why = "confirmed; no copy of the record is readable"
	} else {
		r = bootctl.Record{Good: bootctl.A}
		last = bootctl.B
		why = "guess; no record is readable"
	}

	if r.Trying != "" {
		switch {
		case r.Tries == 0:
			why = fmt.Sprintf("good; slot %s has used up its tries", r.Trying)
		case !g.take(record, older):
			why = fmt.Sprintf("good; the try of slot %s could not be saved", r.Trying)
		default:
			g.say("slot %s (trial, %d left)", r.Trying, r.Tries-1)
			if g.start(r.Trying) {
				g.Trial = true
				return
			}
			why = fmt.Sprintf("good; slot %s does not load", r.Trying)
			last = ""
		}
	}
	g.say("slot %s (%s)", r.Good, why)
	if g.start(r.Good) {
		return
	}
	if last != "" {
		g.say("slot %s (last resort; slot %s does not load)", last, r.Good)
		if g.start(last) {
			return
		}
	}
	g.say("no slot loads")
}

func (g *grub) start(s bootctl.Slot) bool {
	if !g.world.loads(s) {
		g.say("slot %s does not load", s)
		return false
	}
	g.Slot = s
	return true
}

// take saves c with one try less over the older copy, and tells whether the
// medium has it.
func (g *grub) take(c grubenv.Copy, older int) bool {
	c.Record.Tries--
	c.Generation = (c.Generation + 1) % 3
	if g.world.ReadOnly || !metaWhole(g.Env) {
		return false
	}
	if !g.inPlace {
		g.Env = slices.Clone(g.Env)
	}
	sector := g.Env[older : older+grubenv.SectorSize]
	if _, ok := written()[[grubenv.SectorSize]byte(sector)]; ok {
		copy(sector, c.Block()) // what comes of the lines below, see TestSaveOverWritten
		return true
	}
	want, err := grubenv.Variables(c.Block())
	if err != nil {
		return false
	}
	block := slices.Clone(sector)
	for _, name := range []string{"tandem", "good", "trying", "tries", "bad", "gen", "check"} {
		var ok bool
		if block, ok = setVariable(block, name, want[name]); !ok {
			return false
		}
	}
	copy(sector, block)
	back, err := grubenv.Parse(sector)
	return err == nil && bytes.Equal(back.Block(), c.Block())
}

// metaWhole tells whether the file system of the environment partition is as
// grubenv writes it.
func metaWhole(env []byte) bool {
	return bytes.Equal(env[:grubenv.Copy0Offset], pristine())
}

var pristine = sync.OnceValue(func() []byte {
	return grubenv.Image(bootctl.Record{Good: bootctl.A, A: bootctl.OK, B: bootctl.Bad})[:grubenv.Copy0Offset]
})

// setVariable is GRUB's save_env for one variable without characters to escape:
// the first line of that name gets the value, else a line is added; the free
// space is the run of # at the end, and it must follow a newline.
func setVariable(block []byte, name, value string) ([]byte, bool) {
	const signature = "# GRUB Environment Block\n"
	text := bytes.TrimRight(block, "#")
	if !bytes.HasPrefix(block, []byte(signature)) || !bytes.HasSuffix(text, []byte("\n")) {
		return nil, false
	}
	line := []byte(name + "=")
	at := len(signature)
	for at+len(line) < len(text) && !bytes.HasPrefix(text[at:], line) {
		at += lineLength(text[at:]) + 1
	}
	var out []byte
	if at+len(line) < len(text) {
		at += len(line)
		end := at + lineLength(text[at:])
		if end >= len(text) {
			return nil, false
		}
		out = slices.Concat(text[:at], []byte(value), text[end:])
	} else {
		out = slices.Concat(text, line, []byte(value), []byte("\n"))
	}
	if len(out) > len(block) {
		return nil, false
	}
	return append(out, bytes.Repeat([]byte("#"), len(block)-len(out))...), true
}

// lineLength is the distance to the first newline that no backslash precedes.
func lineLength(b []byte) int {
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '\\':
			i++
		case '\n':
			return i
		}
	}
	return len(b)
}
