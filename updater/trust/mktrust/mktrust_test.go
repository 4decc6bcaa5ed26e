package mktrust_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/config"
	"github.com/theupdateframework/go-tuf/v2/metadata/updater"

	"github.com/tandem-ota/tandem/updater/trust"
	"github.com/tandem-ota/tandem/updater/trust/mktrust"
)

var (
	ctx   = context.Background()
	today = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
)

const target = "gateway/7.json"

func initFolder(t testing.TB, o mktrust.InitOptions) (f *mktrust.Folder, dir string, anchor []byte) {
	dir = filepath.Join(t.TempDir(), "trust")
	f, err := mktrust.Init(ctx, dir, today, o)
	require.NoError(t, err)
	anchor, err = os.ReadFile(filepath.Join(dir, "root.json"))
	require.NoError(t, err)
	return f, dir, anchor
}

// web lets go-tuf's own client fetch from a folder.
type web struct{ *mktrust.Folder }

func (w web) DownloadFile(url string, _ int64, _ time.Duration) ([]byte, error) {
	data, err := w.Metadata(ctx, path.Base(url))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &metadata.ErrDownloadHTTP{StatusCode: http.StatusNotFound, URL: url}
	}
	return data, err
}

// accepted has a new device and go-tuf's client, both built with anchor, look
// at the folder, and returns what the device makes of it.
func accepted(t testing.TB, f *mktrust.Folder, anchor []byte) *trust.Client {
	c, err := trust.Open(trust.Dir(t.TempDir()), anchor)
	require.NoError(t, err)
	require.NoError(t, c.Update(ctx, f, trust.Options{Online: true, Now: today}))

	cfg, err := config.New("https://example.com", anchor)
	require.NoError(t, err)
	cfg.LocalMetadataDir, cfg.LocalTargetsDir, cfg.Fetcher = t.TempDir(), t.TempDir(), web{f}
	u, err := updater.New(cfg)
	require.NoError(t, err)
	u.UnsafeSetRefTime(today)
	require.NoError(t, u.Refresh())
	return c
}

func statement(t testing.TB, f *mktrust.Folder) []byte {
	signers, err := f.Signers(ctx, mktrust.Fleet)
	require.NoError(t, err)
	data, err := mktrust.Statement(ctx, trust.Statement{
		Device: "dev-1", Counter: 1, Kind: "desired", Issued: today, Expires: today.Add(time.Hour), Body: json.RawMessage(`{}`),
	}, signers...)
	require.NoError(t, err)
	return data
}

// What a new folder publishes is taken by devices and by go-tuf, for both kinds
// of keys and for thresholds.
func TestInit(t *testing.T) {
	for _, o := range []mktrust.InitOptions{
		{},
		{Kind: mktrust.ECDSA},
		{Quorums: map[string]mktrust.Quorum{mktrust.Root: {Keys: 3, Threshold: 2}, mktrust.Targets: {Keys: 2, Threshold: 2}, mktrust.Fleet: {Keys: 2, Threshold: 2}}},
	} {
		f, dir, anchor := initFolder(t, o)
		require.NoError(t, f.AddTarget(ctx, target, []byte("release"), map[string]string{"note": "é"}))
		c := accepted(t, f, anchor)
		info, err := c.Target(target)
		require.NoError(t, err)
		require.NoError(t, info.Check([]byte("release")))
		keys, err := c.StatementKeys()
		require.NoError(t, err)
		_, err = trust.VerifyStatement(statement(t, f), keys, "dev-1", today, 0)
		require.NoError(t, err)

		files, err := filepath.Glob(filepath.Join(dir, "keys", "*"))
		require.NoError(t, err)
		for _, name := range files {
			info, err := os.Stat(name)
			require.NoError(t, err)
			require.Equal(t, fs.FileMode(0o600), info.Mode(), name)
		}
		_, err = mktrust.Init(ctx, dir, today, o)
		require.ErrorIs(t, err, fs.ErrExist, "keys are never overwritten")
	}
}

// A device that slept through any number of rotations of every role follows
// them, and the old keys count for nothing afterwards.
func TestRotate(t *testing.T) {
	f, dir, anchor := initFolder(t, mktrust.InitOptions{})
	require.NoError(t, f.AddTarget(ctx, target, []byte("release"), nil))
	before := accepted(t, f, anchor)
	oldKeys, err := before.StatementKeys()
	require.NoError(t, err)
	old := statement(t, f)
	oldRelease, err := f.ReleaseKeys()
	require.NoError(t, err)

	for i := range 2 {
		for _, role := range mktrust.Roles {
			kind := []string{mktrust.ECDSA, mktrust.Ed25519}[i]
			require.NoError(t, f.Rotate(ctx, role, mktrust.RotateOptions{Kind: kind}), role)
			c := accepted(t, f, anchor)
			_, err := c.Target(target)
			require.NoError(t, err, role)
		}
	}
	require.NoError(t, f.RenewRoot(ctx))
	c := accepted(t, f, anchor)
	require.Equal(t, int64(10), c.RootVersion())

	keys, err := c.StatementKeys()
	require.NoError(t, err)
	_, err = trust.VerifyStatement(old, oldKeys, "dev-1", today, 0)
	require.NoError(t, err)
	_, err = trust.VerifyStatement(old, keys, "dev-1", today, 0)
	require.ErrorIs(t, err, trust.ErrSignature)
	_, err = trust.VerifyStatement(statement(t, f), keys, "dev-1", today, 0)
	require.NoError(t, err)

	// Images in the field know only the old release keys: manifests are signed
	// by both until somebody removes the old.
	env, err := f.Seal(ctx, mktrust.Release, trust.ManifestType, []byte("m"))
	require.NoError(t, err)
	newRelease, err := f.ReleaseKeys()
	require.NoError(t, err)
	for _, set := range []trust.KeySet{oldRelease, newRelease} {
		_, err = trust.Verify(env, trust.ManifestType, set)
		require.NoError(t, err)
	}
	retired, err := filepath.Glob(filepath.Join(dir, "keys", "old", "*.pem"))
	require.NoError(t, err)
	require.Len(t, retired, 10)
}

// away takes a key off a machine; the function that it returns brings it back.
func away(t testing.TB, dir, name string) (back func()) {
	from, to := filepath.Join(dir, "keys", name), filepath.Join(t.TempDir(), name)
	require.NoError(t, os.Rename(from, to))
	return func() { require.NoError(t, os.Rename(to, from)) }
}

// Two of two keys on two machines: the first signature waits, the second
// publishes; until then devices see the old state.
func TestSignStaged(t *testing.T) {
	f, dir, anchor := initFolder(t, mktrust.InitOptions{Quorums: map[string]mktrust.Quorum{
		mktrust.Root: {Keys: 2, Threshold: 2}, mktrust.Targets: {Keys: 2, Threshold: 2},
	}})
	back := away(t, dir, "root-2.pem")
	require.ErrorIs(t, f.RenewRoot(ctx), mktrust.ErrIncomplete)
	require.ErrorIs(t, f.RenewRoot(ctx), mktrust.ErrIncomplete, "one change at a time")
	require.ErrorIs(t, f.Rotate(ctx, mktrust.Fleet, mktrust.RotateOptions{}), mktrust.ErrIncomplete)
	require.NoFileExists(t, filepath.Join(dir, "keys", "fleet-2.pem"), "a refused rotation makes no keys")
	require.ErrorIs(t, f.SignStaged(ctx), mktrust.ErrIncomplete, "the same key again adds nothing")
	stranger, err := mktrust.NewKey(mktrust.Ed25519)
	require.NoError(t, err)
	require.NoError(t, mktrust.WriteKey(filepath.Join(dir, "keys", "root-9.pem"), stranger))
	require.ErrorIs(t, f.SignStaged(ctx), mktrust.ErrIncomplete, "a stranger's key adds nothing")
	require.Equal(t, int64(1), accepted(t, f, anchor).RootVersion())

	away(t, dir, "root.pem")
	back()
	require.NoError(t, f.SignStaged(ctx))
	require.NoError(t, f.SignStaged(ctx), "nothing waits")
	require.Equal(t, int64(2), accepted(t, f, anchor).RootVersion())

	back = away(t, dir, "targets-2.pem")
	require.ErrorIs(t, f.AddTarget(ctx, target, []byte("release"), nil), mktrust.ErrIncomplete)
	_, err = accepted(t, f, anchor).Target(target)
	require.ErrorIs(t, err, trust.ErrNoTarget)
	away(t, dir, "targets.pem")
	back()
	require.NoError(t, f.SignStaged(ctx))
	_, err = accepted(t, f, anchor).Target(target)
	require.NoError(t, err)
}

// Without the keys of snapshot and timestamp, targets are signed and wait for
// the machine that has them.
func TestRefreshElsewhere(t *testing.T) {
	f, dir, anchor := initFolder(t, mktrust.InitOptions{})
	back := away(t, dir, "timestamp.pem")
	require.ErrorIs(t, f.AddTarget(ctx, target, []byte("release"), nil), mktrust.ErrNoKey)
	_, err := accepted(t, f, anchor).Target(target)
	require.ErrorIs(t, err, trust.ErrNoTarget)
	back()
	require.NoError(t, f.Refresh(ctx))
	_, err = accepted(t, f, anchor).Target(target)
	require.NoError(t, err)
	require.NoError(t, f.RemoveTarget(ctx, target))
	_, err = accepted(t, f, anchor).Target(target)
	require.ErrorIs(t, err, trust.ErrNoTarget)
	require.ErrorIs(t, f.RemoveTarget(ctx, target), fs.ErrNotExist)
}

// A refreshed timestamp keeps devices going after the old one has expired.
func TestRefresh(t *testing.T) {
	f, dir, anchor := initFolder(t, mktrust.InitOptions{})
	c, err := trust.Open(trust.Dir(t.TempDir()), anchor)
	require.NoError(t, err)
	later := today.AddDate(0, 0, 45)
	require.ErrorIs(t, c.Update(ctx, f, trust.Options{Online: true, Now: later}), trust.ErrExpired)
	f, err = mktrust.Open(dir, later)
	require.NoError(t, err)
	require.NoError(t, f.Refresh(ctx))
	require.NoError(t, c.Update(ctx, f, trust.Options{Online: true, Now: later}))
}

// openssl signs, as an HSM would: it never hands out its key.
func TestExternalSigner(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		if os.Getenv("TANDEM_CI") != "" {
			t.Fatal("openssl is not installed")
		}
		t.Skip("openssl is not installed")
	}
	for kind, row := range map[string]struct{ generate, sign string }{
		"Ed25519":     {"genpkey -algorithm ed25519", `t=$(mktemp) && cat >$t && openssl pkeyutl -sign -rawin -inkey %KEY -in $t; r=$?; rm $t; exit $r`},
		"ECDSA P-256": {"genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256", "openssl dgst -sha256 -sign %KEY"},
	} {
		t.Run(kind, func(t *testing.T) {
			hsm := filepath.Join(t.TempDir(), "hsm.pem")
			out, err := exec.Command(openssl, append(strings.Fields(row.generate), "-out", hsm)...).CombinedOutput()
			require.NoError(t, err, string(out))
			command := strings.ReplaceAll(`case $TANDEM_SIGNER_OP in public) openssl pkey -in %KEY -pubout;; sign) `+row.sign+`;; esac`, "%KEY", hsm)
			o := mktrust.InitOptions{Signers: map[string]string{}}
			for _, role := range mktrust.Roles {
				o.Signers[role] = "exec:" + command
			}
			f, dir, anchor := initFolder(t, o)
			require.NoError(t, f.AddTarget(ctx, target, []byte("release"), nil))
			c := accepted(t, f, anchor)
			keys, err := c.StatementKeys()
			require.NoError(t, err)
			_, err = trust.VerifyStatement(statement(t, f), keys, "dev-1", today, 0)
			require.NoError(t, err)
			pem, err := filepath.Glob(filepath.Join(dir, "keys", "*.pem"))
			require.NoError(t, err)
			require.Empty(t, pem)

			// A signer that refuses, or signs something else, publishes nothing.
			for _, broken := range []string{
				"echo no token >&2; exit 1",
				strings.Replace(command, "sign) ", "sign) cat >/dev/null; echo other | ", 1),
				strings.Replace(command, "sign) ", "sign) cat; exit 0; ", 1),
			} {
				_, err := mktrust.LoadKey(ctx, "exec:"+broken, "targets")
				if err == nil {
					require.NoError(t, os.WriteFile(filepath.Join(dir, "keys", "targets.exec"), []byte(broken), 0o600))
					err = f.AddTarget(ctx, "gateway/8.json", []byte("x"), nil)
				}
				require.ErrorIs(t, err, mktrust.ErrSigner)
			}
			_, err = accepted(t, f, anchor).Target("gateway/8.json")
			require.ErrorIs(t, err, trust.ErrNoTarget)
		})
	}
}

// Keys that devices would not count are refused before anybody relies on them.
func TestUnsupportedKeys(t *testing.T) {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	require.NoError(t, err)
	_, err = mktrust.FromCrypto(p384)
	require.ErrorContains(t, err, "P-256")
	_, err = mktrust.NewKey("rsa")
	require.Error(t, err)
	_, err = mktrust.Init(ctx, filepath.Join(t.TempDir(), "x"), today, mktrust.InitOptions{Quorums: map[string]mktrust.Quorum{mktrust.Root: {Keys: 1, Threshold: 2}}})
	require.ErrorContains(t, err, "makes no sense")
}
