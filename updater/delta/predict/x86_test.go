package predict

import (
	"bufio"
	"bytes"
	"debug/elf"
	"math/rand/v2"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The walk has a short way for most instructions. It finds what the long way finds.
func TestShortWay(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for round := range 2000 {
		b := make([]byte, 200)
		for i := range b {
			if b[i] = byte(rnd.Uint32()); rnd.IntN(3) == 0 {
				b[i] = []byte{0x0f, 0xe8, 0x48, 0x66, 0x05, 0x84, 0x8b, 0xc7, 0xf6, 0x83, 0xc5, 0x04}[rnd.IntN(12)]
			}
		}
		var want []int
		for i := 0; i < len(b); {
			n, rel, _ := instruction(b[i:])
			if rel > 0 && i+n <= len(b) {
				want = append(want, i+rel)
			}
			i += n
		}
		p := one(KindX86, int64(len(b)))
		var plan Plan
		require.NoError(t, plan.Parse(p.bytes(), nil))
		var got []int
		plan.Scan(b, 0, Run{0, len(b), 0}, func(s Sight) { got = append(got, s.Pos) })
		require.Equal(t, want, got, "round %d", round)
	}
}

// Lengths of instructions are those that objdump shows, in this test's own code.
func TestLengths(t *testing.T) {
	objdump, err := exec.LookPath("objdump")
	if err != nil {
		if os.Getenv("TANDEM_CI") != "" {
			t.Fatal("no objdump")
		}
		t.Skip("no objdump to compare with")
	}
	name, err := os.Executable()
	require.NoError(t, err)
	f, err := elf.Open(name)
	require.NoError(t, err)
	defer f.Close()
	if f.Machine != elf.EM_X86_64 {
		t.Skip("not on x86-64")
	}
	s := f.Section(".text")
	text, err := s.Data()
	require.NoError(t, err)
	const longest = 15 // bytes of an instruction: objdump shows the last one only as far as it goes
	end := s.Addr + 1<<20
	out, err := exec.Command(objdump, "-d", "-w", "--section=.text", "--stop-address="+strconv.FormatUint(end, 10), name).Output()
	require.NoError(t, err)
	line := regexp.MustCompile(`^ *([0-9a-f]+):\t((?:[0-9a-f]{2} )+)\s*(.*)`)
	count, bad := 0, 0
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		m := line.FindStringSubmatch(lines.Text())
		if m == nil || strings.Contains(m[3], "(bad)") {
			continue
		}
		addr, err := strconv.ParseUint(m[1], 16, 64)
		require.NoError(t, err)
		if addr+longest > end {
			break
		}
		count++
		if n, _, _ := instruction(text[addr-s.Addr:]); n != len(m[2])/3 {
			if bad++; bad < 5 {
				t.Log(lines.Text())
			}
		}
	}
	require.Greater(t, count, 100_000)
	require.Zero(t, bad, "of %d instructions", count)
}
