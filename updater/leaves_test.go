package updater

import (
	"context"
	"io"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/bootctl"
	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater/manifest"
)

// told returns what of a release tells the leaves of its root image: the list, and the blob
// that makes it from the base.
func (w *world) told(version string) (tree manifest.Digest, blob manifest.Content) {
	for _, img := range w.by[version].m.Images {
		if img.Target == "root" {
			return img.Tree, img.Payloads[0].Leaves
		}
	}
	return "", manifest.Content{}
}

// fetch installs a version and returns the blobs that were asked for, each as often as that was.
func (d *device) fetch(u *Updater, version string) (asked []manifest.Digest) {
	src := d.w.source(version)
	src.onRead = func(b manifest.Digest, _ int64, _ []byte) error {
		asked = append(asked, b)
		return nil
	}
	require.NoError(d.t, u.Install(ctx, src, Options{Full: transport.FullGo}))
	return asked
}

// A device that has the base does not download the list of leaves, and one that has not does it
// once: for writing and for reading back.
func TestLeavesFromBase(t *testing.T) {
	bubble(t, func(t *testing.T) {
		tree, blob := theWorld().told("2.0.0")
		require.Less(t, blob.Size, manifest.Content{Size: rootSize, Tree: tree}.TreeSize())

		d := newDevice(t, "1.0.0", "")
		u := d.start()
		asked := d.fetch(u, "2.0.0")
		require.NotContains(t, asked, tree)
		require.Contains(t, asked, blob.Digest)
		require.Nil(t, u.lists, "an agent at rest holds no lists")
		d.settled(d.start(), "2.0.0")

		d = newDevice(t, "0.9.0", "")
		asked = d.fetch(d.start(), "2.0.0")
		require.NotContains(t, asked, blob.Digest)
		require.Len(t, slices.DeleteFunc(asked, func(b manifest.Digest) bool { return b != tree }), 1)
		d.settled(d.start(), "2.0.0")
	})
}

// What the running slot says of its leaves is not believed: a rotten slot costs the download of the
// list, and what is written is the image.
func TestLeavesFromRottenBase(t *testing.T) {
	bubble(t, func(t *testing.T) {
		tree, _ := theWorld().told("2.0.0")
		downloaded := 0
		for at := int64(17); at < rootSize; at += 4096 {
			d := newDevice(t, "1.0.0", "")
			d.root(bootctl.A).Flip(at, 3)
			asked := d.fetch(d.startUnverified(), "2.0.0")
			if slices.Contains(asked, tree) {
				downloaded++
				require.True(t, slices.ContainsFunc(d.events, func(e transport.Event) bool { return e.Phase == "damaged" }), "byte %d", at)
			}
			require.Equal(t, "2.0.0", d.holds(bootctl.B), "byte %d", at)
		}
		require.Positive(t, downloaded)
	})
}

// The blob is checked like any other.
func TestLyingLeaves(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, blob := theWorld().told("2.0.0")
		d := newDevice(t, "1.0.0", "")
		u := d.start()
		src := d.w.source("2.0.0")
		src.onRead = func(b manifest.Digest, off int64, p []byte) error {
			if b == blob.Digest {
				p[0] ^= 1
			}
			return nil
		}
		require.ErrorIs(t, u.Install(ctx, src, Options{}), transport.ErrLeaf)
		require.Empty(t, d.holds(bootctl.B))
		require.NoError(t, d.install(u, "2.0.0", Options{}))
		d.settled(d.start(), "2.0.0")
	})
}

// answers is a source that changes what it answers where a blob is asked for.
type answers struct {
	*source
	t      *testing.T
	blob   manifest.Digest
	change func(n int, err error) (int, error)
	times  int
}

func (a *answers) ReadRange(ctx context.Context, blob manifest.Digest, off int64, p []byte) (int, error) {
	n, err := a.source.ReadRange(ctx, blob, off, p)
	if blob != a.blob {
		return n, err
	}
	a.times++
	require.Less(a.t, a.times, 10, "asked for ever")
	return a.change(n, err)
}

// A list of leaves may come in pieces, and its end with the last of them. A source that
// has nothing more to say before that is not asked for ever.
func TestListOfLeavesInPieces(t *testing.T) {
	for name, world := range map[string]struct {
		change func(n int, err error) (int, error)
		want   error
	}{
		"nothing at all":             {func(int, error) (int, error) { return 0, nil }, io.ErrNoProgress},
		"the end is early":           {func(n int, _ error) (int, error) { return n / 2, io.EOF }, io.EOF},
		"a byte and an error":        {func(int, error) (int, error) { return 1, io.ErrClosedPipe }, io.ErrClosedPipe},
		"half of what is asked":      {func(n int, err error) (int, error) { return (n + 1) / 2, err }, nil},
		"the end with the last byte": {func(n int, _ error) (int, error) { return n, io.EOF }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				tree, _ := theWorld().told("2.0.0")
				d := newDevice(t, "0.9.0", "")
				err := d.start().Install(ctx, &answers{t: t, source: d.w.source("2.0.0"), blob: tree, change: world.change}, Options{Full: transport.FullGo})
				require.ErrorIs(t, err, world.want)
				if world.want == nil {
					d.settled(d.start(), "2.0.0")
				}
			})
		})
	}
}
