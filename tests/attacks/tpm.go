package attacks

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"io"

	"github.com/google/go-tpm/tpm2"
	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/partition/disktest"
	"github.com/tandem-ota/tandem/tpm"
)

// tpmAttacks are a security chip that lies, breaks, or is somebody in between. It can keep
// the proof of an install from being made; it must not have an install entered that was
// not, or twice, nor take the program down.
var tpmAttacks = []Attack{
	lyingTPM("short-reply", "a reply cut off at each byte", func(c *chip) {
		for n := range 120 {
			c.lie("%d bytes", func(_, reply []byte) ([]byte, error) { return reply[:min(n, max(0, len(reply)-1))], nil }, n)
		}
	}),
	lyingTPM("empty-reply", "no reply at all, and none that is an error", func(c *chip) {
		c.lie("nil", func(_, _ []byte) ([]byte, error) { return nil, nil })
		c.lie("empty", func(_, _ []byte) ([]byte, error) { return []byte{}, nil })
	}),
	lyingTPM("huge-size-field", "a reply that says it has up to four gigabytes, in its header and in every place inside", func(c *chip) {
		for _, size := range []uint32{0, 1, 9, 11, 1 << 16, 1 << 31, 1<<32 - 1} {
			c.lie("%d bytes", func(_, reply []byte) ([]byte, error) {
				binary.BigEndian.PutUint32(reply[2:], size)
				return append(reply, 0), nil
			}, size)
		}
		for at := 10; at < 60; at++ {
			c.lie("ff at byte %d", func(_, reply []byte) ([]byte, error) {
				if at+4 <= len(reply) {
					copy(reply[at:], "\xff\xff\xff\xff")
				}
				return append(reply[:min(at, len(reply))], "\xff\xff\xff\xff"...), nil
			}, at)
		}
	}),
	lyingTPM("wrong-tag", "a reply with the tag of no reply", func(c *chip) {
		for _, tag := range []uint16{0, 0x00c4, 0x8003, 0xffff} {
			c.lie("tag %#x", func(_, reply []byte) ([]byte, error) { binary.BigEndian.PutUint16(reply, tag); return reply[:10], nil }, tag)
		}
	}),
	lyingTPM("every-error-code", "a refusal of each command, with every code that there is", func(c *chip) {
		for code := range uint32(0x1000) {
			// Retry, yielded, testing: the program asks again until it has had enough.
			if code == 0 || code%41 != 0 && code != uint32(tpm2.TPMRCLockout) && code != uint32(tpm2.TPMRCNVLocked) {
				continue
			}
			c.lie("code %#x", refuse(code), code)
		}
		for _, code := range []tpm2.TPMRC{tpm2.TPMRCLockout, tpm2.TPMRCHash, tpm2.TPMRCNVLocked, tpm2.TPMRCFailure, tpm2.TPMRCInitialize, 1<<32 - 1} {
			c.lie("code %#x", refuse(uint32(code)), code)
		}
	}),
	lyingTPM("busy-for-ever", "a chip that asks for patience and never has a reply", func(c *chip) {
		c.lie("retry", refuse(uint32(tpm2.TPMRCRetry)))
	}),
	lyingTPM("noise", "bytes at random, with and without a header", func(c *chip) {
		sum := sha256.Sum256(nil)
		for i := range 60 {
			sum = sha256.Sum256(sum[:])
			noise := bytes.Repeat(sum[:], 1+i%5)
			c.lie("%d", func(_, reply []byte) ([]byte, error) {
				if i%2 == 0 {
					return noise, nil
				}
				return append(reply[:min(10, len(reply))], noise...), nil
			}, i)
		}
	}),
	lyingTPM("reply-to-another-command", "the reply to what was asked before", func(c *chip) {
		var before []byte
		c.lie("one behind", func(_, reply []byte) ([]byte, error) {
			was := before
			before = reply
			return was, nil
		})
	}),
	lyingTPM("disconnected", "a line that breaks at the first to the tenth command, before or after it", func(c *chip) {
		for n := range 10 {
			left := n
			c.lie("command %d", func(_, reply []byte) ([]byte, error) {
				if left--; left < 0 {
					return nil, io.ErrUnexpectedEOF
				}
				return reply, nil
			}, n)
		}
	}),
	lyingTPM("index-of-another-size", "an NV index under the ledger's number that is none", func(c *chip) {
		for _, size := range []uint16{0, 1, 31, 33, 2048, 0xffff} {
			c.lie("%d bytes", func(command, reply []byte) ([]byte, error) {
				if commandCode(command) == tpm2.TPMCCNVReadPublic && len(reply) > 26 {
					// header, size, index, name algorithm, attributes, policy, data size
					binary.BigEndian.PutUint16(reply[10+2+4+2+4+2:], size)
				}
				return reply, nil
			}, size)
		}
		for bit := range 32 {
			if bit == 29 {
				continue // TPMA_NV_WRITTEN is what changes
			}
			c.lie("attribute %d", func(command, reply []byte) ([]byte, error) {
				if commandCode(command) == tpm2.TPMCCNVReadPublic && len(reply) > 26 {
					attributes := reply[10+2+4+2:]
					binary.BigEndian.PutUint32(attributes, binary.BigEndian.Uint32(attributes)^1<<bit)
				}
				return reply, nil
			}, bit)
		}
	}),
	{
		// Neither copy of the log leads to what the chip says it holds: nothing is entered
		// behind anybody's back.
		Name: "tpm/ledger-that-no-log-explains", Input: "a value in the ledger that neither copy of the log leads to", Want: tpm.ErrLedgerMismatch, Threats: []string{suitUnapproved},
		Run: func(s *Scene) error {
			c := s.chip()
			c.value = tpm.Digest(sha256.Sum256([]byte("somebody else's")))
			return c.ledger().Install("next", digestOf(theDesk().next))
		},
	},
	{
		Name: "tpm/ledger-that-went-back", Input: "a ledger that holds each of the values that it once had", Want: tpm.ErrLedgerMismatch, Threats: []string{tufRollback, uptaneRollback},
		Run: func(s *Scene) error {
			c := s.chip()
			var once []tpm.Digest
			for i := range byte(4) {
				once = append(once, c.value)
				require.NoError(s, c.ledger().Add(tpm.Digest{i}, [16]byte{i}))
			}
			s.Keep("the logs, once written", c.logged)
			// The value just before the last is what a power cut leaves; the log says so.
			for i, value := range once[:3] {
				c.value = value
				c.written = i > 0
				s.Variant(c.ledger().Install("next", digestOf(theDesk().next)), "the value before install %d", i)
				s.Variant(c.ledger().Resume(), "the value before install %d, at a boot", i)
			}
			return nil
		},
	},
	{
		Name: "tpm/extends-and-does-not", Input: "a chip that says it entered an install and did not, or entered another", Want: tpm.ErrLedgerMismatch, Threats: []string{suitUnapproved},
		Run: func(s *Scene) error {
			for i, instead := range []func(c *chip){
				func(*chip) {},
				func(c *chip) { c.extend(tpm.Digest{66}) },
				func(c *chip) { c.extend(digestOf(theDesk().next)); c.extend(digestOf(theDesk().next)) },
				func(c *chip) { c.value, c.written = tpm.Digest{}, false },
			} {
				c := s.chip()
				require.NoError(s, c.ledger().Install("first", digestOf(theDesk().first)))
				c.instead = instead
				s.Variant(c.ledger().Install("next", digestOf(theDesk().next)), "instead %d", i)
			}
			return nil
		},
	},
	{
		Name: "tpm/measures-nothing", Input: "a chip without the bank, and one whose register does not take a measurement", Want: tpm.ErrNotMeasured, Threats: []string{suitNonAuth},
		Run: func(s *Scene) error {
			c := s.chip()
			c.noExtend = true
			_, err := c.tpm().Measure(14, digestOf(theDesk().first))
			s.Variant(err, "takes the command and does nothing")
			c.noBank = true
			_, err = c.tpm().Measure(14, digestOf(theDesk().first))
			s.Variant(err, "no bank")
			return nil
		},
	},
	{
		// The log is on partitions that nothing verifies. What is garbled in one copy the
		// other knows; what both have lost is said.
		Name: "tpm/log-garbled", Input: "a copy of the ledger's log with any bit flipped, cut off anywhere, or of noise", Threats: []string{suitModification},
		Run: func(s *Scene) error {
			c := s.chip()
			for i := range byte(3) {
				require.NoError(s, c.ledger().Add(tpm.Digest{i}, [16]byte{i}))
			}
			s.Keep("the other copy", c.logs[1].Bytes)
			whole := c.logs[0].Bytes()
			for bit := 0; bit < 3*512*8; bit += 31 {
				c.logs[0] = disktest.New(whole)
				c.logs[0].Flip(int64(bit/8), bit%8)
				require.NoError(s, c.ledger().Resume(), "bit %d", bit)
				require.True(s, bytes.Equal(whole, c.logs[0].Bytes()), "bit %d is not mended from the other copy", bit)
				s.Variant(nil, "bit %d", bit)
			}
			return nil
		},
	},
}

// refuse is a chip that answers each command with a code.
func refuse(code uint32) func(_, _ []byte) ([]byte, error) {
	return func(_, _ []byte) ([]byte, error) { return reply(tpm2.TPMRC(code), nil), nil }
}

// chip is as much of a TPM as the ledger and the register of a device need, which says
// something else than it should when it has a lie to tell.
type chip struct {
	s        *Scene
	value    tpm.Digest
	defined  bool
	written  bool
	register tpm.Digest
	logs     [2]*disktest.Disk

	lying    func(command, reply []byte) ([]byte, error)
	instead  func(c *chip) // of extending the index
	noExtend bool
	noBank   bool
}

func (s *Scene) chip() *chip {
	s.device(theDesk().first, theDesk().old).keep(everything...)
	return &chip{s: s, logs: [2]*disktest.Disk{disktest.New(make([]byte, 8*512)), disktest.New(make([]byte, 8*512))}}
}

func (c *chip) tpm() *tpm.TPM { return tpm.New(c) }

func (c *chip) ledger() *tpm.Ledger {
	return c.tpm().Ledger(tpm.LedgerOptions{Logs: []tpm.Log{c.logs[0], c.logs[1]}})
}

func (c *chip) logged() []byte { return append(c.logs[0].Bytes(), c.logs[1].Bytes()...) }

func (c *chip) extend(d tpm.Digest) { c.value, c.written = tpm.Extended(c.value, d), true }

// Send is what the chip answers.
func (c *chip) Send(command []byte) ([]byte, error) {
	answer := c.answer(command)
	if c.lying != nil {
		return c.lying(command, answer)
	}
	return answer, nil
}

func commandCode(command []byte) tpm2.TPMCC { return tpm2.TPMCC(binary.BigEndian.Uint32(command[6:])) }

func (c *chip) answer(command []byte) []byte {
	switch commandCode(command) {
	case tpm2.TPMCCNVReadPublic:
		if !c.defined {
			return reply(tpm2.TPMRCHandle|1<<8, nil)
		}
		return reply(tpm2.TPMRCSuccess, c.public())
	case tpm2.TPMCCNVDefineSpace:
		c.defined = true
		return replyInSession(nil)
	case tpm2.TPMCCNVExtend:
		if c.instead != nil {
			c.instead(c)
		} else {
			c.extend(tpm.Digest(command[len(command)-32:]))
		}
		return replyInSession(nil)
	case tpm2.TPMCCNVRead:
		return replyInSession(append([]byte{0, 32}, c.value[:]...))
	case tpm2.TPMCCGetCapability:
		return reply(tpm2.TPMRCSuccess, []byte{0, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0x0b, 3, 0xff, 0xff, 0xff})
	case tpm2.TPMCCPCRExtend:
		if !c.noExtend {
			c.register = tpm.Extended(c.register, tpm.Digest(command[len(command)-32:]))
		}
		return replyInSession(nil)
	case tpm2.TPMCCPCRRead:
		selection := append([]byte{0, 0, 0, 9, 0, 0, 0, 1}, command[14:]...) // the counter, and what was asked for
		if c.noBank {
			return reply(tpm2.TPMRCSuccess, append(selection, 0, 0, 0, 0))
		}
		return reply(tpm2.TPMRCSuccess, append(append(selection, 0, 0, 0, 1, 0, 32), c.register[:]...))
	}
	return reply(tpm2.TPMRCCommandCode, nil)
}

// public is what the chip says of the ledger's index: the attributes of tpm/FORMAT.md.
func (c *chip) public() []byte {
	be := binary.BigEndian
	attributes := uint32(0x02060044)
	if c.written {
		attributes |= 1 << 29
	}
	area := be.AppendUint32(nil, tpm.LedgerIndex)
	area = be.AppendUint16(area, uint16(tpm2.TPMAlgSHA256))
	area = be.AppendUint32(area, attributes)
	area = append(area, 0, 0, 0, 32) // no policy; the size of the data
	sum := sha256.Sum256(area)
	out := append(be.AppendUint16(nil, uint16(len(area))), area...)
	return append(append(out, 0, 34, 0, 0x0b), sum[:]...)
}

// reply is a response without sessions, replyInSession one with the password's.
func reply(code tpm2.TPMRC, parameters []byte) []byte {
	out := binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMSTNoSessions))
	out = binary.BigEndian.AppendUint32(out, uint32(10+len(parameters)))
	return append(binary.BigEndian.AppendUint32(out, uint32(code)), parameters...)
}

func replyInSession(parameters []byte) []byte {
	body := binary.BigEndian.AppendUint32(nil, uint32(len(parameters)))
	body = append(append(body, parameters...), 0, 0, 1, 0, 0)
	out := reply(tpm2.TPMRCSuccess, body)
	binary.BigEndian.PutUint16(out, uint16(tpm2.TPMSTSessions))
	return out
}

func digestOf(r *bundle) tpm.Digest { return sha256.Sum256(r.payload) }

// lie has the chip lie from the second install on, asks it for everything that a device
// does, and then has it tell the truth again.
func (c *chip) lie(format string, lie func(command, reply []byte) ([]byte, error), args ...any) {
	s := c.s
	*c = chip{s: s, logs: [2]*disktest.Disk{disktest.New(make([]byte, 8*512)), disktest.New(make([]byte, 8*512))}}
	first, next := digestOf(theDesk().first), digestOf(theDesk().next)
	require.NoError(s, c.ledger().Install("first", first))
	before := c.value
	after := tpm.Extended(before, next)

	c.lying = lie
	err := c.ledger().Install("next", next)
	require.True(s, c.value == before || c.value == after, "something else than the install was entered")
	if err == nil {
		require.Equal(s, after, c.value, "the install is said to be entered and is not: "+format, args)
	}
	_ = c.ledger().Resume()
	tpm.Check(c.tpm(), nil, 14, &first, c.ledger())
	if _, err := c.tpm().Measure(14, first); err == nil {
		require.Equal(s, tpm.Measured(first), c.register, format, args)
	}
	require.True(s, c.value == before || c.value == after, "something else than the install was entered")

	c.lying = nil
	s.Variant(c.ledger().Install("next", next), format, args...)
	require.Equal(s, after, c.value, "entered once, whatever was said meanwhile")
	status := tpm.Check(c.tpm(), nil, 14, &first, c.ledger())
	require.NotNil(s, status.Ledger)
	require.True(s, status.Ledger.Agree)
	require.Len(s, status.Ledger.Entries, 2)
}

// lyingTPM is a case of a chip that tells lies, and of what is true when it stops.
func lyingTPM(name, input string, lies func(c *chip)) Attack {
	return Attack{Name: "tpm/" + name, Input: input, Threats: []string{suitUnapproved}, Run: func(s *Scene) error {
		c := s.chip()
		s.Bubble(func() { lies(c) }) // patience takes no time
		return nil
	}}
}
