package attacks

import (
	"bytes"

	"github.com/tandem-ota/tandem/updater/manifest"
)

// manifestAttacks are manifests that lie, and bytes that are none. Whoever signs
// releases may be fooled or robbed: a signature makes none of them harmless.
var manifestAttacks = []Attack{
	{
		Name: "manifest/nested-for-ever", Input: "a manifest of a million opening brackets", Want: manifest.ErrTooLarge, Threats: []string{tufEndless, uptaneEndlessData},
		Run: func(s *Scene) error {
			data := bytes.Repeat([]byte("["), manifest.MaxSize)
			s.Keep("input", func() []byte { return data })
			_, err := manifest.Parse(data)
			return err
		},
	},
}
