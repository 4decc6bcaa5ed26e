package attacks

import (
	"context"
	"encoding/json"
	"strings"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater"
	"github.com/tandem-ota/tandem/updater/journal"
	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/trust"
	"github.com/tandem-ota/tandem/updater/trust/mktrust"
)

// fleet is the link's other end in the hands of a broker.
type fleet struct {
	wants chan transport.Want
	*source
}

func (f fleet) Wants() <-chan transport.Want { return f.wants }

func (f fleet) Source(manifest.Digest) updater.Source { return f.source }

// hears runs the device for a while, with a broker that delivers statements one after
// the other, and returns what the device had to say against them.
func (d *device) hears(src *source, last time.Duration, statements ...[]byte) error {
	d.warned = nil
	d.s.Bubble(func() {
		u := must(d.on())
		ctx, stop := context.WithCancel(background)
		ended, f := make(chan error, 1), fleet{make(chan transport.Want), src}
		go func() { ended <- u.Run(ctx, f) }()
		for _, statement := range statements {
			f.wants <- transport.Want{Statement: statement}
			synctest.Wait()
		}
		time.Sleep(last)
		synctest.Wait()
		stop()
		<-ended
	})
	return d.heard()
}

// statementAttacks are orders that are not for this device, not new, or not from those
// who may give them.
var statementAttacks = []Attack{
	ordered("for-another-device", "an order that another device got", trust.ErrOtherDevice, []string{suitOnPath, suitUnapproved, uptaneMixedBundles}, func(s trust.Statement) [][]byte {
		var out [][]byte
		for _, device := range []string{"pump-8", "PUMP-7", "pump-7 ", "pump-77", "*", "pump-7/"} {
			s.Device = device
			out = append(out, theDesk().statement(s))
		}
		return out
	}),
	ordered("of-an-expired-time", "an order from before the time that the device knows of", trust.ErrExpired, []string{tufFreeze, suitExpired, suitExpiredOffline}, func(s trust.Statement) [][]byte {
		s.Issued, s.Expires = today.AddDate(0, -2, 0), today.AddDate(0, -1, 0)
		return [][]byte{theDesk().statement(s)}
	}),
	ordered("of-a-time-to-come", "an order that is not to be acted on yet", trust.ErrNotYet, []string{suitUnapproved}, func(s trust.Statement) [][]byte {
		next := today.AddDate(0, 0, 7)
		s.NotBefore = &next
		return [][]byte{theDesk().statement(s)}
	}),
	ordered("unsigned", "an order that nobody signed, or a stranger", trust.ErrSignature, []string{tufArbitrary, suitUnapproved, suitOnPath}, func(s trust.Statement) [][]byte {
		return [][]byte{must(mktrust.Statement(background, s)), must(mktrust.Statement(background, s, theDesk().keys[stranger]...))}
	}),
	ordered("by-keys-of-other-roles", "an order by those who may make releases or sign metadata", trust.ErrSignature, []string{tufKeys, suitUnapproved}, func(s trust.Statement) (out [][]byte) {
		for _, role := range []string{mktrust.Release, mktrust.Targets, mktrust.Timestamp, mktrust.Root} {
			out = append(out, must(mktrust.Statement(background, s, theDesk().keys[role]...)))
		}
		return out
	}),
	ordered("changed-on-the-way", "an order of which the release was exchanged", trust.ErrSignature, []string{suitOnPath, tufWrong}, func(s trust.Statement) [][]byte {
		good := theDesk().statement(s)
		s.Body = must(json.Marshal(transport.Desired{Manifest: string(manifest.DigestOf(theDesk().old.payload)), Force: true}))
		other := theDesk().statement(s)
		cut := func(b []byte) (string, string) {
			head, rest, _ := strings.Cut(string(b), `"signatures"`)
			return head, `"signatures"` + rest
		}
		_, signatures := cut(good)
		payload, _ := cut(other)
		return [][]byte{[]byte(payload + signatures)}
	}),
	ordered("of-another-kind", "what was signed as something else", trust.ErrFormat, []string{suitFormat, suitOverride}, func(s trust.Statement) [][]byte {
		payload := must(json.Marshal(s))
		return [][]byte{
			theDesk().next.envelope, must(mktrust.Seal(background, trust.ManifestType, payload, theDesk().keys[mktrust.Fleet]...)), theDesk().repository().files["timestamp.json"],
		}
	}),
	ordered("that-says-too-little", "orders by the right keys that leave out what holds others off", trust.ErrFormat, []string{suitModification, suitUnapproved}, func(s trust.Statement) (out [][]byte) {
		s.Format = 1
		doc := string(must(json.Marshal(s)))
		for _, e := range [][2]string{
			{`"counter":7`, `"counter":0`}, {`"counter":7`, `"counter":-1`}, {`"counter":7`, `"counter":18446744073709551616`}, {`"counter":7`, `"counter":7,"Counter":8`}, {`"counter":7,`, ``}, {`"format":1`, `"format":2`},
			{`"device":"pump-7"`, `"device":""`}, {`"kind":"desired"`, `"kind":""`}, {`"expires":"2026`, `"expires":"2020`}, {`"expires":"`, `"expires":"x`}, {`"body":`, `"bodies":`}, {`{`, `[{`},
		} {
			changed := strings.Replace(doc, e[0], e[1], 1)
			if changed == doc {
				panic(e[0] + " is not in " + doc)
			}
			out = append(out, must(mktrust.Seal(background, trust.StatementType, []byte(changed), theDesk().keys[mktrust.Fleet]...)))
		}
		return out
	}),
	ordered("of-the-wrong-body", "orders by the right keys for a release that has no name", transport.ErrMessage, []string{suitModification}, func(s trust.Statement) (out [][]byte) {
		for _, body := range []string{`{}`, `[]`, `"x"`, `{"manifest":"sha256:ab"}`, `{"manifest":"../x"}`, `{"manifest":"` + string(manifest.DigestOf(nil)) + `","full":"maybe"}`, `{"manifest":7}`} {
			s.Body = json.RawMessage(body)
			out = append(out, theDesk().statement(s))
		}
		return out
	}),
	ordered("over-its-limit", "an order of 65 KiB", trust.ErrTooLarge, []string{tufEndless, uptaneEndlessData}, func(s trust.Statement) [][]byte {
		return [][]byte{append(theDesk().statement(s), []byte(strings.Repeat(" ", trust.MaxStatement))...)}
	}),
	{
		Name: "statement/of-an-unknown-verb", Input: "an order by the right keys to do something that the device does not know", Threats: []string{suitFormat},
		Run: func(s *Scene) error {
			d := s.device(theDesk().first, theDesk().old).keep(running, spare, record, memo)
			for _, kind := range []string{"erase", "DESIRED", "desired "} {
				order := theDesk().order(theDesk().next, 7)
				order.Kind = kind
				require.ErrorContains(s, d.hears(d.source(theDesk().next), time.Minute, theDesk().statement(order)), "unknown kind")
			}
			return nil
		},
	},
	{
		Name: "statement/replayed", Input: "the orders of last month, again and in any order", Threats: []string{tufRollback, uptaneRollback, suitExpired, suitOnPath},
		Run: func(s *Scene) error {
			desk := theDesk()
			d := s.device(desk.first, desk.old)
			last := desk.statement(desk.order(desk.first, 9))
			// It runs what the last one asks for, and nothing else is done about it.
			require.NoError(s, d.hears(d.source(desk.first), time.Minute, last))
			d.keep(running, spare, record, memo)
			var old [][]byte
			for counter := range uint64(9) {
				old = append(old, desk.statement(desk.order(desk.next, counter+1)))
			}
			return d.hears(d.source(desk.next), time.Hour, append(old, last, old[3], last)...)
		},
	},
	{
		Name: "statement/by-a-revoked-key", Input: "an order by a key that the targets no longer delegate to", Want: trust.ErrSignature, Threats: []string{tufKeys, suitKeys},
		Run: func(s *Scene) error {
			desk := theDesk()
			d := s.device(desk.first, desk.old).keep(running, spare, record, memo)
			repo := desk.repository(desk.next)
			keys, ids := listed(desk.keys[heir][:1])
			repo.target["delegations"] = object{"keys": keys, "roles": []object{{"name": mktrust.Fleet, "keyids": ids, "threshold": 1}}}
			repo.bump().publish()
			return d.hears(desk.next.from(repo), time.Minute, desk.statement(desk.order(desk.next, 7)))
		},
	},
	{
		Name: "statement/while-nobody-may-make-them", Input: "an order to a device that knows of nobody who may give any", Want: trust.ErrUnknownRole, Threats: []string{suitUnapproved, uptaneDropRequest},
		Run: func(s *Scene) error {
			desk := theDesk()
			d := s.device(desk.first, desk.old).keep(running, spare, record, memo, tuf)
			return d.hears(&source{bundle: desk.next}, time.Hour, desk.statement(desk.order(desk.next, 7)))
		},
	},
	{
		Name: "statement/for-a-release-that-is-not-offered", Input: "a good order for a release that the targets do not list", Threats: []string{suitUnapproved, tufWrong},
		Run: func(s *Scene) error {
			desk := theDesk()
			d := s.device(desk.first, desk.old).keep(running, spare, record)
			src := desk.next.from(desk.repository(desk.first))
			require.ErrorIs(s, d.hears(src, time.Hour, desk.statement(desk.order(desk.next, 7))), trust.ErrNoTarget)
			return d.answered(transport.Refused, "no such target")
		},
	},
	{
		Name: "statement/for-an-older-release", Input: "a good order to go back to a release from before", Threats: []string{tufRollback, uptaneRollback, suitExpired},
		Run: func(s *Scene) error {
			desk := theDesk()
			d := s.device(desk.next, desk.old).keep(running, spare, record)
			require.NoError(s, d.hears(d.source(desk.first), time.Hour, desk.statement(desk.order(desk.first, 7))))
			return d.answered(transport.Refused, "not newer than the running release")
		},
	},
	{
		Name: "statement/a-hundred-at-once", Input: "a broker that asks for another release a hundred times a minute, and goes on with garbage", Threats: []string{uptaneMixedBundles, uptaneDropRequest},
		Run: func(s *Scene) error {
			desk := theDesk()
			d := s.device(desk.first, desk.old).keep(running)
			var orders [][]byte
			for n := range uint64(100) {
				r := desk.next
				if n%2 == 1 {
					r = desk.first
				}
				orders = append(orders, desk.statement(desk.order(r, n+1)), []byte("garbage"))
			}
			slow := d.source(desk.next)
			slow.read = func(ctx context.Context, _ manifest.Digest, _ int64, _ []byte, n int, err error) (int, error) {
				select {
				case <-time.After(time.Second):
					return n, err
				case <-ctx.Done():
					return 0, ctx.Err()
				}
			}
			require.ErrorIs(s, d.hears(slow, time.Hour, orders...), trust.ErrFormat)
			var j journal.Journal
			if j = must(journal.Load(d.store)); j.Counter != 100 {
				s.Errorf("the last order was the 100th, not the %dth", j.Counter)
			}
			return nil
		},
	},
}

// answered requires that the fleet was told once how an order ended.
func (d *device) answered(result, detail string) error {
	require.Len(d.s, d.verdicts, 1)
	require.Equal(d.s, result, d.verdicts[0].Result)
	require.Contains(d.s, d.verdicts[0].Detail, detail)
	return nil
}

// ordered is a case of statements to a device that would otherwise obey: it knows who may
// give orders, and what time it is at least.
func ordered(name, input string, want error, threats []string, statements func(trust.Statement) [][]byte) Attack {
	return Attack{Name: "statement/" + name, Input: input, Want: want, Threats: threats, Run: func(s *Scene) error {
		desk := theDesk()
		for i, statement := range statements(desk.order(desk.next, 7)) {
			s.Compare()
			d := s.device(desk.first, desk.old)
			if err := journal.Save(d.store, journal.Journal{TimeFloor: today.Unix()}); err != nil {
				panic(err)
			}
			d.keep(running, spare, record, memo)
			s.Variant(d.hears(d.source(desk.next), 2*time.Second, statement), "variant %d: %.100s", i, statement)
		}
		return nil
	}}
}
