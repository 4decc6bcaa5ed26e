package image

import (
	"bytes"
	"debug/pe"
	"encoding/binary"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

func testUKI(t testing.TB, stub []byte) UKI {
	return UKI{Stub: stub, OSRelease: []byte("ID=test\n"), Cmdline: "quiet", Initrd: noise(1, 5000), Kernel: noise(2, 10_001)}
}

// The program is a PE file as its format says: sections in order, in memory and in
// the file, apart from each other, on pages, inside the image, with a right sum.
func TestUKIForm(t *testing.T) {
	stub, err := os.ReadFile(testBoard(t).Kernel.Stub)
	require.NoError(t, err)
	u := testUKI(t, stub)
	out, err := u.Build()
	require.NoError(t, err)
	f, err := pe.NewFile(bytes.NewReader(out))
	require.NoError(t, err)
	header := f.OptionalHeader.(*pe.OptionalHeader64)
	want := map[string][]byte{".osrel": u.OSRelease, ".cmdline": []byte(u.Cmdline), ".initrd": u.Initrd, ".linux": u.Kernel}
	var memory, raw uint32
	for _, s := range f.Sections {
		require.GreaterOrEqual(t, s.VirtualAddress, memory, s.Name)
		memory = s.VirtualAddress + s.VirtualSize
		if content, ok := want[s.Name]; ok {
			require.Zero(t, s.VirtualAddress%pageSize)
			require.Zero(t, s.Offset%pageSize)
			require.GreaterOrEqual(t, s.Offset, raw, s.Name)
			data, err := s.Data()
			require.NoError(t, err)
			require.True(t, bytes.Equal(content, data[:s.VirtualSize]), s.Name)
			delete(want, s.Name)
		}
		raw = s.Offset + s.Size
	}
	require.Empty(t, want)
	require.Equal(t, ".linux", f.Sections[len(f.Sections)-1].Name, "the kernel needs the room behind it")
	require.GreaterOrEqual(t, header.SizeOfImage, memory)
	require.Zero(t, header.SizeOfImage%header.SectionAlignment)
	require.EqualValues(t, raw, len(out))

	// The sum again, the long way: all words but the field, with end-around carry.
	field := int(binary.LittleEndian.Uint32(out[0x3c:])) + coffSize + optChecksum
	var sum uint64
	for i := 0; i < len(out); i += 2 {
		if i < field || i >= field+4 {
			sum += uint64(out[i]) | uint64(out[i+1])<<8
		}
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	require.Equal(t, uint32(sum)+uint32(len(out)), header.CheckSum)
}

// A section that is missing is named: without it the device would not start.
func TestUKIEmptySection(t *testing.T) {
	stub, err := os.ReadFile(testBoard(t).Kernel.Stub)
	require.NoError(t, err)
	for name, drop := range map[string]func(u *UKI){
		".linux": func(u *UKI) { u.Kernel = nil }, ".initrd": func(u *UKI) { u.Initrd = nil },
		".cmdline": func(u *UKI) { u.Cmdline = "" }, ".osrel": func(u *UKI) { u.OSRelease = nil },
	} {
		u := testUKI(t, stub)
		drop(&u)
		_, err := u.Build()
		require.ErrorContains(t, err, name)
	}
}

// A stub that is cut short or damaged in its headers gives an error or a program
// that can be read, and never a panic.
func TestUKIDamagedStub(t *testing.T) {
	stub, err := os.ReadFile(testBoard(t).Kernel.Stub)
	require.NoError(t, err)
	try := func(stub []byte) {
		out, err := testUKI(t, stub).Build()
		if err == nil {
			_, err = pe.NewFile(bytes.NewReader(out))
			require.NoError(t, err)
		}
	}
	// The headers are in the first KiB; the rest only takes time.
	front := stub[:2048]
	for size := range len(front) {
		try(front[:size])
	}
	for bit := range 1024 * 8 {
		damaged := bytes.Clone(front)
		damaged[bit/8] ^= 1 << (bit % 8)
		try(damaged)
	}
}

func FuzzUKI(f *testing.F) {
	if stub, err := os.ReadFile("/usr/lib/systemd/boot/efi/linuxx64.efi.stub"); err == nil {
		f.Add(stub[:2048])
	}
	f.Add([]byte("MZ"))
	f.Fuzz(func(t *testing.T, stub []byte) { _, _ = testUKI(t, stub).Build() })
}
