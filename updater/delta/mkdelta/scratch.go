package mkdelta

import (
	"fmt"
	"os"
	"sync"
	"syscall"

	"github.com/tandem-ota/tandem/updater/delta/mkdelta/frames"
)

// scratch is a temporary file that is read as memory: what the blocks of both images unpack to is several times
// their size, and the system may drop from memory what is in a file. It is written by WriteAt only, so that a full
// disk is an error; a write into the mapping would end the program.
type scratch struct {
	file *os.File
	mem  []byte
}

func newScratch(dir string, size int64) (*scratch, error) {
	f, err := frames.Temporary(dir, "mkdelta-")
	if err != nil {
		return nil, err
	}
	s := &scratch{file: f}
	if err = f.Truncate(size); err == nil && size > 0 {
		s.mem, err = syscall.Mmap(int(f.Fd()), 0, int(size), syscall.PROT_READ, syscall.MAP_SHARED)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("map temporary file of %d bytes: %w", size, err)
	}
	return s, nil
}

func (s *scratch) write(b []byte, at int64) error {
	if _, err := s.file.WriteAt(b, at); err != nil {
		return fmt.Errorf("write temporary file: %w", err)
	}
	return nil
}

// slice returns the bytes at an offset; they are valid until close, and not to be written.
func (s *scratch) slice(at, n int64) []byte { return s.mem[at : at+n : at+n] }

func (s *scratch) close() {
	if s.mem != nil {
		syscall.Munmap(s.mem) // fails only if it is not what Mmap gave
	}
	s.file.Close()
}

// spool keeps the plain forms of the new image's pieces, which would fill the memory.
type spool struct {
	*os.File
	mutex sync.Mutex
	end   int64
}

// put writes bytes and returns where they are.
func (s *spool) put(parts ...[]byte) (at int64, err error) {
	n := int64(0)
	for _, b := range parts {
		n += int64(len(b))
	}
	s.mutex.Lock()
	at = s.end
	s.end += n
	s.mutex.Unlock()
	n = at
	for _, b := range parts {
		if _, err := s.WriteAt(b, n); err != nil {
			return 0, fmt.Errorf("write temporary file: %w", err)
		}
		n += int64(len(b))
	}
	return at, nil
}

// keep writes the plain form of a piece, and the mask of its content.
func (s *spool) keep(p *packed, mask []byte, plain ...[]byte) error {
	at, err := s.put(append(plain, mask)...)
	p.plain, p.plainAt, p.maskAt = s, at, at
	for _, b := range plain {
		p.maskAt += int64(len(b))
	}
	return err
}
