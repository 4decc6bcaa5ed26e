package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/transport/mqtt"
	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/trust"
	"github.com/tandem-ota/tandem/updater/trust/mktrust"
)

// From a new broker to a device that has its release and has said so, with the
// commands that a person types.
func TestBrokerPublishWatch(t *testing.T) {
	tmp := t.TempDir()
	in := func(name string) string { return filepath.Join(tmp, name) }
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := l.Addr().String()
	require.NoError(t, l.Close())

	_, stderr, code := desk(brokerCmd, "--home", in("none"), "--listen", "127.0.0.1:0")
	require.NotZero(t, code)
	require.Contains(t, stderr, "hint: ")

	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	started, out := io.Pipe()
	go func() {
		ended <- brokerCmd(ctx, []string{"--init", "--home", in("broker"), "--listen", addr}, nil, out, io.Discard)
	}()
	defer func() {
		cancel()
		require.NoError(t, <-ended)
	}()
	for line := ""; !strings.Contains(line, "listening on"); {
		buf := make([]byte, 1000)
		n, err := started.Read(buf)
		require.NoError(t, err)
		line = string(buf[:n])
	}
	home := []string{"--home", in("broker")}
	dir := strings.TrimSpace(must(t, brokerCmd, append([]string{"enroll", "pump-7"}, home...)...))
	_, stderr, code = desk(brokerCmd, append([]string{"enroll", "pump-7"}, home...)...)
	require.NotZero(t, code)
	require.Contains(t, stderr, "--again")
	_, _, code = desk(brokerCmd, append([]string{"enroll", "../pump"}, home...)...)
	require.NotZero(t, code)
	key, err := os.Stat(filepath.Join(dir, mqtt.FileKey))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), key.Mode().Perm())

	image := bytes.Repeat([]byte("an image that compresses. "), 8000)
	must(t, keysCmd, "init", in("trust"))
	must(t, releaseCmd, "create", in("r1"), "--product", "gateway", "--version", "1.0.0", "--sequence", "1", "--slots", slotsFolder(t, image), "--level", "1")
	must(t, releaseCmd, "sign", "--trust", in("trust"), in("r1"))
	printed := must(t, publishCmd, in("r1"), "--store", in("broker/store"), "--desk", in("broker/desk"), "--trust", in("trust"), "--device", "pump-7")
	require.Contains(t, printed, "told pump-7 to run gateway 1.0.0")

	cfg, err := mqtt.Load(dir)
	require.NoError(t, err)
	link, err := mqtt.Dial(t.Context(), cfg)
	require.NoError(t, err)
	defer link.Close()
	soon, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	var want transport.Want
	select {
	case want = <-link.Wants():
	case <-soon.Done():
		t.Fatal("the device was not told")
	}
	folder, err := mktrust.Open(in("trust"), time.Now())
	require.NoError(t, err)
	signers, err := folder.Signers(t.Context(), mktrust.Fleet)
	require.NoError(t, err)
	set, err := mktrust.KeySet(1, signers[0].Public())
	require.NoError(t, err)
	keys, err := trust.ParseKeySet(set)
	require.NoError(t, err)
	s, err := trust.VerifyStatement(want.Statement, keys, "pump-7", time.Now(), 0)
	require.NoError(t, err)
	desired, err := transport.ParseDesired(s.Body)
	require.NoError(t, err)

	src := link.Source(manifest.Digest(desired.Manifest))
	envelope, err := src.Manifest(soon)
	require.NoError(t, err)
	_, payload, _, err := trust.Unverified(envelope)
	require.NoError(t, err)
	m, err := manifest.Parse(payload)
	require.NoError(t, err)
	require.Equal(t, m.TargetName(), desired.Target)
	blob := m.Images[0].Payloads[0].Blob
	data := make([]byte, blob.Size)
	n, err := src.ReadRange(soon, blob.Digest, 0, data)
	require.NoError(t, err)
	require.Equal(t, blob.Digest, manifest.DigestOf(data[:n]))
	for _, name := range []string{"timestamp.json", "1.root.json"} {
		got, err := src.Metadata(soon, name)
		require.NoError(t, err)
		stored, err := folder.Metadata(soon, name)
		require.NoError(t, err)
		require.Equal(t, stored, got)
	}

	require.NoError(t, link.Report(transport.State{Board: "qemu-x86_64", Slot: "b", Good: "b", Phase: "idle", Version: "1.0.0"}))
	require.NoError(t, link.Verdict(transport.Verdict{ID: "1", Result: transport.Committed, Version: "1.0.0"}))
	var table string
	require.Eventually(t, func() bool {
		table = must(t, watchCmd, "--once", "--desk", in("broker/desk"))
		return strings.Contains(table, "committed 1.0.0")
	}, time.Minute, 10*time.Millisecond)
	require.Regexp(t, `pump-7 +online +b +1\.0\.0 +idle .*committed 1\.0\.0`, table)
	for line := range strings.Lines(must(t, watchCmd, "pump-7", "--once", "--json", "--desk", in("broker/desk"))) {
		var r struct{ Device, Kind string }
		require.NoError(t, json.Unmarshal([]byte(line), &r))
		require.Equal(t, "pump-7", r.Device)
	}
}

// What a device says is shown on one line and moves no cursor.
func TestWatchTable(t *testing.T) {
	tab := table{}
	say := func(kind transport.Kind, payload string) bool {
		return tab.take(report{device: "pump-7", kind: kind, payload: []byte(payload)})
	}
	require.True(t, say(transport.KindLive, `{"v":1,"online":true}`))
	require.True(t, say(transport.KindState, `{"v":1,"device":"pump-7","slot":"a","version":"1\u001b[2J","phase":"writing","tries":2,"drift":true}`))
	require.True(t, say(transport.KindProgress, `{"v":1,"phase":"writing","done":5242880,"total":10485760,"rate":1048576,"left":5,"downloaded":1024}`))
	require.False(t, say(transport.KindState, `{"v":1,"device":"pump-8","slot":"a"}`), "in another's name")
	require.False(t, say(transport.KindState, `garbage`))
	var out bytes.Buffer
	require.NoError(t, tab.write(&out, time.Unix(0, 0).UTC()))
	require.Equal(t, ""+
		"DEVICE  LINK    SLOT  VERSION        PHASE    PROGRESS                                                                 TRIES  LAST UPDATE\n"+
		"pump-7  online  a     1.[2J (drift)  writing  [##########..........] 5.0 MiB/10.0 MiB 1.0 MiB/s 5s (1 KiB downloaded)  2      -\n"+
		"1 devices, 1 online, 00:00:00\n", out.String())

	require.True(t, say(transport.KindVerdict, `{"v":1,"id":"1","device":"pump-7","result":"reverted","reason":"health","check":"app"}`))
	out.Reset()
	require.NoError(t, tab.write(&out, time.Unix(0, 0).UTC()))
	require.Contains(t, out.String(), "reverted (health app)")
	require.NotContains(t, out.String(), "\x1b")
}
