package mkrelease_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/release"
	"github.com/tandem-ota/tandem/updater/release/mkrelease"
	"github.com/tandem-ota/tandem/updater/trust"
	"github.com/tandem-ota/tandem/updater/trust/mktrust"
)

var (
	ctx   = context.Background()
	today = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
)

// text is bytes that compress somewhat, as programs do.
func text(seed uint64, size int) []byte {
	r := rand.New(rand.NewPCG(seed, 0))
	out := make([]byte, 0, size)
	for len(out) < size {
		word := make([]byte, 3+r.IntN(9))
		for i := range word {
			word[i] = byte('a' + r.IntN(12))
		}
		out = append(out, word...)
	}
	return out[:size]
}

// slots writes a folder as boards/image does.
func slots(t testing.TB, images map[string][]byte) string {
	dir := t.TempDir()
	var list []map[string]any
	for _, name := range []string{"boot", "root"} {
		data := images[name]
		sum := sha256.Sum256(data)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name+".img"), data, 0o644))
		im := map[string]any{"name": name, "target": name, "file": name + ".img", "size": len(data), "sha256": hex.EncodeToString(sum[:])}
		if name == "root" {
			im["verity"] = map[string]any{"root_hash": hex.EncodeToString(sum[:]), "salt": "00", "data_blocks": len(data)/4096 - 2}
		}
		list = append(list, im)
	}
	data, err := json.Marshal(map[string]any{"board": "qemu-x86_64", "images": list})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "slots.json"), data, 0o644))
	return dir
}

func options(t testing.TB, version string, sequence uint64, images map[string][]byte, bases ...string) mkrelease.Options {
	return mkrelease.Options{
		Out: filepath.Join(t.TempDir(), "release"), Product: "gateway", Version: version, Sequence: sequence,
		Slots: slots(t, images), Bases: bases, Policy: mkrelease.DefaultPolicy(), Level: 1,
	}
}

func create(t testing.TB, o mkrelease.Options) mkrelease.Result {
	res, err := mkrelease.Create(ctx, o)
	require.NoError(t, err)
	return res
}

// two makes a release and its successor, with small changes.
func two(t testing.TB) (one, next mkrelease.Options, result mkrelease.Result) {
	root, boot := text(1, 1<<20+5000), text(2, 40000)
	one = options(t, "1.0.0", 1, map[string][]byte{"boot": boot, "root": root})
	create(t, one)
	changed := bytes.Clone(root)
	copy(changed[300000:], text(3, 2000))
	next = options(t, "1.1.0", 2, map[string][]byte{"boot": boot, "root": changed}, one.Out)
	next.SBOM = filepath.Join(t.TempDir(), "sbom.json")
	require.NoError(t, os.WriteFile(next.SBOM, []byte(`{"bomFormat":"CycloneDX"}`), 0o644))
	firmware := filepath.Join(t.TempDir(), "mcu.bin")
	require.NoError(t, os.WriteFile(firmware, text(4, 5000), 0o644))
	next.External = []mkrelease.External{{Name: "mcu", Handler: "stm32", File: firmware}}
	return one, next, create(t, next)
}

// A release carries every image in full, deltas from what the fleet runs, an
// unchanged image for next to nothing, an index payload of each for all others, the bill of
// materials that it was given, and everything in it verifies.
func TestCreate(t *testing.T) {
	one, next, res := two(t)
	sizes := map[string]int64{}
	for _, p := range res.Payloads {
		require.Empty(t, p.Dropped)
		sizes[p.Image+" "+p.Kind] = p.Size
		if p.Kind == manifest.KindDelta {
			require.Greater(t, p.Index, p.Size)
			require.Less(t, p.Index, int64(150<<10), "a leaf, and little that is missing")
		}
	}
	require.Len(t, sizes, 7)
	require.Less(t, sizes["root index"], 2*sizes["root full"])
	require.Less(t, sizes["root delta"], sizes["root full"]/20)
	require.Less(t, sizes["boot delta"], int64(1000))
	require.Equal(t, []string{"qemu-x86_64"}, res.Manifest.Boards)
	bill, err := os.ReadFile(next.SBOM)
	require.NoError(t, err)
	require.Equal(t, manifest.DigestOf(bill), res.Manifest.Provenance.SBOM, "the signed manifest names it")
	kept, err := os.ReadFile(filepath.Join(next.Out, "blobs", "sha256", res.Manifest.Provenance.SBOM.Hex()))
	require.NoError(t, err)
	require.Equal(t, bill, kept)

	v, err := mkrelease.Verify(ctx, next.Out, mkrelease.VerifyOptions{Bases: []string{one.Out}})
	require.NoError(t, err)
	require.ElementsMatch(t, []string{"boot full", "boot index", "boot delta", "root full", "root index", "root delta", "mcu full"}, v.Rebuilt)
	require.Equal(t, res.Digest, v.Digest)
	require.False(t, v.Signature)
}

// The same input gives the same bytes, folder and tar, wherever and whenever.
func TestCreateReproducible(t *testing.T) {
	_, next, res := two(t)
	first := filepath.Join(t.TempDir(), "a.tar")
	require.NoError(t, mkrelease.Pack(ctx, next.Out, first, nil))
	next.Out = filepath.Join(t.TempDir(), "again")
	require.Equal(t, res, create(t, next))
	second := filepath.Join(t.TempDir(), "b.tar")
	require.NoError(t, mkrelease.Pack(ctx, next.Out, second, nil))
	a, err := os.ReadFile(first)
	require.NoError(t, err)
	b, err := os.ReadFile(second)
	require.NoError(t, err)
	require.True(t, bytes.Equal(a, b))
}

// A delta that saves nothing is not shipped, and it is said why, and what devices will
// take instead: the whole image, or the index payload if that is as small.
func TestCreateDropsUselessDelta(t *testing.T) {
	noise := func(seed uint64) []byte {
		out := make([]byte, 300000)
		rand.NewChaCha8([32]byte{byte(seed)}).Read(out)
		return out
	}
	one := options(t, "1.0.0", 1, map[string][]byte{"boot": noise(1), "root": noise(2)})
	one.NoIndex = true
	create(t, one)
	// What is new in root is new to both: a delta cannot do better than an index payload there.
	grown := slices.Concat(noise(2)[:73*4096], noise(5), noise(6), noise(7), noise(8))
	for _, without := range []bool{false, true} {
		o := options(t, "2.0.0", 2, map[string][]byte{"boot": noise(3), "root": grown}, one.Out)
		o.NoIndex = without
		res := create(t, o)
		dropped := map[string]string{}
		kinds := map[string]int{}
		for _, p := range res.Payloads {
			kinds[p.Kind]++
			if p.Dropped != "" {
				require.Equal(t, manifest.KindDelta, p.Kind)
				dropped[p.Image] = p.Dropped
			}
		}
		require.Contains(t, dropped["boot"], "not clearly smaller than the full payload: devices with 1.0.0 will take that")
		if without {
			require.Len(t, dropped, 1)
			require.Zero(t, kinds[manifest.KindIndex])
			continue
		}
		require.Contains(t, dropped["root"], "not clearly smaller than the index payload: devices with 1.0.0 will take that, and ")
		for _, im := range res.Manifest.Images {
			require.Len(t, im.Payloads, 2)
		}
	}
}

// What cannot be made leaves nothing behind.
func TestCreateRefused(t *testing.T) {
	images := map[string][]byte{"boot": text(2, 40000), "root": text(1, 200000)}
	for name, row := range map[string]struct {
		spoil func(o *mkrelease.Options)
		want  error
	}{
		"image changed since slots.json": {func(o *mkrelease.Options) {
			require.NoError(t, os.WriteFile(filepath.Join(o.Slots, "root.img"), text(9, 200000), 0o644))
		}, mkrelease.ErrChanged},
		"no sequence":            {func(o *mkrelease.Options) { o.Sequence = 0 }, manifest.ErrFormat},
		"critical field unknown": {func(o *mkrelease.Options) { o.Policy.Critical = []string{"raid"} }, manifest.ErrCritical},
		"no slots.json":          {func(o *mkrelease.Options) { o.Slots = t.TempDir() }, os.ErrNotExist},
		"base is not a release":  {func(o *mkrelease.Options) { o.Bases = []string{t.TempDir()} }, os.ErrNotExist},
		"cancelled":              {nil, context.Canceled},
	} {
		o := options(t, "1.0.0", 1, images)
		c := ctx
		if row.spoil != nil {
			row.spoil(&o)
		} else {
			cancelled, cancel := context.WithCancel(ctx)
			cancel()
			c = cancelled
		}
		_, err := mkrelease.Create(c, o)
		require.ErrorIs(t, err, row.want, name)
		entries, err := os.ReadDir(o.Out)
		require.NoError(t, err)
		require.Empty(t, entries, name)
	}
	o := options(t, "1.0.0", 1, images)
	require.NoError(t, os.MkdirAll(filepath.Join(o.Out, "mine"), 0o755))
	_, err := mkrelease.Create(ctx, o)
	require.ErrorIs(t, err, mkrelease.ErrNotEmpty)
	require.DirExists(t, filepath.Join(o.Out, "mine"))
}

func folder(t testing.TB, o mktrust.InitOptions) (*mktrust.Folder, string) {
	dir := filepath.Join(t.TempDir(), "trust")
	f, err := mktrust.Init(ctx, dir, today, o)
	require.NoError(t, err)
	return f, dir
}

// A signed release installs from a stick with nothing but the two files that
// the system image carries.
func TestSign(t *testing.T) {
	_, next, res := two(t)
	f, dir := folder(t, mktrust.InitOptions{})
	for range 2 { // again changes nothing but expiry
		s, err := mkrelease.Sign(ctx, next.Out, f)
		require.NoError(t, err)
		require.True(t, s.Published)
		require.Len(t, s.Keys, 1)
		require.Equal(t, res.Digest, s.Digest)
	}
	root, err := os.ReadFile(filepath.Join(dir, "root.json"))
	require.NoError(t, err)
	keys, err := f.ReleaseKeys()
	require.NoError(t, err)

	tar := filepath.Join(t.TempDir(), "release.tar")
	require.NoError(t, mkrelease.Pack(ctx, next.Out, tar, nil))
	for _, path := range []string{next.Out, tar} {
		v, err := mkrelease.Verify(ctx, path, mkrelease.VerifyOptions{Keys: &keys, Root: root, Now: today, Quick: true})
		require.NoError(t, err)
		require.True(t, v.Signature && v.Offered)
		require.GreaterOrEqual(t, v.Blobs, 8)
	}
	_, err = mkrelease.Verify(ctx, tar, mkrelease.VerifyOptions{Root: root, Now: today.AddDate(2, 0, 0), Quick: true})
	require.ErrorIs(t, err, trust.ErrExpired)

	stranger, _ := folder(t, mktrust.InitOptions{})
	others, err := stranger.ReleaseKeys()
	require.NoError(t, err)
	_, err = mkrelease.Verify(ctx, tar, mkrelease.VerifyOptions{Keys: &others, Quick: true})
	require.ErrorIs(t, err, trust.ErrSignature)
}

// One sequence is one release: a device that has it would never take another.
func TestSignSequenceTaken(t *testing.T) {
	f, _ := folder(t, mktrust.InitOptions{})
	images := map[string][]byte{"boot": text(2, 40000), "root": text(1, 200000)}
	one := options(t, "1.0.0", 1, images)
	create(t, one)
	_, err := mkrelease.Sign(ctx, one.Out, f)
	require.NoError(t, err)
	other := options(t, "1.0.1", 1, images)
	create(t, other)
	_, err = mkrelease.Sign(ctx, other.Out, f)
	require.ErrorIs(t, err, mkrelease.ErrSequence)
}

// Two of two release keys on two machines: each signs, the second publishes.
func TestSignOnTwoMachines(t *testing.T) {
	_, next, _ := two(t)
	_, dir := folder(t, mktrust.InitOptions{Quorums: map[string]mktrust.Quorum{mktrust.Release: {Keys: 2, Threshold: 2}}})
	hide := func(name string) func() {
		from, to := filepath.Join(dir, "keys", name), filepath.Join(t.TempDir(), name)
		require.NoError(t, os.Rename(from, to))
		return func() { require.NoError(t, os.Rename(to, from)) }
	}
	f, err := mktrust.Open(dir, today)
	require.NoError(t, err)
	back := hide("release-2.pem")
	s, err := mkrelease.Sign(ctx, next.Out, f)
	require.ErrorIs(t, err, mktrust.ErrIncomplete)
	require.False(t, s.Published)
	back()
	hide("release.pem")
	s, err = mkrelease.Sign(ctx, next.Out, f)
	require.NoError(t, err)
	require.Len(t, s.Keys, 2)
}

// Every damaged blob of a release is found.
func TestVerifyFindsDamage(t *testing.T) {
	_, next, _ := two(t)
	r, err := release.Open(next.Out)
	require.NoError(t, err)
	blobs := r.Blobs()
	require.NoError(t, r.Close())
	for _, d := range blobs {
		path := filepath.Join(next.Out, "blobs", "sha256", d.Hex())
		whole, err := os.ReadFile(path)
		require.NoError(t, err)
		bad := bytes.Clone(whole)
		bad[len(bad)/2] ^= 0x10
		require.NoError(t, os.WriteFile(path, bad, 0o644))
		_, err = mkrelease.Verify(ctx, next.Out, mkrelease.VerifyOptions{Quick: true})
		require.ErrorIs(t, err, mkrelease.ErrDamaged, d)
		require.NoError(t, os.WriteFile(path, whole, 0o644))
	}
}

// need finds a tool of another maker, or skips.
func need(t *testing.T, name string) string {
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("TANDEM_CI") != "" {
			t.Fatalf("%s is not installed", name)
		}
		t.Skipf("%s is not installed", name)
	}
	return path
}

// skopeo copies both artifacts, as it would to a registry, and what arrives is
// the same release.
func TestSkopeo(t *testing.T) {
	skopeo := need(t, "skopeo")
	_, next, res := two(t)
	f, _ := folder(t, mktrust.InitOptions{})
	_, err := mkrelease.Sign(ctx, next.Out, f)
	require.NoError(t, err)
	dest := filepath.Join(t.TempDir(), "copy")
	for _, ref := range []string{"release", "tuf"} {
		out, err := exec.Command(skopeo, "--insecure-policy", "copy", "--preserve-digests", "oci:"+next.Out+":"+ref, "oci:"+dest+":"+ref).CombinedOutput()
		require.NoError(t, err, string(out))
		raw, err := exec.Command(skopeo, "inspect", "--raw", "oci:"+next.Out+":"+ref).Output()
		require.NoError(t, err)
		require.Contains(t, string(raw), `"artifactType":"application/vnd.tandem.`)
	}
	keys, err := f.ReleaseKeys()
	require.NoError(t, err)
	v, err := mkrelease.Verify(ctx, dest, mkrelease.VerifyOptions{Keys: &keys, Quick: true})
	require.NoError(t, err)
	require.Equal(t, res.Digest, v.Digest)
	require.Empty(t, v.Absent)
	r, err := release.Open(dest)
	require.NoError(t, err)
	defer r.Close()
	require.Contains(t, r.MetadataNames(), "timestamp.json")
}
