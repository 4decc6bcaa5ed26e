package watchdog

import (
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// timer is a driver that behaves as drivers in Linux do: it may round, lack
// calls, or refuse to stop.
type timer struct {
	options uint32
	timeout int32
	round   int32 // timeouts are multiples of this
	missing map[uint]error
	running bool
	magic   bool
	fed     int
	open    bool
}

func newTimer(options uint32) *timer {
	return &timer{options: options, timeout: 30, round: 1, missing: map[uint]error{}, running: true, open: true}
}

func (d *timer) info() (*unix.WatchdogInfo, error) {
	i := &unix.WatchdogInfo{Options: d.options}
	copy(i.Identity[:], "i6300ESB timer")
	return i, nil
}

func (d *timer) get(request uint) (int32, error) {
	if err := d.missing[request]; err != nil {
		return 0, err
	}
	if request == unix.WDIOC_GETTIMEOUT {
		return d.timeout, nil
	}
	return unix.WDIOF_CARDRESET, nil
}

func (d *timer) set(request uint, value int32) error {
	if err := d.missing[request]; err != nil {
		return err
	}
	switch request {
	case unix.WDIOC_SETTIMEOUT:
		if value < 1 || value > 2046 {
			return unix.EINVAL
		}
		d.timeout = (value + d.round - 1) / d.round * d.round
	case unix.WDIOC_KEEPALIVE:
		d.fed++
	case unix.WDIOC_SETOPTIONS:
		d.running = value != unix.WDIOS_DISABLECARD
	}
	return nil
}

func (d *timer) write(p []byte) error { d.magic = p[len(p)-1] == 'V'; return nil }
func (d *timer) inherit() error       { return nil }
func (d *timer) close() error {
	d.open = false
	d.running = d.running && !d.magic
	return nil
}

func device(t *testing.T, d *timer) *Device {
	t.Helper()
	dev, err := fromDriver(d, 3)
	require.NoError(t, err)
	return dev
}

const settable = unix.WDIOF_SETTIMEOUT | unix.WDIOF_KEEPALIVEPING | unix.WDIOF_MAGICCLOSE

// What SetTimeout returns is what the hardware does, not what was asked for.
func TestSetTimeout(t *testing.T) {
	for _, tt := range []struct {
		state  string
		timer  func() *timer
		ask    time.Duration
		want   time.Duration
		failed bool
	}{
		{"any second", func() *timer { return newTimer(settable) }, 60 * time.Second, 60 * time.Second, false},
		{"part of a second", func() *timer { return newTimer(settable) }, 1500 * time.Millisecond, 2 * time.Second, false},
		{"hardware rounds up", func() *timer { d := newTimer(settable); d.round = 16; return d }, 20 * time.Second, 32 * time.Second, false},
		{"cannot be set", func() *timer { return newTimer(unix.WDIOF_KEEPALIVEPING) }, 60 * time.Second, 30 * time.Second, false},
		{"says it can be set, and refuses", func() *timer {
			d := newTimer(settable)
			d.missing[unix.WDIOC_SETTIMEOUT] = unix.EOPNOTSUPP
			return d
		}, 60 * time.Second, 30 * time.Second, false},
		{"longer than the hardware counts", func() *timer { return newTimer(settable) }, time.Hour, 0, true},
		{"nothing", func() *timer { return newTimer(settable) }, 0, 0, true},
		{"less than nothing", func() *timer { return newTimer(settable) }, -time.Second, 0, true},
		{"as long as the call can say", func() *timer { return newTimer(unix.WDIOF_KEEPALIVEPING) }, math.MaxInt32 * time.Second, 30 * time.Second, false},
		{"longer than the call can say", func() *timer { return newTimer(unix.WDIOF_KEEPALIVEPING) }, math.MaxInt32*time.Second + 1, 0, true},
		{"timeout is a secret", func() *timer {
			d := newTimer(settable)
			d.missing[unix.WDIOC_GETTIMEOUT] = unix.EOPNOTSUPP
			return d
		}, 60 * time.Second, 0, true},
	} {
		t.Run(tt.state, func(t *testing.T) {
			got, err := device(t, tt.timer()).SetTimeout(tt.ask)
			require.Equal(t, tt.failed, err != nil, "%v", err)
			require.Equal(t, tt.want, got)
		})
	}
}

// Closing leaves the timer running; only Disarm stops it, and it says so where
// that is not possible.
func TestCloseAndDisarm(t *testing.T) {
	d := newTimer(settable)
	require.NoError(t, device(t, d).Close())
	require.True(t, d.running)
	require.False(t, d.open)

	d = newTimer(settable)
	require.NoError(t, device(t, d).Disarm())
	require.False(t, d.running)
	require.False(t, d.open)

	d = newTimer(settable) // an older driver, stopped by the magic close alone
	d.missing[unix.WDIOC_SETOPTIONS] = unix.EOPNOTSUPP
	require.NoError(t, device(t, d).Disarm())
	require.False(t, d.running)

	d = newTimer(settable)
	d.missing[unix.WDIOC_SETOPTIONS] = unix.EBUSY // nowayout
	require.ErrorIs(t, device(t, d).Disarm(), ErrRunning)
	require.True(t, d.open)

	d = newTimer(unix.WDIOF_KEEPALIVEPING)
	require.ErrorIs(t, device(t, d).Disarm(), ErrRunning)
	require.True(t, d.open)
}

func TestDevice(t *testing.T) {
	d := newTimer(settable)
	dev := device(t, d)
	require.Equal(t, "i6300ESB timer", dev.Identity())
	require.NoError(t, dev.Feed())
	require.Equal(t, 1, d.fed)
	status, err := dev.BootStatus()
	require.NoError(t, err)
	require.Equal(t, CardReset, status)
	require.Equal(t, "watchdog reset", status.String())
	require.Equal(t, "none", Status(0).String())
	d.missing[unix.WDIOC_KEEPALIVE] = unix.EIO
	require.ErrorIs(t, dev.Feed(), unix.EIO)
}

// A device that is not there, and one that is something else, are told apart
// from faults, so that a board without a watchdog still works.
func TestOpenNothing(t *testing.T) {
	dir := t.TempDir()
	_, err := Open(filepath.Join(dir, "watchdog0"))
	require.ErrorIs(t, err, ErrNoDevice)

	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err = Open(file)
	require.ErrorIs(t, err, ErrNoDevice)

	_, err = FromFD(1 << 20)
	require.ErrorIs(t, err, unix.EBADF)
}
