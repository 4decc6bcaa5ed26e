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
	Tries       int             // boots of a trial; 0 means 1, so that a bad trial is over soon
	Schema      manifest.Schema // of its data
	Files       []image.File    // added to the root file system
}

// catalogue is all that the factory makes, by rising sequence. Deltas start from
// the first one.
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
	{Name: "migrates", Version: "3.0.0", Sequence: 9, Schema: manifest.Schema{Version: 2, ReadableFrom: 1, Migrate: "/usr/bin/migrate"},
		Files: []image.File{{Path: "/usr/bin/migrate", Mode: 0o755, Data: []byte(migrate)}}},
	{Name: "whole", Version: "3.1.0", Sequence: 10, NoDelta: true},
}

// disks are the releases that devices leave the factory with.
var disks = []string{"one", "two"}

// migrate is a migration of data as a product would ship it: it turns the old
// file into the new one, and running it twice does no harm.
const migrate = `#!/bin/sh
set -e
echo "layout 2, was: $(cat /data/app.txt 2>/dev/null)" >/data/app.new
mv /data/app.new /data/app.txt
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
