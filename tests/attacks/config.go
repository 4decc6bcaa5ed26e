package attacks

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/boards"
	"github.com/tandem-ota/tandem/transport/broker"
	"github.com/tandem-ota/tandem/transport/mqtt"
)

// configAttacks are files that say what a device is: boards, and the folder that it was
// provisioned with, which is on a partition that nothing verifies.
var configAttacks = []Attack{
	badBoard("unknown-field", "a board with a key that is misspelt, or of tomorrow", `"format": 1`, `"format": 1, "fromat": 1`, `"format": 1, "later": {"a": 1}`, `"formats": 1`),
	badBoard("key-twice", "a board that two readers see differently", `"format": 1`, `"format": 1, "format": 1`, `"format": 1, "FORMAT": 1`, `"format": 1, "data": "esp"`, `"format": 1, "disk": {}, "slots": {"a": {}, "a": {}}`),
	badBoard("nested-for-ever", "a board of nothing but brackets", `"format": 1`, `"format": `+strings.Repeat("[", 30_000), `"later": `+strings.Repeat(`{"a":`, 12_000), `"qemu": `+strings.Repeat("[", 9_000)+strings.Repeat("]", 9_000)),
	badBoard("huge", "a board of a byte and of megabytes too many", `"format": 1`, `"format": 1, "title": "`+strings.Repeat("x", 64<<10)+`"`, strings.Repeat(" ", 4<<20)+`"format": 1`),
	badBoard("wrong-types", "a board with words for numbers and lists for objects", `"size_mib": 64`, `"size_mib": "64"`, `"size_mib": 64.5`, `"size_mib": null, "size_mib": {}`, `"size_mib": [64]`, `"size_mib": 1e400`, `"size_mib": 18446744073709551616`),
	badBoard("numbers-out-of-bounds", "partitions of no, of negative and of absurd size, at places that wrap", `"size_mib": 64`, `"size_mib": 0`, `"size_mib": -64`, `"size_mib": 8796093022208`, `"size_mib": 64, "start_mib": -1`,
		`"size_mib": 64, "start_mib": 8796093022207`, `"size_mib": 1073741825`, `"size_mib": 9223372036854775807`),
	badBoard("labels", "labels that are none, are another's, or lead elsewhere", `{"label": "root_b"`, `{"label": ""`, `{"label": "root_a"`, `{"label": "../sda"`, `{"label": "root_b\n"`, `{"label": "root_b\u0000"`, `{"label": "`+strings.Repeat("r", 37)+`"`, `{"label": "data"`),
	badBoard("slots-that-share", "slots that are missing, unknown, or one partition for two uses", `"b": {"boot": "boot_b", "root": "root_b"}`, `"b": {"boot": "boot_b", "root": "root_a"}`, `"b": {"boot": "boot_a", "root": "root_b"}`, `"c": {"boot": "boot_b", "root": "root_b"}`,
		`"b": {"boot": "boot_b", "root": "env"}`, `"b": {"boot": "root_b", "root": "boot_b"}`, `"b": {}`, `"b": null`),
	badBoard("devices", "a watchdog, a register and an index that are none", `"tpm": {"pcr": 14, "nv_ledger": "0x01840000"}`, `"tpm": {"pcr": 23, "nv_ledger": "0x01840000"}`, `"tpm": {"pcr": -1, "nv_ledger": "0x01840000"}`, `"tpm": {"pcr": 14, "nv_ledger": "0x81000000"}`,
		`"tpm": {"pcr": 14, "nv_ledger": "0x101840000"}`, `"tpm": {"pcr": 14, "nv_ledger": 25427968}`, `"tpm": {"pcr": 4294967310, "nv_ledger": "0x01840000"}`),
	badBoard("command-line-of-two", "a kernel command line that ends early, or brings its own root hash", `"cmdline": "`, `"cmdline": "init=/bin/sh\n`, `"cmdline": "tandem.verity=0 `, `"cmdline": "\u0000`),
	provisioned("id-that-is-a-path", "a device id with slashes, dots and line feeds", mqtt.FileID, []string{"../x", "a/b", "/etc/passwd", "..", ".", "pump\n7", "pump 7", "pump\x007", "p\u00fcmp-7"}),
	provisioned("id-that-is-a-wildcard", "a device id that subscribes to the fleet", mqtt.FileID, []string{"#", "+", "a/#", "+/+", "$SYS", "$share"}),
	provisioned("id-of-no-length", "a device id of nothing, and of a hundred bytes", mqtt.FileID, []string{"", "\n", "   ", strings.Repeat("a", 65), strings.Repeat("a", 100), strings.Repeat("a", 1<<20)}),
	provisioned("settings-garbled", "settings that are no JSON, have other types, unknown keys, more than one object or no end", mqtt.FileMQTT, []string{
		"", "{}", "[]", "null", `{"brokers":"tls://h"}`, `{"brokers":[]}`, `{"brokers":["tls://h:1"],"brokerz":1}`, `{"brokers":["tls://h:1"]}{}`, `{"brokers":["tls://h:1"]} x`, `{"brokers":["tls://h:1"]`,
		`{"brokers":["tls://h:1"],"rate":"fast"}`, `{"brokers":["tls://h:1"],"rate":-1}`, `{"brokers":["tls://h:1"],"budget":-1}`, `{"brokers":["tls://h:1"],"budget":1e400}`,
		strings.Repeat("[", 60_000), `{"brokers":` + strings.Repeat("[", 20_000), strings.Repeat(" ", 65<<10) + `{"brokers":["tls://h:1"]}`,
	}),
	provisioned("broker-in-plain-text", "a broker without TLS that is not this machine, or none", mqtt.FileMQTT, []string{
		`{"brokers":["tcp://192.0.2.1:1883"]}`, `{"brokers":["mqtt://example.org"]}`, `{"brokers":["ws://h"]}`, `{"brokers":["tls://h","tcp://h"]}`, `{"brokers":["tls://"]}`, `{"brokers":["h:8883"]}`, `{"brokers":["tcp://127.0.0.1.example.org"]}`,
		`{"brokers":["tcp://0.0.0.0"]}`, `{"brokers":["\u0000"]}`, `{"brokers":["tcp://localhost.example.org"]}`, `{"brokers":["file:///etc/passwd"]}`,
	}),
	provisioned("roots-that-are-none", "root certificates of nothing, of noise, cut off, and of the wrong kind", mqtt.FileCA, []string{
		"", "x", "-----BEGIN CERTIFICATE-----\n", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", strings.Repeat("A", 65<<10),
	}),
	provisioned("key-that-fits-nothing", "a key of nothing, of noise, and of another certificate", mqtt.FileKey, []string{"", "x", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", strings.Repeat("-", 65<<10)}),
	{
		Name: "config/provisioning-missing", Input: "a folder from which one of the files is gone", Want: fs.ErrNotExist, Threats: []string{uptaneFreeze},
		Run: func(s *Scene) error {
			s.device(theDesk().first, theDesk().old).keep(everything...)
			for _, name := range []string{mqtt.FileID, mqtt.FileMQTT, mqtt.FileCA, mqtt.FileKey} {
				dir := s.provision()
				require.NoError(s, os.Remove(filepath.Join(dir, name)))
				_, err := mqtt.Load(dir)
				s.Variant(err, "%s", name)
			}
			_, err := mqtt.Load(filepath.Join(s.TempDir(), "nowhere"))
			s.Variant(err, "the folder")
			return nil
		},
	},
	{
		Name: "config/provisioning-not-of-files", Input: "pipes, folders and devices where the files of the folder are", Want: mqtt.ErrConfig, Threats: []string{uptaneSlowRetrieval},
		Run: func(s *Scene) error {
			honest := s.provision()
			for name, plant := range map[string]func(path string) error{
				"pipe":   func(path string) error { return syscall.Mkfifo(path, 0o600) },
				"folder": func(path string) error { return os.Mkdir(path, 0o700) },
				"device": func(path string) error { return os.Symlink("/dev/zero", path) },
			} {
				for _, file := range []string{mqtt.FileID, mqtt.FileMQTT, mqtt.FileCA, mqtt.FileCert, mqtt.FileKey} {
					dir := filepath.Join(must(os.MkdirTemp(s.TempDir(), "")), "provision")
					require.NoError(s, os.CopyFS(dir, os.DirFS(honest)))
					require.NoError(s, os.Remove(filepath.Join(dir, file)))
					require.NoError(s, plant(filepath.Join(dir, file)))
					s.keepFolder(dir)
					_, err := mqtt.Load(dir)
					s.Variant(err, "a %s for %s", name, file)
				}
			}
			return nil
		},
	},
}

// badBoard is a case of board files that have another text in one place.
func badBoard(name, input, old string, instead ...string) Attack {
	return Attack{Name: "config/board-" + name, Input: input, Want: boards.ErrBoard, Threats: []string{suitLocation, suitIncompatible}, Run: func(s *Scene) error {
		s.device(theDesk().first, theDesk().old).keep(everything...)
		honest := must(boards.JSON(board))
		for _, text := range instead {
			b, err := boards.Parse(replaced(honest, old, text))
			require.Empty(s, b.Name, "a board beside the error")
			s.Variant(err, "%.80s", text)
		}
		return nil
	}}
}

// provision makes the folder of a device.
func (s *Scene) provision() string {
	home := broker.Home(filepath.Join(s.TempDir(), "broker"))
	require.NoError(s, home.Init([]string{"localhost"}, nil, today))
	dir := must(home.Enroll(me, mqtt.Provision{Brokers: []string{"tls://localhost:8883"}}, false, true))
	must(mqtt.Load(dir))
	return dir
}

// keepFolder keeps the names, kinds and contents of what is in a folder.
func (s *Scene) keepFolder(dir string) {
	held := map[string]string{}
	s.Keep(dir, func() []byte {
		clear(held)
		for _, e := range must(os.ReadDir(dir)) {
			held[e.Name()] = e.Type().String()
			if e.Type().IsRegular() {
				held[e.Name()] += fmt.Sprintf(" %x", sha256.Sum256(must(os.ReadFile(filepath.Join(dir, e.Name())))))
			}
		}
		var all strings.Builder
		for _, name := range slices.Sorted(maps.Keys(held)) {
			fmt.Fprintln(&all, name, held[name])
		}
		return []byte(all.String())
	})
}

// provisioned is a case of a provisioning folder of which one file has another content.
func provisioned(name, input, file string, contents []string) Attack {
	return Attack{Name: "config/" + name, Input: input, Want: mqtt.ErrConfig, Threats: []string{suitRedirect}, Run: func(s *Scene) error {
		s.device(theDesk().first, theDesk().old).keep(everything...)
		dir := s.provision()
		for _, content := range contents {
			require.NoError(s, os.WriteFile(filepath.Join(dir, file), []byte(content), 0o600))
			_, err := mqtt.Load(dir)
			s.Variant(err, "%.80q", content)
		}
		return nil
	}}
}
