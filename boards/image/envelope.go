package image

import (
	"errors"
	"fmt"

	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/trust"
)

// ErrOtherRelease means that the signed manifest is not about the images that it
// was given with: files of two releases were mixed up.
var ErrOtherRelease = errors.New("the manifest describes other images")

// checkEnvelope compares the manifest in the envelope with the images. Whether
// it is signed by the right keys is for the device to find out, which has them.
func checkEnvelope(o DiskOptions) error {
	if len(o.Envelope) == 0 {
		return nil
	}
	kind, payload, _, err := trust.Unverified(o.Envelope)
	if err != nil {
		return fmt.Errorf("read manifest: %w", err)
	}
	if kind != manifest.PayloadType {
		return fmt.Errorf("read manifest: payload type %q, want %q", kind, manifest.PayloadType)
	}
	m, err := manifest.Parse(payload)
	if err != nil {
		return fmt.Errorf("read manifest: %w", err)
	}
	return checkManifest(o, m)
}

func checkManifest(o DiskOptions, m manifest.Manifest) error {
	files := map[string]string{"boot": o.BootImage, "root": o.RootImage}
	for _, i := range m.Images {
		name, ok := files[i.Target]
		if i.Type != "slot" || !ok {
			continue
		}
		sum, size, err := fileDigest(name)
		if err != nil {
			return err
		}
		if want := manifest.Digest(fmt.Sprintf("sha256:%x", sum)); size != i.Size || want != i.Digest {
			return fmt.Errorf("%w: %s is %s with %d bytes, release %s wants %s with %d", ErrOtherRelease, name, want, size, m.Version, i.Digest, i.Size)
		}
		delete(files, i.Target)
	}
	for role := range files {
		return fmt.Errorf("%w: release %s has no %s image", ErrOtherRelease, m.Version, role)
	}
	return nil
}
