package demo

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/tandem-ota/tandem/qemu"
	"github.com/tandem-ota/tandem/transport"
)

// Limits are for a machine that does other things too; goods.slow and TANDEM_PATIENCE
// multiply them.
const (
	bootLimit    = 6 * time.Minute
	installLimit = 15 * time.Minute
	trialLimit   = 10 * time.Minute
	revertLimit  = 10 * time.Minute
)

// play is a demonstration under way. Everything that happens comes to it as news;
// only await takes them, so that there is one order of things, and no locks.
type play struct {
	*screen
	goods
	dir     string
	machine *qemu.Device
	desk    *desk
	sampler sampler
	news    chan news

	// What is known now.
	online  bool
	state   transport.State
	hello   qemu.Hello
	last    *status
	off     error
	verdict *transport.Verdict // of the update under way
	seen    map[string]bool    // verdicts that were shown, by id: devices repeat them
	facts   string             // the state as it was shown last
	proof   string             // the TPM's, as it was shown last

	now    *update // under way
	then   []*update
	checks []string // what independent tools agreed with
}

// update is what is remembered of one update. Times are zero for what did not happen.
type update struct {
	parcel
	payloads  []string  // as the device chose them
	published time.Time // the desk's command ended
	trial     time.Time // GRUB started the new slot
	hung      time.Time // the system's last line
	bite      time.Time // the watchdog reset the machine
	back      time.Time // GRUB started the good slot again
	told      time.Time // the verdict arrived
	peak      int64     // of the device program's memory while installing, bytes
	verdict   transport.Verdict
}

// say hands news over; a source never waits, since it may be the connection itself.
func (p *play) say(n news) {
	n.at = time.Now()
	select {
	case p.news <- n:
	default: // thousands wait already, and the device repeats what matters
	}
}

// await shows what happens until ok.
func (p *play) await(ctx context.Context, what string, limit time.Duration, ok func() (bool, error)) error {
	limit = p.machine.Scaled(limit) * time.Duration(p.slow)
	end := time.NewTimer(limit)
	defer end.Stop()
	tick := time.NewTicker(time.Second) // for the moving line only
	defer tick.Stop()
	began := time.Now()
	for {
		if done, err := ok(); err != nil || done {
			return err
		}
		select {
		case n := <-p.news:
			if err := p.take(ctx, n); err != nil {
				return err
			}
		case <-tick.C:
			if p.phase == "" || p.quarters == 4 {
				p.move("…", fmt.Sprintf("waiting for %s, %.0f s | %s", what, time.Since(began).Seconds(), p.machine.Status(ctx).Console))
			}
		case <-end.C:
			return fmt.Errorf("%s did not happen in %s; the console's last lines:\n%s", what, limit, lastLines(p.machine.Transcript(), 15))
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	for i, l := range lines {
		lines[i] = "  | " + printable(l)
	}
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// take shows news and remembers what they say.
func (p *play) take(ctx context.Context, n news) error {
	switch {
	case n.bad != nil:
		return n.bad
	case n.off != nil:
		p.off = n.off
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("the machine went off: %w", n.off)
	case n.live != nil:
		if p.online != n.live.Online {
			p.online = n.live.Online
			p.line("broker", "%s is %s", device, map[bool]string{true: "online", false: "gone (its last will says so)"}[p.online])
		}
	case n.state != nil:
		p.takeState(*n.state)
	case n.event != nil:
		p.takeEvent(ctx, *n.event)
	case n.progress != nil:
		p.progress(*n.progress)
		p.sampler.sample(ctx)
	case n.verdict != nil:
		p.takeVerdict(n)
	case n.console != "":
		p.takeConsole(n)
	case n.watchdog != nil:
		p.line("watchdog", "QEMU reports the event WATCHDOG %s", n.watchdog.Data)
		if p.now != nil && p.now.bite.IsZero() {
			p.now.bite = n.at
		}
	case n.hello != nil:
		p.hello = *n.hello
	case n.status != nil:
		p.last = n.status
		if u := p.now; u != nil && u.trial.IsZero() {
			u.peak = max(u.peak, n.status.Memory.Peak)
		}
	}
	return nil
}

func (p *play) takeState(s transport.State) {
	p.state = s
	var slots []string
	for _, slot := range s.Slots {
		what := strings.TrimSpace(slot.Version + " " + slot.Mark)
		slots = append(slots, slot.Name+": "+what)
	}
	facts := fmt.Sprintf("runs slot %s, release %s, phase %s (%s; good: %s", s.Slot, s.Version, s.Phase, strings.Join(slots, ", "), s.Good)
	if s.Tries > 0 {
		facts += fmt.Sprintf("; tries left: %d", s.Tries)
	}
	facts += ")"
	if facts != p.facts {
		p.facts = facts
		p.line("device", "%s", facts)
		if s.Error != "" {
			p.more("said last: %s", s.Error)
		}
	}
	if s.TPM == nil {
		return
	}
	word := "the log explains it"
	if !s.TPM.Agrees {
		word = "THE LOG DOES NOT EXPLAIN IT"
	}
	proof := fmt.Sprintf("PCR %d %s, ledger %s: %s", p.board.TPM.PCR, short(s.TPM.PCR), short(s.TPM.Ledger), word)
	if proof != p.proof {
		p.proof = proof
		p.line("tpm", "%s", proof)
	}
}

// short is the beginning of a long hexadecimal number.
func short(hex string) string {
	if len(hex) > 16 {
		return hex[:16] + "…"
	}
	if hex == "" {
		return "(empty)"
	}
	return hex
}

// digests are too long to read.
var digests = regexp.MustCompile(`sha256:[0-9a-f]{64}`)

func (p *play) takeEvent(ctx context.Context, e transport.Event) {
	p.screen.phase = ""
	if e.Phase == "chosen" && p.now != nil {
		p.now.payloads = append(p.now.payloads, e.Text)
	}
	switch e.Phase {
	case "writing", "reading back":
		p.move("device", e.Phase+" "+e.Text) // its bar follows
		return
	case "measured":
		p.sampler.sample(ctx)
	}
	text := digests.ReplaceAllStringFunc(e.Text, func(d string) string { return short(d[len("sha256:"):]) })
	p.line("device", "%-18s %s", e.Phase, text)
}

func (p *play) takeVerdict(n news) {
	v := *n.verdict
	if p.seen[v.ID] {
		return
	}
	p.seen[v.ID] = true
	p.screen.phase = ""
	what := v.Result
	if v.Reason != "" {
		what += ", reason: " + strings.TrimSpace(v.Reason+" "+v.Check)
	}
	p.line("verdict", "%s in slot %s: %s", v.Version, v.Slot, what)
	if v.Detail != "" {
		p.more("%s", v.Detail)
	}
	if v.Result != transport.Committed {
		for _, l := range v.Log[max(0, len(v.Log)-8):] {
			p.more("| %s", l)
		}
	}
	if p.now != nil {
		p.now.told, p.now.verdict, p.verdict = n.at, v, &v
	}
}

func (p *play) takeConsole(n news) {
	who := "console"
	switch {
	case strings.HasPrefix(n.console, "tandem: "):
		who = "grub"
	case strings.HasPrefix(n.console, "tandem-init: "):
		who = "init"
	}
	p.screen.phase = ""
	p.line(who, "%s", n.console)
	if who == "grub" {
		p.hello = qemu.Hello{} // what ran before cannot be asked any more
	}
	u := p.now
	if u == nil {
		return
	}
	switch {
	case who == "grub" && strings.Contains(n.console, "(trial,"):
		u.trial = n.at
	case u.hangs != nil && !u.trial.IsZero() && u.hung.IsZero() && u.hangs.last.MatchString(n.console):
		u.hung = n.at
	case who == "grub" && strings.HasPrefix(n.console, "tandem: slot "+p.state.Good) && !u.bite.IsZero() && u.back.IsZero():
		u.back = n.at
	}
}

// settled tells whether the device runs a release from a slot, and wants nothing more.
func (p *play) settled(slot, version string) bool {
	s := p.state
	return p.online && s.Slot == slot && s.Good == slot && s.Version == version && s.Phase == "idle" &&
		p.hello.Slot == slot && p.hello.Version == version
}

// send publishes a parcel and opens the account of its update.
func (p *play) send(ctx context.Context, trust string, parcel parcel) error {
	p.now, p.verdict = &update{parcel: parcel}, nil
	p.then = append(p.then, p.now)
	command, err := p.desk.publish(ctx, p.goods, trust, parcel)
	if err != nil {
		return err
	}
	p.now.published = time.Now()
	p.line("desk", "$ %s", command)
	return nil
}

// ended returns an error if the update ended in another way than it should.
func (p *play) ended(want string) (bool, error) {
	v := p.verdict
	if v == nil {
		return false, nil
	}
	if v.Version != p.now.m.Version || v.Result != want {
		return false, fmt.Errorf("release %s ended as %s (%s), want %s as %s", v.Version, v.Result, strings.TrimSpace(v.Reason+" "+v.Check+" "+v.Detail), p.now.m.Version, want)
	}
	return true, nil
}

// errProof means that the TPM and what the device says of itself disagree.
var errProof = errors.New("the TPM does not confirm it")
