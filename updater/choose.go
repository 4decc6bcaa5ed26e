package updater

import (
	"context"
	"fmt"

	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater/journal"
	"github.com/tandem-ota/tandem/updater/manifest"
)

// payload is the chosen way to come by one image.
type payload struct {
	manifest.Payload
	image    manifest.Image
	manifest manifest.Manifest
	base     *manifest.Image // of the running slot, for a delta
	survey   *survey         // what the slots hold, for an index
	sole     bool            // the release offers no other way
	whole    int64           // download of all of the image
	why      string
}

// download is what the payload costs on this device, in bytes, as far as is known.
func (p payload) download() int64 {
	if p.survey != nil {
		return p.survey.fetched + p.survey.missing
	}
	return p.Blob.Size
}

// modest is how much of its whole images a release may cost, in percent, where index
// payloads are in it: above that they are whole images by another name, which policy has
// to allow. One image of several may be all new.
const modest = 75

// choose picks for each image the way that costs the smallest download among those for
// which the device's memory is enough. A delta from what runs is taken as it is. An index
// payload is first held against both slots, since only they tell what it costs. A whole
// image is never chosen quietly: policy has to allow it, except where the release offers no
// other way; and so has it what costs about as much. Wear decides nothing, as the
// writer leaves alone what is right on the medium, whatever brought it.
//
// All that is before the first byte is written. Without a source no slot is looked at, and
// index payloads count as good enough.
func (u *Updater) choose(ctx context.Context, src Source, rel release, o Options) ([]payload, error) {
	var chosen []payload
	var cost, whole int64
	surveyed := false
	for _, img := range rel.m.Images {
		best, err := u.chooseOne(ctx, src, rel.m, img, u.place(rel, img), o, false)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", img.Name, err)
		}
		if !best.sole && !isExternal(img) {
			cost, whole = cost+best.download(), whole+best.whole
		}
		surveyed = surveyed || best.survey != nil
		chosen = append(chosen, best)
	}
	// What was begun goes on: to stop it at its end would cost more than to let it.
	if begun := u.journal().Update; surveyed && (begun == nil || begun.Manifest != rel.digest) {
		if err := u.permit(cost, whole, o); err != nil {
			return nil, err
		}
	}
	return chosen, afford(src, chosen)
}

// chooseAgain finds another way than a delta whose base is damaged, for what is not
// written yet.
func (u *Updater) chooseAgain(ctx context.Context, src Source, p payload, o Options) (payload, error) {
	from := u.journal().Update.Written[p.image.Name]
	other, err := u.chooseOne(ctx, src, p.manifest, p.image, from, o, true)
	if err == nil && other.survey != nil {
		err = u.permit(other.survey.missing, rest(other.whole, p.image.Size, from), o)
	}
	if err == nil {
		err = afford(src, []payload{other})
	}
	return other, err
}

// permit asks policy about a release of which index payloads are a part.
func (u *Updater) permit(cost, whole int64, o Options) error {
	if o.Full == transport.FullGo || cost*100 <= whole*modest {
		return nil
	}
	return fmt.Errorf("%w: %s in slot %s has too little of it: %d bytes to download, %d in full, and policy does not allow that",
		ErrNoDelta, u.running.Manifest.Version, u.running.Slot, cost, whole)
}

// afford compares what index payloads cost with what the source may still bring. Their
// cost is known to the byte before the first one is written, and on this device only.
func afford(src Source, chosen []payload) error {
	m, ok := src.(Metered)
	if !ok {
		return nil
	}
	left, limited := m.Left()
	for _, p := range chosen {
		if p.survey == nil || !limited {
			continue
		}
		if p.survey.missing > left {
			return fmt.Errorf("image %s: %w: its index payload takes %d bytes more, %d are left", p.image.Name, ErrBudget, p.survey.missing, left)
		}
		left -= p.survey.missing
	}
	return nil
}

// offers is what a release offers for one image, as far as this device can use it: the
// smallest of each kind.
type offers struct {
	delta, index, full *payload
	others             int // ways other than in full, usable or not
	tooBig             int // for the device's memory
}

// offers sorts the payloads of an image. A base that has rotted is none.
func (u *Updater) offers(m manifest.Manifest, img manifest.Image, rotten bool) (all offers) {
	for _, offer := range img.Payloads {
		p := payload{Payload: offer, image: img, manifest: m}
		var best **payload
		switch offer.Kind {
		case manifest.KindFull:
			best = &all.full
		case manifest.KindDelta:
			all.others++
			if p.base = u.base(img, offer.Base); p.base == nil || rotten {
				continue
			}
			best = &all.delta
		case manifest.KindIndex:
			if img.Type != manifest.TypeSlot {
				continue // there is nothing old that could be read
			}
			all.others++
			best = &all.index
		default:
			continue // of a newer device program
		}
		if offer.Memory > u.p.Memory {
			all.tooBig++
			continue
		}
		if *best == nil || offer.Blob.Size < (*best).Blob.Size {
			*best = &p
		}
	}
	return all
}

// chooseOne picks for one image, of which the bytes up to from are there.
func (u *Updater) chooseOne(ctx context.Context, src Source, m manifest.Manifest, img manifest.Image, from int64, o Options, rotten bool) (payload, error) {
	if from == img.Size && img.Type == manifest.TypeSlot {
		return payload{image: img, manifest: m}, nil // nothing is to be brought
	}
	all := u.offers(m, img, rotten)
	leave := o.Full == transport.FullGo || img.Type != manifest.TypeSlot
	best := all.delta
	switch {
	case all.delta != nil && (all.full == nil || !leave || all.delta.Blob.Size <= all.full.Blob.Size):
		best.why = "it starts from what runs"
	case all.index != nil && (all.delta == nil || !leave):
		best = all.index
		best.why = "no delta that fits starts from " + u.running.Manifest.Version
		if rotten {
			best.why = "it takes only what is sound"
		}
		if src == nil {
			break
		}
		var err error
		if best.survey, err = u.survey(ctx, src, *best, from); err != nil {
			return payload{}, err
		}
		if leave && all.full != nil && rest(all.full.Blob.Size, img.Size, from) <= best.survey.missing {
			all.full.why = fmt.Sprintf("the slots hold too little for the index payload, which would take %d", best.survey.missing)
			best = all.full
		}
	case all.full != nil && (leave || all.others == 0):
		best = all.full
		best.why = "nothing else fits"
	case all.full != nil:
		return payload{}, fmt.Errorf("%w: %s in slot %s is no base, and policy does not allow %d bytes in full", ErrNoDelta, u.running.Manifest.Version, u.running.Slot, all.full.Blob.Size)
	case all.tooBig > 0:
		return payload{}, fmt.Errorf("%w: %d bytes", ErrMemory, u.p.Memory)
	default:
		return payload{}, ErrNoDelta
	}
	best.sole, best.whole = all.others == 0, best.Blob.Size
	if all.full != nil {
		best.whole = all.full.Blob.Size
	}
	u.event("chosen", fmt.Sprintf("%s: %s of %d bytes for %d: %s", img.Name, best.Kind, best.download(), img.Size, best.why))
	return *best, nil
}

// rest is what is still to be downloaded of a payload whose image is there up to from, if
// it is as dense everywhere.
func rest(download, size, from int64) int64 {
	return int64(float64(download) * float64(size-from) / float64(size))
}

// place is how far an image of the release is on the medium, if it was begun before.
func (u *Updater) place(rel release, img manifest.Image) int64 {
	j := u.journal()
	switch {
	case !u.begun(j, rel):
		return 0
	case State(j.State) != Writing:
		return img.Size
	}
	return j.Update.Written[img.Name]
}

// begun tells whether an interrupted installation of the release goes on.
func (u *Updater) begun(j journal.Journal, rel release) bool {
	return j.Update != nil && State(j.State) != Trial && j.Update.Manifest == rel.digest && j.Update.Slot == string(u.spare())
}

// base returns the image of the running slot that a delta starts from.
func (u *Updater) base(img manifest.Image, digest manifest.Digest) *manifest.Image {
	if old := u.inSlot(u.running.Manifest, img.Target); old != nil && old.Digest == digest {
		return old
	}
	return nil
}

// inSlot returns the image that a release has for a partition.
func (u *Updater) inSlot(m manifest.Manifest, target string) *manifest.Image {
	for _, old := range m.Images {
		if old.Type == manifest.TypeSlot && old.Target == target {
			return &old
		}
	}
	return nil
}
