package attacks

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater"
	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/release"
)

// stick is a release as files, in the hands of whoever holds them.
type stick struct {
	files map[string][]byte // by name
	main  object            // the image manifest of the release
	tuf   object            // and that of its metadata
}

// stick writes a release as release/FORMAT.md says.
func (r *bundle) stick() *stick {
	s := &stick{files: map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)}}
	layers := []object{s.blob(release.EnvelopeMedia, r.envelope)}
	for _, digest := range slices.Sorted(maps.Keys(r.blobs)) {
		layers = append(layers, s.blob(release.PayloadMedia, r.blobs[digest]))
	}
	s.main = object{"artifactType": release.ArtifactType, "layers": layers}
	var metadata []object
	files := r.desk.repository(r).files
	for _, name := range slices.Sorted(maps.Keys(files)) {
		layer := s.blob(release.MetadataMedia, files[name])
		layer["annotations"] = object{release.TitleKey: name}
		metadata = append(metadata, layer)
	}
	s.tuf = object{"artifactType": release.TUFType, "layers": metadata}
	return s.list(s.main, s.tuf)
}

// blob adds a file under the name of its digest.
func (s *stick) blob(media string, data []byte) object {
	d := manifest.DigestOf(data)
	s.files["blobs/sha256/"+d.Hex()] = data
	return object{"mediaType": media, "digest": string(d), "size": len(data)}
}

// list writes the index of artifacts.
func (s *stick) list(artifacts ...object) *stick {
	var entries []object
	for _, a := range artifacts {
		entries = append(entries, s.blob("application/vnd.oci.image.manifest.v1+json", must(json.Marshal(a))))
	}
	s.files["index.json"] = must(json.Marshal(object{"schemaVersion": 2, "manifests": entries}))
	return s
}

// layer is the n-th of the release's.
func (s *stick) layer(n int) object { return s.main["layers"].([]object)[n] }

// payload is the name of the file with the largest blob.
func (s *stick) payload() (largest string) {
	for name, data := range s.files {
		if len(data) > len(s.files[largest]) {
			largest = name
		}
	}
	return largest
}

// folder puts the files into a folder.
func (s *stick) folder(scene *Scene) string {
	dir := scene.TempDir()
	for name, data := range s.files {
		path := filepath.Join(dir, name)
		done(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o644))
	}
	return dir
}

// tar packs the files, and what the attacker adds.
func (s *stick) tar(scene *Scene, extra ...*tar.Header) string {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, name := range slices.Sorted(maps.Keys(s.files)) {
		done(w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Size: int64(len(s.files[name])), Mode: 0o644}))
		must(w.Write(s.files[name]))
	}
	for _, h := range extra {
		done(w.WriteHeader(h))
	}
	done(w.Close())
	return write(scene, out.Bytes())
}

func write(scene *Scene, data []byte) string {
	path := filepath.Join(scene.TempDir(), "release.tar")
	done(os.WriteFile(path, data, 0o644))
	return path
}

// done is must for what returns nothing.
func done(errs ...error) {
	if err := errors.Join(errs...); err != nil {
		panic(err)
	}
}

// plug has a device install what is at a path.
func (d *device) plug(path string) error {
	r, err := release.Open(path)
	if err != nil {
		return err
	}
	defer r.Close()
	return must(d.on()).Install(background, r, updater.Options{Full: transport.FullGo})
}

// plugged is a case of sticks that are refused, each as a folder or a file.
func plugged(name, input string, want error, threats []string, sticks func(s *Scene) []string) Attack {
	return Attack{Name: "release/" + name, Input: input, Want: want, Threats: threats, Run: func(s *Scene) error {
		d := s.device(theDesk().first, theDesk().old).keep(everything...)
		for i, path := range sticks(s) {
			s.Variant(d.plug(path), "variant %d", i)
		}
		return nil
	}}
}

// spoiled makes a folder and a tar of each release that was spoiled.
func spoiled(spoils ...func(s *stick)) func(*Scene) []string {
	return func(scene *Scene) (out []string) {
		for _, spoil := range spoils {
			s := theDesk().next.stick()
			spoil(s)
			out = append(out, s.folder(scene), s.tar(scene))
		}
		return out
	}
}

// inFolder makes a folder and lets the attacker at it.
func inFolder(changes ...func(s *stick, dir string)) func(*Scene) []string {
	return func(scene *Scene) (out []string) {
		for _, change := range changes {
			s := theDesk().next.stick()
			dir := s.folder(scene)
			change(s, dir)
			out = append(out, dir)
		}
		return out
	}
}

// whileInstalling is a case of a stick that changes under the device's hands, once it has
// read the n-th range.
func whileInstalling(name, input string, want error, threats []string, change func(s *stick, dir string)) Attack {
	return Attack{Name: "release/" + name, Input: input, Want: want, Threats: threats, Run: func(s *Scene) error {
		d := s.device(theDesk().first, theDesk().old).keep(running)
		st := theDesk().next.stick()
		dir := st.folder(s)
		r := must(release.Open(dir))
		defer r.Close()
		changed := false
		err := must(d.on()).Install(background, spied{r, func() {
			if !changed {
				changed = true
				change(st, dir)
			}
		}}, updater.Options{Full: transport.FullGo})
		if want == nil && err == nil {
			s.Bubble(func() { d.ends(theDesk().next) })
		}
		return err
	}}
}

// spied is a release with somebody who sees what is read.
type spied struct {
	*release.Release
	seen func()
}

func (s spied) ReadRange(ctx context.Context, blob manifest.Digest, off int64, p []byte) (int, error) {
	defer s.seen()
	return s.Release.ReadRange(ctx, blob, off, p)
}

var releaseAttacks = []Attack{
	plugged("links", "files that are links, out of the folder and inside of it", release.ErrUnsafe, []string{suitReplace, suitLocation}, inFolder(
		func(s *stick, dir string) {
			done(os.Remove(filepath.Join(dir, s.payload())), os.Symlink("/etc/hostname", filepath.Join(dir, s.payload())))
		},
		func(s *stick, dir string) {
			done(os.Rename(filepath.Join(dir, s.payload()), filepath.Join(dir, "real")), os.Symlink("../../real", filepath.Join(dir, s.payload())))
		},
		func(s *stick, dir string) {
			done(os.Rename(filepath.Join(dir, "blobs"), filepath.Join(dir, "real")), os.Symlink("real", filepath.Join(dir, "blobs")))
		},
		func(s *stick, dir string) {
			done(os.Rename(filepath.Join(dir, "index.json"), filepath.Join(dir, "real")), os.Symlink("real", filepath.Join(dir, "index.json")))
		},
	)),
	plugged("pipes", "pipes and folders that would keep a reader waiting for ever", release.ErrUnsafe, []string{uptaneSlowRetrieval, uptaneEndlessData}, func(scene *Scene) []string {
		pipe := filepath.Join(scene.TempDir(), "pipe")
		done(syscall.Mkfifo(pipe, 0o644))
		return append(inFolder(
			func(s *stick, dir string) {
				done(os.Remove(filepath.Join(dir, s.payload())), syscall.Mkfifo(filepath.Join(dir, s.payload()), 0o644))
			},
			func(s *stick, dir string) {
				done(os.Remove(filepath.Join(dir, "index.json")), syscall.Mkfifo(filepath.Join(dir, "index.json"), 0o644))
			},
			func(s *stick, dir string) {
				done(os.Remove(filepath.Join(dir, s.payload())), os.Mkdir(filepath.Join(dir, s.payload()), 0o755))
			},
		)(scene), pipe, "/dev/zero")
	}),
	plugged("members-that-are-no-files", "a tar with links, pipes, devices and names that lead out of it", release.ErrUnsafe, []string{suitLocation, suitReplace}, func(scene *Scene) (out []string) {
		for _, h := range []tar.Header{
			{Name: "a", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"}, {Name: "a", Typeflag: tar.TypeLink, Linkname: "index.json"}, {Name: "a", Typeflag: tar.TypeFifo}, {Name: "a", Typeflag: tar.TypeBlock, Devmajor: 8}, {Name: "a", Typeflag: tar.TypeChar, Devmajor: 1},
			{Name: "../a", Typeflag: tar.TypeReg}, {Name: "blobs/../../a", Typeflag: tar.TypeReg}, {Name: "/etc/a", Typeflag: tar.TypeReg}, {Name: "..", Typeflag: tar.TypeReg},
		} {
			out = append(out, theDesk().next.stick().tar(scene, &h))
		}
		return out
	}),
	plugged("one-name-twice", "a tar whose reader decides which of two members counts", release.ErrUnsafe, []string{suitTOCTOU, tufMixAndMatch}, func(scene *Scene) (out []string) {
		for _, name := range []string{"index.json", "./index.json", "blobs/../index.json", "blobs//../index.json"} {
			out = append(out, theDesk().next.stick().tar(scene, &tar.Header{Name: name, Typeflag: tar.TypeReg}))
		}
		return out
	}),
	plugged("headers-that-are-huge", "a tar whose names and records take megabytes", release.ErrFormat, []string{tufEndless, uptaneEndlessData}, func(scene *Scene) []string {
		raw := func(kind byte, size string) string {
			// A header block of an extension that says it is so long.
			b := make([]byte, 512)
			copy(b, "././@LongLink")
			copy(b[100:], "0000644\x000000000\x000000000\x00"+size+"\x0000000000000\x00        ")
			b[156] = kind
			copy(b[257:], "ustar\x0000")
			sum := 0
			for _, c := range b {
				sum += int(c)
			}
			copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
			return write(scene, append(b, bytes.Repeat([]byte("x"), 3<<20)...))
		}
		return []string{
			raw('L', "77777777777"), raw('x', "77777777777"), raw('x', "00004000000"), raw('x', "00010000000"), raw('g', "77777777777"), raw('K', "77777777777"),
		}
	}),
	plugged("members-without-end", "a tar of five thousand members", release.ErrFormat, []string{tufEndless, uptaneEndlessData}, func(scene *Scene) []string {
		var many []*tar.Header
		for i := range 5000 {
			many = append(many, &tar.Header{Name: fmt.Sprintf("x%d", i), Typeflag: tar.TypeReg})
		}
		return []string{theDesk().next.stick().tar(scene, many...)}
	}),
	plugged("sizes-that-lie", "a tar whose members go on behind its end", release.ErrFormat, []string{tufEndless, suitExtra}, func(scene *Scene) (out []string) {
		for _, size := range []string{"77777777777", "\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "-0000000001", "xxxxxxxxxxx"} {
			data := must(os.ReadFile(theDesk().next.stick().tar(scene)))
			copy(data[124:136], "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
			copy(data[124:], size)
			copy(data[148:156], "        ")
			sum := 0
			for _, c := range data[:512] {
				sum += int(c)
			}
			copy(data[148:], fmt.Sprintf("%06o\x00 ", sum))
			out = append(out, write(scene, data))
		}
		return out
	}),
	{
		Name: "release/tar-truncated", Input: "each beginning of a tar, in steps of half a block", Threats: []string{uptanePartialBundle, suitOnPath},
		Want: either(release.ErrFormat, fs.ErrNotExist, io.ErrUnexpectedEOF, transport.ErrLeaf),
		Run: func(s *Scene) error {
			path := theDesk().next.stick().tar(s)
			whole := must(os.ReadFile(path))
			d := s.device(theDesk().first, theDesk().old).keep(running)
			// Short of the index, which names the rest; of the blobs, those in front are
			// what this device needs or not.
			for n := 0; n < len(whole)-1024; n += 256 + n/8 {
				done(os.WriteFile(path, whole[:n], 0o644))
				s.Variant(d.plug(path), "%d bytes", n)
			}
			return nil
		},
	},
	plugged("index-that-is-none", "an index that is no JSON, or is it in two ways, or has no end", release.ErrFormat, []string{suitFormat, tufEndless}, spoiled(
		func(s *stick) { s.files["index.json"] = []byte("x") },
		func(s *stick) { s.files["index.json"] = []byte(`{"manifests":[],"manifests":[]}`) },
		func(s *stick) { s.files["index.json"] = bytes.Repeat([]byte(" "), 2<<20) },
		func(s *stick) { s.files["index.json"] = bytes.Repeat([]byte("["), 1<<20) },
		func(s *stick) {
			s.files["index.json"] = []byte(`{"manifests":[` + strings.Repeat("{},", 300000) + `{}]}`)
		},
		func(s *stick) { s.list() },
		func(s *stick) { s.list(s.main, s.main) },
		func(s *stick) { s.list(s.tuf) },
		func(s *stick) { s.list(s.main, s.tuf, s.tuf) },
		func(s *stick) { s.list(slices.Repeat([]object{{}}, 20)...) },
		func(s *stick) { s.list(object{"artifactType": release.ArtifactType}) },
	)),
	plugged("names-that-lead-out", "digests that are paths", release.ErrFormat, []string{suitLocation}, spoiled(
		func(s *stick) {
			s.files["index.json"] = []byte(`{"manifests":[{"digest":"sha256:../../index.json","size":1}]}`)
		},
		func(s *stick) {
			s.files["index.json"] = []byte(`{"manifests":[{"digest":"sha256:` + strings.Repeat("../", 21) + `a","size":1}]}`)
		},
		func(s *stick) { s.layer(1)["digest"] = "sha256:../../../../etc/passwd"; s.list(s.main, s.tuf) },
		func(s *stick) { s.layer(0)["digest"] = "/etc/passwd"; s.list(s.main, s.tuf) },
	)),
	plugged("manifest-that-is-another", "an envelope that is changed, missing from its list, or there twice", release.ErrFormat, []string{tufMixAndMatch, suitTOCTOU}, spoiled(
		func(s *stick) {
			s.files["blobs/sha256/"+manifest.DigestOf(theDesk().next.envelope).Hex()] = theDesk().old.envelope
		},
		func(s *stick) {
			s.main["layers"] = append(s.main["layers"].([]object), s.layer(0))
			s.list(s.main, s.tuf)
		},
		func(s *stick) { s.main["layers"] = s.main["layers"].([]object)[1:]; s.list(s.main, s.tuf) },
		func(s *stick) {
			s.tuf["layers"] = append(s.tuf["layers"].([]object), s.tuf["layers"].([]object)[0])
			s.list(s.main, s.tuf)
		},
	)),
	plugged("blobs-of-another-length", "blobs that are longer or shorter than their list says", release.ErrFormat, []string{suitExtra, uptanePartialBundle}, spoiled(
		func(s *stick) { s.files[s.payload()] = append(bytes.Clone(s.files[s.payload()]), 0) },
		func(s *stick) { s.files[s.payload()] = s.files[s.payload()][1:] },
		func(s *stick) { s.files[s.payload()] = nil },
		func(s *stick) { s.layer(1)["size"] = 1 << 40; s.list(s.main, s.tuf) },
		func(s *stick) { s.layer(0)["size"] = 1; s.list(s.main, s.tuf) },
	)),
	{
		Name: "release/blob-missing", Input: "a stick without one of the blobs that the device needs", Want: fs.ErrNotExist, Threats: []string{uptanePartialBundle, uptaneDropRequest, tufMirrors},
		Run: func(s *Scene) error {
			d := s.device(theDesk().first, theDesk().old).keep(running)
			for _, img := range theDesk().next.m.Images {
				st := theDesk().next.stick()
				delete(st.files, "blobs/sha256/"+img.Payloads[1].Blob.Digest.Hex())
				s.Variant(d.plug(st.folder(s)), "%s", img.Name)
			}
			require.Empty(s, d.verdicts, "another stick may have it")
			d.takes(theDesk().next)
			return nil
		},
	},
	{
		Name: "release/blob-that-is-not-listed", Input: "a stick with a blob that its list does not name", Want: fs.ErrNotExist, Threats: []string{tufExtraneous, suitExtra},
		Run: func(s *Scene) error {
			d, st := s.device(theDesk().first, theDesk().old).keep(running), theDesk().next.stick()
			blob := theDesk().next.m.Images[1].Payloads[1].Blob.Digest
			st.main["layers"] = slices.DeleteFunc(st.main["layers"].([]object), func(l object) bool { return l["digest"] == string(blob) })
			return d.plug(st.list(st.main, st.tuf).folder(s))
		},
	},
	{
		Name: "release/blob-exchanged", Input: "a stick with other bytes under the name of a blob", Want: transport.ErrLeaf, Threats: []string{suitReplace, suitNonAuth, uptaneArbitrary},
		Run: func(s *Scene) error {
			d := s.device(theDesk().first, theDesk().old).keep(running)
			st := theDesk().next.stick()
			for name, data := range st.files {
				if strings.HasPrefix(name, "blobs/") && !bytes.HasPrefix(data, []byte("{")) {
					st.files[name] = bytes.Repeat([]byte{'x'}, len(data))
				}
			}
			return d.plug(st.folder(s))
		},
	},
	{
		Name: "release/trailing-bytes", Input: "a tar with a megabyte behind its end", Threats: []string{suitExtra},
		Run: func(s *Scene) error {
			d := s.device(theDesk().first, theDesk().old).keep(running)
			path := theDesk().next.stick().tar(s)
			done(os.WriteFile(path, append(must(os.ReadFile(path)), bytes.Repeat([]byte("payload "), 1<<17)...), 0o644))
			if err := d.plug(path); err != nil {
				return err
			}
			s.Bubble(func() { d.ends(theDesk().next) })
			return nil
		},
	},
	whileInstalling("file-changed-while-installing", "a payload that is overwritten after its list was checked", transport.ErrLeaf, []string{suitReplace, suitTOCTOU}, func(s *stick, dir string) {
		for name, data := range s.files {
			if strings.HasPrefix(name, "blobs/") {
				done(os.WriteFile(filepath.Join(dir, name), bytes.Repeat([]byte{'x'}, len(data)), 0o644))
			}
		}
	}),
	whileInstalling("file-cut-while-installing", "a payload that becomes short after its size was checked", transport.ErrLeaf, []string{suitReplace, suitTOCTOU}, func(s *stick, dir string) {
		for name := range s.files {
			if strings.HasPrefix(name, "blobs/") {
				done(os.Truncate(filepath.Join(dir, name), 7))
			}
		}
	}),
	whileInstalling("file-replaced-while-installing", "another file under the name of each one that is open", nil, []string{suitReplace, suitTOCTOU}, func(s *stick, dir string) {
		for name, data := range s.files {
			path := filepath.Join(dir, name)
			done(os.Remove(path), os.WriteFile(path, bytes.Repeat([]byte{'x'}, len(data)), 0o644))
		}
	}),
	whileInstalling("folder-gone-while-installing", "a stick whose folder is moved away", nil, []string{suitTOCTOU, uptaneDropRequest}, func(_ *stick, dir string) {
		done(os.RemoveAll(filepath.Join(dir, "blobs")), os.Remove(filepath.Join(dir, "index.json")))
	}),
}
