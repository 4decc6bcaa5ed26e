package verity

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

var (
	// ErrNotActive means that there is no mapped device of this name.
	ErrNotActive = errors.New("no such mapped device")
	// ErrActive means that there already is a mapped device of this name. Whoever
	// made it, it is not the one that was asked for; look at it with Status.
	ErrActive = errors.New("mapped device exists")
)

// State is what the kernel says about an active verity device.
type State struct {
	Params            // as the kernel holds them
	Device     string // the mapped device's node, as /dev/dm-0
	DataDevice string // "major:minor" of what lies below
	Corrupted  bool   // a damaged block has been met since the device was opened
}

// Activate opens a read-only verity device over dataDev and returns its node,
// /dev/dm-N. Data and tree are both on dataDev. The kernel holds dataDev from
// then on, so that partition.OpenFile on it is ErrBusy.
//
// Nothing is read yet: a wrong root hash shows at the first read, as EIO. If
// Activate fails, no device is left behind; calling it again is safe. It is
// ErrActive if the name is taken, ErrParams if p makes no sense. It needs
// CAP_SYS_ADMIN and the kernel modules dm_mod and dm_verity.
func Activate(name, dataDev string, p Params) (dev string, err error) {
	c, err := openControl()
	if err != nil {
		return "", err
	}
	defer c.Close()
	var st unix.Stat_t
	if err := unix.Stat(dataDev, &st); err != nil {
		return "", fmt.Errorf("open verity on %s: %w", dataDev, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return "", fmt.Errorf("open verity on %s: not a block device", dataDev)
	}
	number, err := activate(c, name, fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)), p)
	if err != nil {
		return "", fmt.Errorf("open verity on %s: %w", dataDev, err)
	}
	dev = node(number)
	// The kernel makes the node where /dev is a devtmpfs; on a static /dev we do.
	err = unix.Mknod(dev, unix.S_IFBLK|0o600, int(number))
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return "", errors.Join(fmt.Errorf("open verity on %s: make %s: %w", dataDev, dev, err), remove(c, name))
	}
	return dev, nil
}

// Status describes an active verity device. It is ErrNotActive if there is none
// of this name, and ErrParams if the device is not one that Activate could have made.
func Status(name string) (State, error) {
	c, err := openControl()
	if err != nil {
		return State{}, err
	}
	defer c.Close()
	return status(c, name)
}

// Remove closes a verity device. It is ErrNotActive if there is none; EBUSY means
// that it is mounted or open.
func Remove(name string) error {
	c, err := openControl()
	if err != nil {
		return err
	}
	defer c.Close()
	return remove(c, name)
}

// The interface of linux/dm-ioctl.h, version 4.0.0, which all kernels since 2.6 keep.
const (
	dmCreate  = 3
	dmRemove  = 4
	dmSuspend = 6 // without dmFlagSuspend it means resume
	dmLoad    = 9
	dmStatus  = 12

	dmFlagReadOnly   = 1 << 0
	dmFlagTable      = 1 << 4 // the table instead of the status
	dmFlagBufferFull = 1 << 8

	dmHeader = 312 // sizeof(struct dm_ioctl)
	dmTarget = 40  // sizeof(struct dm_target_spec)
	dmName   = 48  // offset of the name, 128 bytes
	maxName  = 127
	dmBuffer = 16 << 10
)

// control is the device mapper; a kernel in the tests.
type control interface {
	// call does a command. The answer overwrites the request.
	call(command int, buf []byte) error
}

type controlFile struct{ *os.File }

func openControl() (controlFile, error) {
	f, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	if err != nil {
		return controlFile{}, fmt.Errorf("device mapper (is the module dm_mod loaded?): %w", err)
	}
	return controlFile{f}, nil
}

func (c controlFile) call(command int, buf []byte) error {
	// _IOWR(0xfd, command, struct dm_ioctl)
	request := uintptr(3<<30|dmHeader<<16|0xfd<<8) | uintptr(command)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, c.Fd(), request, uintptr(unsafe.Pointer(&buf[0])))
	if errno != 0 {
		return errno
	}
	return nil
}

// request is a struct dm_ioctl with room for data behind it, in the byte order
// of the machine.
func request(name string, flags uint32, size int) ([]byte, error) {
	if name == "" || len(name) > maxName || strings.ContainsAny(name, "/\x00") {
		return nil, fmt.Errorf("%w: device name %q", ErrParams, name)
	}
	b := make([]byte, max(size, dmHeader))
	binary.NativeEndian.PutUint32(b[0:], 4) // interface version 4.0.0
	binary.NativeEndian.PutUint32(b[12:], uint32(len(b)))
	binary.NativeEndian.PutUint32(b[16:], dmHeader)
	binary.NativeEndian.PutUint32(b[28:], flags)
	copy(b[dmName:], name)
	return b, nil
}

func activate(c control, name, dataDevice string, p Params) (number uint64, err error) {
	if err := p.check(); err != nil {
		return 0, err
	}
	create, err := request(name, dmFlagReadOnly, 0)
	if err != nil {
		return 0, err
	}
	load, err := loadRequest(name, dataDevice, p)
	if err != nil {
		return 0, err
	}
	if err := c.call(dmCreate, create); errors.Is(err, unix.EBUSY) {
		return 0, fmt.Errorf("%s: %w", name, ErrActive)
	} else if err != nil {
		return 0, fmt.Errorf("create %s: %w", name, err)
	}
	number = binary.NativeEndian.Uint64(create[40:])
	if err := c.call(dmLoad, load); err != nil {
		// The kernel log says more; here it is always EINVAL.
		return 0, errors.Join(fmt.Errorf("load table of %s (is the module dm_verity loaded?): %w", name, err), remove(c, name))
	}
	resume, err := request(name, 0, 0)
	if err != nil {
		return 0, err
	}
	if err := c.call(dmSuspend, resume); err != nil {
		return 0, errors.Join(fmt.Errorf("resume %s: %w", name, err), remove(c, name))
	}
	return number, nil
}

func loadRequest(name, dataDevice string, p Params) ([]byte, error) {
	args := table(dataDevice, p)
	spec := (dmTarget + len(args) + 1 + 7) &^ 7 // a terminating zero, padded to 8
	b, err := request(name, dmFlagReadOnly, dmHeader+spec)
	if err != nil {
		return nil, err
	}
	binary.NativeEndian.PutUint32(b[20:], 1) // one target
	t := b[dmHeader:]
	binary.NativeEndian.PutUint64(t[8:], uint64(p.DataBlocks)*(BlockSize/512)) // length in sectors
	binary.NativeEndian.PutUint32(t[20:], uint32(spec))
	copy(t[24:], "verity")
	copy(t[dmTarget:], args)
	return b, nil
}

// table is the target's line as verity.rst describes it.
func table(dataDevice string, p Params) string {
	salt := "-"
	if len(p.Salt) > 0 {
		salt = hex.EncodeToString(p.Salt)
	}
	s := fmt.Sprintf("1 %s %s %d %d %d %d sha256 %x %s", dataDevice, dataDevice, BlockSize, BlockSize,
		p.DataBlocks, p.HashOffset/BlockSize+1, p.Root, salt)
	if p.OnCorrupt != Fail {
		s += " 1 " + string(p.OnCorrupt)
	}
	return s
}

func parseTable(s string) (dataDevice string, p Params, err error) {
	f := strings.Fields(s)
	if len(f) < 10 || f[0] != "1" || f[1] != f[2] || f[3] != "4096" || f[4] != "4096" || f[7] != "sha256" {
		return "", Params{}, fmt.Errorf("%w: table %q is not ours", ErrParams, s)
	}
	p, err = ParseParams(strings.Join([]string{paramsVersion, f[5], f[9], f[8]}, ","))
	if err != nil {
		return "", Params{}, err
	}
	start, err := strconv.ParseInt(f[6], 10, 64)
	if err != nil || start < 1 || start > 2*maxBlocks {
		return "", Params{}, fmt.Errorf("%w: hash start %q", ErrParams, f[6])
	}
	p.HashOffset = (start - 1) * BlockSize
	switch len(f) {
	case 10:
	case 12: // "1 <option>"
		p.OnCorrupt = Corruption(f[11])
	default:
		return "", Params{}, fmt.Errorf("%w: table %q has other options", ErrParams, s)
	}
	return f[1], p, p.check()
}

func status(c control, name string) (State, error) {
	line, number, err := ask(c, name, dmFlagTable)
	if err != nil {
		return State{}, fmt.Errorf("table of %s: %w", name, err)
	}
	s := State{Device: node(number)}
	if s.DataDevice, s.Params, err = parseTable(line); err != nil {
		return State{}, fmt.Errorf("table of %s: %w", name, err)
	}
	line, _, err = ask(c, name, 0)
	if err != nil {
		return State{}, fmt.Errorf("status of %s: %w", name, err)
	}
	switch line { // verity.rst: V for valid, C for corruption detected
	case "V":
	case "C":
		s.Corrupted = true
	default:
		return State{}, fmt.Errorf("status of %s: %w: %q", name, ErrParams, line)
	}
	return s, nil
}

// ask returns the table or the status line of the only target.
func ask(c control, name string, flags uint32) (line string, number uint64, err error) {
	b, err := request(name, flags, dmBuffer)
	if err != nil {
		return "", 0, err
	}
	if err := c.call(dmStatus, b); errors.Is(err, unix.ENXIO) {
		return "", 0, ErrNotActive
	} else if err != nil {
		return "", 0, err
	}
	start, size := binary.NativeEndian.Uint32(b[16:]), binary.NativeEndian.Uint32(b[12:])
	if binary.NativeEndian.Uint32(b[28:])&dmFlagBufferFull != 0 || size > dmBuffer || start > size || size-start < dmTarget {
		return "", 0, fmt.Errorf("%w: answer of %d bytes", ErrParams, size)
	}
	t := b[start:size]
	if n := binary.NativeEndian.Uint32(b[20:]); n != 1 || text(t[24:dmTarget]) != "verity" {
		return "", 0, fmt.Errorf("%w: %d targets, the first is %q", ErrParams, n, text(t[24:dmTarget]))
	}
	return text(t[dmTarget:]), binary.NativeEndian.Uint64(b[40:]), nil
}

func remove(c control, name string) error {
	b, err := request(name, 0, 0)
	if err != nil {
		return err
	}
	if err := c.call(dmRemove, b); errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("remove %s: %w", name, ErrNotActive)
	} else if err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return nil
}

// text is what stands before the first zero byte.
func text(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte{0})
	return string(b)
}

func node(number uint64) string { return fmt.Sprintf("/dev/dm-%d", unix.Minor(number)) }
