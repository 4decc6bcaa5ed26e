package mkrelease_test

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tandem-ota/tandem/updater/release/mkrelease"
)

// A base deserves a delta if the devices that have it save more than the delta costs.
func TestChoose(t *testing.T) {
	const mb = 1_000_000
	fleet := mkrelease.Devices{"1.0.0": 1}
	for name, row := range map[string]struct {
		chain mkrelease.Chain
		x     mkrelease.Candidate
		make  bool
		saved int64
	}{
		"nobody counted devices":                     {mkrelease.Chain{}, mkrelease.Candidate{Delta: 10 * mb, Without: 90 * mb}, true, 0},
		"nobody counted, larger than without":        {mkrelease.Chain{}, mkrelease.Candidate{Delta: 90 * mb, Without: 90 * mb}, false, 0},
		"a thousand devices":                         {mkrelease.Chain{Devices: fleet}, mkrelease.Candidate{Devices: 1000, Delta: 10 * mb, Without: 90 * mb}, true, 80000 * mb},
		"no device left on this version":             {mkrelease.Chain{Devices: fleet}, mkrelease.Candidate{Delta: 10 * mb, Without: 90 * mb}, false, 0},
		"one device, worth its storage":              {mkrelease.Chain{Devices: fleet}, mkrelease.Candidate{Devices: 1, Delta: 10 * mb, Without: 90 * mb}, true, 80 * mb},
		"one device, not worth its storage":          {mkrelease.Chain{Devices: fleet}, mkrelease.Candidate{Devices: 1, Delta: 50 * mb, Without: 90 * mb}, false, 40 * mb},
		"larger than the index":                      {mkrelease.Chain{Devices: fleet}, mkrelease.Candidate{Devices: 1000, Delta: 12 * mb, Without: 11 * mb}, false, -1000 * mb},
		"hardly smaller than the index":              {mkrelease.Chain{Devices: fleet, MinShare: 0.1}, mkrelease.Candidate{Devices: 1000, Delta: 10.5 * mb, Without: 11 * mb}, false, 500 * mb},
		"clearly smaller than the index":             {mkrelease.Chain{Devices: fleet, MinShare: 0.1}, mkrelease.Candidate{Devices: 1000, Delta: 9.8 * mb, Without: 11 * mb}, true, 1200 * mb},
		"a few devices, below what must be saved":    {mkrelease.Chain{Devices: fleet, MinBytes: 1000 * mb}, mkrelease.Candidate{Devices: 12, Delta: 10 * mb, Without: 90 * mb}, false, 960 * mb},
		"some more devices, above what must":         {mkrelease.Chain{Devices: fleet, MinBytes: 1000 * mb}, mkrelease.Candidate{Devices: 13, Delta: 10 * mb, Without: 90 * mb}, true, 1040 * mb},
		"the encoder takes longer than it is worth":  {mkrelease.Chain{Devices: fleet, PerSecond: mb}, mkrelease.Candidate{Devices: 2, Delta: 10 * mb, Without: 90 * mb, Time: 4 * time.Minute}, false, 160 * mb},
		"the encoder is worth it for three devices":  {mkrelease.Chain{Devices: fleet, PerSecond: mb}, mkrelease.Candidate{Devices: 4, Delta: 10 * mb, Without: 90 * mb, Time: 4 * time.Minute}, true, 320 * mb},
		"the image did not change":                   {mkrelease.Chain{Devices: fleet}, mkrelease.Candidate{Devices: 1, Without: mb}, true, mb},
		"nothing to download without a delta either": {mkrelease.Chain{Devices: fleet}, mkrelease.Candidate{Devices: 5}, false, 0},
	} {
		got := row.chain.Choose(row.x)
		require.Equal(t, row.make, got.Make, "%s: %s", name, got.Reason)
		require.Equal(t, row.saved, got.Saved, name)
		require.NotEmpty(t, got.Reason, name)
		require.Equal(t, got, row.chain.Choose(row.x), name)
	}
}

// More devices never make a delta less worth having.
func TestChooseGrowsWithTheFleet(t *testing.T) {
	c := mkrelease.Chain{Devices: mkrelease.Devices{}, MinBytes: 5000, MinShare: 0.05, PerSecond: 100}
	for delta := int64(0); delta <= 1200; delta += 40 {
		before := false
		for n := range 300 {
			got := c.Choose(mkrelease.Candidate{Devices: n, Delta: delta, Without: 1000, Time: 3 * time.Second}).Make
			require.False(t, before && !got, "%d devices, delta of %d", n, delta)
			before = got
		}
	}
}

func TestParseDevices(t *testing.T) {
	want := mkrelease.Devices{"1.0.0": 1200, "1.1.0-rc.1": 30}
	for _, s := range []string{"1.0.0=1200,1.1.0-rc.1=30", "# fleet\n1.0.0 1200 # of which 3 in the shop\n\n1.1.0-rc.1\t30\n", "1.0.0 = 1200\n1.1.0-rc.1=30"} {
		got, err := mkrelease.ReadDevices(s)
		if err != nil { // lines without = come from a file
			got, err = mkrelease.ParseDevices(s)
		}
		require.NoError(t, err, s)
		require.Equal(t, want, got)
	}
	for _, s := range []string{"1.0.0", "1.0.0=many", "1.0.0=-1", "1.0.0=1,1.0.0=2", "a b c", "1=2=3"} {
		_, err := mkrelease.ParseDevices(s)
		require.ErrorIs(t, err, mkrelease.ErrDevices, s)
	}
	_, err := mkrelease.ReadDevices("/no/such/file")
	require.Error(t, err)

	for s, want := range map[string]struct {
		bytes int64
		share float64
	}{"0": {}, "1500": {bytes: 1500}, "50M": {bytes: 50_000_000}, "2G": {bytes: 2_000_000_000}, "5%": {share: 0.05}, "12.5 %": {share: 0.125}} {
		bytes, share, err := mkrelease.ParseSaving(s)
		require.NoError(t, err, s)
		require.Equal(t, want.bytes, bytes, s)
		require.InDelta(t, want.share, share, 1e-9, s)
	}
	for _, s := range []string{"", "M", "%", "-1", "101%", "NaN%", "5X", "9999999999999T"} {
		_, _, err := mkrelease.ParseSaving(s)
		require.Error(t, err, s)
	}
}

// Three releases in a chain: the base that the fleet is on gets a delta, the base that nobody runs costs
// no encoder time, and who runs something that was never given as a base is named.
func TestCreateChain(t *testing.T) {
	boot, root := text(2, 40000), text(1, 600000)
	var bases []string
	for i, version := range []string{"1.0.0", "1.1.0", "1.2.0"} {
		root = bytes.Clone(root)
		copy(root[100000*i:], text(uint64(10+i), 3000))
		o := options(t, version, uint64(1+i), map[string][]byte{"boot": boot, "root": root})
		create(t, o)
		bases = append(bases, o.Out)
	}
	last := bytes.Clone(root)
	copy(last[500000:], text(20, 3000))
	o := options(t, "1.3.0", 4, map[string][]byte{"boot": boot, "root": last}, bases...)
	o.NoIndex = true // it is nearly as good for images this small
	o.Chain = mkrelease.Chain{Devices: mkrelease.Devices{"1.0.0": 4, "1.2.0": 1000, "0.9.0": 7}, MinBytes: 3_000_000}
	res := create(t, o)

	kept := map[string]bool{}
	for _, p := range res.Payloads {
		if p.Kind == "delta" {
			kept[p.Image+" "+p.BaseVersion] = true
		}
	}
	// The boot image is the same in all bases: one delta serves the devices of all.
	require.Equal(t, map[string]bool{"boot 1.0.0": true, "root 1.2.0": true}, kept)
	require.Equal(t, mkrelease.Devices{"0.9.0": 7}, res.Elsewhere)
	got := map[string]mkrelease.Weighed{}
	for _, w := range res.Weighed {
		got[w.Image+" "+w.BaseVersion] = w
	}
	require.Len(t, got, 4)
	require.Equal(t, 1004, got["boot 1.0.0"].Devices)
	require.Equal(t, "no device has this base", got["root 1.1.0"].Reason)
	require.False(t, got["root 1.0.0"].Made, got["root 1.0.0"].Reason)
	require.Contains(t, got["root 1.0.0"].Reason, "(expected)")
	require.True(t, got["root 1.2.0"].Kept)
	require.Positive(t, got["root 1.2.0"].Saved)
}
