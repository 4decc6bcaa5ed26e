package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/transport/broker"
	"github.com/tandem-ota/tandem/transport/mqtt"
	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/release"
	"github.com/tandem-ota/tandem/updater/trust"
	"github.com/tandem-ota/tandem/updater/trust/mktrust"
)

const publishUsage = `usage: tandem publish [options] RELEASE

Copies a release (a folder or a tar) into the store of a block server, publishes
the TUF metadata, and tells each device, by a statement that only it accepts, to run
the release. Repeating it is safe.

`

// publication is what "tandem publish" is asked to do.
type publication struct {
	store, desk, trust, full string
	devices, urls            several
	force                    bool
	valid, wait              time.Duration
}

// publishCmd runs "tandem publish".
func publishCmd(ctx context.Context, args []string, _ io.Reader, stdout, stderr io.Writer) error {
	f := linkFlags("publish", publishUsage, stderr)
	var p publication
	f.StringVar(&p.store, "store", "broker/store", "folder that the block server serves")
	f.StringVar(&p.desk, "desk", "broker/desk", "provisioning folder of the desk")
	f.StringVar(&p.trust, "trust", "", "trust folder with the key of the role fleet, and the newest metadata")
	f.StringVar(&p.full, "full", transport.FullFail, "where neither delta nor index payload saves much: fail, wait, or full for a full download")
	f.BoolVar(&p.force, "force", false, "also to devices on which it failed before")
	f.DurationVar(&p.valid, "valid", 30*24*time.Hour, "how long the devices may act on it")
	f.DurationVar(&p.wait, "wait", 30*time.Second, "how long to wait for the broker")
	f.Var(&p.devices, "device", "id of a device; may be given several times")
	f.Var(&p.urls, "broker", "broker, tls://host:port (default: as in the desk's folder)")
	rest, err := operands(f, args)
	if err != nil {
		return quietHelp(err)
	}
	if len(rest) != 1 || len(p.devices) > 0 && p.trust == "" {
		f.Usage()
		return usageError("want one RELEASE, and --trust with --device")
	}
	return p.run(ctx, rest[0], stdout)
}

func (p *publication) run(ctx context.Context, path string, stdout io.Writer) error {
	// Everything that can be wrong here is found before anything is published.
	for _, id := range p.devices {
		if err := transport.CheckID(id); err != nil {
			return err
		}
	}
	r, err := release.Open(path)
	if err != nil {
		return err
	}
	defer r.Close()
	envelope, err := r.Manifest(ctx)
	if err != nil {
		return err
	}
	_, payload, _, err := trust.Unverified(envelope)
	if err != nil {
		return fmt.Errorf("publish %s: %w", path, err)
	}
	m, err := manifest.Parse(payload)
	if err != nil {
		return fmt.Errorf("publish %s: %w", path, err)
	}
	desired := transport.Desired{
		Manifest: string(manifest.DigestOf(payload)), Target: m.TargetName(),
		Version: m.Version, Force: p.force, Full: p.full,
	}
	wants, err := p.statements(ctx, desired, time.Now())
	if err != nil {
		return err
	}
	cfg, err := deskConfig(p.desk, "publish", p.urls)
	if err != nil {
		return err
	}

	s, err := broker.OpenStore(p.store)
	if err != nil {
		return err
	}
	defer s.Close()
	if _, err := s.Import(ctx, r); err != nil {
		return fmt.Errorf("publish %s: %w", path, err)
	}
	files, err := p.metadata(ctx, r)
	if err != nil {
		return err
	}
	for name, data := range files {
		if err := s.PutMetadata(name, data); err != nil {
			return err
		}
	}
	fmt.Fprintf(stdout, "stored %s %s (%s), %d blobs, in %s\n", m.Product, m.Version, desired.Manifest, len(r.Blobs()), p.store)

	c, err := mqtt.Connect(ctx, cfg)
	if err != nil {
		return err
	}
	defer c.Close()
	up, cancel := context.WithTimeout(ctx, p.wait)
	defer cancel()
	if err := c.WaitUp(up); err != nil {
		return fmt.Errorf("reach the broker: %w", err)
	}
	if err := broker.PublishMetadata(ctx, c, files); err != nil {
		return err
	}
	fmt.Fprintf(stdout, "published %d files of metadata\n", len(files))
	for i, id := range p.devices {
		if err := broker.PublishWant(ctx, c, id, wants[i]); err != nil {
			return fmt.Errorf("tell %s: %w", id, err)
		}
		fmt.Fprintf(stdout, "told %s to run %s %s\n", id, m.Product, m.Version)
	}
	return nil
}

// metadata returns the TUF files of the release, or the newer ones of the trust
// folder, which are signed again as time goes.
func (p *publication) metadata(ctx context.Context, r *release.Release) (map[string][]byte, error) {
	files := map[string][]byte{}
	for _, name := range r.MetadataNames() {
		data, err := r.Metadata(ctx, name)
		if err != nil {
			return nil, err
		}
		files[name] = data
	}
	if p.trust == "" {
		return files, nil
	}
	folder, err := mktrust.Open(p.trust, time.Now())
	if err != nil {
		return nil, err
	}
	names, err := folder.Files()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		// Unversioned copies such as root.json are for other TUF tools.
		if transport.CheckMetaName(name) != nil {
			continue
		}
		data, err := folder.Metadata(ctx, name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		files[name] = data
	}
	return files, nil
}

// statements signs what each device is told. The counter is the time in
// milliseconds, so that several desks need no common store to make it grow.
func (p *publication) statements(ctx context.Context, d transport.Desired, now time.Time) ([]transport.Want, error) {
	if len(p.devices) == 0 {
		return nil, nil
	}
	body, err := json.Marshal(d)
	if err != nil {
		return nil, err
	}
	if _, err := transport.ParseDesired(body); err != nil {
		return nil, err
	}
	folder, err := mktrust.Open(p.trust, now)
	if err != nil {
		return nil, err
	}
	signers, err := folder.Signers(ctx, mktrust.Fleet)
	if err != nil {
		return nil, err
	}
	if len(signers) == 0 {
		return nil, fmt.Errorf("sign statements: no key of the role fleet in %s", p.trust)
	}
	var wants []transport.Want
	for _, id := range p.devices {
		envelope, err := mktrust.Statement(ctx, trust.Statement{
			Device: id, Counter: uint64(now.UnixMilli()), Kind: transport.KindDesired,
			Issued: now.Truncate(time.Second), Expires: now.Add(p.valid).Truncate(time.Second), Body: body,
		}, signers...)
		if err != nil {
			return nil, fmt.Errorf("sign statement for %s: %w", id, err)
		}
		wants = append(wants, transport.Want{Statement: envelope, Sources: []string{"mqtt"}})
	}
	return wants, nil
}
