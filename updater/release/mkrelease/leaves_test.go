package mkrelease_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/release/mkrelease"
)

// Where the list of leaves is long, a delta comes with a blob that tells it from the base; it is
// checked with the rest, and a wrong one is noticed.
func TestLeaves(t *testing.T) {
	root := text(1, 10<<20)
	one := options(t, "1.0.0", 1, map[string][]byte{"boot": text(2, 40000), "root": root})
	one.NoIndex = true
	create(t, one)
	changed := bytes.Clone(root)
	copy(changed[300000:], text(3, 2000))
	next := options(t, "1.1.0", 2, map[string][]byte{"boot": text(2, 40000), "root": changed}, one.Out)
	next.NoIndex = true
	res := create(t, next)
	var leaves manifest.Content
	for _, im := range res.Manifest.Images {
		for _, p := range im.Payloads {
			if im.Name == "root" && p.Kind == manifest.KindDelta {
				leaves = p.Leaves
				require.Less(t, leaves.Size, im.TreeSize()/10)
			} else {
				require.Zero(t, p.Leaves, "%s %s", im.Name, p.Kind)
			}
		}
	}
	require.Positive(t, leaves.Size)
	_, err := mkrelease.Verify(ctx, next.Out, mkrelease.VerifyOptions{Bases: []string{one.Out}})
	require.NoError(t, err)
	name := filepath.Join(next.Out, "blobs", "sha256", leaves.Digest.Hex())
	blob, err := os.ReadFile(name)
	require.NoError(t, err)
	blob[len(blob)-1] ^= 1
	require.NoError(t, os.WriteFile(name, blob, 0o644))
	_, err = mkrelease.Verify(ctx, next.Out, mkrelease.VerifyOptions{Bases: []string{one.Out}})
	require.ErrorIs(t, err, mkrelease.ErrDamaged)
}
