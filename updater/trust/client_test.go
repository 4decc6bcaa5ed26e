package trust_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/updater/trust"
	"github.com/tandem-ota/tandem/updater/trust/mktrust"
)

// A stick needs only the root chain and the targets; what it brings holds off
// older sticks and older repositories afterwards.
func TestOfflineStick(t *testing.T) {
	w := newWorld(t)
	old := w.publish()
	w.addTarget(target, []byte("release 7, again"))
	stick := w.bump().publish()
	delete(stick, "timestamp.json")
	delete(stick, "2.snapshot.json")

	c, err := trust.Open(memory{}, old["1.root.json"])
	require.NoError(t, err)
	_, err = c.Target(target)
	require.ErrorIs(t, err, trust.ErrNoTarget)
	_, err = c.StatementKeys()
	require.ErrorIs(t, err, trust.ErrUnknownRole)

	require.NoError(t, c.Update(ctx, stick, trust.Options{}))
	info, err := c.Target(target)
	require.NoError(t, err)
	require.NoError(t, info.Check([]byte("release 7, again")))
	require.ErrorIs(t, info.Check([]byte("release 7, agaim")), trust.ErrMismatch)
	require.ErrorIs(t, info.Check([]byte("release 7, again ")), trust.ErrMismatch)

	require.ErrorIs(t, c.Update(ctx, old, trust.Options{}), trust.ErrRollback)
	require.ErrorIs(t, c.Update(ctx, old, trust.Options{Online: true}), trust.ErrRollback)
	require.ErrorIs(t, c.Update(ctx, stick, trust.Options{Online: true}), fs.ErrNotExist)
}

// Without a clock nothing expires; with a lower bound of the time, what has
// expired by then does.
func TestNoClock(t *testing.T) {
	w := newWorld(t)
	repo := w.publish()
	for _, online := range []bool{false, true} {
		c, err := trust.Open(memory{}, repo["1.root.json"])
		require.NoError(t, err)
		require.NoError(t, c.Update(ctx, repo, trust.Options{Online: online}))
		require.NoError(t, c.Update(ctx, repo, trust.Options{Online: online, Now: today}))
		require.ErrorIs(t, c.Update(ctx, repo, trust.Options{Online: online, Now: today.AddDate(2, 0, 0)}), trust.ErrExpired)
	}
}

// failing is a store whose n-th change fails, and all after it: the power is
// off. torn leaves half of what was to be put.
type failing struct {
	memory
	left int
	torn bool
}

var errPower = errors.New("power cut")

func (f *failing) Put(name string, data []byte) error {
	if f.left--; f.left < 0 {
		if f.torn && f.left == -1 {
			f.memory[name] = data[:len(data)/2]
		}
		return errPower
	}
	return f.memory.Put(name, data)
}

func (f *failing) Delete(name string) error {
	if f.left--; f.left < 0 {
		return errPower
	}
	return f.memory.Delete(name)
}

// The power may fail at any change of the store, and a store without the
// promise of Put may tear it: the device comes up with something it had
// accepted, and the next update finishes the work.
func TestUpdatePowerCut(t *testing.T) {
	w := newWorld(t)
	first := w.publish()
	for i, role := range []string{"root", "timestamp", "snapshot", "targets"} {
		old := w.keys[role][0]
		w.grant(role, signers()[4+i])
		w.revoke(role, old)
	}
	w.newRoot(signers()[0], signers()[4])
	w.addTarget("gateway/8.json", []byte("release 8"))
	w.bump()
	second := w.publishRest()

	for _, torn := range []bool{false, true} {
		for cut := 0; ; cut++ {
			store := memory{}
			c, err := trust.Open(store, first["1.root.json"])
			require.NoError(t, err)
			require.NoError(t, c.Update(ctx, first, trust.Options{Online: true, Now: today}))

			c, err = trust.Open(&failing{memory: store, left: cut, torn: torn}, first["1.root.json"])
			require.NoError(t, err)
			err = c.Update(ctx, second, trust.Options{Online: true, Now: today})
			done := err == nil
			if !done {
				require.ErrorIs(t, err, errPower, "cut %d", cut)
			}
			c, err = trust.Open(store, first["1.root.json"])
			require.NoError(t, err, "cut %d torn %v", cut, torn)
			if _, err = c.Target("gateway/8.json"); done {
				require.NoError(t, err)
			}
			require.NoError(t, c.Update(ctx, second, trust.Options{Online: true, Now: today}), "cut %d torn %v", cut, torn)
			_, err = c.Target("gateway/8.json")
			require.NoError(t, err)
			require.Equal(t, int64(2), c.RootVersion())
			if done {
				require.Equal(t, 7, cut, "found %d places to cut; are all still there?", cut)
				break
			}
		}
	}
}

// A device looks for news whenever it gets a connection. Where there are none it writes
// nothing, and so a store that takes nothing is no reason to fail; online and from a stick.
func TestNoNewsNoWrite(t *testing.T) {
	files := newWorld(t).publish()
	for _, online := range []bool{true, false} {
		store := memory{}
		for range 2 {
			c, err := trust.Open(store, files["1.root.json"])
			require.NoError(t, err)
			require.NoError(t, c.Update(ctx, files, trust.Options{Online: online, Now: today}))
		}
		c, err := trust.Open(&failing{memory: store}, files["1.root.json"])
		require.NoError(t, err)
		require.NoError(t, c.Update(ctx, files, trust.Options{Online: online, Now: today}), "online: %v", online)
		require.Equal(t, int64(1), c.TargetsVersion())
	}
}

// Absurdly high versions, signed with a stolen key, are forgotten when a new
// root changes the role's keys, even where the old key stays one of them (TUF
// 5.3.11); go-tuf forgets them only when no old key stays.
func TestFastForwardCure(t *testing.T) {
	for _, role := range []string{"timestamp", "snapshot", "targets"} {
		w := newWorld(t)
		first := w.publish()
		w.timestamp.Signed.Version, w.snapshot.Signed.Version, w.targets.Signed.Version = 1000, 1000, 1000
		w.timestamp.Signed.Meta["snapshot.json"].Version = 1000
		w.snapshot.Signed.Meta["targets.json"].Version = 1000
		bad := w.publish()
		w.timestamp.Signed.Version, w.snapshot.Signed.Version, w.targets.Signed.Version = 2, 2, 2
		w.timestamp.Signed.Meta["snapshot.json"].Version = 2
		w.snapshot.Signed.Meta["targets.json"].Version = 2
		store := memory{}
		c, err := trust.Open(store, first["1.root.json"])
		require.NoError(t, err)
		require.NoError(t, c.Update(ctx, bad, trust.Options{Online: true, Now: today}))
		require.ErrorIs(t, c.Update(ctx, w.publish(), trust.Options{Online: true, Now: today}), trust.ErrRollback)
		w.grant(role, signers()[5])
		w.newRoot(signers()[0])
		require.NoError(t, c.Update(ctx, w.publishRest(), trust.Options{Online: true, Now: today}), role)
		require.Equal(t, int64(2), c.TargetsVersion())
	}
}

// A store full of rubbish costs a device its memory, not its ability to update;
// a rotated root that was lost is followed again.
func TestStoreCorrupted(t *testing.T) {
	w := newWorld(t)
	first := w.publish()
	w.grant("root", signers()[4])
	w.newRoot(signers()[0], signers()[4])
	second := w.bump().publishRest()

	dir := t.TempDir()
	c, err := trust.Open(trust.Dir(dir), first["1.root.json"])
	require.NoError(t, err)
	require.NoError(t, c.Update(ctx, second, trust.Options{Online: true, Now: today}))
	names, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, names, 4)
	for _, n := range names {
		path := filepath.Join(dir, n.Name())
		whole, err := os.ReadFile(path)
		require.NoError(t, err)
		for _, junk := range [][]byte{nil, whole[:len(whole)-1], []byte("{}"), bytes.Repeat([]byte("["), 2<<20)} {
			require.NoError(t, os.WriteFile(path, junk, 0o600))
			c, err := trust.Open(trust.Dir(dir), first["1.root.json"])
			require.NoError(t, err)
			require.NoError(t, c.Update(ctx, second, trust.Options{Online: true, Now: today}), n.Name())
			require.Equal(t, int64(2), c.RootVersion())
			again, err := os.ReadFile(path)
			require.NoError(t, err)
			require.Equal(t, whole, again)
		}
	}
}

// Names cannot leave the folder of a store.
func TestDirNames(t *testing.T) {
	d := trust.Dir(t.TempDir())
	for _, name := range []string{"", ".", "..", "../x", "/etc/passwd", "a/b", `a\b`, ".hidden", "a\x00b"} {
		require.ErrorIs(t, d.Put(name, nil), fs.ErrInvalid, name)
		_, err := d.Get(name)
		require.ErrorIs(t, err, fs.ErrInvalid, name)
	}
	require.NoError(t, d.Put("a.json", []byte("1")))
	require.NoError(t, d.Put("a.json", []byte("2")))
	got, err := d.Get("a.json")
	require.NoError(t, err)
	require.Equal(t, []byte("2"), got)
	require.NoError(t, d.Delete("a.json"))
	require.NoError(t, d.Delete("a.json"))
	_, err = d.Get("a.json")
	require.ErrorIs(t, err, fs.ErrNotExist)
}

// A statement is for one device, once, for a time, and by the fleet's keys
// alone.
func TestStatement(t *testing.T) {
	signers, keys := newSigners(t, 1, 1)
	strangers, _ := newSigners(t, 1, 1)
	later := today.Add(time.Hour)
	s := trust.Statement{Device: "dev-1", Counter: 5, Kind: "desired", Issued: today, NotBefore: &later, Expires: today.Add(24 * time.Hour), Body: json.RawMessage(`{"release":"x"}`)}
	data, err := mktrust.Statement(ctx, s, signers...)
	require.NoError(t, err)
	for name, row := range map[string]struct {
		device string
		now    time.Time
		last   uint64
		want   error
	}{
		"in time":                {"dev-1", later, 4, nil},
		"no clock":               {"dev-1", time.Time{}, 4, nil},
		"to another device":      {"dev-2", later, 4, trust.ErrOtherDevice},
		"seen before":            {"dev-1", later, 5, trust.ErrReplayed},
		"older than one seen":    {"dev-1", later, 6, trust.ErrReplayed},
		"too early":              {"dev-1", today, 4, trust.ErrNotYet},
		"too late":               {"dev-1", today.Add(25 * time.Hour), 4, trust.ErrExpired},
		"another device and old": {"dev-2", today.Add(25 * time.Hour), 9, trust.ErrOtherDevice},
	} {
		got, err := trust.VerifyStatement(data, keys, row.device, row.now, row.last)
		if row.want != nil {
			require.ErrorIs(t, err, row.want, name)
			continue
		}
		require.NoError(t, err, name)
		require.JSONEq(t, `{"release":"x"}`, string(got.Body))
		require.True(t, got.Issued.Equal(today))
	}
	forged, err := mktrust.Statement(ctx, s, strangers...)
	require.NoError(t, err)
	_, err = trust.VerifyStatement(forged, keys, "dev-1", later, 0)
	require.ErrorIs(t, err, trust.ErrSignature)
	manifest, err := mktrust.Seal(ctx, trust.ManifestType, []byte(`{"format":1}`), signers...)
	require.NoError(t, err)
	_, err = trust.VerifyStatement(manifest, keys, "dev-1", later, 0)
	require.ErrorIs(t, err, trust.ErrFormat)
	for i, broken := range []trust.Statement{
		{Device: "", Counter: 1, Kind: "k", Issued: today, Expires: later, Body: s.Body},
		{Device: "d", Counter: 0, Kind: "k", Issued: today, Expires: later, Body: s.Body},
		{Device: "d", Counter: 1, Kind: "k", Expires: later, Body: s.Body},
		{Device: "d", Counter: 1, Kind: "k", Issued: later, Expires: today, Body: s.Body},
	} {
		_, err := mktrust.Statement(ctx, broken, signers...)
		require.ErrorIs(t, err, trust.ErrFormat, fmt.Sprint(i))
	}
}

// Whatever a source sends as metadata, the client returns.
func FuzzMetadata(f *testing.F) {
	w := newWorld(f)
	repo := w.publish()
	for _, data := range repo {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := trust.Open(memory{}, repo["1.root.json"])
		require.NoError(t, err)
		evil := files{"2.root.json": data, "targets.json": data, "timestamp.json": data}
		_ = c.Update(ctx, evil, trust.Options{})
		delete(evil, "2.root.json")
		_ = c.Update(ctx, evil, trust.Options{Online: true})
		if err := c.Update(ctx, evil, trust.Options{}); err == nil {
			require.Equal(t, int64(1), c.TargetsVersion())
		}
		_, _ = trust.Open(memory{}, data)
	})
}
