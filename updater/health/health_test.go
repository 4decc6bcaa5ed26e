package health

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/updater/manifest"
)

// Each kind of check holds exactly when what it names is so, and says why not.
func TestRun(t *testing.T) {
	dir := t.TempDir()
	present := filepath.Join(dir, "present")
	require.NoError(t, os.WriteFile(present, nil, 0o600))
	systemctl := filepath.Join(dir, "systemctl")
	require.NoError(t, os.WriteFile(systemctl, []byte("#!/bin/sh\n[ \"$4\" = good.service ]\n"), 0o700))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/ok" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer server.Close()
	up := false
	p := Prober{LinkUp: func() bool { return up }, Systemctl: systemctl}
	for name, c := range map[string]struct {
		check manifest.Check
		why   string
	}{
		"file there":           {manifest.Check{Kind: manifest.CheckFile, Target: present}, ""},
		"file missing":         {manifest.Check{Kind: manifest.CheckFile, Target: filepath.Join(dir, "absent")}, "no such file"},
		"program succeeds":     {manifest.Check{Kind: manifest.CheckCommand, Target: "/bin/true"}, ""},
		"program fails":        {manifest.Check{Kind: manifest.CheckCommand, Target: "/bin/sh", Args: []string{"-c", "echo one; echo motor not found >&2; exit 3"}}, "exit status 3: motor not found"},
		"program hangs":        {manifest.Check{Kind: manifest.CheckCommand, Target: "/bin/sh", Args: []string{"-c", "sleep 1000 & wait"}, TimeoutSeconds: 1}, "took too long"},
		"unit active":          {manifest.Check{Kind: manifest.CheckUnit, Target: "good.service"}, ""},
		"unit inactive":        {manifest.Check{Kind: manifest.CheckUnit, Target: "bad.service"}, "unit bad.service is not active"},
		"server answers":       {manifest.Check{Kind: manifest.CheckHTTP, Target: server.URL + "/ok"}, ""},
		"server is unhappy":    {manifest.Check{Kind: manifest.CheckHTTP, Target: server.URL + "/"}, "503"},
		"no link":              {manifest.Check{Kind: manifest.CheckMQTT}, "no link"},
		"kind of a later time": {manifest.Check{Kind: "oracle"}, "unknown kind"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.check.TimeoutSeconds == 0 {
				c.check.TimeoutSeconds = 60
			}
			r := p.Run(context.Background(), c.check)
			require.Equal(t, c.why == "", r.OK, r.Detail)
			require.Contains(t, r.Detail, c.why)
		})
	}
	up = true
	require.True(t, p.Run(context.Background(), manifest.Check{Kind: manifest.CheckMQTT, TimeoutSeconds: 1}).OK)
}
