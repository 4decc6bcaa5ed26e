package attacks

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io/fs"
	"strings"

	"github.com/tandem-ota/tandem/partition"
	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater"
	"github.com/tandem-ota/tandem/updater/delta"
	"github.com/tandem-ota/tandem/updater/external"
	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/trust"
)

// manifestAttacks are manifests that lie, and bytes that are none. Enough of the right
// keys have signed nearly all of them: whoever signs may be fooled or robbed, and a
// signature makes none of them harmless.
var manifestAttacks = []Attack{
	{
		Name: "manifest/truncated-at-every-byte", Input: "each beginning of a manifest, signed", Want: manifest.ErrFormat, Threats: []string{suitModification},
		Run: func(s *Scene) error {
			r := small()
			return s.refuses(func(offer func(*bundle, string, ...any)) {
				for n := range r.payload {
					offer(r.bytes(r.payload[:n]), "%d bytes", n)
				}
			})
		},
	},
	{
		Name: "manifest/every-bit-flipped", Input: "a signed manifest with one other bit", Want: trust.ErrSignature, Threats: []string{tufArbitrary, uptaneArbitrary, suitNonAuth, suitOnPath},
		Run: func(s *Scene) error {
			r := small()
			return s.refuses(func(offer func(*bundle, string, ...any)) {
				var e map[string]any
				if err := json.Unmarshal(r.envelope, &e); err != nil {
					panic(err)
				}
				for bit := range len(r.payload) * 8 {
					bad := bytes.Clone(r.payload)
					bad[bit/8] ^= 1 << (bit % 8)
					e["payload"] = base64.StdEncoding.EncodeToString(bad)
					offer(r.with(must(json.Marshal(e))), "bit %d", bit)
				}
			})
		},
	},
	{
		// A flip in the name of a key that makes it a capital changes nothing that is read;
		// the envelope is not the one that is offered, though.
		Name: "manifest/every-bit-around-it-flipped", Input: "a signed envelope with one other bit outside of the manifest", Threats: []string{suitOnPath, tufArbitrary},
		Want: either(trust.ErrFormat, trust.ErrSignature, trust.ErrThreshold, trust.ErrMismatch),
		Run: func(s *Scene) error {
			r := small()
			return s.refuses(func(offer func(*bundle, string, ...any)) {
				from := bytes.Index(r.envelope, []byte(`"payload":`)) + len(`"payload":"`)
				to := from + bytes.IndexByte(r.envelope[from:], '"')
				for bit := range len(r.envelope) * 8 {
					if bit/8 >= from && bit/8 < to {
						continue
					}
					bad := bytes.Clone(r.envelope)
					bad[bit/8] ^= 1 << (bit % 8)
					offer(r.with(bad), "bit %d", bit)
				}
			})
		},
	},
	{
		Name: "manifest/envelope-truncated-at-every-byte", Input: "each beginning of an envelope", Want: trust.ErrFormat, Threats: []string{suitOnPath},
		Run: func(s *Scene) error {
			r := small()
			return s.refuses(func(offer func(*bundle, string, ...any)) {
				for n := range r.envelope {
					offer(r.with(r.envelope[:n]), "%d bytes", n)
				}
			})
		},
	},
	refused("duplicate-keys", "a manifest of which two readers see two different ones", manifest.ErrFormat, []string{suitModification, tufWrong}, func(r *bundle) [][]byte {
		var out [][]byte
		for _, twice := range []string{
			`"sequence":1,"sequence":`, `"Sequence":1,"sequence":`, `"se\u0071uence":1,"sequence":`, `"\u017fequence":1,"sequence":`,
		} {
			out = append(out, replaced(r.payload, `"sequence":`, twice))
		}
		return append(out,
			replaced(r.payload, `"digest":`, `"digest":"sha256:`+strings.Repeat("0", 64)+`","digest":`),
			replaced(r.payload, `"tries":`, `"tries":1,"tries":`),
			replaced(r.payload, `"target":`, `"TARGET":"data","target":`))
	}),
	refused("unknown-critical-field", "a manifest with a condition that the device cannot check", manifest.ErrCritical, []string{suitFormat}, func(r *bundle) [][]byte {
		return [][]byte{
			r.edited("critical", `["images.licence"]`), r.edited("critical", `["images.verity", "a"]`), r.edited("critical", `[""]`),
			r.edited("critical", `["IMAGES"]`), r.edited("critical", `["images.0.name"]`), r.edited("critical", `["`+strings.Repeat("x", 100000)+`"]`),
		}
	}),
	refused("format-of-tomorrow", "a manifest of another format", manifest.ErrUnsupported, []string{suitFormat}, func(r *bundle) [][]byte {
		return [][]byte{r.edited("format", "2"), r.edited("format", "2147483647"), []byte(`{"format":2,"images":"elsewhere"}`)}
	}),
	refused("format-of-none", "a manifest that does not say what it is", manifest.ErrFormat, []string{suitFormat}, func(r *bundle) [][]byte {
		return [][]byte{r.edited("format", ""), r.edited("format", "0"), r.edited("format", "-1"), r.edited("format", `"1"`), r.edited("format", "[]")}
	}),
	refused("no-json", "bytes that only look like a manifest", manifest.ErrFormat, []string{suitFormat}, func(r *bundle) [][]byte {
		wide := []byte{}
		for _, c := range r.payload {
			wide = append(wide, c, 0)
		}
		return [][]byte{
			{}, []byte("{}"), []byte("[]"), []byte(`"x"`), []byte("0"), []byte("null"), []byte("{"), {0}, {0xff, 0xfe}, wide,
			append([]byte("\xef\xbb\xbf"), r.payload...), append(bytes.Clone(r.payload), '0'), append(bytes.Clone(r.payload), r.payload...),
			append([]byte("["), append(bytes.Clone(r.payload), ']')...), replaced(r.payload, `,"boards"`, `,/* */"boards"`), replaced(r.payload, `]`, `,]`),
			replaced(r.payload, `"gateway"`, `'gateway'`), replaced(r.payload, `gateway`, "gate\xc3\x28way"), replaced(r.payload, `gateway`, `gate\ud800way`),
		}
	}),
	refused("null-for-every-field", "a manifest with null where a value belongs", manifest.ErrFormat, []string{suitModification}, func(r *bundle) (out [][]byte) {
		for _, path := range []string{
			"format", "product", "boards", "version", "sequence", "epoch", "images", "images.0", "images.0.name", "images.0.type", "images.0.target", "images.0.digest",
			"images.0.size", "images.0.payloads", "images.0.payloads.0", "images.0.payloads.0.kind", "images.0.payloads.0.blob", "images.0.payloads.0.blob.digest",
			"images.0.payloads.0.blob.size", "images.0.payloads.0.memory", "trial", "trial.tries", "trial.network", "health", "health.0", "health.0.kind", "data_schema", "provenance",
		} {
			out = append(out, r.edited(path, "null"))
		}
		return out
	}),
	refused("field-missing", "a manifest that leaves out what counts", manifest.ErrFormat, []string{suitModification, uptanePartialBundle}, func(r *bundle) (out [][]byte) {
		for _, path := range []string{
			"product", "boards", "version", "sequence", "images", "images.0.name", "images.0.target", "images.0.digest", "images.0.size",
			"images.0.payloads", "images.0.payloads.0.kind", "images.0.payloads.0.blob", "images.0.payloads.0.blob.digest", "trial", "trial.tries", "trial.deadline_seconds",
			"trial.network", "health.0.name", "health.0.timeout_seconds",
		} {
			out = append(out, r.edited(path, ""))
		}
		return append(out, r.edited("images", "[]"), r.edited("boards", "[]"), r.edited("images.0.payloads", "[]"), r.edited("images.0.payloads.0.blob", "{}"))
	}),
	refused("over-a-mebibyte", "a manifest of a byte too much, and of far too many", manifest.ErrTooLarge, []string{tufEndless, uptaneEndlessData}, func(r *bundle) [][]byte {
		return [][]byte{
			append(bytes.Clone(r.payload), bytes.Repeat([]byte(" "), manifest.MaxSize+1-len(r.payload))...),
			append(bytes.Repeat([]byte("\n"), 5*manifest.MaxSize/4), r.payload...),
		}
	}),
	refused("nested-for-ever", "a manifest of nothing but brackets", manifest.ErrTooLarge, []string{tufEndless, uptaneEndlessData}, func(r *bundle) [][]byte {
		return [][]byte{
			bytes.Repeat([]byte("["), manifest.MaxSize), bytes.Repeat([]byte(`{"a":`), manifest.MaxSize/5), r.edited("provenance", strings.Repeat("[", 100)+strings.Repeat("]", 100)),
		}
	}),
	{
		Name: "manifest/envelope-over-its-limit", Input: "an envelope of 3 MiB", Want: trust.ErrTooLarge, Threats: []string{tufEndless, uptaneEndlessData},
		Run: func(s *Scene) error {
			d, r := s.device(theDesk().first, theDesk().old), small()
			return d.keep(everything...).offer(r.with(append(bytes.Clone(r.envelope), bytes.Repeat([]byte(" "), 3<<20)...)))
		},
	},
	{
		Name: "manifest/too-long-for-the-slot-record", Input: "a valid manifest that the next boot could not find in its slot", Want: manifest.ErrTooLarge, Threats: []string{uptaneEndlessData},
		Run: func(s *Scene) error {
			d := s.device(theDesk().first, theDesk().old)
			r := theDesk().next.changed(func(m *manifest.Manifest) {
				m.Health[0].Kind, m.Health[0].Target = manifest.CheckFile, "/"+strings.Repeat("x", 4000)
				for i := range 12 {
					c := m.Health[0]
					c.Name = fmt.Sprintf("check-%d", i)
					m.Health = append(m.Health, c)
				}
			})
			if len(r.envelope) <= partition.MaxEnvelope {
				panic("not long enough")
			}
			return d.keep(everything...).offer(r)
		},
	},
	refused("control-characters", "texts that would take over a terminal or end a line of a log", manifest.ErrFormat, []string{suitModification}, func(r *bundle) (out [][]byte) {
		for _, text := range []string{`"a\u001b[2J"`, `"a\nb"`, `"a\rb"`, `"a\u0000"`, `"a\u0085"`, `"a\u009b31m"`, `"a\u007f"`, "\"a\tb\"", "\"a\x1bb\""} {
			for _, path := range []string{"product", "version", "images.0.name", "images.0.target", "boards.0", "health.0.name", "health.0.target", "provenance.builder"} {
				out = append(out, r.edited(path, text))
			}
		}
		return out
	}),
	refused("sizes-that-wrap", "sizes that a smaller whole number takes for something harmless", manifest.ErrFormat, []string{suitFormat, tufEndless}, func(r *bundle) (out [][]byte) {
		for _, path := range []string{"images.0.size", "images.0.payloads.0.blob.size"} {
			for _, n := range []string{"0", "-1", "-8192", "4294975488000000", "9223372036854775807", "9223372036854775808", "18446744073709551615", "18446744073709551616", "18446744073709559808", "68719476737"} {
				out = append(out, r.edited(path, n))
			}
		}
		for _, n := range []string{"-1", "2147483648", "9223372036854775808", "18446744073709551616"} {
			out = append(out, r.edited("images.0.payloads.0.memory", n))
		}
		return append(out, r.edited("images.0.verity", `{"root_hash":"`+strings.Repeat("ab", 32)+`","salt":"","data_blocks":4503599627370497}`))
	}),
	refused("numbers-that-are-none", "numbers that JSON does not have, or that have no one value", manifest.ErrFormat, []string{suitFormat}, func(r *bundle) (out [][]byte) {
		for _, path := range []string{"sequence", "epoch", "images.0.size", "trial.tries"} {
			for _, n := range []string{"NaN", "Infinity", "-Infinity", "1e400", "1.5", "1.0", "1e3", "-0.0", "0x10", "010", "+1", "1_000", `"20"`, ".5", "5.", "1e", "true", "{}", "--1"} {
				out = append(out, r.edited(path, n))
			}
		}
		return out
	}),
	refused("absurd-trial", "a trial that never ends, or that none could pass", manifest.ErrFormat, []string{suitModification}, func(r *bundle) (out [][]byte) {
		for path, values := range map[string][]string{
			"trial.tries":              {"0", "-1", "10", "2147483648", "18446744073709551616"},
			"trial.deadline_seconds":   {"0", "-1", "604801", "9223372036", "9223372036854775807"},
			"trial.window_seconds":     {"-1", "60", "61", "9223372036854775807"},
			"trial.network":            {`""`, `"maybe"`, "1"},
			"health.0.timeout_seconds": {"0", "-1", "3601", "9223372036854775807"},
		} {
			for _, v := range values {
				out = append(out, r.edited(path, v))
			}
		}
		return out
	}),
	refused("paths-for-names", "names that would lead out of a folder", manifest.ErrFormat, []string{suitLocation}, func(r *bundle) (out [][]byte) {
		for _, path := range []string{"product", "images.0.name", "images.0.target", "boards.0", "health.0.name"} {
			for _, name := range []string{`".."`, `"."`, `"../boot"`, `"/boot"`, `"a/b"`, `"a\\b"`, `"a b"`, `"-rf"`, `".hidden"`, `"a\u002fb"`, `"ａ"`, `"` + strings.Repeat("x", 65) + `"`} {
				out = append(out, r.edited(path, name))
			}
		}
		for _, file := range []string{`"sh"`, `"/usr/../tmp/x"`, `"/.."`, `"//../x"`, `""`} {
			out = append(out, r.edited("data_schema", `{"version":1,"readable_from":0,"migrate":`+strings.Replace(file, `""`, `"x"`, 1)+`}`),
				r.edited("health.0", `{"name":"x","kind":"command","timeout_seconds":1,"target":`+file+`}`))
		}
		return append(out, r.edited("health.0.target", `"--now"`), r.edited("health.0.target", `"../x.service"`))
	}),
	refused("digests-that-are-none", "digests that would compare in more than one way", manifest.ErrFormat, []string{suitModification, tufWrong}, func(r *bundle) (out [][]byte) {
		for _, path := range []string{"images.0.digest", "images.0.payloads.0.blob.digest"} {
			for _, digest := range []string{"", "sha256:", "sha256:ab", "sha512:" + strings.Repeat("a", 64), "sha256:" + strings.Repeat("A", 64), strings.Repeat("a", 64), "sha256:" + strings.Repeat("a", 65), "sha256:" + strings.Repeat("../", 22)[:64], " sha256:" + strings.Repeat("a", 64)} {
				out = append(out, r.edited(path, `"`+digest+`"`))
			}
		}
		return out
	}),
	refused("tree-where-none-belongs", "a list of leaves that is missing, or that would say more than the digest", manifest.ErrFormat, []string{suitModification}, func(r *bundle) [][]byte {
		whole, tree := theDesk().next, `"sha256:`+strings.Repeat("a", 64)+`"`
		return [][]byte{
			r.edited("images.0.tree", tree), r.edited("images.0.payloads.0.blob.tree", tree), r.edited("images.0.size", "65537"),
			whole.edited("images.1.tree", ""), whole.edited("images.1.tree", `"sha256:ab"`), whole.edited("images.1.size", "65536"), whole.edited("images.1.payloads.0.blob.tree", ""),
		}
	}),
	refused("one-thing-twice", "images, targets and digests that answer for each other", manifest.ErrFormat, []string{suitLocation, uptaneMixedBundles, tufExtraneous}, func(r *bundle) [][]byte {
		w := theDesk().next
		return [][]byte{
			w.edited("images.1.name", `"boot.img"`), w.edited("images.1.target", `"boot"`), w.edited("boards", `["a","a"]`),
			w.edited("images.1.payloads.1.base", `"`+string(w.m.Images[1].Digest)+`x"`), w.edited("images.1.payloads.0.base", `"`+string(w.m.Images[1].Digest)+`"`),
			w.edited("images.1.payloads.1.base", ""), w.edited("images.0.payloads.0.blob.digest", `"`+string(w.m.Images[1].Payloads[0].Blob.Digest)+`"`),
			w.edited("health", `[{"name":"a","kind":"mqtt","timeout_seconds":1},{"name":"a","kind":"mqtt","timeout_seconds":1}]`),
		}
	}),
	refused("more-than-fits", "lists of a million", either(manifest.ErrFormat, manifest.ErrTooLarge), []string{tufEndless, tufExtraneous, uptaneEndlessData}, func(r *bundle) [][]byte {
		list := func(element string, n int) string { return "[" + strings.Repeat(element+",", n-1) + element + "]" }
		image := strings.TrimSuffix(string(must(json.Marshal(r.m.Images))[1:]), "]")
		return [][]byte{
			r.edited("images", list(image, 17)), r.edited("boards", list(`"a"`, 65)), r.edited("boards", list(`"a"`, 200000)),
			r.edited("images.0.payloads", list(`{"kind":"full"}`, 65)), r.edited("health", list(`{}`, 65)), r.edited("health", list(`{}`, 300000)),
			r.edited("measurements", "{"+strings.TrimSuffix(numbered(65), ",")+"}"), r.edited("version", `"1.0.0-`+strings.Repeat("a", 130)+`"`),
		}
	}),
	refused("extremes-of-sequence-and-epoch", "a release that none could follow", manifest.ErrFormat, []string{tufFastForward, uptaneFreeze}, func(r *bundle) [][]byte {
		return [][]byte{
			r.edited("sequence", "0"), r.edited("sequence", "9007199254740992"), r.edited("sequence", "18446744073709551615"), r.edited("sequence", "18446744073709551637"), r.edited("sequence", "-1"),
			r.edited("epoch", "65536"), r.edited("epoch", "-1"), r.edited("epoch", "18446744073709551616"),
		}
	}),
	refused("verity-beyond-the-image", "a hash tree that the next boot would look for elsewhere", manifest.ErrFormat, []string{suitExtra}, func(r *bundle) (out [][]byte) {
		for _, n := range []string{"0", "-1", "2", "3", "9223372036854775807"} {
			out = append(out, r.edited("images.0.verity", `{"root_hash":"`+strings.Repeat("ab", 32)+`","salt":"","data_blocks":`+n+`}`))
		}
		return append(out, r.edited("images.0.verity", `{"root_hash":"ab","salt":"","data_blocks":1}`), r.edited("images.0.verity", `{"root_hash":"`+strings.Repeat("ab", 32)+`","salt":"`+strings.Repeat("a", 514)+`","data_blocks":1}`))
	}),
	refused("image-of-unknown-kind", "an image or a check that the device does not know", manifest.ErrUnsupported, []string{suitFormat}, func(r *bundle) [][]byte {
		return [][]byte{r.edited("images.0.type", `"firmware"`), r.edited("images.0.type", `""`), r.edited("images.0.type", `"SLOT"`), r.edited("health.0.kind", `"shell"`), r.edited("health.0.kind", `""`)}
	}),

	admission("wrong-board", "a release for another board", updater.ErrBoard, []string{tufWrong, suitIncompatible}, func(m *manifest.Manifest) { m.Boards = []string{"qemu-aarch64", board + "2"} }),
	admission("wrong-product", "a release of another product by the same maker", updater.ErrBoard, []string{tufWrong, suitIncompatible}, func(m *manifest.Manifest) { m.Product = "gateways" }),
	admission("only-payloads-of-unknown-kinds", "a release that can be had in ways of tomorrow only", updater.ErrNoDelta, []string{suitFormat}, func(m *manifest.Manifest) {
		for i := range m.Images {
			m.Images[i].Payloads = []manifest.Payload{{Kind: "casync", Blob: m.Images[i].Payloads[0].Blob}}
		}
	}),
	admission("delta-from-another-system", "deltas from a system that does not run here, and nothing else", updater.ErrNoDelta, []string{suitPrecursor}, func(m *manifest.Manifest) {
		for i := range m.Images {
			p := m.Images[i].Payloads[1]
			p.Base = manifest.DigestOf([]byte("another"))
			m.Images[i].Payloads = []manifest.Payload{p}
		}
	}),
	admission("more-memory-than-there-is", "payloads that would take two gigabytes to apply", updater.ErrMemory, []string{uptaneEndlessData}, func(m *manifest.Manifest) {
		for i := range m.Images {
			for j := range m.Images[i].Payloads {
				m.Images[i].Payloads[j].Memory = 1<<31 - 1
			}
		}
	}),
	{
		Name: "manifest/older-release", Input: "a release from before, signed and offered as it was then", Want: updater.ErrDowngrade, Threats: []string{tufRollback, uptaneRollback, suitExpired},
		Run: func(s *Scene) error {
			return s.device(theDesk().next, theDesk().first).keep(running, spare, record, memo).offer(theDesk().first)
		},
	},
	{
		Name: "manifest/same-sequence-other-content", Input: "another release with the sequence of what runs", Want: updater.ErrDowngrade, Threats: []string{tufRollback, uptaneRollback},
		Run: func(s *Scene) error {
			r := theDesk().next.changed(func(m *manifest.Manifest) { m.Sequence = theDesk().first.m.Sequence })
			return s.device(theDesk().first, theDesk().old).keep(running, spare, record, memo).offer(r)
		},
	},
	{
		Name: "manifest/below-the-floor-by-force", Input: "a release with a fault that must never run again, forced", Want: updater.ErrEpoch, Threats: []string{tufRollback, uptaneRollback, suitExpired},
		Run: func(s *Scene) error {
			d := s.device(theDesk().epoch, theDesk().old).keep(running, spare, record, memo)
			r := theDesk().next.changed(func(m *manifest.Manifest) { m.Sequence, m.Epoch = 99, 1 })
			return must(d.on()).Install(background, d.source(r), updater.Options{Force: true, Full: transport.FullGo})
		},
	},
	{
		Name: "manifest/back-to-a-slot-below-the-floor", Input: "an operator who is told to go back to a system with a known fault", Want: updater.ErrEpoch, Threats: []string{suitExpired, uptaneRollback},
		Run: func(s *Scene) error {
			d := s.device(theDesk().epoch, theDesk().old).keep(everything...)
			return must(d.on()).Rollback(background, true)
		},
	},
	{
		Name: "manifest/another-than-asked-for", Input: "a good release in place of the one that the operator named", Want: updater.ErrOther, Threats: []string{tufWrong, tufExtraneous},
		Run: func(s *Scene) error {
			d := s.device(theDesk().first, theDesk().old).keep(everything...)
			return must(d.on()).Install(background, d.source(theDesk().next), updater.Options{Manifest: manifest.DigestOf(theDesk().epoch.payload), Online: true})
		},
	},
	{
		Name: "manifest/image-larger-than-the-partition", Input: "an image that would be written over what is behind its partition", Want: partition.ErrOutside, Threats: []string{suitLocation, suitExtra},
		Run: func(s *Scene) error {
			d := s.device(theDesk().first, theDesk().old).keep(running)
			// One byte into the slot record, and far beyond.
			for _, size := range []int64{rootSize + 4*4096 + 1, 40 << 30} {
				r := theDesk().next.changed(func(m *manifest.Manifest) {
					m.Images[1].Size, m.Images[1].Payloads = size, m.Images[1].Payloads[:1]
					m.Sequence += uint64(size % 7)
				})
				s.Variant(d.offer(r), "%d bytes", size)
			}
			return nil
		},
	},
	{
		Name: "manifest/partition-that-no-slot-has", Input: "an image for the partition with the kept data", Want: fs.ErrNotExist, Threats: []string{suitLocation},
		Run: func(s *Scene) error {
			d := s.device(theDesk().first, theDesk().old).keep(running)
			return d.offer(theDesk().next.changed(func(m *manifest.Manifest) { m.Images[0].Target = "data" }))
		},
	},
	{
		Name: "manifest/image-for-a-missing-handler", Input: "an image for a program that the system does not have", Want: external.ErrNoHandler, Threats: []string{suitLocation, tufExtraneous},
		Run: func(s *Scene) error {
			d := s.device(theDesk().first, theDesk().old).keep(running)
			return d.offer(theDesk().next.changed(func(m *manifest.Manifest) {
				m.Images[0].Type, m.Images[0].Payloads = manifest.TypeExternal, m.Images[0].Payloads[:1]
			}))
		},
	},
	{
		Name: "manifest/memory-that-the-payload-denies", Input: "a payload that needs more memory than its manifest says", Want: delta.ErrMemory, Threats: []string{uptaneEndlessData},
		Run: func(s *Scene) error {
			d := s.device(theDesk().first, theDesk().old).keep(running)
			d.parts = func(p *updater.Parts) { p.Memory = 1 << 16 }
			return d.offer(theDesk().next.changed(func(m *manifest.Manifest) {
				for i := range m.Images {
					m.Images[i].Payloads = m.Images[i].Payloads[:1]
					m.Images[i].Payloads[0].Memory = 0
				}
			}))
		},
	},
	{
		Name: "manifest/list-of-leaves-of-another-length", Input: "an image whose signed list of leaves is longer or shorter than the image", Want: transport.ErrLeaf, Threats: []string{suitModification},
		Run: func(s *Scene) error {
			d := s.device(theDesk().first, theDesk().old).keep(running)
			list := theDesk().next.blobs[theDesk().next.m.Images[1].Tree]
			for i, bad := range [][]byte{append(bytes.Clone(list), 0), append(bytes.Clone(list), list[:32]...)} {
				r := theDesk().next.changed(func(m *manifest.Manifest) {
					m.Images[1].Tree, m.Images[1].Payloads = manifest.DigestOf(bad), m.Images[1].Payloads[:1]
				})
				r.blobs[manifest.DigestOf(bad)] = bad
				s.Variant(d.offer(r), "%d bytes, variant %d", len(bad), i)
			}
			return nil
		},
	},
	{
		Name: "manifest/leaves-of-another-image", Input: "an image whose list of leaves is that of another", Want: updater.ErrMismatch, Threats: []string{suitModification, tufMixAndMatch, uptaneMixAndMatch},
		Run: func(s *Scene) error {
			d := s.device(theDesk().first, theDesk().old).keep(running)
			other := listOf(theDesk().old.images["root"])
			r := theDesk().next.changed(func(m *manifest.Manifest) {
				m.Images[1].Tree, m.Images[1].Payloads = manifest.DigestOf(other), m.Images[1].Payloads[:1]
			})
			r.blobs[manifest.DigestOf(other)] = other
			return d.offer(r)
		},
	},
	{
		Name: "manifest/swapped-after-the-check", Input: "a source that has another manifest each time it is asked", Threats: []string{suitTOCTOU, suitReplace},
		Run: func(s *Scene) error {
			s.Bubble(func() {
				d := s.device(theDesk().first, theDesk().old).keep(running)
				src := d.source(theDesk().next)
				src.manifest = func(n int) ([]byte, error) {
					if n > 1 {
						return theDesk().old.envelope, nil
					}
					return theDesk().next.envelope, nil
				}
				if err := must(d.on()).Install(background, src, updater.Options{Full: transport.FullGo}); err != nil {
					panic(err)
				}
				d.ends(theDesk().next)
			})
			return nil
		},
	},
}

// small is a release of one small image: its manifest is short enough to try each bit.
func small() *bundle {
	return theDesk().next.changed(func(m *manifest.Manifest) {
		m.Images = m.Images[:1]
		m.Images[0].Payloads = m.Images[0].Payloads[:1]
	})
}

// replaced changes the first place only, and is there to change something.
func replaced(data []byte, old, new string) []byte {
	if !bytes.Contains(data, []byte(old)) {
		panic("nothing to replace: " + old)
	}
	return bytes.Replace(data, []byte(old), []byte(new), 1)
}

// numbered are n members of a JSON object.
func numbered(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `"pcr%d":"%s",`, i, strings.Repeat("0a", 32))
	}
	return b.String()
}

// offer has the device install a release that is listed as it should be.
func (d *device) offer(r *bundle) error {
	return must(d.on()).Install(background, d.source(r), updater.Options{Full: transport.FullGo})
}

// refuses lets a case offer variants to one device that must not change by any of them.
func (s *Scene) refuses(offers func(offer func(r *bundle, format string, args ...any))) error {
	d := s.device(theDesk().first, theDesk().old)
	u, files := must(d.on()), d.desk.repository(small()).files
	// The metadata is honest, and is not what these cases are about: it is here already.
	must(u.CheckRelease(background, &source{bundle: small(), files: files}, updater.Options{Full: transport.FullGo}))
	d.keep(everything...)
	offers(func(r *bundle, format string, args ...any) {
		s.Variant(u.Install(background, &source{bundle: r, files: files}, updater.Options{Force: true, Full: transport.FullGo}), format, args...)
	})
	return nil
}

// refused is a case of signed bytes that are no manifest.
func refused(name, input string, want error, threats []string, payloads func(r *bundle) [][]byte) Attack {
	return Attack{Name: "manifest/" + name, Input: input, Want: want, Threats: threats, Run: func(s *Scene) error {
		return s.refuses(func(offer func(*bundle, string, ...any)) {
			for i, payload := range payloads(small()) {
				offer(small().bytes(payload), "variant %d: %.80q", i, payload)
			}
		})
	}}
}

// admission is a case of a valid release that is not for this device, forced or not.
func admission(name, input string, want error, threats []string, change func(m *manifest.Manifest)) Attack {
	return Attack{Name: "manifest/" + name, Input: input, Want: want, Threats: threats, Run: func(s *Scene) error {
		d, r := s.device(theDesk().first, theDesk().old).keep(running, spare, record, memo), theDesk().next.changed(change)
		for _, force := range []bool{false, true} {
			s.Variant(must(d.on()).Install(background, d.source(r), updater.Options{Force: force, Full: transport.FullGo}), "force %t", force)
		}
		return nil
	}}
}
