package attacks

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"strings"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/partition"
	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater"
	"github.com/tandem-ota/tandem/updater/trust"
	"github.com/tandem-ota/tandem/updater/trust/mktrust"
)

// signatureAttacks are envelopes that not enough of the right people have signed. Two of
// the three release keys have to.
var signatureAttacks = []Attack{
	forged("no-signature", "a manifest that nobody signed", trust.ErrSignature, []string{tufArbitrary, uptaneArbitrary, suitNonAuth}, func(r *bundle) [][]byte {
		return [][]byte{
			envelope(r.payload), replaced(envelope(r.payload), `,"signatures":[]`, ""), replaced(envelope(r.payload), `"signatures":[]`, `"signatures":null`), replaced(envelope(r.payload), `"signatures":[]`, `"signatures":[{}]`),
		}
	}),
	forged("signature-of-a-wrong-length", "signatures that are cut, empty, longer, or of a megabyte", either(trust.ErrSignature, trust.ErrThreshold), []string{tufArbitrary, suitNonAuth}, func(r *bundle) (out [][]byte) {
		a, b := sign(r, mktrust.Release, 0), sign(r, mktrust.Release, 1)
		for _, n := range []int{0, 1, 31, 32, 63} {
			out = append(out, envelope(r.payload, a, signature{b.id, b.sig[:n]}), envelope(r.payload, signature{a.id, a.sig[:n]}))
		}
		for _, n := range []int{1, 64, 1 << 20} {
			out = append(out, envelope(r.payload, a, signature{b.id, append(bytes.Clone(b.sig), make([]byte, n)...)}))
		}
		return append(out, envelope(r.payload, signature{a.id, make([]byte, 64)}, signature{b.id, make([]byte, 64)}))
	}),
	forged("below-the-threshold", "one stolen key of the two that it takes", trust.ErrThreshold, []string{tufKeys, suitKeys, uptaneArbitrary}, func(r *bundle) (out [][]byte) {
		for i := range 3 {
			out = append(out, envelope(r.payload, sign(r, mktrust.Release, i)))
		}
		return out
	}),
	forged("same-key-twice", "one stolen key that signs as often as it takes", trust.ErrThreshold, []string{tufKeys, suitKeys}, func(r *bundle) [][]byte {
		a := sign(r, mktrust.Release, 0)
		anonymous, claimed := signature{"", a.sig}, signature{sign(r, mktrust.Release, 1).id, a.sig}
		return [][]byte{
			envelope(r.payload, a, a), envelope(r.payload, anonymous, anonymous), envelope(r.payload, a, anonymous), envelope(r.payload, a, claimed), envelope(r.payload, claimed, a, anonymous, a),
		}
	}),
	forged("malleable-signature", "one signature in two spellings", trust.ErrThreshold, []string{tufKeys, suitKeys}, func(r *bundle) [][]byte {
		a := sign(r, mktrust.Release, 0)
		// S+L is the same number modulo the order of the group (RFC 8032, section 5.1.7).
		order, _ := new(big.Int).SetString("7237005577332262213973186563042994240857116359379907606001950938285454250989", 10)
		s := bytes.Clone(a.sig[32:])
		reverse(s)
		wide := new(big.Int).Add(new(big.Int).SetBytes(s), order).FillBytes(make([]byte, 32))
		reverse(wide)
		return [][]byte{envelope(r.payload, a, signature{a.id, append(bytes.Clone(a.sig[:32]), wide...)})}
	}),
	forged("stranger", "keys that nobody knows, under their own names and under those of others", trust.ErrSignature, []string{tufArbitrary, uptaneArbitrary, suitNonAuth}, func(r *bundle) [][]byte {
		a, b := sign(r, stranger, 0), sign(r, stranger, 1)
		return [][]byte{
			envelope(r.payload, a, b), envelope(r.payload, signature{"", a.sig}, signature{"", b.sig}),
			envelope(r.payload, signature{sign(r, mktrust.Release, 0).id, a.sig}, signature{sign(r, mktrust.Release, 1).id, b.sig}),
		}
	}),
	forged("key-ids-exchanged", "good signatures, each under the name of the other key", trust.ErrSignature, []string{tufKeys}, func(r *bundle) [][]byte {
		a, b := sign(r, mktrust.Release, 0), sign(r, mktrust.Release, 1)
		return [][]byte{envelope(r.payload, signature{b.id, a.sig}, signature{a.id, b.sig}), envelope(r.payload, signature{strings.ToUpper(a.id), a.sig}, signature{" " + b.id, b.sig})}
	}),
	forged("keys-of-other-roles", "keys that may say something else", trust.ErrSignature, []string{suitOverride, tufKeys}, func(r *bundle) (out [][]byte) {
		for _, role := range []string{mktrust.Fleet, mktrust.Timestamp, mktrust.Snapshot, mktrust.Targets, mktrust.Root} {
			last := len(r.desk.keys[role]) - 1
			out = append(out, envelope(r.payload, sign(r, role, 0), sign(r, role, last)))
		}
		return out
	}),
	forged("of-another-manifest", "signatures that were taken from another release", trust.ErrSignature, []string{tufMixAndMatch, suitNonAuth}, func(r *bundle) [][]byte {
		old := theDesk().old
		return [][]byte{envelope(r.payload, sign(old, mktrust.Release, 0), sign(old, mktrust.Release, 1)), envelope(append(bytes.Clone(r.payload), ' '), sign(r, mktrust.Release, 0), sign(r, mktrust.Release, 1))}
	}),
	forged("of-the-bytes-alone", "signatures over the payload without the type that separates domains", trust.ErrSignature, []string{suitFormat}, func(r *bundle) [][]byte {
		var plain []signature
		for _, s := range r.desk.keys[mktrust.Release][:2] {
			plain = append(plain, signature{must(mktrust.KeyID(s.Public())), must(s.Sign(background, r.payload))})
		}
		return [][]byte{envelope(r.payload, plain...)}
	}),
	forged("other-payload-type", "bytes that were signed as something else", trust.ErrFormat, []string{suitFormat, suitOverride}, func(r *bundle) (out [][]byte) {
		for _, kind := range []string{trust.StatementType, "", "application/json", strings.ToUpper(trust.ManifestType), trust.ManifestType + " "} {
			out = append(out, must(mktrust.Seal(background, kind, r.payload, r.desk.keys[mktrust.Release]...)))
		}
		return out
	}),
	forged("type-exchanged", "bytes that were signed as a statement, under the name of a manifest", trust.ErrSignature, []string{suitFormat, suitOverride}, func(r *bundle) [][]byte {
		other := must(mktrust.Seal(background, trust.StatementType, r.payload, r.desk.keys[mktrust.Release]...))
		return [][]byte{replaced(other, trust.StatementType, trust.ManifestType)}
	}),
	forged("spelt-in-other-ways", "base64 that decoders read differently", trust.ErrFormat, []string{suitOnPath}, func(r *bundle) [][]byte {
		coded := base64.StdEncoding.EncodeToString(r.payload)
		spell := func(other string) []byte { return replaced(r.envelope, coded, other) }
		return [][]byte{
			spell(coded[:76] + `\n` + coded[76:]), spell(coded[:76] + `\r\n` + coded[76:]), spell(" " + coded), spell(coded + "===="), spell(coded + "A"), spell("-_+/" + coded),
			spell(coded[:len(coded)-4] + "QR=="), spell("%"), replaced(r.envelope, `"sig":"`, `"sig":"=`), replaced(r.envelope, `"sig":"`, `"sig":"!`),
		}
	}),
	forged("envelope-that-is-none", "envelopes of other shapes", trust.ErrFormat, []string{suitFormat}, func(r *bundle) [][]byte {
		return [][]byte{
			{}, []byte("{"), []byte("[]"), []byte(`"x"`), r.payload, append(bytes.Clone(r.envelope), r.envelope...), replaced(r.envelope, `"payload":`, `"payload":"","payload":`), replaced(r.envelope, `"payload":`, `"Payload":"","payload":`),
			replaced(r.envelope, `"payload":"`, `"payload":["`), replaced(r.envelope, `"signatures":[`, `"signatures":{"a":[`), []byte("{}"), []byte(`{"payloadType":"` + trust.ManifestType + `","payload":7,"signatures":[]}`),
		}
	}),
	forged("more-signatures-than-anybody-needs", "33 signatures, all of them good", trust.ErrTooLarge, []string{tufEndless, uptaneEndlessData}, func(r *bundle) [][]byte {
		a, b := sign(r, mktrust.Release, 0), sign(r, mktrust.Release, 1)
		var many []signature
		for len(many) <= 32 {
			many = append(many, a, b)
		}
		return [][]byte{envelope(r.payload, many[:33]...)}
	}),
	// Nobody has to sign these: what is read before any signature has to be small.
	forged("lists-of-a-million", "an envelope of two megabytes that unpack to a hundred", trust.ErrTooLarge, []string{tufEndless, uptaneEndlessData}, func(r *bundle) [][]byte {
		const room = trust.MaxEnvelope - 100
		return [][]byte{
			[]byte(`{"signatures":[` + strings.Repeat("{},", room/3) + `{}]}`),
			[]byte(`{"x":[` + strings.Repeat("0,", room/2) + `0]}`),
			[]byte(`{"x":{` + keysOfAMillion(room) + `"~":0}}`),
		}
	}),
	{
		Name: "signature/revoked-key", Input: "a key that the system image no longer lists, with one that it does", Want: trust.ErrThreshold, Threats: []string{tufKeys, suitKeys},
		Run: func(s *Scene) error {
			desk := theDesk()
			d := s.device(desk.first, desk.old)
			release := desk.keys[mktrust.Release]
			// What runs was signed by the first two; the third of the new set is an heir.
			d.keys = keySet(2, release[0], release[1], desk.keys[heir][0])
			d.keep(everything...)
			return d.offer(desk.next.with(envelope(desk.next.payload, sign(desk.next, mktrust.Release, 0), sign(desk.next, mktrust.Release, 2))))
		},
	},
	{
		Name: "signature/key-set-of-no-threshold", Input: "release keys that nobody has to use, or more than there are", Want: trust.ErrThreshold, Threats: []string{tufKeys},
		Run: func(s *Scene) error {
			desk := theDesk()
			d := s.device(desk.first, desk.old).keep(everything...)
			set := must(mktrust.KeySet(2, desk.keys[mktrust.Release][0].Public(), desk.keys[mktrust.Release][1].Public()))
			for _, threshold := range []string{"0", "-1", "3", "2147483648"} {
				_, err := trust.ParseKeySet(replaced(set, `"threshold": 2`, `"threshold": `+threshold))
				s.Variant(err, "threshold %s", threshold)
			}
			d.keys = trust.KeySet{} // as a caller that goes on after the error would have it
			_, err := d.on()
			s.Variant(err, "an empty set")
			return nil
		},
	},
	{
		Name: "signature/slot-record-of-a-stranger", Input: "a running slot whose record a stranger signed", Want: trust.ErrSignature, Threats: []string{suitReplace, suitNonAuth},
		Run: func(s *Scene) error {
			desk := theDesk()
			r := desk.first.with(envelope(desk.first.payload, sign(desk.first, stranger, 0), sign(desk.first, stranger, 1)))
			_, err := s.device(r, desk.old).keep(everything...).on()
			return err
		},
	},
	{
		Name: "signature/fallback-of-a-stranger", Input: "an operator who is told to go back to a slot that a stranger filled", Want: trust.ErrSignature, Threats: []string{suitReplace, uptaneArbitrary},
		Run: func(s *Scene) error {
			desk := theDesk()
			r := desk.old.with(envelope(desk.old.payload, sign(desk.old, stranger, 0), sign(desk.old, stranger, 1)))
			return must(s.device(desk.first, r).keep(everything...).on()).Rollback(background, true)
		},
	},
	{
		Name: "signature/slot-record-garbled", Input: "a spare slot whose record was overwritten", Want: updater.ErrNoFallback, Threats: []string{suitReplace},
		Run: func(s *Scene) error {
			d := s.device(theDesk().first, theDesk().old)
			root := d.disks["b/root"]
			for _, at := range []int64{0, 8, 16, 40, 200} {
				off := root.Size() - partition.RecordSize + at
				b := make([]byte, 1)
				must(root.ReadAt(b, off))
				must(root.WriteAt([]byte{b[0] ^ 1}, off))
				u := must(d.on())
				if at == 0 {
					d.keep(running, record, memo, tuf)
				}
				s.Variant(u.Rollback(background, true), "byte %d", at)
			}
			return nil
		},
	},
	{
		Name: "signature/after-all-of-them-the-honest-one", Input: "forged releases from one source, and then the honest one from another", Threats: []string{tufMirrors},
		Run: func(s *Scene) error {
			desk := theDesk()
			d := s.device(desk.first, desk.old).keep(running)
			u := must(d.on())
			for range 10 {
				bad := desk.next.with(envelope(desk.next.payload, sign(desk.next, stranger, 0)))
				require.ErrorIs(s, u.Install(background, d.source(bad), updater.Options{Online: true, Full: transport.FullGo}), trust.ErrSignature)
			}
			d.takes(desk.next)
			return nil
		},
	},
}

// signature is one of an envelope.
type signature struct {
	id  string
	sig []byte
}

// sign signs a manifest with the n-th key of a role, as a manifest.
func sign(r *bundle, role string, n int) signature {
	key := r.desk.keys[role][n]
	return signature{must(mktrust.KeyID(key.Public())), must(key.Sign(background, trust.PAE(trust.ManifestType, r.payload)))}
}

// envelope is what mktrust does not make: any signatures around any bytes.
func envelope(payload []byte, signatures ...signature) []byte {
	list := []object{}
	for _, s := range signatures {
		list = append(list, object{"keyid": s.id, "sig": base64.StdEncoding.EncodeToString(s.sig)})
	}
	// In this order, as tools write it.
	type dsse struct {
		Type       string   `json:"payloadType"`
		Payload    []byte   `json:"payload"`
		Signatures []object `json:"signatures"`
	}
	return must(json.Marshal(dsse{trust.ManifestType, payload, list}))
}

func reverse(b []byte) {
	for i, j := 0, len(b)-1; i < j; i, j = i+1, j-1 {
		b[i], b[j] = b[j], b[i]
	}
}

// keysOfAMillion are members of a JSON object, about so many bytes of them.
func keysOfAMillion(room int) string {
	var b strings.Builder
	for i := int64(0); b.Len() < room-20; i++ {
		b.WriteString(`"` + big.NewInt(i).Text(36) + `":0,`)
	}
	return b.String()
}

// forged is a case of envelopes around an honest manifest.
func forged(name, input string, want error, threats []string, envelopes func(r *bundle) [][]byte) Attack {
	return Attack{Name: "signature/" + name, Input: input, Want: want, Threats: threats, Run: func(s *Scene) error {
		return s.refuses(func(offer func(*bundle, string, ...any)) {
			for i, e := range envelopes(small()) {
				offer(small().with(e), "variant %d: %.80q", i, e)
			}
		})
	}}
}
