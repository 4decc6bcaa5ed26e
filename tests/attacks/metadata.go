package attacks

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater"
	"github.com/tandem-ota/tandem/updater/journal"
	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/trust"
	"github.com/tandem-ota/tandem/updater/trust/mktrust"
)

// tale is what a device sees of a repository, one state after the other. All but the last
// are accepted.
type tale struct {
	*repository
	seen  []map[string][]byte
	now   time.Time // that the device can trust; zero: it has no clock
	stick bool      // read from a stick, where nothing guards against old files but their versions
	store func(*folder)
}

// show lets the device see what is published now.
func (t *tale) show() *tale {
	t.seen = append(t.seen, maps.Clone(t.files))
	return t
}

// later publishes news.
func (t *tale) later() *tale {
	t.bump().publish()
	return t
}

// roles of TUF whose files are signed one by one.
var roles = []string{mktrust.Timestamp, mktrust.Snapshot, mktrust.Targets}

// file is the name of the newest file of a role.
func (t *tale) file(role string) string {
	switch role {
	case mktrust.Timestamp:
		return "timestamp.json"
	case mktrust.Snapshot:
		return version(t.snapshot) + ".snapshot.json"
	case mktrust.Targets:
		return version(t.target) + ".targets.json"
	}
	return version(t.root) + ".root.json"
}

// signed is what a role says.
func (t *tale) signed(role string) object {
	return map[string]object{mktrust.Timestamp: t.timestamp, mktrust.Snapshot: t.snapshot, mktrust.Targets: t.target, mktrust.Root: t.root}[role]
}

// edit changes a file after it was signed, at the last place that matches: what a file
// says of itself is behind what it says of others.
func (t *tale) edit(role, old, new string) {
	data := t.files[t.file(role)]
	at := bytes.LastIndex(data, []byte(old))
	if at < 0 {
		panic("nothing to edit: " + old)
	}
	t.files[t.file(role)] = slices.Concat(data[:at], []byte(new), data[at+len(old):])
}

// newRoot publishes a root that follows, signed by whom the attacker can make sign.
func (t *tale) newRoot(by ...mktrust.Signer) {
	t.root["version"] = t.root["version"].(int) + 1
	t.files[t.file(mktrust.Root)] = t.sign(t.root, by...)
}

// rest publishes all but the root.
func (t *tale) rest() *tale {
	root := t.file(mktrust.Root)
	kept := t.files[root]
	t.publish()
	t.files[root] = kept
	return t
}

// story is one variant of a case.
type story func(t *tale)

// forEach makes a variant for each role.
func forEach(roles []string, f func(t *tale, role string)) (out []story) {
	for _, role := range roles {
		out = append(out, func(t *tale) { f(t, role) })
	}
	return out
}

// metadataAttacks are repositories that lie about what is offered: mirrors, brokers, and
// thieves of some of the keys.
var metadataAttacks = []Attack{
	told("targets-of-a-stranger", "metadata that a stranger signed", trust.ErrSignature, []string{tufArbitrary, uptaneArbitrary}, func(t *tale) {
		t.by[mktrust.Targets] = t.desk.keys[stranger][:2]
		t.publish()
	}),
	told("changed-after-signing", "metadata of which one digit was changed", trust.ErrSignature, []string{tufArbitrary, suitOnPath}, forEach(roles, func(t *tale, role string) {
		t.edit(role, `"version":1`, `"version":7`)
	})...),
	told("nobody-signed", "metadata without signatures", trust.ErrSignature, []string{tufArbitrary}, forEach(append(slices.Clone(roles), mktrust.Root), func(t *tale, role string) {
		if role == mktrust.Root {
			t.newRoot()
			return
		}
		t.by[role] = nil
		t.publish()
	})...),
	told("signature-cut-short", "metadata whose signatures are too long or too short", trust.ErrSignature, []string{tufArbitrary}, slices.Concat(
		forEach(roles[:2], func(t *tale, role string) { t.edit(role, `"sig":"`, `"sig":"00`) }),
		forEach(roles[:2], func(t *tale, role string) {
			t.files[t.file(role)] = []byte(strings.Replace(string(t.files[t.file(role)]), `"sig":"`, `"sig":"","x":"`, 1))
		}),
	)...),
	told("key-of-another-role", "metadata that the key of another role signed", trust.ErrSignature, []string{tufKeys, suitKeys}, slices.Concat(
		forEach([]string{mktrust.Timestamp, mktrust.Snapshot, mktrust.Fleet, mktrust.Release}, func(t *tale, role string) {
			t.by[mktrust.Targets] = t.desk.keys[role]
			t.publish()
		}),
		forEach([]string{mktrust.Snapshot, mktrust.Targets, mktrust.Fleet}, func(t *tale, role string) {
			t.by[mktrust.Timestamp] = t.desk.keys[role]
			t.publish()
		}),
	)...),
	told("file-of-another-role", "a good file in the place of another", trust.ErrFormat, []string{tufMixAndMatch, uptaneMixAndMatch},
		func(t *tale) { t.files["1.targets.json"] = t.files["1.snapshot.json"] },
		func(t *tale) { t.files["timestamp.json"] = t.files["1.snapshot.json"] },
		func(t *tale) { t.files["1.snapshot.json"] = t.files["1.targets.json"] },
		func(t *tale) { t.files["2.root.json"] = t.files["1.targets.json"] },
		func(t *tale) { t.files["timestamp.json"] = theDesk().next.envelope },
	),

	told("rollback-of-the-timestamp", "the metadata of yesterday", trust.ErrRollback, []string{tufRollback, uptaneRollback, uptaneFreeze, suitExpired}, func(t *tale) {
		old := maps.Clone(t.files)
		t.later().show()
		t.files = old
	}),
	told("rollback-of-the-snapshot", "an old snapshot, by whoever has stolen the key on line", trust.ErrRollback, []string{tufRollback, tufKeys}, func(t *tale) {
		t.later().show()
		t.timestamp["version"] = 3
		t.timestamp["meta"].(object)["snapshot.json"] = object{"version": 1}
		t.publishAsIs()
	}),
	told("rollback-of-the-targets", "old targets, by whoever has stolen both keys on line", trust.ErrRollback, []string{tufRollback, tufKeys, uptaneMixAndMatch}, func(t *tale) {
		t.later().show()
		t.timestamp["version"], t.snapshot["version"] = 3, 3
		t.timestamp["meta"].(object)["snapshot.json"] = object{"version": 3}
		t.snapshot["meta"].(object)["targets.json"] = object{"version": 1}
		t.publishAsIs()
	}),
	told("file-dropped-from-the-snapshot", "a snapshot that no longer lists what it did", trust.ErrRollback, []string{tufRollback, tufMixAndMatch}, func(t *tale) {
		t.snapshot["meta"].(object)["fleet.json"] = object{"version": 1}
		t.later().show()
		delete(t.snapshot["meta"].(object), "fleet.json")
		t.later()
	}),
	told("rollback-on-a-stick", "a stick from last year", trust.ErrRollback, []string{tufRollback, uptaneRollback, suitExpired, suitExpiredOffline}, func(t *tale) {
		old := t.files["targets.json"]
		t.later().show()
		t.files["targets.json"], t.stick = old, true
	}),

	told("expired", "metadata that has expired by a time that can be trusted", trust.ErrExpired, []string{tufFreeze, uptaneFreeze, suitExpiredOffline}, forEach(append(slices.Clone(roles), mktrust.Root), func(t *tale, role string) {
		t.now = today.AddDate(0, 2, 0)
		t.signed(role)["expires"] = today.AddDate(0, 1, 0).Format(time.RFC3339)
		if role == mktrust.Root {
			t.newRoot(t.desk.keys[mktrust.Root]...)
			return
		}
		t.publish()
	})...),
	told("expired-since-it-was-seen", "the same metadata for ever", trust.ErrExpired, []string{tufFreeze, uptaneFreeze}, forEach(roles, func(t *tale, role string) {
		t.signed(role)["expires"] = today.AddDate(0, 1, 0).Format(time.RFC3339)
		t.publish().publishAsIs()
		t.store = func(f *folder) {
			for _, role := range roles {
				f.files[role+".json"] = t.files[t.file(role)]
			}
		}
		t.now = today.AddDate(0, 2, 0)
	})...),
	told("expired-on-a-stick", "a stick that lay in a drawer", trust.ErrExpired, []string{tufFreeze, suitExpiredOffline}, func(t *tale) {
		t.now, t.stick = today.AddDate(2, 0, 0), true
	}),

	told("mix-of-two-days", "files that never were on offer together", trust.ErrMismatch, []string{tufMixAndMatch, uptaneMixAndMatch},
		func(t *tale) { old := t.files["1.targets.json"]; t.later().files["2.targets.json"] = old },
		func(t *tale) { old := t.files["1.snapshot.json"]; t.later().files["2.snapshot.json"] = old },
		func(t *tale) {
			t.timestamp["meta"].(object)["snapshot.json"] = object{"version": 1, "hashes": object{"sha256": strings.Repeat("01", 32)}}
			t.publishAsIs()
		},
		func(t *tale) {
			t.snapshot["meta"].(object)["targets.json"] = object{"version": 1, "length": 17}
			t.publishAsIs()
		},
	),
	told("fast-forward", "versions that nothing can follow, and then the honest ones", trust.ErrRollback, []string{tufFastForward}, func(t *tale) {
		t.timestamp["version"] = math.MaxInt64
		t.publish()
		t.show()
		t.timestamp["version"] = 2
		t.publish()
	}),
	told("fast-forward-and-new-keys", "versions that nothing can follow, and the cure", nil, []string{tufFastForward, tufKeys}, func(t *tale) {
		t.timestamp["version"], t.snapshot["version"], t.target["version"] = math.MaxInt64, math.MaxInt64, math.MaxInt64
		t.publish()
		t.show()
		t.timestamp["version"], t.snapshot["version"], t.target["version"] = 2, 2, 2
		t.grant(mktrust.Timestamp, 1, t.desk.keys[heir][0])
		t.grant(mktrust.Snapshot, 1, t.desk.keys[heir][1])
		t.newRoot(t.desk.keys[mktrust.Root]...)
		t.rest()
	}),

	told("rotation-without-the-old-keys", "a root that hands everything to a stranger", trust.ErrSignature, []string{tufKeys, suitKeys, tufArbitrary}, func(t *tale) {
		t.grant(mktrust.Root, 1, t.desk.keys[stranger][0])
		t.newRoot(t.desk.keys[stranger][0])
	}),
	told("rotation-without-the-new-keys", "a root that names keys which nobody may have", trust.ErrSignature, []string{tufKeys}, func(t *tale) {
		t.grant(mktrust.Root, 1, t.desk.keys[heir][0])
		t.newRoot(t.desk.keys[mktrust.Root]...)
	}),
	told("rotation-by-one-stolen-key", "a root that one of its two keys signed", trust.ErrThreshold, []string{tufKeys, suitKeys}, func(t *tale) {
		t.newRoot(t.desk.keys[mktrust.Root][0])
	}),
	told("gap-in-the-chain-of-roots", "a root that leaves out the one before", trust.ErrRollback, []string{tufRollback, tufKeys}, func(t *tale) {
		t.root["version"] = 2
		t.newRoot(t.desk.keys[mktrust.Root]...)
		t.files["2.root.json"] = t.files["3.root.json"]
	}, func(t *tale) { t.files["2.root.json"] = t.files["1.root.json"] }),
	told("roots-without-end", "a chain of 300 good roots", trust.ErrTooLarge, []string{tufEndless, uptaneEndlessData}, func(t *tale) {
		for range 300 {
			t.newRoot(t.desk.keys[mktrust.Root]...)
		}
	}),

	told("threshold-that-makes-no-sense", "a root by which nobody has to sign, or more than there are", trust.ErrThreshold, []string{tufKeys}, slices.Concat(
		forEach(roles, func(t *tale, role string) { t.weaken(role, 0) }),
		forEach(roles, func(t *tale, role string) { t.weaken(role, -1) }),
		forEach(roles, func(t *tale, role string) { t.weaken(role, 3) }),
	)...),
	told("role-without-keys", "a root that gives a role to nobody", trust.ErrThreshold, []string{tufKeys}, func(t *tale) {
		t.grant(mktrust.Snapshot, 1)
		t.newRoot(t.desk.keys[mktrust.Root]...)
		t.rest()
	}),
	told("role-missing", "a root that forgets a role", trust.ErrUnknownRole, []string{tufKeys}, forEach(append(slices.Clone(roles), mktrust.Root), func(t *tale, role string) {
		delete(t.root["roles"].(object), role)
		t.newRoot(t.desk.keys[mktrust.Root]...)
	})...),
	told("key-under-another-name", "a root whose keys are not what their ids say", trust.ErrFormat, []string{tufKeys}, func(t *tale) {
		keys, ids := t.root["keys"].(object), t.root["roles"].(object)[mktrust.Targets].(object)["keyids"].([]string)
		keys[strings.Repeat("0", 64)] = keys[ids[0]]
		ids[0] = strings.Repeat("0", 64)
		t.newRoot(t.desk.keys[mktrust.Root]...)
	}, func(t *tale) {
		t.root["roles"].(object)[mktrust.Targets].(object)["keyids"] = []string{strings.Repeat("0", 64)}
		t.newRoot(t.desk.keys[mktrust.Root]...)
	}),
	told("one-key-with-two-names", "a root by which one key counts twice", trust.ErrThreshold, []string{tufKeys, suitKeys}, func(t *tale) {
		one := t.desk.keys[heir][0]
		t.grant(mktrust.Targets, 2, one)
		ids := t.root["roles"].(object)[mktrust.Targets].(object)
		ids["keyids"] = []string{ids["keyids"].([]string)[0], ids["keyids"].([]string)[0]}
		t.newRoot(t.desk.keys[mktrust.Root]...)
		t.rest()
	}, func(t *tale) {
		// The same key with a note in it has another id.
		one := t.desk.keys[heir][0]
		t.grant(mktrust.Targets, 2, one)
		public := hex.EncodeToString(t.keyOf(one))
		twin := fmt.Sprintf(`{"keytype":"ed25519","keyval":{"public":"%s"},"note":"spare","scheme":"ed25519"}`, public)
		id := manifest.DigestOf([]byte(twin)).Hex()
		t.root["keys"].(object)[id] = object{"keytype": "ed25519", "keyval": object{"public": public}, "note": "spare", "scheme": "ed25519"}
		ids := t.root["roles"].(object)[mktrust.Targets].(object)
		ids["keyids"] = append(ids["keyids"].([]string), id)
		t.newRoot(t.desk.keys[mktrust.Root]...)
		t.rest()
		data := t.files["1.targets.json"]
		sig := string(data[bytes.Index(data, []byte(`"sig":"`))+7:][:128])
		t.files["1.targets.json"] = replaced(data, `]`, `,{"keyid":"`+id+`","sig":"`+sig+`"}]`)
	}),
	told("one-of-two-stolen", "targets by one of the two keys that it takes", trust.ErrThreshold, []string{tufKeys, suitKeys, uptaneArbitrary}, func(t *tale) {
		t.by[mktrust.Targets] = t.desk.keys[mktrust.Targets][:1]
		t.publish()
	}),
	told("same-signature-twice", "targets by one key that signs twice", trust.ErrFormat, []string{tufKeys}, func(t *tale) {
		one := t.desk.keys[mktrust.Targets][0]
		t.by[mktrust.Targets] = []mktrust.Signer{one, one}
		t.publish()
	}),
	told("revoked-key-goes-on", "metadata by a key that a newer root no longer lists", trust.ErrSignature, []string{tufKeys, suitKeys}, forEach(roles, func(t *tale, role string) {
		old := t.by[role]
		t.grant(role, 1, t.desk.keys[heir][0])
		t.newRoot(t.desk.keys[mktrust.Root]...)
		t.rest().show()
		t.by[role] = old
		t.bump()
		t.rest()
	})...),

	told("larger-than-its-limit", "metadata with a megabyte of blanks", trust.ErrTooLarge, []string{tufEndless, uptaneEndlessData}, slices.Concat(
		forEach(append(slices.Clone(roles), mktrust.Root), func(t *tale, role string) {
			if role == mktrust.Root {
				t.newRoot(t.desk.keys[mktrust.Root]...)
			}
			t.files[t.file(role)] = append(t.files[t.file(role)], bytes.Repeat([]byte(" "), trust.MaxMetadata)...)
		}),
		forEach(roles[1:], func(t *tale, role string) {
			t.edit(role, `"signatures":[`, `"x":[`+strings.Repeat("{},", 300000)+`0],"signatures":[`)
		}),
	)...),
	told("malformed", "metadata that two readers would read in two ways", trust.ErrFormat, []string{tufWrong, suitOnPath}, malformed()...),
	told("withheld", "a mirror that has lost its files", fs.ErrNotExist, []string{uptaneDropRequest, tufMirrors}, forEach(roles, func(t *tale, role string) {
		delete(t.files, t.file(role))
	})...),

	told("withdrawn", "a release that was offered once, and is no longer", trust.ErrNoTarget, []string{tufWrong, suitUnapproved}, func(t *tale) {
		t.show()
		t.target["targets"] = object{}
		t.later()
	}),
	told("listed-by-a-delegate-only", "a release that somebody else's metadata offers", trust.ErrNoTarget, []string{tufArbitrary, suitUnapproved}, func(t *tale) {
		t.target["targets"] = object{}
		keys, ids := listed(t.desk.keys[stranger][:1])
		maps.Copy(t.target["delegations"].(object)["keys"].(object), keys)
		roles := t.target["delegations"].(object)["roles"].([]object)
		t.target["delegations"].(object)["roles"] = append(roles, object{"name": "others", "keyids": ids, "threshold": 1, "terminating": false, "paths": []string{"*"}})
		t.publish()
	}),
	told("target-of-another-size-or-hash", "a release that is not the one that is listed", trust.ErrMismatch, []string{tufWrong, tufMixAndMatch, suitUnapproved},
		func(t *tale) { t.list(object{"length": 17}) },
		func(t *tale) { t.list(object{"hashes": object{"sha256": strings.Repeat("00", 32)}}) },
		func(t *tale) {
			t.offer(theDesk().next.with(theDesk().old.envelope))
			t.publish()
		},
	),
	told("target-without-size-or-hash", "a release of which nothing is said that could be compared", trust.ErrFormat, []string{tufWrong, tufEndless},
		func(t *tale) { t.list(object{"length": nil}) },
		func(t *tale) { t.list(object{"length": -1}) },
		func(t *tale) { t.list(object{"hashes": object{}}) },
		func(t *tale) { t.list(object{"hashes": object{"md5": strings.Repeat("00", 16)}}) },
	),

	told("own-store-garbled", "a device whose stored metadata was overwritten", nil, []string{tufMirrors}, func(t *tale) {
		t.store = func(f *folder) {
			for _, name := range []string{"timestamp.json", "snapshot.json", "targets.json", "2.root.json"} {
				f.files[name] = []byte("{\x00garbage")
			}
		}
	}, func(t *tale) {
		t.store = func(f *folder) {
			for _, role := range roles {
				data := t.files[t.file(role)]
				f.files[role+".json"] = data[:len(data)/2]
			}
		}
	}),
	told("own-store-of-an-attacker", "a device in whose store somebody put his own root and targets", nil, []string{tufArbitrary, suitReplace}, func(t *tale) {
		t.store = func(f *folder) {
			other := t.desk.repository(theDesk().old)
			other.root["version"], other.target["version"] = 2, 99
			for _, role := range mktrust.Roles[:4] {
				other.grant(role, 1, t.desk.keys[stranger][0])
			}
			other.publish()
			f.files["2.root.json"], f.files["targets.json"], f.files["timestamp.json"] = other.files["2.root.json"], other.files["targets.json"], other.files["timestamp.json"]
		}
	}),
}

// keyOf is the public half of a key.
func (t *tale) keyOf(s mktrust.Signer) []byte {
	keys, ids := listed([]mktrust.Signer{s})
	return must(hex.DecodeString(keys[ids[0]].(object)["keyval"].(object)["public"].(string)))
}

// weaken publishes a good root with another threshold for a role, and metadata that
// nobody signed.
func (t *tale) weaken(role string, threshold int) {
	t.root["roles"].(object)[role].(object)["threshold"] = threshold
	t.newRoot(t.desk.keys[mktrust.Root]...)
	t.by[role] = nil
	t.rest()
}

// list offers the next release in another way.
func (t *tale) list(changes object) {
	maps.Copy(t.target["targets"].(object)[theDesk().next.m.TargetName()].(object), changes)
	t.publish()
}

// malformed are edits of files after they were signed: their form is looked at first.
func malformed() (out []story) {
	for _, e := range [][2]string{
		{`"version":1`, `"version":0`}, {`"version":1`, `"version":-1`}, {`"version":1`, `"version":1.0`}, {`"version":1`, `"version":1e0`}, {`"version":1`, `"version":"1"`},
		{`"version":1`, `"version":9223372036854775808`}, {`"version":1`, `"version":1,"version":2`}, {`"version":1`, `"version":1,"Version":2`}, {`"spec_version":"1.`, `"spec_version":"2.`},
		{`"expires":"`, `"expires":"x`}, {`"expires":"`, `"expired":"`}, {`"_type":"`, `"_type":"x`}, {`"signed":`, `"unsigned":`}, {`"signatures":[`, `"signatures":[[],`},
		{`"sig":"`, `"sig":"zz`}, {`"keyid":"`, `"keyid":"","x":"`}, {`{`, `[{`}, {`}`, `}}`}, {`"`, "\xff"}, {`"_type"`, `"x":1.5,"_type"`}, {`"_type"`, `"x":-0,"_type"`},
	} {
		out = append(out, forEach(roles, func(t *tale, role string) { t.edit(role, e[0], e[1]) })...)
	}
	return out
}

// told is a case of metadata: a device with the next release before it, on line unless
// the tale is of a stick.
func told(name, input string, want error, threats []string, stories ...story) Attack {
	return Attack{Name: "metadata/" + name, Input: input, Want: want, Threats: threats, Run: func(s *Scene) error {
		var d *device
		for i, tell := range stories {
			next := theDesk().next
			t := &tale{repository: theDesk().repository(next)}
			tell(t)
			t.show()
			// What is refused leaves the device as it was, but for metadata that verified.
			if d == nil || want == nil || !t.now.IsZero() {
				s.Compare()
				d = s.device(theDesk().first, theDesk().old)
				if !t.now.IsZero() {
					done(journal.Save(d.store, journal.Journal{TimeFloor: t.now.Unix()}))
				}
				d.keep(running)
				if want != nil {
					d.keep(spare, record, memo)
				}
			}
			d.trust = newFolder()
			if t.store != nil {
				t.store(d.trust)
			}
			u := must(d.on())
			for _, files := range t.seen[:len(t.seen)-1] {
				must(u.CheckRelease(background, &source{bundle: next, files: files}, updater.Options{Online: true}))
			}
			last := &source{bundle: next, files: t.seen[len(t.seen)-1]}
			accepted := d.trust.files["targets.json"]
			s.Variant(u.Install(background, last, updater.Options{Online: !t.stick, Full: transport.FullGo}), "variant %d", i)
			if want == nil {
				s.Bubble(func() { d.ends(next) })
			} else if t.store == nil && want != trust.ErrNoTarget && want != trust.ErrMismatch && want != trust.ErrFormat {
				require.Equal(s, accepted, d.trust.files["targets.json"], "variant %d: other targets count now", i)
			}
		}
		return nil
	}}
}
