package mkrelease

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/release"
	"github.com/tandem-ota/tandem/updater/trust"
	"github.com/tandem-ota/tandem/updater/trust/mktrust"
)

// layer lists a blob in the image manifest, once.
func (b *build) layer(media, title string, c manifest.Content) {
	if slices.ContainsFunc(b.layers, func(d descriptor) bool { return d.Digest == c.Digest }) {
		return
	}
	b.layers = append(b.layers, descriptor{
		MediaType: media, Digest: c.Digest, Size: c.Size, Annotations: map[string]string{release.TitleKey: title},
	})
}

// tree adds the tree blob of what was hashed, if it has one.
func (b *build) tree(title string, sum *hasher) error {
	data := sum.tree()
	if data == nil {
		return nil
	}
	c, err := b.out.add(data)
	if err != nil {
		return err
	}
	b.layer(release.TreeMedia, title, c)
	return nil
}

// keep puts a payload into the release.
func (b *build) keep(im *manifest.Image, p made, baseVersion string) {
	title := im.Name + "." + p.Kind
	if baseVersion != "" {
		title += "-from-" + baseVersion
	}
	b.pending = append(b.pending, pending{p, title})
	im.Payloads = append(im.Payloads, p.Payload)
	b.report(*im, p, baseVersion, "")
}

// finish writes everything that is not a payload and makes the release visible.
func (b *build) finish(ctx context.Context, data []byte) error {
	env, err := mktrust.Seal(ctx, manifest.PayloadType, data)
	if err != nil {
		return err
	}
	for _, p := range b.pending {
		if err := b.out.move(p.path, p.Blob.Digest); err != nil {
			return err
		}
		b.layer(release.PayloadMedia, p.title, p.Blob)
		if err := b.tree(p.title+".tree", p.sum); err != nil {
			return err
		}
	}
	d, err := b.out.writeRelease(env, b.m, b.layers)
	if err != nil {
		return err
	}
	return b.out.writeIndex(d)
}

// writeRelease writes the release artifact around an envelope.
func (l *layout) writeRelease(env []byte, m manifest.Manifest, others []descriptor) (descriptor, error) {
	c, err := l.add(env)
	if err != nil {
		return descriptor{}, err
	}
	layers := append([]descriptor{{
		MediaType: release.EnvelopeMedia, Digest: c.Digest, Size: c.Size, Annotations: map[string]string{release.TitleKey: "manifest.json"},
	}}, others...)
	return l.addImage(release.ArtifactType, releaseRef, layers, map[string]string{
		versionKey: m.Version, "com.tandem-ota.product": m.Product, "com.tandem-ota.sequence": fmt.Sprint(m.Sequence),
	})
}

// writeMetadata writes the TUF artifact from all files of a trust folder.
func (l *layout) writeMetadata(folder *mktrust.Folder) (descriptor, error) {
	names, err := folder.Files()
	if err != nil {
		return descriptor{}, err
	}
	var layers []descriptor
	for _, name := range names {
		data, err := folder.Metadata(context.Background(), name)
		if err != nil {
			return descriptor{}, err
		}
		c, err := l.add(data)
		if err != nil {
			return descriptor{}, err
		}
		layers = append(layers, descriptor{
			MediaType: release.MetadataMedia, Digest: c.Digest, Size: c.Size, Annotations: map[string]string{release.TitleKey: name},
		})
	}
	return l.addImage(release.TUFType, tufRef, layers, nil)
}

// Signed says what Sign did.
type Signed struct {
	Digest    manifest.Digest `json:"digest"` // of the manifest
	Keys      []string        `json:"keys"`   // ids that have signed it
	Target    string          `json:"target"` // TUF target name
	Published bool            `json:"published"`
}

// Sign signs the release in a folder with what the trust folder has: the
// manifest with the release keys, and once enough of these have signed, TUF
// metadata that offers it. The metadata goes into the release, so that it can
// be installed from a stick as it is.
//
// Where keys are on several machines, it is called on each; mktrust.ErrIncomplete
// and mktrust.ErrNoKey say what is missing, and what was signed so far is kept.
// Calling it again with the same keys changes only expiry.
func Sign(ctx context.Context, path string, folder *mktrust.Folder) (Signed, error) {
	s, err := sign(ctx, path, folder)
	if err != nil {
		return s, fmt.Errorf("sign release %s: %w", path, err)
	}
	return s, nil
}

func sign(ctx context.Context, path string, folder *mktrust.Folder) (Signed, error) {
	r, err := release.Open(path)
	if err != nil {
		return Signed{}, err
	}
	env, err := r.Manifest(ctx)
	if err != nil {
		return Signed{}, err
	}
	m, digest, _, err := Read(r)
	if err != nil {
		return Signed{}, err
	}
	if err := r.Close(); err != nil {
		return Signed{}, err
	}
	s := Signed{Digest: digest, Target: m.TargetName()}
	signers, err := folder.Signers(ctx, mktrust.Release)
	if err != nil {
		return s, err
	}
	if len(signers) > 0 {
		if env, err = mktrust.Countersign(ctx, env, signers...); err != nil {
			return s, err
		}
	}
	if _, _, s.Keys, err = trust.Unverified(env); err != nil {
		return s, err
	}
	if err := replaceEnvelope(path, env, m, folder, false); err != nil {
		return s, err
	}
	keys, err := folder.ReleaseKeys()
	if err != nil {
		return s, err
	}
	if _, err := trust.Verify(env, manifest.PayloadType, keys); err != nil {
		return s, fmt.Errorf("%w: the manifest: %w", mktrust.ErrIncomplete, err)
	}
	if err := offer(ctx, folder, s, env); err != nil {
		return s, err
	}
	s.Published = true
	return s, replaceEnvelope(path, env, m, folder, true)
}

// offer lists the envelope in the targets.
func offer(ctx context.Context, folder *mktrust.Folder, s Signed, env []byte) error {
	t, err := folder.Targets()
	if err != nil {
		return err
	}
	if old, ok := t.Signed.Targets[s.Target]; ok && old.Custom != nil && !strings.Contains(string(*old.Custom), string(s.Digest)) {
		return fmt.Errorf("%w: %s is %s", ErrSequence, s.Target, *old.Custom)
	}
	return folder.AddTarget(ctx, s.Target, env, map[string]string{"manifest": string(s.Digest)})
}

// replaceEnvelope writes the release artifact anew, and with it the TUF
// metadata where that is complete.
func replaceEnvelope(path string, env []byte, m manifest.Manifest, folder *mktrust.Folder, metadata bool) error {
	l := &layout{path}
	if info, err := os.Stat(path); err != nil || !info.IsDir() {
		return fmt.Errorf("%s is not a folder: sign first, pack afterwards", path)
	}
	images, err := l.read()
	if err != nil {
		return err
	}
	others := slices.DeleteFunc(images[release.ArtifactType].Layers, func(d descriptor) bool { return d.MediaType == release.EnvelopeMedia })
	d, err := l.writeRelease(env, m, others)
	if err != nil {
		return err
	}
	all := []descriptor{d}
	if metadata {
		tuf, err := l.writeMetadata(folder)
		if err != nil {
			return err
		}
		all = append(all, tuf)
	}
	if err := l.writeIndex(all...); err != nil {
		return err
	}
	return l.sweep()
}
