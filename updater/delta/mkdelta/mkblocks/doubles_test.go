package mkblocks

import (
	"bytes"
	"context"
	"errors"
)

var errStop = errors.New("stop")

// cancelled is a context that ended.
type cancelled struct{ context.Context }

func (cancelled) Err() error { return errStop }

// changing flips a byte once it has been read as a whole.
type changing struct {
	*bytes.Reader
	size, read int
}

func (c *changing) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.Reader.ReadAt(p, off)
	if c.read += n; c.read > c.size && off < 1000 && off+int64(n) > 1000 {
		p[1000-off]++
	}
	return n, err
}
