package factory

import (
	"encoding/json"

	"github.com/tandem-ota/tandem/boards/image"
	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/release/mkrelease"
)

// Item is one release that the factory makes.
type Item struct {
	Name     string // in stories
	Version  string
	Sequence uint64
	Epoch    uint64

	Fault       string          // of the tiny system (tiny.Faults)
	KernelHangs bool            // stands still before user space
	OtherBoard  bool            // is for a board that nobody has
	Unsigned    bool            // nobody signed it
	NoDelta     bool            // only whole images, so that a download lasts
	Base        string          // what its deltas start from; "" is the first one
	Index       bool            // has index payloads, too
	Tries       int             // boots of a trial; 0 means 1, so that a bad trial is over soon
	Schema      manifest.Schema // of its data
	Files       []image.File    // added to the root file system
}

// catalogue is all that the factory makes, by rising sequence. Deltas start from
// the first one, or from one before.
var catalogue = []Item{
	{Name: "one", Version: "1.0.0", Sequence: 1},
	{Name: "two", Version: "2.0.0", Sequence: 2},
	{Name: "hang", Version: "2.1.0", Sequence: 3, Fault: "hang"},
	{Name: "kernel-hang", Version: "2.2.0", Sequence: 4, KernelHangs: true},
	// Two tries: a panic is over quickly, and the counter has to count.
	{Name: "panic", Version: "2.3.0", Sequence: 5, Fault: "panic", Tries: 2},
	{Name: "unhealthy", Version: "2.4.0", Sequence: 6, Fault: "unhealthy"},
	{Name: "other-board", Version: "2.5.0", Sequence: 7, OtherBoard: true},
	{Name: "unsigned", Version: "2.6.0", Sequence: 8, Unsigned: true},
	{Name: "migrates", Version: "3.0.0", Sequence: 9, Schema: layout2, Files: []image.File{hook}},
	{Name: "migrates-unhealthy", Version: "3.0.1", Sequence: 10, Fault: "unhealthy", Schema: layout2, Files: []image.File{hook}},
	{Name: "whole", Version: "3.1.0", Sequence: 11, NoDelta: true},
	{Name: "three", Version: "3.2.0", Sequence: 12, Base: "two", Index: true},
}

// disks are the releases that devices leave the factory with.
var disks = []string{"one", "two"}

// layout2 is data of a later layout than the first releases know, and hook brings it about.
var (
	layout2 = manifest.Schema{Version: 2, ReadableFrom: 1, Migrate: "/usr/bin/migrate"}
	hook    = image.File{Path: "/usr/bin/migrate", Mode: 0o755, Data: []byte(migrate)}
)

// migrate is a migration of data as a product would ship it (updater/manifest/FORMAT.md):
// in the trial it makes the new layout beside the old one, which it does not touch, and
// takes the old one away after the commit. Running it twice does no harm.
const migrate = `#!/bin/sh
set -e
case "$1" in
prepare)
	echo "layout 2, was: $(cat /data/app.txt)" >/data/app.2.new
	mv /data/app.2.new /data/app.2
	;;
commit) rm -f /data/app.txt ;;
esac
`

func (i Item) policy() mkrelease.Policy {
	p := mkrelease.DefaultPolicy()
	p.Trial = manifest.Trial{Tries: max(i.Tries, 1), DeadlineSeconds: 180, WindowSeconds: 5, Network: manifest.NetworkIgnore}
	p.Health = []manifest.Check{
		{Name: "application", Kind: "file", Target: "/run/tiny/healthy", TimeoutSeconds: 60},
		{Name: "shell", Kind: "command", Target: "/bin/sh", Args: []string{"-c", "exit 0"}, TimeoutSeconds: 30},
	}
	p.DataSchema = i.Schema
	return p
}

// deviceFile is /etc/tandem/device.json: what all devices of a product have in common.
func deviceFile(board string) ([]byte, error) {
	return json.MarshalIndent(map[string]any{"board": board, "product": Product}, "", "  ")
}
