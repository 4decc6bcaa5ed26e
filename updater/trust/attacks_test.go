package trust_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/stretchr/testify/require"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/tandem-ota/tandem/updater/trust"
)

// attack is a story: what a device sees one after the other. All but the last
// repository are fine.
type attack struct {
	name string
	see  func(w *world) []files
	want error // of the last; nil when it is fine too
	// stricter marks what we refuse and go-tuf takes, and says why.
	stricter string
	now      time.Time // today where not given
}

// edited changes JSON in place, after it was signed.
func edited(data []byte, old, new string) []byte {
	if !bytes.Contains(data, []byte(old)) {
		panic("nothing to edit: " + old)
	}
	return bytes.Replace(data, []byte(old), []byte(new), 1)
}

var attacks = []attack{
	{name: "a first honest repository", see: func(w *world) []files { return []files{w.publish()} }},
	{name: "the same repository again", see: func(w *world) []files { return []files{w.publish(), w.publish()} }},
	{name: "news", see: func(w *world) []files { return []files{w.publish(), w.bump().publish()} }},
	{name: "fields that nobody knows yet", see: func(w *world) []files {
		w.root.Signed.UnrecognizedFields = map[string]any{"x-new": map[string]any{"é\\\"": []any{"a", true, nil, 7}}}
		w.targets.Signed.UnrecognizedFields = map[string]any{"note": "<&>\u2028"}
		f := w.publish()
		w.out = f
		return []files{f}
	}},
	{name: "no consistent snapshots", see: func(w *world) []files {
		w.root.Signed.ConsistentSnapshot = false
		f := w.publish()
		f["snapshot.json"] = f["1.snapshot.json"]
		delete(f, "1.snapshot.json")
		delete(f, "1.targets.json")
		return []files{f}
	}},

	{name: "arbitrary software: targets by a stranger", want: trust.ErrSignature, see: func(w *world) []files {
		w.keys["targets"] = signers()[8:9]
		return []files{w.publish()}
	}},
	{name: "arbitrary software: a target changed after signing", want: trust.ErrSignature, see: func(w *world) []files {
		f := w.publish()
		f["1.targets.json"] = edited(f["1.targets.json"], `"length":9`, `"length":8`)
		return []files{f}
	}},
	{name: "nobody signed", want: trust.ErrSignature, see: func(w *world) []files {
		w.keys["timestamp"] = nil
		return []files{w.publish()}
	}},
	{name: "a signature cut short", want: trust.ErrSignature, see: func(w *world) []files {
		f := w.publish()
		f["timestamp.json"] = edited(f["timestamp.json"], `"sig":"`, `"sig":"00`)
		return []files{f}
	}},
	{name: "wrong role: the timestamp key signs targets", want: trust.ErrSignature, see: func(w *world) []files {
		w.keys["targets"] = w.keys["timestamp"]
		return []files{w.publish()}
	}},
	{name: "wrong role: snapshot served as targets", want: trust.ErrFormat, see: func(w *world) []files {
		f := w.publish()
		f["1.targets.json"] = f["1.snapshot.json"]
		return []files{f}
	}},
	{name: "wrong role: one key for two roles, snapshot served as timestamp", want: trust.ErrFormat, see: func(w *world) []files {
		w.grant("timestamp", w.keys["snapshot"][0])
		f := w.publish()
		f["timestamp.json"] = f["1.snapshot.json"]
		return []files{f}
	}},

	{name: "rollback of the timestamp", want: trust.ErrRollback, see: func(w *world) []files {
		old := w.publish()
		return []files{w.bump().publish(), old}
	}},
	{name: "rollback of the snapshot by a stolen timestamp key", want: trust.ErrRollback, see: func(w *world) []files {
		good := w.bump().publish()
		w.timestamp.Signed.Version++
		w.timestamp.Signed.Meta["snapshot.json"].Version = 1
		return []files{good, w.publish()}
	}},
	{name: "rollback to a snapshot that names the same targets", want: trust.ErrRollback, see: func(w *world) []files {
		w.timestamp.Signed.Version, w.snapshot.Signed.Version = 2, 2
		w.timestamp.Signed.Meta["snapshot.json"].Version = 2
		good := w.publish()
		w.timestamp.Signed.Version = 3
		w.timestamp.Signed.Meta["snapshot.json"].Version = 1
		return []files{good, w.publish()}
	}},
	{name: "rollback of targets by stolen online keys", want: trust.ErrRollback, see: func(w *world) []files {
		good := w.bump().publish()
		w.bump()
		w.snapshot.Signed.Meta["targets.json"].Version = 1
		return []files{good, w.publish()}
	}},
	{name: "targets dropped from the snapshot", want: trust.ErrRollback, see: func(w *world) []files {
		w.snapshot.Signed.Meta["fleet.json"] = metadata.MetaFile(1)
		good := w.bump().publish()
		delete(w.snapshot.Signed.Meta, "fleet.json")
		return []files{good, w.bump().publish()}
	}},

	{name: "freeze: the timestamp has expired", want: trust.ErrExpired, now: today.AddDate(0, 2, 0), see: func(w *world) []files {
		w.timestamp.Signed.Expires = today.AddDate(0, 1, 0)
		return []files{w.publish()}
	}},
	{name: "freeze: a timestamp that was seen has expired since", want: trust.ErrExpired, now: today.AddDate(0, 2, 0), see: func(w *world) []files {
		w.timestamp.Signed.Expires = today.AddDate(0, 1, 0)
		f := w.publish()
		return []files{f, f}
	}},
	{name: "freeze: a snapshot that was seen has expired since", want: trust.ErrExpired, now: today.AddDate(0, 2, 0), see: func(w *world) []files {
		w.snapshot.Signed.Expires = today.AddDate(0, 1, 0)
		first := w.publish()
		w.timestamp.Signed.Version++
		return []files{first, w.publish()}
	}},
	{name: "freeze: the snapshot has expired", want: trust.ErrExpired, now: today.AddDate(0, 2, 0), see: func(w *world) []files {
		w.snapshot.Signed.Expires = today.AddDate(0, 1, 0)
		return []files{w.publish()}
	}},
	{name: "freeze: the targets have expired", want: trust.ErrExpired, now: today.AddDate(0, 2, 0), see: func(w *world) []files {
		w.targets.Signed.Expires = today.AddDate(0, 1, 0)
		return []files{w.publish()}
	}},
	{name: "freeze: the last root has expired", want: trust.ErrExpired, now: today.AddDate(0, 2, 0), see: func(w *world) []files {
		w.root.Signed.Expires = today.AddDate(0, 1, 0)
		return []files{w.publish()}
	}},
	{name: "a root on the way has expired, the last has not", now: today.AddDate(0, 2, 0), see: func(w *world) []files {
		w.root.Signed.Version, w.root.Signed.Expires = 2, today.AddDate(0, 1, 0)
		w.publish()
		w.root.Signed.Version, w.root.Signed.Expires = 3, today.AddDate(1, 0, 0)
		return []files{w.publish()}
	}},
	{name: "an expired timestamp is followed by a good one", now: today.AddDate(0, 2, 0), see: func(w *world) []files {
		w.timestamp.Signed.Expires = today.AddDate(0, 1, 0)
		w.bump().publish()
		w.timestamp.Signed.Expires = today.AddDate(1, 0, 0)
		return []files{w.bump().publish()}
	}},

	{name: "mix and match: targets of another day", want: trust.ErrMismatch, see: func(w *world) []files {
		old := w.publish()
		f := w.bump().publish()
		f["2.targets.json"] = old["1.targets.json"]
		return []files{f}
	}},
	{name: "mix and match: snapshot of another day", want: trust.ErrMismatch, see: func(w *world) []files {
		old := w.publish()
		f := w.bump().publish()
		f["2.snapshot.json"] = old["1.snapshot.json"]
		return []files{f}
	}},
	{name: "mix and match: the snapshot's hash is in the timestamp", want: trust.ErrMismatch, see: func(w *world) []files {
		f := w.publish()
		sum := metadata.HexBytes(bytes.Repeat([]byte{1}, 32))
		w.timestamp.Signed.Meta["snapshot.json"].Hashes = metadata.Hashes{"sha256": sum}
		f["timestamp.json"] = w.publish()["timestamp.json"]
		return []files{f}
	}},
	{name: "mix and match: the targets' length is in the snapshot", want: trust.ErrMismatch, see: func(w *world) []files {
		w.snapshot.Signed.Meta["targets.json"].Length = int64(len(w.out["1.targets.json"])) - 1
		return []files{w.publish()}
	}},
	{name: "the timestamp names version 0", want: trust.ErrFormat, see: func(w *world) []files {
		w.timestamp.Signed.Meta["snapshot.json"].Version = 0
		f := w.publish()
		f["0.snapshot.json"] = f["1.snapshot.json"]
		return []files{f}
	}},
	{name: "the snapshot does not list targets", want: trust.ErrFormat, see: func(w *world) []files {
		delete(w.snapshot.Signed.Meta, "targets.json")
		return []files{w.publish()}
	}},

	{name: "endless data for a timestamp", want: trust.ErrTooLarge, see: func(w *world) []files {
		f := w.publish()
		f["timestamp.json"] = append(f["timestamp.json"], bytes.Repeat([]byte(" "), 1<<20)...)
		return []files{f}
	}},

	{name: "rotation: every role gets new keys", see: func(w *world) []files {
		first := w.publish()
		olds := w.keys["root"]
		for i, role := range metadata.TOP_LEVEL_ROLE_NAMES {
			w.grant(role, signers()[4+i])
			w.revoke(role, signers()[i])
		}
		w.newRoot(append(olds, w.keys["root"]...)...)
		w.bump().publishRest()
		return []files{first, w.publishRest()}
	}},
	{name: "rotation: three roots at once, after years on a shelf", see: func(w *world) []files {
		last := signers()[0]
		for i := 4; i < 7; i++ {
			w.grant("root", signers()[i])
			w.revoke("root", last)
			w.newRoot(last, signers()[i])
			last = signers()[i]
		}
		return []files{w.bump().publishRest()}
	}},
	{name: "rotation without the old keys", want: trust.ErrSignature, see: func(w *world) []files {
		w.grant("root", signers()[4])
		w.revoke("root", signers()[0])
		w.newRoot(signers()[4])
		return []files{w.publishRest()}
	}},
	{name: "rotation without the new keys", want: trust.ErrSignature, see: func(w *world) []files {
		w.grant("root", signers()[4])
		w.revoke("root", signers()[0])
		w.newRoot(signers()[0])
		return []files{w.publishRest()}
	}},
	{name: "rotation that skips a version", want: trust.ErrRollback, see: func(w *world) []files {
		w.root.Signed.Version = 2
		w.newRoot(signers()[0])
		f := w.publishRest()
		f["2.root.json"] = f["3.root.json"]
		delete(f, "3.root.json")
		return []files{f}
	}},
	{name: "rotation to the same version", want: trust.ErrRollback, see: func(w *world) []files {
		f := w.publish()
		f["2.root.json"] = f["1.root.json"]
		return []files{f}
	}},
	{name: "fast-forward: the timestamp's version is the last", want: trust.ErrRollback, see: func(w *world) []files {
		w.timestamp.Signed.Version = math.MaxInt64
		bad := w.publish()
		w.timestamp.Signed.Version = 2
		return []files{bad, w.publish()}
	}},
	{name: "fast-forward: new keys are the cure", see: func(w *world) []files {
		w.timestamp.Signed.Version, w.snapshot.Signed.Version = math.MaxInt64, math.MaxInt64
		w.timestamp.Signed.Meta["snapshot.json"].Version = math.MaxInt64
		bad := w.publish()
		w.timestamp.Signed.Version, w.snapshot.Signed.Version = 2, 2
		w.timestamp.Signed.Meta["snapshot.json"].Version = 2
		for i, role := range []string{"timestamp", "snapshot"} {
			old := w.keys[role][0]
			w.grant(role, signers()[4+i])
			w.revoke(role, old)
		}
		w.newRoot(signers()[0])
		return []files{bad, w.publishRest()}
	}},
	{name: "compromise: a revoked timestamp key goes on", want: trust.ErrSignature, see: func(w *world) []files {
		good := w.publish()
		old := w.keys["timestamp"][0]
		w.grant("timestamp", signers()[4])
		w.revoke("timestamp", old)
		w.newRoot(signers()[0])
		w.keys["timestamp"] = []signature.Signer{old}
		return []files{good, w.bump().publishRest()}
	}},

	{name: "threshold: two of two signed", see: func(w *world) []files {
		w.grant("targets", signers()[5])
		w.root.Signed.Roles["targets"].Threshold = 2
		return []files{w.publish()}
	}},
	{name: "threshold: one of two signed", want: trust.ErrThreshold, see: func(w *world) []files {
		w.grant("targets", signers()[5])
		w.root.Signed.Roles["targets"].Threshold = 2
		w.keys["targets"] = w.keys["targets"][:1]
		return []files{w.publish()}
	}},
	{name: "threshold: the same signature twice", want: trust.ErrFormat, see: func(w *world) []files {
		w.grant("targets", signers()[5])
		w.root.Signed.Roles["targets"].Threshold = 2
		w.keys["targets"] = []signature.Signer{w.keys["targets"][0], w.keys["targets"][0]}
		return []files{w.publish()}
	}},
	{name: "threshold: the same key under two ids", want: trust.ErrThreshold, see: func(w *world) []files {
		k := *tufKey(w.t, signers()[5])
		w.grant("targets", signers()[5])
		k.Type = metadata.KeyTypeECDSA_SHA2_P256_COMPAT
		twin := metadata.Key{Type: k.Type, Scheme: k.Scheme, Value: k.Value}
		if err := w.root.Signed.AddKey(&twin, "targets"); err != nil {
			panic(err)
		}
		id, _ := twin.ID()
		w.revoke("targets", w.keys["targets"][0])
		w.root.Signed.Roles["targets"].Threshold = 2
		w.publish()
		// The attacker has one key and claims both ids.
		sig := w.targets.Signatures[0]
		w.targets.Signatures = append(w.targets.Signatures, metadata.Signature{KeyID: id, Signature: sig.Signature})
		data, err := w.targets.ToBytes(false)
		if err != nil {
			panic(err)
		}
		w.out["1.targets.json"] = data
		return []files{w.out}
	}},
	{name: "threshold of 0 for targets", want: trust.ErrThreshold, see: func(w *world) []files {
		w.root.Signed.Roles["targets"].Threshold = 0
		w.keys["targets"] = nil
		return []files{w.publish()}
	}},
	{name: "threshold below 0", want: trust.ErrThreshold, see: func(w *world) []files {
		w.root.Signed.Roles["snapshot"].Threshold = -1
		return []files{w.publish()}
	}},
	{name: "threshold above the number of keys", want: trust.ErrThreshold, see: func(w *world) []files {
		w.root.Signed.Roles["snapshot"].Threshold = 2
		return []files{w.publish()}
	}},
	{name: "a key id named twice counts once", want: trust.ErrThreshold, see: func(w *world) []files {
		r := w.root.Signed.Roles["targets"]
		r.KeyIDs = append(r.KeyIDs, r.KeyIDs[0])
		r.Threshold = 2
		return []files{w.publish()}
	}},
	{name: "a role without keys", want: trust.ErrThreshold, see: func(w *world) []files {
		w.revoke("snapshot", w.keys["snapshot"][0])
		return []files{w.publish()}
	}},
	{name: "a root without a role", want: trust.ErrUnknownRole, see: func(w *world) []files {
		delete(w.root.Signed.Roles, "snapshot")
		return []files{w.publish()}
	}},
	{name: "a role names a key that is not there", want: trust.ErrFormat, see: func(w *world) []files {
		r := w.root.Signed.Roles["targets"]
		r.KeyIDs = append(r.KeyIDs, strings.Repeat("0", 64))
		return []files{w.publish()}
	}},
	{name: "a key under an id that is not its hash", want: trust.ErrFormat, stricter: "go-tuf does not compute the id", see: func(w *world) []files {
		k := tufKey(w.t, signers()[5])
		id := strings.Repeat("0", 64)
		w.root.Signed.Keys[id] = k
		w.root.Signed.Roles["targets"].KeyIDs = append(w.root.Signed.Roles["targets"].KeyIDs, id)
		return []files{w.publish()}
	}},
	{name: "another specification", want: trust.ErrFormat, stricter: "go-tuf does not look at spec_version", see: func(w *world) []files {
		w.timestamp.Signed.SpecVersion = "2.0.0"
		return []files{w.publish()}
	}},
	{name: "version 0", want: trust.ErrFormat, stricter: "go-tuf takes any version", see: func(w *world) []files {
		w.timestamp.Signed.Version = 0
		return []files{w.publish()}
	}},
	{name: "a key in the JSON twice", want: trust.ErrFormat, stricter: "go-tuf takes the last", see: func(w *world) []files {
		f := w.publish()
		f["timestamp.json"] = edited(f["timestamp.json"], `"_type":"timestamp"`, `"_type":"root","_type":"timestamp"`)
		return []files{f}
	}},
	{name: "not JSON", want: trust.ErrFormat, see: func(w *world) []files {
		f := w.publish()
		f["timestamp.json"] = []byte("<html>captive portal</html>")
		return []files{f}
	}},
	{name: "JSON of another shape", want: trust.ErrFormat, see: func(w *world) []files {
		f := w.publish()
		f["1.targets.json"] = []byte(`{"signed":[],"signatures":{}}`)
		return []files{f}
	}},
}

// Our verifier takes what go-tuf takes and refuses what go-tuf refuses, with an
// error that says why; where it refuses more, the reason is in the table.
func TestAttacks(t *testing.T) {
	for _, a := range attacks {
		t.Run(a.name, func(t *testing.T) {
			w := newWorld(t)
			anchor := bytes.Clone(w.out["1.root.json"])
			story := a.see(w)
			if _, ok := story[0]["2.root.json"]; !ok {
				anchor = story[0]["1.root.json"] // the story changed what the device was built with
			}
			now := today
			c := newClient(t, anchor)
			for i, repo := range story {
				if i == len(story)-1 && !a.now.IsZero() {
					now = a.now
				}
				oracle := c.oracle(repo, now)
				_, ours := c.update(repo, now)
				if i < len(story)-1 || a.want == nil {
					require.NoError(t, ours, "repository %d", i)
					require.NoError(t, oracle, "repository %d", i)
					continue
				}
				require.ErrorIs(t, ours, a.want)
				if a.stricter != "" {
					require.NoError(t, oracle, "no longer stricter than go-tuf")
				} else {
					require.Error(t, oracle, "go-tuf takes it, we say: %v", ours)
				}
			}
		})
	}
}

// A refused update changes nothing that a device acts on.
func TestAttacksKeepTheOldTargets(t *testing.T) {
	for _, a := range attacks {
		w := newWorld(t)
		first := w.publish()
		c := newClient(t, first["1.root.json"])
		ours, err := c.update(first, today)
		require.NoError(t, err)
		before, err := ours.Target(target)
		require.NoError(t, err)

		// The attacker has all keys, and every file says so.
		w.addTarget(target, []byte("evil"))
		w.bump()
		story := a.see(w)
		now := today
		if !a.now.IsZero() {
			now = a.now
		}
		ours, err = c.update(story[len(story)-1], now)
		if err == nil {
			continue
		}
		for range 2 { // in this process, and in the next
			after, err := ours.Target(target)
			if err == nil {
				require.Equal(t, before, after, a.name)
			} else {
				// A root that rotated keys has been accepted before.
				require.ErrorIs(t, err, trust.ErrNoTarget, a.name)
			}
			ours, err = trust.Open(c.store, c.anchor)
			require.NoError(t, err)
		}
	}
}

// Every single changed byte of a timestamp is noticed, by us as by go-tuf; both
// agree on each.
func TestFlippedByte(t *testing.T) {
	w := newWorld(t)
	f := w.publish()
	for i := range f["timestamp.json"] {
		bad := files{}
		for k, v := range f {
			bad[k] = v
		}
		data := bytes.Clone(f["timestamp.json"])
		data[i] ^= 1
		bad["timestamp.json"] = data
		_, err := newClient(t, f["1.root.json"]).update(bad, today)
		if !sameJSON(f["timestamp.json"], data) {
			require.Error(t, err, "byte %d, %q", i, data)
		}
	}
}

// sameJSON tells changes that change nothing, as the case of a hex digit.
func sameJSON(a, b []byte) bool {
	var x, y struct {
		Signed     json.RawMessage
		Signatures []struct{ KeyID, Sig string }
	}
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil &&
		strings.EqualFold(string(x.Signed), string(y.Signed)) && strings.EqualFold(fmt.Sprint(x.Signatures), fmt.Sprint(y.Signatures))
}
