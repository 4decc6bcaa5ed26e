package release_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/release"
)

// A stick can hold files of any size where small ones belong. They are refused by their size,
// without the memory that they ask for: a terabyte here.
func TestTooLarge(t *testing.T) {
	envelope := "blobs/sha256/" + manifest.DigestOf([]byte(`{"envelope":1}`)).Hex()
	timestamp := "blobs/sha256/" + manifest.DigestOf([]byte(`{"timestamp":1}`)).Hex()
	for what, name := range map[string]string{"index": "index.json", "manifest": envelope, "metadata": timestamp} {
		t.Run(what, func(t *testing.T) {
			dir := honest().dir(t)
			require.NoError(t, os.Truncate(filepath.Join(dir, name), 1<<40))
			_, err := release.Open(dir)
			require.ErrorIs(t, err, release.ErrFormat)
			require.ErrorContains(t, err, "1099511627776 bytes")
		})
	}
}
