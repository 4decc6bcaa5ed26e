package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	"github.com/tandem-ota/tandem/qemu"
	"github.com/tandem-ota/tandem/transport"
)

// news is one thing that somebody said; exactly one of the fields after at is set.
type news struct {
	at       time.Time
	live     *transport.Live
	state    *transport.State
	event    *transport.Event
	progress *transport.Progress
	verdict  *transport.Verdict
	console  string // a line worth showing
	watchdog *qemu.Event
	hello    *qemu.Hello
	status   *status
	off      error // the machine is off
	bad      error // a message that nobody understands
}

// status is the part of `updater status --json` that is shown.
type status struct {
	State transport.State `json:"state"`
	TPM   struct {
		Missing  []string `json:"missing"`
		Register *struct {
			PCR   int    `json:"pcr"`
			Value string `json:"value"`
			Agree bool   `json:"agree"`
		} `json:"register"`
		Ledger *struct {
			Value   string            `json:"value"`
			Agree   bool              `json:"agree"`
			Entries []json.RawMessage `json:"entries"`
		} `json:"ledger"`
	} `json:"tpm"`
	Memory struct {
		RSS  int64 `json:"rss"`
		Peak int64 `json:"peak"`
	} `json:"memory"`
}

// heard turns a message of the device into news.
func heard(kind transport.Kind, payload []byte) news {
	n := news{at: time.Now()}
	var err error
	switch kind {
	case transport.KindLive:
		n.live, err = parse(transport.ParseLive, payload)
	case transport.KindState:
		n.state, err = parse(transport.ParseState, payload)
	case transport.KindEvent:
		n.event, err = parse(transport.ParseEvent, payload)
	case transport.KindProgress:
		n.progress, err = parse(transport.ParseProgress, payload)
	case transport.KindVerdict:
		n.verdict, err = parse(transport.ParseVerdict, payload)
	}
	if err != nil {
		n.bad = fmt.Errorf("message %s of %s: %w", kind, device, err)
	}
	return n
}

func parse[T any](f func([]byte) (T, error), payload []byte) (*T, error) {
	m, err := f(payload)
	return &m, err
}

// worth finds the lines of the console that tell the story: GRUB's, the first
// program's, and how a system ends.
var worth = regexp.MustCompile(`(tandem(?:-init)?: [^\n]+|tiny: fault: [^\n]+|Kernel panic[^\n]*|Waiting for root device[^\n]*|reboot: (?:Restarting|machine)[^\n]*)\n`)

// forever is a limit for those who wait as long as the play lasts.
const forever = 24 * time.Hour

// follow hands over what the machine itself says, until it is off.
func follow(ctx context.Context, d *qemu.Device, say func(news)) {
	go func() {
		for {
			m, err := d.Expect(ctx, worth, forever)
			if err != nil {
				say(news{off: err})
				return
			}
			say(news{console: strings.TrimSpace(m[1])})
		}
	}()
	go func() {
		for {
			e, err := d.WaitEvent(ctx, "WATCHDOG", forever)
			if err != nil {
				return // the console says that the machine is off
			}
			say(news{watchdog: &e})
		}
	}()
	go func() {
		for {
			h, err := d.WaitBoot(ctx, forever)
			if err != nil {
				return
			}
			say(news{hello: &h})
		}
	}()
}

// sampler asks the device for its status while it has other things to do.
type sampler struct {
	device *qemu.Device
	say    func(news)
	busy   atomic.Bool
}

// sample starts a question unless one is under way. A device that restarts meanwhile
// gives no answer, and none is missed.
func (s *sampler) sample(ctx context.Context) {
	if !s.busy.CompareAndSwap(false, true) {
		return
	}
	go func() {
		defer s.busy.Store(false)
		if st, err := ask(ctx, s.device); err == nil {
			s.say(news{status: st})
		}
	}()
}

// ask runs `updater status` on the device.
func ask(ctx context.Context, d *qemu.Device) (*status, error) {
	res, err := d.Run(ctx, qemu.Command{Argv: []string{"updater", "status", "--json"}})
	if err != nil {
		return nil, err
	}
	var s status
	if res.Code != 0 {
		return nil, fmt.Errorf("updater status: exit code %d: %s", res.Code, res.Stderr)
	}
	if err := json.Unmarshal([]byte(res.Stdout), &s); err != nil {
		return nil, fmt.Errorf("updater status: %w", err)
	}
	return &s, nil
}
