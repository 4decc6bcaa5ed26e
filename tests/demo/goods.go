package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strings"

	"github.com/tandem-ota/tandem/boards"
	"github.com/tandem-ota/tandem/boards/image"
	"github.com/tandem-ota/tandem/tests/factory"
	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/release"
	"github.com/tandem-ota/tandem/updater/trust"
)

// goods is what one play is played with.
type goods struct {
	board     boards.Board
	disk      string // of a device that left the factory with first
	trust     string // the vendor's trust folder
	bin       string // folder of the desk program
	memory    int    // of the device, MiB; 0 is the lab's default
	slow      int    // multiplies every limit
	first     parcel
	good, bad parcel
}

// parcel is a release, and how it is sent.
type parcel struct {
	dir   string // the release
	full  string // transport.FullFail, or FullGo where there is no delta for what will run
	slots string // folder with the images in it
	hangs *hang  // nil: it does not
	m     manifest.Manifest
	sum   manifest.Digest // of the manifest
}

// hang is how a bad system ends.
type hang struct {
	last *regexp.Regexp // what it says on the console when it begins to hang
	how  string         // for people
}

// systems are the makers of goods, by the name of what runs on the device.
var systems = map[string]func(ctx context.Context, root string, log io.Writer) (goods, error){
	"tiny":   tiny,
	"debian": debian,
}

// Systems lists what Run can show, the fast one first.
func Systems() []string {
	var names []string
	for name := range systems {
		names = append(names, name)
	}
	sort.Slice(names, func(i, j int) bool { return names[i] > names[j] })
	return names
}

func tiny(ctx context.Context, root string, log io.Writer) (goods, error) {
	f, err := factory.Open(ctx, root, log)
	if err != nil {
		return goods{}, err
	}
	g := goods{
		board: f.Board(), disk: f.Disk("one"), trust: f.Trust(), bin: f.Bin(), slow: 1,
		first: parcel{dir: f.Release("one"), slots: f.Slots("one")},
		good:  parcel{dir: f.Release("two"), slots: f.Slots("two"), full: transport.FullFail},
		// The vendor made a delta to it from 1.0.0 only, and the device runs 2.0.0 then.
		bad: parcel{dir: f.Release("hang"), slots: f.Slots("hang"), full: transport.FullGo, hangs: &hang{
			last: regexp.MustCompile(`^tiny: fault: hang`), how: "its first process stands still",
		}},
	}
	return g, g.read(ctx)
}

func debian(ctx context.Context, root string, log io.Writer) (goods, error) {
	f, err := factory.OpenDebian(ctx, root, log)
	if err != nil {
		return goods{}, err
	}
	g := goods{
		// systemd emulated takes minutes to come up.
		board: f.Board(), disk: f.Disk("one"), trust: f.Trust(), bin: f.Bin(), slow: 3, memory: 1024,
		first: parcel{dir: f.Release("one"), slots: f.Slots("one")},
		good:  parcel{dir: f.Release("two"), slots: f.Slots("two"), full: transport.FullFail},
		bad: parcel{dir: f.Release("hang"), slots: f.Slots("hang"), full: transport.FullGo, hangs: &hang{
			// The first program is the last that feeds the watchdog.
			last: regexp.MustCompile(`^tandem-init: debian \S+ on root_a`), how: "its updater stands still",
		}},
	}
	return g, g.read(ctx)
}

// read reads the manifests.
func (g *goods) read(ctx context.Context) error {
	for _, p := range []*parcel{&g.first, &g.good, &g.bad} {
		r, err := release.Open(p.dir)
		if err != nil {
			return err
		}
		envelope, err := r.Manifest(ctx)
		r.Close()
		if err != nil {
			return err
		}
		_, payload, _, err := trust.Unverified(envelope)
		if err == nil {
			p.m, err = manifest.Parse(payload)
		}
		if err != nil {
			return fmt.Errorf("release %s: %w", p.dir, err)
		}
		p.sum = manifest.DigestOf(payload)
	}
	return nil
}

// images returns the sizes of a parcel's images, in bytes, and their hashes, as the
// maker of the slots wrote them down.
func (p parcel) images() (image.SlotSet, error) {
	var set image.SlotSet
	text, err := os.ReadFile(filepath.Join(p.slots, image.SlotsFile))
	if err == nil {
		err = json.Unmarshal(text, &set)
	}
	return set, err
}

// total is the size of all images of a release, in bytes.
func (p parcel) total() int64 {
	var n int64
	for _, i := range p.m.Images {
		n += i.Size
	}
	return n
}

// writer hands each whole line that is written to it to say.
type writer struct {
	say  func(string)
	rest []byte
}

func (w *writer) Write(p []byte) (int, error) {
	w.rest = append(w.rest, p...)
	for {
		line, rest, whole := bytes.Cut(w.rest, []byte{'\n'})
		if !whole {
			return len(p), nil
		}
		w.rest = rest
		w.say(strings.TrimSpace(string(line)))
	}
}
