// Package frames is what the encoders of payloads have in common: frames are made on
// all cores and handed out in order, and wait in a file without a name until what stands in
// front of them is known. Offsets and sizes are in bytes. It runs on a desk.
package frames

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"
)

// job is a frame being made; done is closed when it is, or when it cannot be.
type job[F any] struct {
	offset int64
	length int
	done   chan struct{}
	frame  F
	err    error
}

// Make makes the frames of an image of size bytes, each of most bytes or what is left at the
// end, and gives them to emit in order. Each maker is used by one goroutine at a time. No more than
// a few finished frames wait at any time, and no goroutine outlives the call.
func Make[F any](ctx context.Context, size int64, most int, makers []func(offset int64, length int) (F, error), emit func(*F) error) error {
	ctx, cancel := context.WithCancel(ctx)
	var workers sync.WaitGroup
	// Cancelled first, waited for second.
	defer workers.Wait()
	defer cancel()

	jobs := make(chan *job[F])
	queue := make(chan *job[F], 2*len(makers)) // the same jobs, in order
	for _, frame := range makers {
		workers.Go(func() {
			for j := range jobs {
				j.frame, j.err = frame(j.offset, j.length)
				close(j.done)
			}
		})
	}
	workers.Go(func() {
		defer close(queue)
		defer close(jobs)
		for offset := int64(0); offset < size; offset += int64(most) {
			j := &job[F]{offset: offset, length: int(min(int64(most), size-offset)), done: make(chan struct{})}
			for _, c := range []chan *job[F]{queue, jobs} {
				select {
				case c <- j:
				case <-ctx.Done():
					return
				}
			}
		}
	})
	for j := range queue {
		select {
		case <-j.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		if j.err != nil {
			return fmt.Errorf("frame at %d: %w", j.offset, j.err)
		}
		if err := emit(&j.frame); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// Temporary makes a file without a name in dir ("" means os.TempDir()): a killed encoder
// leaves nothing behind.
func Temporary(dir, pattern string) (*os.File, error) {
	f, err := os.CreateTemp(dir, pattern)
	if err != nil {
		return nil, fmt.Errorf("make temporary file: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, fmt.Errorf("unlink temporary file: %w", err)
	}
	return f, nil
}

// Spliced is Head followed by Tail.
type Spliced struct {
	Head []byte
	Tail io.ReaderAt
}

// ReadAt implements io.ReaderAt.
func (s *Spliced) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	if off < int64(len(s.Head)) {
		if n = copy(p, s.Head[off:]); n == len(p) {
			return n, nil
		}
	}
	m, err := s.Tail.ReadAt(p[n:], off+int64(n)-int64(len(s.Head)))
	return n + m, err
}
