package mkrelease

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/tandem-ota/tandem/updater/delta/mkdelta"
	"github.com/tandem-ota/tandem/updater/manifest"
)

// ErrDevices means that a count of devices per version cannot be read.
var ErrDevices = errors.New("devices per version")

// Devices says how many devices run a version.
type Devices map[string]int

// ParseDevices reads counts of devices, as "1.0.0=1200,1.1.0=30" or in lines "1.0.0 1200";
// what follows a # is left out. A version that is named twice is an error: one of the counts is wrong.
func ParseDevices(s string) (Devices, error) {
	d := Devices{}
	for line := range strings.Lines(strings.ReplaceAll(s, ",", "\n")) {
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(strings.Replace(line, "=", " ", 1))
		if len(fields) == 0 {
			continue
		}
		if len(fields) != 2 {
			return nil, fmt.Errorf("%w: %q is not VERSION=COUNT", ErrDevices, strings.TrimSpace(line))
		}
		n, err := strconv.Atoi(fields[1])
		if err != nil || n < 0 {
			return nil, fmt.Errorf("%w: %q is no count", ErrDevices, fields[1])
		}
		if _, ok := d[fields[0]]; ok {
			return nil, fmt.Errorf("%w: version %s is named twice", ErrDevices, fields[0])
		}
		d[fields[0]] = n
	}
	return d, nil
}

// Chain decides which bases deserve a delta. Its zero value gives one to each.
type Chain struct {
	// Devices says where the fleet is. With nil nobody counted, and each base gets a delta.
	Devices Devices

	// What a delta has to save: so many bytes over all of its devices, on top of the bytes
	// that keeping it takes; this share of each device's download; and so many bytes for each second
	// of the encoder.
	MinBytes  int64
	MinShare  float64
	PerSecond int64
}

// Candidate is a delta that could be made, or was.
type Candidate struct {
	Devices int           // that have the base
	Delta   int64         // its bytes, expected or made
	Without int64         // bytes that each of the devices downloads if there is none
	Index   int64         // bytes of the index payload that they would download; 0 if there is none
	Time    time.Duration // that making it takes
}

// Choice is what becomes of a candidate. The reason is for people.
type Choice struct {
	Make   bool
	Saved  int64 // over all devices
	Cost   int64 // that Saved has to exceed
	Reason string
}

// Choose weighs what a delta saves the fleet against what making and keeping it costs. It depends on
// nothing but its arguments.
func (c Chain) Choose(x Candidate) Choice {
	out := Choice{Saved: int64(x.Devices) * (x.Without - x.Delta), Cost: x.Delta + c.MinBytes + int64(x.Time.Seconds()*float64(c.PerSecond))}
	share := 1 - float64(x.Delta)/float64(max(x.Without, 1))
	switch {
	case c.Devices == nil && x.Delta < x.Without:
		out = Choice{Make: true, Reason: "no count of devices"}
	case c.Devices == nil:
		out.Reason = fmt.Sprintf("not smaller than the %s without it", people(x.Without))
	case x.Devices == 0:
		out.Reason = "no device has this base"
	case x.Delta >= x.Without:
		out.Reason = fmt.Sprintf("not smaller than the %s without it", people(x.Without))
	case share < c.MinShare:
		out.Reason = fmt.Sprintf("saves %.1f %% of the %s without it, less than %.1f %%", 100*share, people(x.Without), 100*c.MinShare)
	case out.Saved <= out.Cost:
		out.Reason = fmt.Sprintf("saves %d devices %s, and costs %s", x.Devices, people(out.Saved), people(out.Cost))
	default:
		out.Make = true
		out.Reason = fmt.Sprintf("saves %d devices %s", x.Devices, people(out.Saved))
	}
	return out
}

// people writes bytes as people read them.
func people(n int64) string {
	const units = "kMGTP"
	if n < 1000 && n > -1000 {
		return fmt.Sprintf("%d B", n)
	}
	f := float64(n) / 1000
	i := 0
	for f >= 1000 && i < len(units)-1 || f <= -1000 && i < len(units)-1 {
		f, i = f/1000, i+1
	}
	return fmt.Sprintf("%.1f %cB", f, units[i])
}

const (
	// expectShare is how large a delta is expected to be, as a share of the blocks that the base
	// lacks: 0.21 for all security updates of a Debian image, 0.05 for one package. Only a delta that is
	// made tells, and is then weighed again.
	expectShare = 0.3

	// encoderRate is what a core makes of a delta, in image bytes per second, until one was made: a
	// Debian image of 840 MiB took four minutes on two.
	encoderRate = 1.7 * (1 << 20)

	noveltyBlock = 4 << 10
)

// Weighed is what became of the delta from one base of one image.
type Weighed struct {
	Image       string          `json:"image"`
	Base        manifest.Digest `json:"base"`
	BaseVersion string          `json:"base_version"`
	Devices     int             `json:"devices"`
	Delta       int64           `json:"delta"` // expected, if it was not made
	Without     int64           `json:"without"`
	Saved       int64           `json:"saved"`
	Made        bool            `json:"made"`
	Kept        bool            `json:"kept"`
	Reason      string          `json:"reason"`
}

func (b *build) note(im, old manifest.Image, version string, x Candidate, c Choice, made bool) {
	if b.o.Chain.Devices == nil {
		return // nobody asked
	}
	b.result.Weighed = append(b.result.Weighed, Weighed{
		Image: im.Name, Base: old.Digest, BaseVersion: version, Devices: x.Devices, Delta: x.Delta,
		Without: x.Without, Saved: c.Saved, Made: made, Kept: made && c.Make, Reason: c.Reason,
	})
}

// weigh returns the image of a base if a delta from it is worth trying, and what is known of that delta.
func (b *build) weigh(ctx context.Context, im *manifest.Image, base *base, old manifest.Image, target mkdelta.Image, full made, index *made) (*os.File, Candidate, error) {
	x := Candidate{Devices: b.has(old.Digest), Without: full.Blob.Size}
	chosen := b.o.Chain.Devices != nil
	if chosen && x.Devices == 0 {
		b.note(*im, old, base.m.Version, x, b.o.Chain.Choose(x), false)
		return nil, x, nil
	}
	f, err := base.rebuild(ctx, old, b.tmp, b.o.Progress)
	if err == nil && index != nil {
		x.Index, err = b.download(*im, *index, f, old.Size, base.m.Version)
		x.Without = min(x.Without, x.Index)
	}
	if err != nil || !chosen {
		return f, x, err
	}
	if x, err = b.expected(ctx, im, x, mkdelta.Image{ReaderAt: f, Size: old.Size}, target); err != nil {
		return nil, x, err
	}
	if c := b.o.Chain.Choose(x); !c.Make {
		c.Reason += " (expected)"
		b.note(*im, old, base.m.Version, x, c, false)
		return nil, x, nil
	}
	return f, x, nil
}

// timed notes how long a delta took, for the next one.
func (b *build) timed(size int64, took time.Duration) {
	b.rate = float64(size) / max(took.Seconds(), 0.001)
}

// elsewhere are the devices whose version no base is of.
func (b *build) elsewhere() Devices {
	out := Devices{}
	for version, n := range b.o.Chain.Devices {
		if n > 0 && !slices.ContainsFunc(b.bases, func(base *base) bool { return base.m.Version == version }) {
			out[version] = n
		}
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// has counts the devices that have an image, whichever of the bases it came with.
func (b *build) has(digest manifest.Digest) int {
	n := 0
	counted := map[string]bool{}
	for _, base := range b.bases {
		holds := slices.ContainsFunc(base.m.Images, func(im manifest.Image) bool { return im.Digest == digest })
		if holds && !counted[base.m.Version] {
			counted[base.m.Version] = true
			n += b.o.Chain.Devices[base.m.Version]
		}
	}
	return n
}

// expected says what is to be expected of a delta that is not made yet; c.Without is the full payload.
func (b *build) expected(ctx context.Context, im *manifest.Image, c Candidate, base, target mkdelta.Image) (Candidate, error) {
	lacks, err := novelty(ctx, base, target)
	if err != nil {
		return c, err
	}
	rate := b.rate
	if rate == 0 {
		rate = encoderRate * float64(runtime.GOMAXPROCS(0))
	}
	c.Delta = int64(expectShare * float64(min(lacks, c.Without)))
	c.Time = time.Duration(float64(im.Size) / rate * float64(time.Second)).Round(time.Second)
	return c, nil
}

// novelty returns how many bytes of compressed blocks target has and base lacks.
func novelty(ctx context.Context, base, target mkdelta.Image) (int64, error) {
	known := map[[12]byte]bool{}
	key := func(b []byte) [12]byte {
		sum := sha256.Sum256(b)
		return [12]byte(sum[:12])
	}
	zero := make([]byte, noveltyBlock)
	err := hashes(ctx, base, func(b []byte) { known[key(b)] = true })
	if err != nil {
		return 0, fmt.Errorf("read old image: %w", err)
	}
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return 0, err
	}
	defer e.Close()
	var fresh, packed []byte
	n := int64(0)
	flush := func() {
		packed = e.EncodeAll(fresh, packed[:0])
		n += int64(len(packed))
		fresh = fresh[:0]
	}
	err = hashes(ctx, target, func(b []byte) {
		k := key(b)
		if known[k] || bytes.Equal(b, zero[:len(b)]) {
			return
		}
		known[k] = true // the second time it is there
		if fresh = append(fresh, b...); len(fresh) >= 1<<20 {
			flush()
		}
	})
	if err != nil {
		return 0, fmt.Errorf("read new image: %w", err)
	}
	if len(fresh) > 0 {
		flush()
	}
	return n, nil
}

// hashes hands out an image block by block.
func hashes(ctx context.Context, im mkdelta.Image, do func([]byte)) error {
	buf := make([]byte, 1<<20)
	for off := int64(0); off < im.Size; off += int64(len(buf)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		b := buf[:min(int64(len(buf)), im.Size-off)]
		if n, err := im.ReadAt(b, off); n != len(b) {
			return fmt.Errorf("at %d: %w", off, errors.Join(err, io.ErrUnexpectedEOF))
		}
		for block := range slices.Chunk(b, noveltyBlock) {
			do(block)
		}
	}
	return nil
}

// ReadDevices takes counts from a file of that name, or from the words themselves.
func ReadDevices(s string) (Devices, error) {
	data, err := os.ReadFile(s)
	if errors.Is(err, os.ErrNotExist) && strings.Contains(s, "=") {
		return ParseDevices(s)
	} else if err != nil {
		return nil, err
	}
	d, err := ParseDevices(string(data))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s, err)
	}
	return d, nil
}

// ParseSaving reads what a delta has to save at least: bytes, as 50000000 or 50M, or a share, as 5%.
func ParseSaving(s string) (bytes int64, share float64, err error) {
	bad := fmt.Errorf("saving %q is neither bytes, as 50M, nor a share, as 5%%", s)
	if p, ok := strings.CutSuffix(s, "%"); ok {
		f, err := strconv.ParseFloat(strings.TrimSpace(p), 64)
		if err != nil || !(f >= 0 && f <= 100) {
			return 0, 0, bad
		}
		return 0, f / 100, nil
	}
	if bytes, err = ParseBytes(s); err != nil {
		return 0, 0, bad
	}
	return bytes, 0, nil
}

// ParseBytes reads a number of bytes, as 50000000 or 50M.
func ParseBytes(s string) (int64, error) {
	number, unit := s, int64(1)
	for i, suffix := range []string{"k", "M", "G", "T"} {
		if cut, ok := strings.CutSuffix(s, suffix); ok {
			number = cut
			for range i + 1 {
				unit *= 1000
			}
			break
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 0 || n > 1<<62/unit {
		return 0, fmt.Errorf("%q is not a number of bytes, as 50M", s)
	}
	return n * unit, nil
}
