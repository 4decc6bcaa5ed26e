package broker_test

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/tandem-ota/tandem/transport/mqtt"
	"github.com/tandem-ota/tandem/updater/manifest"
)

// BenchmarkDownload downloads over loopback and TLS from the embedded broker,
// the client in a process of its own, and reports that process's peak memory.
func BenchmarkDownload(b *testing.B) {
	f := newFleet(b, nil)
	d, data := f.blob(64 << 20)
	f.config("bench")
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		cmd := exec.Command(os.Args[0], "-test.run=^TestDownloadChild$", "-test.v")
		cmd.Env = append(os.Environ(), "TANDEM_DOWNLOAD="+string(f.home)+"/devices/bench "+string(d), "GOMAXPROCS=1", "GOGC=50")
		out, err := cmd.CombinedOutput()
		require.NoError(b, err, "%s", out)
		var kib float64
		for _, line := range strings.Split(string(out), "\n") {
			if strings.HasPrefix(line, "VmHWM:") {
				fmt.Sscanf(line, "VmHWM: %f", &kib)
			}
		}
		b.ReportMetric(kib/1024, "peak-MiB")
	}
}

// TestDownloadChild is the client of BenchmarkDownload.
func TestDownloadChild(t *testing.T) {
	job := strings.Fields(os.Getenv("TANDEM_DOWNLOAD"))
	if len(job) != 2 {
		t.Skip("is run by BenchmarkDownload")
	}
	cfg, err := mqtt.Load(job[0])
	require.NoError(t, err)
	l, err := mqtt.Dial(t.Context(), cfg)
	require.NoError(t, err)
	defer l.Close()
	d := manifest.Digest(job[1])
	n, err := download(t.Context(), l.Source(d), d, io.Discard)
	require.NoError(t, err)
	status, err := os.ReadFile("/proc/self/status")
	require.NoError(t, err)
	fmt.Printf("%d bytes, %+v\n%s", n, l.Counters(), status)
}
