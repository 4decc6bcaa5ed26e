package debian

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func paths(t *testing.T, w Watchdog, port string) map[string]string {
	program := filepath.Join(t.TempDir(), "program")
	require.NoError(t, os.WriteFile(program, []byte("program"), 0o755))
	if port != "" {
		port = program
	}
	files, err := Files(w, program, port)
	require.NoError(t, err)
	found := make(map[string]string)
	for _, f := range files {
		require.True(t, strings.HasPrefix(f.Path, "/usr/"), "%s: /etc is an overlay of the device, and hides what is changed there", f.Path)
		require.NotContains(t, found, f.Path)
		found[f.Path] = string(f.Data)
	}
	return found
}

// A product gets nothing of the lab: whoever has the ports of a lab image is root.
func TestFilesOfAProduct(t *testing.T) {
	product := paths(t, Agent, "")
	for path, content := range paths(t, Agent, "port") {
		if _, ok := product[path]; !ok {
			require.Regexp(t, `lab\.conf$|/tandem-port\.service$|/updater-peak\.service$|/usr/lib/tandem/tiny$`, path)
			continue
		}
		require.Equal(t, content, product[path], path)
		require.NotContains(t, content, "ttyS1", path)
		require.NotContains(t, content, "autologin", path)
	}
	require.Contains(t, product, "/usr/bin/updater")
}

// Exactly one owns the watchdog: systemd does not open it where the updater will, and
// asks the updater for signs of life where it does.
func TestFilesWatchdog(t *testing.T) {
	const config, unit = "/usr/lib/systemd/system.conf.d/20-watchdog.conf", "/usr/lib/systemd/system/updater.service.d/20-watchdog.conf"
	agent := paths(t, Agent, "")
	require.Contains(t, agent["/usr/lib/systemd/system.conf.d/10-tandem.conf"], "RuntimeWatchdogSec=off\n")
	require.NotContains(t, agent, config)
	require.NotContains(t, agent["/usr/lib/systemd/system/updater.service"], "WatchdogSec=")
	systemd := paths(t, Systemd, "")
	require.Contains(t, systemd[config], "RuntimeWatchdogSec=60\n")
	require.Contains(t, systemd[unit], "WatchdogSec=60\n")
	require.Contains(t, systemd[unit], "FailureAction=reboot-force\n")
}
