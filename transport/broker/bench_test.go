package broker_test

import (
	"context"
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
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "TANDEM_DOWNLOAD="+string(f.home)+"/devices/bench "+string(d), "GOMAXPROCS=1", "GOGC=50")
		out, err := cmd.CombinedOutput()
		require.NoError(b, err, "%s", out)
		var kib float64
		for _, line := range strings.Split(string(out), "\n") {
			if strings.Contains(line, "Retransmits:") {
				b.Log(line)
			}
			if strings.HasPrefix(line, "VmHWM:") {
				fmt.Sscanf(line, "VmHWM: %f", &kib)
			}
		}
		b.ReportMetric(kib/1024, "peak-MiB")
	}
}

// TestMain is the client of BenchmarkDownload when told to be.
func TestMain(m *testing.M) {
	job := strings.Fields(os.Getenv("TANDEM_DOWNLOAD"))
	if len(job) != 2 {
		os.Exit(m.Run())
	}
	if err := downloadOnce(job[0], manifest.Digest(job[1])); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func downloadOnce(provision string, d manifest.Digest) error {
	cfg, err := mqtt.Load(provision)
	if err != nil {
		return err
	}
	l, err := mqtt.Dial(context.Background(), cfg)
	if err != nil {
		return err
	}
	defer l.Close()
	n, err := download(context.Background(), l.Source(d), d, io.Discard)
	if err != nil {
		return err
	}
	status, err := os.ReadFile("/proc/self/status")
	fmt.Printf("%d bytes, %+v\n%s", n, l.Counters(), status)
	return err
}
