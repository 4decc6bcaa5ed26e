package mqtt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater/manifest"
)

// Source is a release as a Link brings it. It has the methods of updater.Source.
type Source struct {
	l      *Link
	digest manifest.Digest
}

// Source returns the release whose manifest has this digest. Nothing is fetched
// before it is asked for.
func (l *Link) Source(digest manifest.Digest) *Source { return &Source{l, digest} }

// Manifest fetches the DSSE envelope of the manifest and checks that the payload
// in it has the digest that was asked for. Its signatures are for the caller to
// verify.
func (s *Source) Manifest(ctx context.Context) ([]byte, error) {
	data, err := s.l.readAll(ctx, transport.Get{Manifest: string(s.digest)}, transport.MaxManifest)
	if err != nil {
		return nil, fmt.Errorf("fetch manifest %s: %w", s.digest, err)
	}
	var envelope struct {
		Payload []byte `json:"payload"`
	}
	if err := json.Unmarshal(data, &envelope); err != nil {
		return nil, fmt.Errorf("fetch manifest %s: %w", s.digest, err)
	}
	if manifest.DigestOf(envelope.Payload) != s.digest {
		return nil, fmt.Errorf("fetch manifest %s: %w", s.digest, transport.ErrLeaf)
	}
	return data, nil
}

// ReadRange reads a range of a blob with the semantics of io.ReaderAt. It waits
// through losses of connection, broker and block server for as long as ctx
// allows. The bytes are what the broker sent: see transport.Verified. A blob
// that the server does not have is fs.ErrNotExist.
//
// Reads that go forward are fast, because the link asks ahead of them; jumping
// about costs a round trip each and throws away what was asked for.
func (s *Source) ReadRange(ctx context.Context, blob manifest.Digest, off int64, p []byte) (int, error) {
	n, err := s.l.read(ctx, transport.Get{Blob: string(blob)}, off, p)
	if err != nil && !errors.Is(err, io.EOF) {
		return n, fmt.Errorf("read %s at %d: %w", blob, off+int64(n), err)
	}
	return n, err
}

// Metadata fetches a TUF metadata file: the retained message on its topic if
// the broker has one, else from the block server. If neither has it, the error
// is fs.ErrNotExist.
//
// The order makes that answer sure: a broker delivers what it retains before it
// takes the request that follows, so a server's "no" comes last.
func (s *Source) Metadata(ctx context.Context, name string) ([]byte, error) {
	topic, err := transport.MetaTopic(name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	retained := make(chan []byte, 1)
	subErr := s.l.c.Handle(ctx, topic, 0, func(_ string, payload []byte, _ bool) {
		if len(payload) == 0 || len(payload) > transport.MaxMeta {
			return
		}
		select {
		case retained <- payload:
		default:
		}
	})
	defer s.l.c.Forget(topic)
	if subErr != nil {
		s.l.log.Warn("no retained metadata, asking the block server", "name", name, "error", subErr)
	}
	type result struct {
		data []byte
		err  error
	}
	stored := make(chan result, 1)
	go func() {
		data, err := s.l.readAll(ctx, transport.Get{Meta: name}, transport.MaxMeta)
		stored <- result{data, err}
	}()
	select {
	case data := <-retained:
		cancel()
		<-stored
		return data, nil
	case r := <-stored:
		if r.err == nil {
			return r.data, nil
		}
		select {
		case data := <-retained:
			return data, nil
		default:
		}
		if errors.Is(r.err, fs.ErrNotExist) {
			return nil, fmt.Errorf("metadata %s: %w", name, fs.ErrNotExist)
		}
		return nil, fmt.Errorf("metadata %s: %w", name, r.err)
	}
}

// readAll reads an object of at most limit bytes.
func (l *Link) readAll(ctx context.Context, get transport.Get, limit int) ([]byte, error) {
	var data []byte
	for {
		k := len(data)
		if k > limit {
			return nil, fmt.Errorf("more than %d bytes", limit)
		}
		data = append(data, make([]byte, min(transport.DefaultBlock, limit+1-k))...)
		n, err := l.read(ctx, get, int64(k), data[k:])
		data = data[:k+n]
		switch {
		case errors.Is(err, io.EOF):
			return data, nil
		case err != nil:
			return nil, err
		}
	}
}
