package release_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/release"
)

var ctx = context.Background()

// layout is what a release is made of, by name.
type layout map[string][]byte

func (l layout) blob(data []byte) map[string]any {
	d := manifest.DigestOf(data)
	l["blobs/sha256/"+d.Hex()] = data
	return map[string]any{"digest": d, "size": len(data), "mediaType": release.PayloadMedia}
}

func (l layout) json(v any) map[string]any {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return l.blob(data)
}

var payload = bytes.Repeat([]byte("payload "), 20000)

// honest is a small release, made by hand after FORMAT.md.
func honest() layout {
	l := layout{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)}
	env := l.blob([]byte(`{"envelope":1}`))
	env["mediaType"] = release.EnvelopeMedia
	absent := map[string]any{"digest": manifest.DigestOf([]byte("absent")), "size": 6, "mediaType": release.PayloadMedia}
	main := l.json(map[string]any{"artifactType": release.ArtifactType, "layers": []any{env, l.blob(payload), absent}})
	meta := l.blob([]byte(`{"timestamp":1}`))
	meta["mediaType"], meta["annotations"] = release.MetadataMedia, map[string]any{release.TitleKey: "timestamp.json"}
	tuf := l.json(map[string]any{"artifactType": release.TUFType, "layers": []any{meta}})
	// Somebody's image beside ours is none of our business, whatever it lists.
	foreign := l.json(map[string]any{"layers": []any{map[string]any{"digest": "x", "mediaType": release.EnvelopeMedia}}})
	l.index(main, tuf, foreign)
	return l
}

func (l layout) index(manifests ...any) {
	data, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": manifests})
	if err != nil {
		panic(err)
	}
	l["index.json"] = data
}

func (l layout) dir(t testing.TB) string {
	dir := t.TempDir()
	for name, data := range l {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, data, 0o644))
	}
	return dir
}

func (l layout) tar(t testing.TB, extra ...*tar.Header) string {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for name, data := range l {
		require.NoError(t, w.WriteHeader(&tar.Header{Name: "./" + name, Typeflag: tar.TypeReg, Size: int64(len(data)), Mode: 0o644}))
		_, err := w.Write(data)
		require.NoError(t, err)
	}
	for _, h := range extra {
		require.NoError(t, w.WriteHeader(h))
	}
	require.NoError(t, w.Close())
	path := filepath.Join(t.TempDir(), "release.tar")
	require.NoError(t, os.WriteFile(path, buf.Bytes(), 0o644))
	return path
}

// system tar packs a folder, as people do.
func systemTar(t testing.TB, dir string) string {
	path := filepath.Join(t.TempDir(), "release.tar")
	out, err := exec.Command("tar", "-C", dir, "-cf", path, ".").CombinedOutput()
	require.NoError(t, err, string(out))
	return path
}

// A folder, our tar and the system's tar of it are the same release.
func TestRead(t *testing.T) {
	l := honest()
	for name, path := range map[string]string{"folder": l.dir(t), "tar": l.tar(t), "system tar": systemTar(t, l.dir(t))} {
		r, err := release.Open(path)
		require.NoError(t, err, name)
		env, err := r.Manifest(ctx)
		require.NoError(t, err)
		require.Equal(t, `{"envelope":1}`, string(env))
		meta, err := r.Metadata(ctx, "timestamp.json")
		require.NoError(t, err)
		require.Equal(t, `{"timestamp":1}`, string(meta))
		require.Equal(t, []string{"timestamp.json"}, r.MetadataNames())
		for _, name := range []string{"2.root.json", "../timestamp.json", ""} {
			_, err = r.Metadata(ctx, name)
			require.ErrorIs(t, err, fs.ErrNotExist)
		}
		d := manifest.DigestOf(payload)
		size, ok := r.Size(d)
		require.True(t, ok)
		require.Equal(t, int64(len(payload)), size)
		p := make([]byte, 100)
		n, err := r.ReadRange(ctx, d, 70001, p)
		require.NoError(t, err)
		require.Equal(t, payload[70001:70101], p[:n])
		n, err = r.ReadRange(ctx, d, size-40, p)
		require.ErrorIs(t, err, io.EOF)
		require.Equal(t, 40, n)
		for _, d := range []manifest.Digest{manifest.DigestOf([]byte("absent")), "sha256:../../../etc/passwd", ""} {
			_, err = r.ReadRange(ctx, d, 0, p)
			require.ErrorIs(t, err, fs.ErrNotExist)
		}
		cancelled, cancel := context.WithCancel(ctx)
		cancel()
		_, err = r.ReadRange(cancelled, d, 0, p)
		require.ErrorIs(t, err, context.Canceled)
		require.NoError(t, r.Close())
		_, err = r.ReadRange(ctx, d, 0, p)
		require.Error(t, err)
	}
}

// Whoever holds the stick can exchange files while we read: what was opened
// stays what it was.
func TestExchangedFile(t *testing.T) {
	dir := honest().dir(t)
	r, err := release.Open(dir)
	require.NoError(t, err)
	defer r.Close()
	d := manifest.DigestOf(payload)
	path := filepath.Join(dir, "blobs", "sha256", d.Hex())
	require.NoError(t, os.Remove(path))
	require.NoError(t, os.WriteFile(path, bytes.Repeat([]byte("x"), len(payload)), 0o644))
	for _, name := range []string{"index.json", "blobs"} {
		require.NoError(t, os.Rename(filepath.Join(dir, name), filepath.Join(dir, name+".away")))
	}
	p := make([]byte, len(payload))
	_, err = r.ReadRange(ctx, d, 0, p)
	require.NoError(t, err)
	require.Equal(t, payload, p)
	env, err := r.Manifest(ctx)
	require.NoError(t, err)
	require.Equal(t, `{"envelope":1}`, string(env))
}

// Files that no honest release contains are refused, and none of them makes
// the reader hang or leave its folder.
func TestUnsafeFolder(t *testing.T) {
	blob := "blobs/sha256/" + manifest.DigestOf(payload).Hex()
	outside := filepath.Join(t.TempDir(), "outside")
	require.NoError(t, os.WriteFile(outside, payload, 0o644))
	for name, spoil := range map[string]func(dir string){
		"blob is a link out of the folder": func(dir string) {
			require.NoError(t, os.Remove(filepath.Join(dir, blob)))
			require.NoError(t, os.Symlink(outside, filepath.Join(dir, blob)))
		},
		"blob is a link inside the folder": func(dir string) {
			require.NoError(t, os.Rename(filepath.Join(dir, blob), filepath.Join(dir, "real")))
			require.NoError(t, os.Symlink("../../real", filepath.Join(dir, blob)))
		},
		"blobs is a link": func(dir string) {
			require.NoError(t, os.Rename(filepath.Join(dir, "blobs"), filepath.Join(dir, "real")))
			require.NoError(t, os.Symlink("real", filepath.Join(dir, "blobs")))
		},
		"blob is a pipe": func(dir string) {
			require.NoError(t, os.Remove(filepath.Join(dir, blob)))
			require.NoError(t, syscall.Mkfifo(filepath.Join(dir, blob), 0o644))
		},
		"blob is a folder": func(dir string) {
			require.NoError(t, os.Remove(filepath.Join(dir, blob)))
			require.NoError(t, os.Mkdir(filepath.Join(dir, blob), 0o755))
		},
		"index is a pipe": func(dir string) {
			require.NoError(t, os.Remove(filepath.Join(dir, "index.json")))
			require.NoError(t, syscall.Mkfifo(filepath.Join(dir, "index.json"), 0o644))
		},
	} {
		dir := honest().dir(t)
		spoil(dir)
		_, err := release.Open(dir)
		require.ErrorIs(t, err, release.ErrUnsafe, name)
	}
	pipe := filepath.Join(t.TempDir(), "pipe")
	require.NoError(t, syscall.Mkfifo(pipe, 0o644))
	_, err := release.Open(pipe)
	require.ErrorIs(t, err, release.ErrUnsafe)
}

func TestUnsafeTar(t *testing.T) {
	for name, h := range map[string]*tar.Header{
		"link":          {Name: "a", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"},
		"hard link":     {Name: "a", Typeflag: tar.TypeLink, Linkname: "index.json"},
		"pipe":          {Name: "a", Typeflag: tar.TypeFifo},
		"device":        {Name: "a", Typeflag: tar.TypeBlock, Devmajor: 8},
		"parent folder": {Name: "blobs/../../a", Typeflag: tar.TypeReg},
		"absolute name": {Name: "/a", Typeflag: tar.TypeReg},
		"the parent":    {Name: "a/../..", Typeflag: tar.TypeReg},
		"second index":  {Name: "blobs/../index.json", Typeflag: tar.TypeReg},
		"a PAX record that nobody knows, allowed": {Name: "a", Typeflag: tar.TypeReg, Format: tar.FormatPAX, PAXRecords: map[string]string{"TANDEM.x": "1"}},
		"folder, allowed":                         {Name: "blobs/", Typeflag: tar.TypeDir},
	} {
		_, err := release.Open(honest().tar(t, h))
		switch name {
		case "folder, allowed", "a PAX record that nobody knows, allowed":
			require.NoError(t, err, name)
		default:
			require.ErrorIs(t, err, release.ErrUnsafe, name)
		}
	}
}

// A sparse member, as GNU tar writes it, is not read as if it were whole.
func TestSparseTar(t *testing.T) {
	for _, format := range []string{"gnu", "pax"} {
		dir := honest().dir(t)
		f, err := os.Create(filepath.Join(dir, "hole"))
		require.NoError(t, err)
		require.NoError(t, f.Truncate(10<<20))
		_, err = f.WriteAt([]byte("x"), 5<<20)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		path := filepath.Join(t.TempDir(), "release.tar")
		out, err := exec.Command("tar", "-C", dir, "--sparse", "--format="+format, "-cf", path, ".").CombinedOutput()
		require.NoError(t, err, string(out))
		_, err = release.Open(path)
		require.ErrorIs(t, err, release.ErrUnsafe, format)
	}
}

// A damaged layout is refused when it is opened, before anything is installed.
func TestDamaged(t *testing.T) {
	env := manifest.DigestOf([]byte(`{"envelope":1}`))
	for name, spoil := range map[string]func(l layout){
		"no index":            func(l layout) { delete(l, "index.json") },
		"index is not JSON":   func(l layout) { l["index.json"] = []byte("x") },
		"index twice a key":   func(l layout) { l["index.json"] = []byte(`{"manifests":[],"manifests":[]}`) },
		"index too large":     func(l layout) { l["index.json"] = bytes.Repeat([]byte(" "), 2<<20) },
		"index names nothing": func(l layout) { l.index() },
		"a digest as a path":  func(l layout) { l.index(map[string]any{"digest": "sha256:../../index.json", "size": 1}) },
		"envelope changed":    func(l layout) { l["blobs/sha256/"+env.Hex()] = []byte(`{"envelope":2}`) },
		"envelope missing":    func(l layout) { delete(l, "blobs/sha256/"+env.Hex()) },
		"payload cut short":   func(l layout) { l["blobs/sha256/"+manifest.DigestOf(payload).Hex()] = payload[1:] },
		"two releases": func(l layout) {
			l["index.json"] = bytes.Replace(l["index.json"], []byte(`"manifests":[`), []byte(`"manifests":[`+first(l)+`,`), 1)
		},
		"index without the release": func(l layout) { l.index(l.json(map[string]any{"artifactType": release.TUFType})) },
		"size of a blob in the index": func(l layout) {
			l["index.json"] = bytes.Replace(l["index.json"], []byte(`"size":`), []byte(`"size":1`), 1)
		},
		"layer that is no digest": func(l layout) {
			l.index(l.json(map[string]any{"artifactType": release.ArtifactType, "layers": []any{envelope(l), map[string]any{"digest": "x", "size": 1}}}))
		},
		"two manifests in a release": func(l layout) {
			l.index(l.json(map[string]any{"artifactType": release.ArtifactType, "layers": []any{envelope(l), envelope(l)}}))
		},
		"metadata twice": func(l layout) {
			m := metadata(l, "timestamp.json")
			l.index(json.RawMessage(first(l)), l.json(map[string]any{"artifactType": release.TUFType, "layers": []any{m, m}}))
		},
		"release without layer": func(l layout) { l.index(l.json(map[string]any{"artifactType": release.ArtifactType})) },
	} {
		l := honest()
		spoil(l)
		for _, path := range []string{l.dir(t), l.tar(t)} {
			_, err := release.Open(path)
			require.Error(t, err, name)
			if !strings.Contains(name, "missing") && name != "no index" {
				require.ErrorIs(t, err, release.ErrFormat, name)
			} else {
				require.ErrorIs(t, err, fs.ErrNotExist, name)
			}
		}
	}
}

func envelope(l layout) map[string]any {
	d := l.blob([]byte(`{"envelope":1}`))
	d["mediaType"] = release.EnvelopeMedia
	return d
}

func metadata(l layout, name string) map[string]any {
	d := l.blob([]byte(`{"timestamp":1}`))
	d["mediaType"], d["annotations"] = release.MetadataMedia, map[string]any{release.TitleKey: name}
	return d
}

// A release lists so much and no more: the numbers of FORMAT.md, on their edge and one past it.
func TestCounts(t *testing.T) {
	images := func(n int) layout {
		l := honest()
		all := []any{json.RawMessage(first(l))}
		for range n - 1 {
			all = append(all, l.json(map[string]any{"layers": []any{}}))
		}
		l.index(all...)
		return l
	}
	layers := func(n int) layout {
		l := honest()
		absent := map[string]any{"digest": manifest.DigestOf([]byte("absent")), "size": 6, "mediaType": release.PayloadMedia}
		all := []any{envelope(l)}
		for range n - 1 {
			all = append(all, absent)
		}
		l.index(l.json(map[string]any{"artifactType": release.ArtifactType, "layers": all}))
		return l
	}
	members := func(n int) string {
		l := honest()
		var more []*tar.Header
		for i := range n - len(l) {
			more = append(more, &tar.Header{Name: fmt.Sprintf("x/%d", i), Typeflag: tar.TypeReg})
		}
		return l.tar(t, more...)
	}
	for name, edge := range map[string]struct{ most, over string }{
		"images":           {images(16).dir(t), images(17).dir(t)},
		"layers":           {layers(4096).dir(t), layers(4097).dir(t)},
		"members of a tar": {members(4096), members(4097)},
	} {
		r, err := release.Open(edge.most)
		require.NoError(t, err, name)
		require.NoError(t, r.Close())
		_, err = release.Open(edge.over)
		require.ErrorIs(t, err, release.ErrFormat, name)
		require.ErrorContains(t, err, "over ", name)
	}
}

// What is no metadata, or has no name, is not taken for it; a tar's global header is no file.
func TestPassedOver(t *testing.T) {
	l := honest()
	other, nameless := metadata(l, "2.root.json"), metadata(l, "")
	other["mediaType"] = release.SBOMMedia
	l.index(json.RawMessage(first(l)), l.json(map[string]any{"artifactType": release.TUFType, "layers": []any{other, nameless, metadata(l, "timestamp.json")}}))
	r, err := release.Open(l.tar(t, &tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "pax_global_header", PAXRecords: map[string]string{"comment": "x"}}))
	require.NoError(t, err)
	require.Equal(t, []string{"timestamp.json"}, r.MetadataNames())
	require.NoError(t, r.Close())
}

// first is the first entry of a layout's index.
func first(l layout) string {
	var ix struct{ Manifests []json.RawMessage }
	if err := json.Unmarshal(l["index.json"], &ix); err != nil {
		panic(err)
	}
	return string(ix.Manifests[0])
}

// No truncation of a tar is mistaken for a whole release: it is refused, or
// only lacks the zero blocks at its end.
func TestTruncatedTar(t *testing.T) {
	l := honest()
	path := l.tar(t)
	whole, err := os.ReadFile(path)
	require.NoError(t, err)
	for n := 0; n < len(whole)-1024; n += 101 {
		require.NoError(t, os.WriteFile(path, whole[:n], 0o644))
		r, err := release.Open(path)
		if err != nil {
			continue
		}
		// A layer that is not there is allowed, since a stick may be partial;
		// what is there must be whole.
		for _, d := range r.Blobs() {
			size, _ := r.Size(d)
			p := make([]byte, size)
			got, err := r.ReadRange(ctx, d, 0, p)
			require.NoError(t, err)
			require.Equal(t, d, manifest.DigestOf(p[:got]), "%d bytes", n)
		}
		require.NoError(t, r.Close())
	}
}

// Whatever the bytes of a tar, Open returns.
func FuzzOpenTar(f *testing.F) {
	data, err := os.ReadFile(honest().tar(f))
	require.NoError(f, err)
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "x.tar")
		require.NoError(t, os.WriteFile(path, data, 0o644))
		r, err := release.Open(path)
		if err == nil {
			require.NoError(t, r.Close())
		}
	})
}
