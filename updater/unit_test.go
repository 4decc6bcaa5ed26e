package updater

import (
	"fmt"
	"testing"

	"github.com/tandem-ota/tandem/partition/disktest"
)

// Most disks, and flash, write 4 KiB at once, whatever they say that a sector is. A power
// cut at any moment of an update may destroy the whole of what was written at once, with
// what lies beside: what boots is a whole, signed system all the same, and the device gets
// to where it would have got.
//
// The disk of the journal is left out: on a device it has a file system, whose blocks are
// as large, and here files that share them.
func TestLargeUnits(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := story{func(t testing.TB) *device {
			d := older(t)
			for _, disk := range d.disks[:dataDisk] {
				disk.SetUnit(4096)
			}
			return d
		}, "2.0.0", commits("2.0.0")}
		d := s.begin(t)
		s.ends(d, s.tell(d), nothing)
		e := newExplorer()
		resumed := 0
		e.look(d, e.looked, "", disktest.Bounds{Samples: 4, Sectors: 3}, func(c *disktest.Crash) {
			if c.Class != disktest.Unit {
				return
			}
			n := d.after(c)
			s.ends(n, s.tell(n), nothing)
			n.stayed()
			resumed++
		})
		t.Attr("unit-cuts", fmt.Sprint(e.cuts[disktest.Unit]))
		t.Attr("unit-cuts-resumed", fmt.Sprint(resumed))
	})
}
