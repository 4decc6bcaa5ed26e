package updater

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/tandem-ota/tandem/updater/external"
	"github.com/tandem-ota/tandem/updater/journal"
	"github.com/tandem-ota/tandem/updater/manifest"
)

// cleanUp lets programs end what an update began. After a commit, the migration hook
// removes the old layout and the handlers make their new images run; after an update that
// came to nothing, the handlers that were asked to prepare hear of it.
//
// It is no longer part of the trial, and its deadline does not count: it may take as
// long as these programs may. What fails is done again at the next starts, and given
// up after a few, since a program may also fail by taking the machine down. What is put
// off (external.ErrNotNow, and only then the error is that) is done again later; see Run.
func (u *Updater) cleanUp(ctx context.Context) error {
	if err := u.cleaning.take(ctx); err != nil {
		return err // it is owed still
	}
	defer u.cleaning.end()
	back := u.settle(ctx, takeBack, func(owed journal.CleanUp) error {
		m := manifest.Manifest{Product: u.running.Manifest.Product, Version: owed.Version, Sequence: owed.Sequence}
		return u.handlers(ctx, "revert", m, owed.Images)
	})
	if owed := u.journal().CleanUp; owed == nil || owed.Manifest != u.running.Digest {
		return back
	}
	return errors.Join(back, u.settle(ctx, afterCommit, func(owed journal.CleanUp) error {
		m := u.running.Manifest
		var err error
		if migrates(m, owed.DataSchema) {
			err = u.migrate(ctx, "commit", owed.DataSchema)
		}
		return errors.Join(err, u.handlers(ctx, "commit", m, m.Images))
	}))
}

// debt is one of the two things that can be owed.
type debt func(*journal.Journal) **journal.CleanUp

func takeBack(j *journal.Journal) **journal.CleanUp    { return &j.TakeBack }
func afterCommit(j *journal.Journal) **journal.CleanUp { return &j.CleanUp }

// settle has programs do what is owed. It is counted before they begin; those that come
// back to say "not now" have not taken the machine down.
func (u *Updater) settle(ctx context.Context, what debt, do func(journal.CleanUp) error) error {
	j := u.journal()
	owed := *what(&j)
	if owed == nil || u.down() {
		return nil
	}
	if owed.Begun >= u.p.MaxBegun {
		u.p.Log.Error("clean-up given up", "release", owed.Manifest, "begun", owed.Begun)
		u.change(func(j *journal.Journal) { *what(j) = nil })
		return nil
	}
	next := *owed
	next.Begun++
	if err := u.must(func(j *journal.Journal) { *what(j) = &next }); err != nil {
		u.p.Log.Error("clean-up put off", "err", err)
		return err
	}
	err := do(*owed)
	if err == nil {
		u.change(func(j *journal.Journal) { *what(j) = nil })
		return nil
	}
	u.setErr(err)
	u.p.Log.Error("clean up after an update", "release", owed.Manifest, "err", err)
	if errors.Is(err, external.ErrNotNow) {
		later := next
		later.Begun = 0
		u.change(func(j *journal.Journal) { *what(j) = &later })
	}
	return err
}

// putOff tells whether something is owed that a program asked to be called for again.
func (u *Updater) putOff() bool {
	j := u.journal()
	return j.TakeBack != nil && j.TakeBack.Begun == 0 ||
		j.CleanUp != nil && j.CleanUp.Begun == 0 && j.CleanUp.Manifest == u.running.Digest
}

// owe notes who has to hear that an update came to nothing (release/FORMAT.md). It is in
// the same write as its end: whatever the power does, they hear of it.
func owe(j *journal.Journal, up journal.Update) {
	if len(up.Prepared) > 0 {
		j.TakeBack = &journal.CleanUp{Manifest: up.Manifest, Version: up.Version, Sequence: up.Sequence, Images: up.Prepared}
	}
}

// handle runs one verb of the handler of an external image, for at most handlerTime.
func (u *Updater) handle(ctx context.Context, m manifest.Manifest, img manifest.Image, verb string, stdin io.Reader) (done bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, handlerTime)
	defer cancel()
	step := u.watch("handler of "+img.Name, handlerTime+stepTime)
	defer step.done()
	return u.p.Handlers.Run(ctx, m, img, verb, stdin)
}

func isExternal(img manifest.Image) bool { return img.Type == manifest.TypeExternal }

// externals returns the external images of a release, without their payloads.
func externals(m manifest.Manifest) []manifest.Image {
	var images []manifest.Image
	for _, img := range m.Images {
		if isExternal(img) {
			img.Payloads, img.Verity = nil, nil
			images = append(images, img)
		}
	}
	return images
}

// handlers tells the programs of external images how the update ended.
func (u *Updater) handlers(ctx context.Context, verb string, m manifest.Manifest, images []manifest.Image) error {
	var errs []error
	for _, img := range images {
		if !isExternal(img) {
			continue
		}
		if _, err := u.handle(ctx, m, img, verb, nil); err != nil {
			errs = append(errs, fmt.Errorf("external image %s: %w", img.Name, err))
		}
	}
	return errors.Join(errs...)
}
