package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/updater/release/mkrelease"
)

// desk runs a command of tandem and returns what it printed and its exit code.
func desk(cmd func(context.Context, []string, io.Reader, io.Writer, io.Writer) error, args ...string) (stdout, stderr string, code int) {
	var out, msg bytes.Buffer
	err := cmd(context.Background(), args, strings.NewReader(""), &out, &msg)
	if err == nil {
		return out.String(), msg.String(), 0
	}
	code = 1
	var c interface{ ExitCode() int }
	if errors.As(err, &c) {
		code = c.ExitCode()
	}
	return out.String(), msg.String() + err.Error(), code
}

// must is desk for what has to work.
func must(t testing.TB, cmd func(context.Context, []string, io.Reader, io.Writer, io.Writer) error, args ...string) string {
	stdout, stderr, code := desk(cmd, args...)
	require.Zero(t, code, stderr)
	return stdout
}

// slotsFolder is what tandem image slots leaves behind.
func slotsFolder(t testing.TB, root []byte) string {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "root.img"), root, 0o644))
	sum := sha256.Sum256(root)
	data, err := json.Marshal(map[string]any{"board": "qemu-x86_64", "images": []any{
		map[string]any{"name": "root", "target": "root", "file": "root.img", "size": len(root), "sha256": hex.EncodeToString(sum[:])},
	}})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "slots.json"), data, 0o644))
	return dir
}

// From no keys to a verified stick, with the commands that a person types; and
// the exit codes that a script goes by when something is wrong.
func TestKeysAndRelease(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "1700000000")
	tmp := t.TempDir()
	in := func(name string) string { return filepath.Join(tmp, name) }
	image := bytes.Repeat([]byte("an image that compresses. "), 8000)
	changed := bytes.Replace(image, []byte("image"), []byte("IMAGE"), 1)

	out := must(t, keysCmd, "init", "--kind", "ecdsa", "--quorum", "release=2/2", in("trust"))
	require.Contains(t, out, "2 of 2")
	_, stderr, code := desk(keysCmd, "init", in("trust"))
	require.Equal(t, 1, code)
	require.Contains(t, stderr, "not empty")

	policy := in("policy.json")
	require.NoError(t, os.WriteFile(policy, []byte(`{"trial":{"tries":2},"health":[{"name":"app","kind":"unit","target":"app.service","timeout_seconds":5}]}`), 0o644))
	must(t, releaseCmd, "create", in("r1"), "--product", "gateway", "--version", "1.0.0", "--sequence", "1", "--slots", slotsFolder(t, image), "--level", "1")
	out = must(t, releaseCmd, "create", "--json", "--product", "gateway", "--version", "1.1.0", "--sequence", "2",
		"--slots", slotsFolder(t, changed), "--base", in("r1"), "--policy", policy, "--revision", "abc", in("r2"))
	var made mkrelease.Result
	require.NoError(t, json.Unmarshal([]byte(out), &made))
	require.Equal(t, 2, made.Manifest.Trial.Tries)
	require.Equal(t, 600, made.Manifest.Trial.DeadlineSeconds)
	require.Equal(t, "2023-11-14T22:13:20Z", made.Manifest.Provenance.Built)
	require.Len(t, made.Payloads, 3)

	_, stderr, code = desk(releaseCmd, "verify", "--trust", in("trust"), in("r2"))
	require.Equal(t, exitUntrusted, code, stderr)

	away := in("release-2.pem")
	require.NoError(t, os.Rename(in("trust/keys/release-2.pem"), away))
	_, stderr, code = desk(releaseCmd, "sign", "--trust", in("trust"), in("r2"))
	require.Equal(t, exitIncomplete, code, stderr)
	require.Contains(t, stderr, "hint: ")
	require.NoError(t, os.Rename(away, in("trust/keys/release-2.pem")))
	must(t, releaseCmd, "sign", "--trust", in("trust"), in("r2"))

	must(t, releaseCmd, "pack", in("r2"), in("stick.tar"))
	out = must(t, releaseCmd, "verify", in("stick.tar"), "--trust", in("trust"), "--base", in("r1"), "--json")
	var v mkrelease.Verified
	require.NoError(t, json.Unmarshal([]byte(out), &v))
	require.True(t, v.Signature && v.Offered)
	require.Equal(t, []string{"root full", "root index", "root delta"}, v.Rebuilt)
	require.Equal(t, made.Digest, v.Digest)

	out = must(t, releaseCmd, "inspect", in("stick.tar"))
	for _, s := range []string{"gateway", "1.1.0", string(made.Digest), "app.service", "delta from", "timestamp.json", "abc"} {
		require.Contains(t, out, s)
	}
	var seen inspection
	require.NoError(t, json.Unmarshal([]byte(must(t, releaseCmd, "inspect", "--json", in("stick.tar"))), &seen))
	require.Equal(t, made.Manifest, seen.Manifest)
	require.Len(t, seen.Signed, 2)

	must(t, keysCmd, "rotate", in("trust"), "targets")
	must(t, keysCmd, "refresh", in("trust"))
	must(t, keysCmd, "renew", in("trust"))
	var roles []roleInfo
	require.NoError(t, json.Unmarshal([]byte(must(t, keysCmd, "show", "--json", in("trust"))), &roles))
	require.Len(t, roles, 6)
	require.Equal(t, int64(3), roles[0].Version)
	require.True(t, roles[0].Expires.After(time.Now().AddDate(9, 0, 0)))
}

// A command line that makes no sense is told from work that failed.
func TestKeysAndReleaseUsage(t *testing.T) {
	for _, args := range [][]string{
		nil, {"make"}, {"create"}, {"create", "x"}, {"create", "--what", "x"}, {"sign", "x"}, {"verify", "x"}, {"inspect"}, {"pack", "x"},
		{"create", "--product", "p", "--version", "1.0.0", "--sequence", "1", "--external", "mcu", "x"},
	} {
		_, stderr, code := desk(releaseCmd, args...)
		require.Equal(t, exitUsage, code, "%q: %s", args, stderr)
	}
	for _, args := range [][]string{
		nil, {"make"}, {"init"}, {"init", "--quorum", "root=3/2", "x"}, {"init", "--quorum", "boss=1/1", "x"}, {"init", "--signer", "root", "x"},
		{"rotate", "x"}, {"rotate", "x", "boss"}, {"show"}, {"refresh"},
	} {
		_, stderr, code := desk(keysCmd, args...)
		require.Equal(t, exitUsage, code, "%q: %s", args, stderr)
	}
	require.Contains(t, must(t, releaseCmd, "-h"), "Exit codes")
	require.Contains(t, must(t, keysCmd, "help"), "Exit codes")
	_, _, code := desk(releaseCmd, "create", "-h")
	require.Zero(t, code)
	_, _, code = desk(releaseCmd, "inspect", t.TempDir())
	require.Equal(t, 1, code)
}
