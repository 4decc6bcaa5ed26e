package workbench

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/bootctl/boottest"
	"github.com/tandem-ota/tandem/bootctl/boottest/lab"
	"github.com/tandem-ota/tandem/bootctl/grubenv"
	"github.com/tandem-ota/tandem/partition"
	"github.com/tandem-ota/tandem/partition/disktest"
	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/release"
	"github.com/tandem-ota/tandem/updater/release/mkrelease"
	"github.com/tandem-ota/tandem/updater/trust"
	"github.com/tandem-ota/tandem/updater/trust/mktrust"
)

const (
	board   = "qemu-x86_64"
	product = "workbench"

	// rootSize is a whole number of pages and none of leaves.
	rootSize = 36*manifest.LeafSize + 3*4096

	// Tries of every release.
	Tries = 3

	checkpoint = 1 << 20 // bytes between two
)

// Goods are what a vendor has made: the program, keys, and releases.
type Goods struct {
	program         string
	keyFile, anchor []byte
	keys            trust.KeySet
	releases        map[string]*Release
}

// Release is one release, with everything that it consists of.
type Release struct {
	Version  string
	Dir      string
	Digest   manifest.Digest
	Envelope []byte
	Images   map[string][]byte // by role
}

// catalogue are the releases by rising sequence. Their kernels say the first digit of
// the version.
var catalogue = []struct {
	version, base string
	index         bool
}{
	{version: "0.9.0"},
	{version: "1.0.0"},
	{version: "2.0.0", base: "1.0.0"}, // by delta
	{version: "3.0.0", index: true},   // by index, or whole
}

// Make makes the goods in a folder. The program is built as it is shipped
// (.ci/updater.sh) from the module at root.
func Make(t *testing.T, root, dir string) *Goods {
	t.Helper()
	lab.BIOS(t)
	g := &Goods{program: filepath.Join(dir, "updater"), releases: map[string]*Release{}}
	out, err := exec.Command(filepath.Join(root, ".ci", "updater.sh"), g.program).CombinedOutput()
	require.NoError(t, err, "%s", out)
	folder, err := mktrust.Init(t.Context(), filepath.Join(dir, "trust"), time.Now(), mktrust.InitOptions{})
	require.NoError(t, err)
	g.keyFile, err = os.ReadFile(filepath.Join(dir, "trust", "release-keys.json"))
	require.NoError(t, err)
	g.anchor, err = os.ReadFile(filepath.Join(dir, "trust", "root.json"))
	require.NoError(t, err)
	g.keys, err = folder.ReleaseKeys()
	require.NoError(t, err)
	for n, item := range catalogue {
		r := &Release{Version: item.version, Dir: filepath.Join(dir, "release-"+item.version), Images: map[string][]byte{
			"boot": kernel(t, item.version), "root": system(uint64(n)),
		}}
		o := mkrelease.Options{
			Out: r.Dir, Product: product, Version: r.Version, Sequence: uint64(n) + 1, Slots: slots(t, filepath.Join(dir, "slots-"+r.Version), r.Images),
			NoIndex: !item.index, Level: 1, Policy: mkrelease.DefaultPolicy(),
		}
		o.Policy.Trial.Tries = Tries
		if item.base != "" {
			o.Bases = []string{g.Release(item.base).Dir}
		}
		made, err := mkrelease.Create(t.Context(), o)
		require.NoError(t, err)
		r.Digest = made.Digest
		_, err = mkrelease.Sign(t.Context(), r.Dir, folder)
		require.NoError(t, err)
		source, err := release.Open(r.Dir)
		require.NoError(t, err)
		r.Envelope, err = source.Manifest(t.Context())
		require.NoError(t, err)
		require.NoError(t, source.Close())
		r.Envelope = bytes.TrimSpace(r.Envelope)
		g.releases[r.Version] = r
	}
	return g
}

// Release returns a release of the catalogue.
func (g *Goods) Release(version string) *Release { return g.releases[version] }

// kernel is a boot partition's image: the used front of a FAT file system.
func kernel(t *testing.T, version string) []byte {
	t.Helper()
	fs := bytes.TrimRight(lab.FAT(t, lab.BootSize, grubenv.ImagePath, lab.BootSector("SLOT "+version[:1])), "\x00")
	return append(fs, make([]byte, -len(fs)&4095)...)
}

// system is a root partition's image: three quarters are the same in all.
func system(seed uint64) []byte {
	b := make([]byte, rootSize)
	same, own := rand.New(rand.NewPCG(1, 0)), rand.New(rand.NewPCG(seed, 1))
	for page := 0; page < len(b); page += 4096 {
		from := same
		if page/4096%4 == 3 {
			from = own
		}
		for i := range 4096 {
			b[page+i] = byte(from.Uint32())
		}
	}
	return b
}

// slots is a folder with slots.json as package boards/image makes it.
func slots(t *testing.T, dir string, images map[string][]byte) string {
	t.Helper()
	require.NoError(t, os.Mkdir(dir, 0o755))
	var list []map[string]any
	for _, role := range []string{"boot", "root"} {
		sum := sha256.Sum256(images[role])
		list = append(list, map[string]any{
			"name": role, "target": role, "file": role + ".img", "size": len(images[role]), "sha256": hex.EncodeToString(sum[:]),
		})
		require.NoError(t, os.WriteFile(filepath.Join(dir, role+".img"), images[role], 0o644))
	}
	data, err := json.Marshal(map[string]any{"board": board, "images": list})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "slots.json"), data, 0o644))
	return dir
}

// Holds returns the version of the whole, signed system that a slot holds; "" if what
// is there is none. It trusts nothing but the release keys.
func (g *Goods) Holds(d Disk, s bootctl.Slot) string {
	root := disktest.New(d["root_"+string(s)])
	record, err := partition.ReadRecord(root)
	if err != nil {
		return ""
	}
	payload, err := trust.Verify(record.Envelope, trust.ManifestType, g.keys)
	if err != nil {
		return ""
	}
	m, err := manifest.Parse(payload)
	if err != nil {
		return ""
	}
	for _, img := range m.Images {
		content := d[img.Target+"_"+string(s)]
		if int64(len(content)) < img.Size || manifest.DigestOf(content[:img.Size]) != img.Digest {
			return ""
		}
	}
	return m.Version
}

// Boots returns what a power-on now would do, by the loader's model, and which release
// would run. It is an error if that is not a whole, signed system, or would not be if
// the slot that is chosen first did not load.
func (g *Goods) Boots(d Disk) (boottest.Boot, string, error) {
	env := d["env"][:grubenv.LedgerOffset]
	for _, broken := range []bootctl.Slot{bootctl.A, bootctl.B} {
		if s := boottest.GRUB(env, boottest.World{Broken: []bootctl.Slot{broken}}).Slot; s != "" && g.Holds(d, s) == "" {
			return boottest.Boot{}, "", fmt.Errorf("slot %s would boot if slot %s did not load, and is not whole", s, broken)
		}
	}
	did := boottest.GRUB(env, boottest.World{})
	version := g.Holds(d, did.Slot)
	if version == "" {
		return did, "", fmt.Errorf("slot %q boots and is not whole; loader: %q", did.Slot, did.Lines)
	}
	return did, version, nil
}
