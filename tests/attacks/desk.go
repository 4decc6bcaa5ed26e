package attacks

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/updater/delta/leaves"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta/mkblocks"
	"github.com/tandem-ota/tandem/updater/delta/mkdelta/mkleaves"
	"github.com/tandem-ota/tandem/updater/manifest"
	"github.com/tandem-ota/tandem/updater/trust"
	"github.com/tandem-ota/tandem/updater/trust/mktrust"
)

const (
	board  = "qemu-x86_64"
	me     = "pump-7"
	leaf   = manifest.LeafSize
	memory = 16 << 20 // that a device spends on a payload

	bootSize = 8 << 10         // one leaf: no tree
	rootSize = 3*leaf + 3*4096 // some leaves and a tail
)

// today is when what is signed here is signed.
var today = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

var background = context.Background()

// must is for what the attacker does without trouble: it is not what is tested.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// desk holds the keys of everybody, the attacker's among them ("stranger"), and the
// honest releases of the product.
type desk struct {
	keys   map[string][]mktrust.Signer // by role
	anchor []byte                      // the first root, as the system image carries it

	first, old, next *bundle // what the running slot has, the spare one, and the update
	epoch            *bundle // what a device runs whose floor is 2
}

// quorums is how many keys a role has, and how many of them must sign. One stolen key
// of what must be kept off line is not enough.
var quorums = map[string][2]int{
	mktrust.Root: {2, 2}, mktrust.Targets: {2, 2}, mktrust.Snapshot: {1, 1}, mktrust.Timestamp: {1, 1},
	mktrust.Release: {3, 2}, mktrust.Fleet: {1, 1}, stranger: {3, 1}, heir: {2, 1},
}

// Not roles of TUF: who has no say, and keys that get a role later.
const (
	stranger = "stranger"
	heir     = "heir"
)

// theDesk is made once: keys and deltas take longer than most attacks.
var theDesk = sync.OnceValue(func() *desk {
	d := &desk{keys: map[string][]mktrust.Signer{}}
	for role, q := range quorums {
		for range q[0] {
			d.keys[role] = append(d.keys[role], must(mktrust.FromCrypto(must(mktrust.NewKey(mktrust.Ed25519)))))
		}
	}
	d.anchor = d.repository().files["1.root.json"]
	d.old = d.release("0.9.0", 9, nil)
	d.first = d.release("1.0.0", 10, nil)
	d.next = d.release("2.0.0", 20, d.first)
	d.epoch = d.next.changed(func(m *manifest.Manifest) { m.Version, m.Sequence, m.Epoch = "2.5.0", 25, 2 })
	return d
})

// releaseKeys are those that the system image carries.
func (d *desk) releaseKeys() trust.KeySet { return keySet(2, d.keys[mktrust.Release]...) }

func keySet(threshold int, signers ...mktrust.Signer) trust.KeySet {
	var public []crypto.PublicKey
	for _, s := range signers {
		public = append(public, s.Public())
	}
	return must(trust.ParseKeySet(must(mktrust.KeySet(threshold, public...))))
}

// seal signs a manifest, whatever is in it, as the release role does.
func (d *desk) seal(payload []byte) []byte {
	return must(mktrust.Seal(background, trust.ManifestType, payload, d.keys[mktrust.Release][:2]...))
}

// bundle is a release: a manifest, what it names, and the envelope that it comes in.
type bundle struct {
	desk     *desk
	m        manifest.Manifest
	payload  []byte // the manifest's bytes
	envelope []byte
	images   map[string][]byte // by role
	blobs    map[manifest.Digest][]byte
}

// content is the system of a version: most of it is the same in all of them.
func content(version string, size int) []byte {
	b := make([]byte, size)
	fill := rand.New(rand.NewPCG(1, uint64(size)))
	for i := range b {
		b[i] = byte(fill.Uint32())
	}
	own := sha256.Sum256([]byte(version))
	for i := range 1 + size/leaf {
		at := int(own[i]) % (size / 4096) * 4096
		rand.NewChaCha8(own).Read(b[at : at+4096])
	}
	return b
}

// release makes an honest release: in full, with an index and with a delta from base.
func (d *desk) release(version string, sequence uint64, base *bundle) *bundle {
	r := &bundle{desk: d, images: map[string][]byte{}, blobs: map[manifest.Digest][]byte{}}
	r.m = manifest.Manifest{
		Format: manifest.Format, Product: "gateway", Boards: []string{board}, Version: version, Sequence: sequence,
		Trial:  manifest.Trial{Tries: 3, DeadlineSeconds: 60, WindowSeconds: 4, Network: manifest.NetworkIgnore},
		Health: []manifest.Check{{Name: "works", Kind: manifest.CheckUnit, Target: "works.service", TimeoutSeconds: 5}},
	}
	for _, part := range []struct {
		role string
		size int
	}{{"boot", bootSize}, {"root", rootSize}} {
		data := content(version, part.size)
		r.images[part.role] = data
		img := manifest.Image{Name: part.role + ".img", Type: manifest.TypeSlot, Target: part.role, Content: r.add(data)}
		delete(r.blobs, img.Digest) // the image itself is not offered
		target := mkdelta.Image{ReaderAt: bytes.NewReader(data), Size: int64(len(data))}
		options := mkdelta.Options{Level: 1, FrameSize: leaf, Workers: 1}
		var blob bytes.Buffer
		stats := must(mkdelta.MakeFull(background, target, options, &blob))
		img.Payloads = []manifest.Payload{{Kind: manifest.KindFull, Blob: r.add(blob.Bytes()), Memory: stats.Memory}}
		if base != nil {
			old := base.images[part.role]
			from := mkdelta.Image{ReaderAt: bytes.NewReader(old), Size: int64(len(old))}
			blob.Reset()
			stats = must(mkdelta.Make(background, from, target, options, &blob))
			p := manifest.Payload{Kind: manifest.KindDelta, Base: manifest.DigestOf(old), Blob: r.add(blob.Bytes()), Memory: stats.Memory}
			if list := r.blobs[img.Tree]; list != nil {
				p.Leaves = r.add(must(mkleaves.Make(background, leaves.Image(from), leaves.Image(target), list)))
			}
			blob.Reset()
			whole := mkblocks.Image{ReaderAt: target, Size: target.Size}
			index := must(mkblocks.Make(background, whole, mkblocks.Options{FrameSize: leaf, Window: leaf, Workers: 1}, &blob))
			img.Payloads = append(img.Payloads, p, manifest.Payload{Kind: manifest.KindIndex, Blob: r.add(blob.Bytes()), Memory: index.Memory})
		}
		r.m.Images = append(r.m.Images, img)
	}
	return r.signed()
}

// add keeps a blob, with the list of its leaves where it needs one.
func (r *bundle) add(data []byte) manifest.Content {
	data = bytes.Clone(data)
	c := manifest.Content{Digest: manifest.DigestOf(data), Size: int64(len(data))}
	r.blobs[c.Digest] = data
	if c.Size > leaf {
		list := listOf(data)
		c.Tree = manifest.DigestOf(list)
		r.blobs[c.Tree] = list
	}
	return c
}

// listOf is the list of leaf digests.
func listOf(data []byte) (list []byte) {
	for at := 0; at < len(data); at += leaf {
		sum := sha256.Sum256(data[at:min(at+leaf, len(data))])
		list = append(list, sum[:]...)
	}
	return list
}

// signed gives the release the envelope of its manifest.
func (r *bundle) signed() *bundle {
	r.payload = must(json.Marshal(r.m))
	r.envelope = r.desk.seal(r.payload)
	return r
}

// changed is the same release with another manifest, which need not be a valid one. The
// right keys have signed it all the same. Its blobs are its own to change.
func (r *bundle) changed(change func(m *manifest.Manifest)) *bundle {
	c := &bundle{desk: r.desk, images: r.images, blobs: map[manifest.Digest][]byte{}}
	for digest, blob := range r.blobs {
		c.blobs[digest] = blob
	}
	if err := json.Unmarshal(r.payload, &c.m); err != nil {
		panic(err)
	}
	change(&c.m)
	return c.signed()
}

// with is the release in another envelope.
func (r *bundle) with(envelope []byte) *bundle {
	c := *r
	c.envelope = envelope
	return &c
}

// bytes is the release around other bytes than a manifest's, signed by the right keys.
func (r *bundle) bytes(payload []byte) *bundle {
	c := r.with(r.desk.seal(payload))
	c.payload = payload
	return c
}

// edited is the manifest's JSON with one value changed: at a path as "images.0.size", to
// raw, which need not be JSON; or taken away where that is "".
func (r *bundle) edited(path, raw string) []byte {
	var doc any
	decoder := json.NewDecoder(bytes.NewReader(r.payload))
	decoder.UseNumber()
	if err := decoder.Decode(&doc); err != nil {
		panic(err)
	}
	const here = "@here@"
	at, parts := doc, strings.Split(path, ".")
	for _, part := range parts[:len(parts)-1] {
		if list, ok := at.([]any); ok {
			at = list[must(strconv.Atoi(part))]
		} else {
			at = at.(object)[part]
		}
	}
	switch last := parts[len(parts)-1]; at := at.(type) {
	case []any:
		at[must(strconv.Atoi(last))] = here
	case object:
		if at[last] = here; raw == "" {
			delete(at, last)
		}
	}
	return bytes.Replace(must(json.Marshal(doc)), []byte(`"`+here+`"`), []byte(raw), 1)
}

// statement is what the fleet's operator signs for a device.
func (d *desk) statement(s trust.Statement) []byte {
	return must(mktrust.Statement(background, s, d.keys[mktrust.Fleet]...))
}

// order is the ordinary statement: this device should run the release.
func (d *desk) order(r *bundle, counter uint64) trust.Statement {
	body := must(json.Marshal(transport.Desired{Manifest: string(manifest.DigestOf(r.payload)), Version: r.m.Version}))
	return trust.Statement{Device: me, Counter: counter, Kind: transport.KindDesired, Issued: today, Expires: today.AddDate(0, 1, 0), Body: body}
}

// object is a JSON object that the attacker may put anything into.
type object = map[string]any

// repository is TUF metadata in the hands of its owner, or of whoever has the keys. It is
// made by hand: the tools of the desk would refuse most of what is needed here.
type repository struct {
	desk                              *desk
	root, timestamp, snapshot, target object // what is signed of each
	by                                map[string][]mktrust.Signer
	files                             map[string][]byte // as published so far
}

// repository offers releases, in version 1 of everything.
func (d *desk) repository(offers ...*bundle) *repository {
	r := &repository{desk: d, by: map[string][]mktrust.Signer{}, files: map[string][]byte{}}
	head := func(role string) object {
		return object{"_type": role, "spec_version": "1.0.31", "version": 1, "expires": today.AddDate(1, 0, 0).Format(time.RFC3339)}
	}
	r.root, r.timestamp, r.snapshot, r.target = head("root"), head("timestamp"), head("snapshot"), head("targets")
	r.root["consistent_snapshot"], r.root["keys"], r.root["roles"] = true, object{}, object{}
	for _, role := range mktrust.Roles[:4] {
		r.grant(role, quorums[role][1], d.keys[role]...)
	}
	keys, ids := listed(d.keys[mktrust.Fleet])
	r.target["delegations"] = object{"keys": keys, "roles": []object{{
		"name": mktrust.Fleet, "keyids": ids, "threshold": 1, "terminating": true, "paths": []string{"fleet/*"},
	}}}
	r.timestamp["meta"], r.snapshot["meta"], r.target["targets"] = object{}, object{}, object{}
	r.offer(offers...)
	return r.publish()
}

// grant gives a role to those who sign for it from now on.
func (r *repository) grant(role string, threshold int, signers ...mktrust.Signer) {
	keys, ids := listed(signers)
	for id, key := range keys {
		r.root["keys"].(object)[id] = key
	}
	r.root["roles"].(object)[role] = object{"keyids": ids, "threshold": threshold}
	r.by[role] = signers
}

// listed are keys as TUF lists them.
func listed(signers []mktrust.Signer) (keys object, ids []string) {
	keys = object{}
	for _, s := range signers {
		id := must(mktrust.KeyID(s.Public()))
		keys[id] = object{"keytype": "ed25519", "scheme": "ed25519", "keyval": object{"public": hex.EncodeToString(s.Public().(ed25519.PublicKey))}}
		ids = append(ids, id)
	}
	return keys, ids
}

// offer lists releases as targets.
func (r *repository) offer(offers ...*bundle) {
	for _, o := range offers {
		sum := sha256.Sum256(o.envelope)
		r.target["targets"].(object)[o.m.TargetName()] = object{"length": len(o.envelope), "hashes": object{"sha256": hex.EncodeToString(sum[:])}}
	}
}

// version is what a role's metadata says of itself, if it is a number at all.
func version(signed object) string { return fmt.Sprint(signed["version"]) }

// bump makes new versions of all but the root.
func (r *repository) bump() *repository {
	for _, signed := range []object{r.timestamp, r.snapshot, r.target} {
		signed["version"] = signed["version"].(int) + 1
	}
	return r
}

// publish signs everything as it is now. What was published under other names stays.
func (r *repository) publish() *repository {
	r.snapshot["meta"].(object)["targets.json"] = object{"version": r.target["version"]}
	r.timestamp["meta"].(object)["snapshot.json"] = object{"version": r.snapshot["version"]}
	return r.publishAsIs()
}

// publishAsIs leaves alone what the files say about each other.
func (r *repository) publishAsIs() *repository {
	r.files[version(r.root)+".root.json"] = r.sign(r.root, r.by[mktrust.Root]...)
	r.files[version(r.target)+".targets.json"] = r.sign(r.target, r.by[mktrust.Targets]...)
	r.files["targets.json"] = r.files[version(r.target)+".targets.json"]
	r.files[version(r.snapshot)+".snapshot.json"] = r.sign(r.snapshot, r.by[mktrust.Snapshot]...)
	r.files["timestamp.json"] = r.sign(r.timestamp, r.by[mktrust.Timestamp]...)
	return r
}

// sign writes one file of metadata. Go's JSON of such objects is canonical already.
func (r *repository) sign(signed object, by ...mktrust.Signer) []byte {
	body := must(json.Marshal(signed))
	signatures := []object{}
	for _, s := range by {
		signatures = append(signatures, object{"keyid": must(mktrust.KeyID(s.Public())), "sig": hex.EncodeToString(must(s.Sign(background, body)))})
	}
	return must(json.Marshal(object{"signatures": signatures, "signed": json.RawMessage(body)}))
}
