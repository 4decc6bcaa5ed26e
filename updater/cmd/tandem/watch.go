package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/tandem-ota/tandem/transport"
	"github.com/tandem-ota/tandem/transport/mqtt"
	"golang.org/x/sys/unix"
)

const watchUsage = `usage: tandem watch [options] [ID ...]

Shows what devices say about themselves: all, or the ones named. On a terminal the
table stays and changes; elsewhere a line is printed for each change. With --json each
message is a line {"device","kind","at","message"}.

`

// report is one message of a device.
type report struct {
	device  string
	kind    transport.Kind
	payload []byte
	at      time.Time
}

// watchCmd runs "tandem watch".
func watchCmd(ctx context.Context, args []string, _ io.Reader, stdout, stderr io.Writer) error {
	f := linkFlags("watch", watchUsage, stderr)
	desk := f.String("desk", "broker/desk", "provisioning folder of the desk")
	asJSON := f.Bool("json", false, "print messages as lines of JSON")
	once := f.Bool("once", false, "print what is known and leave")
	wait := f.Duration("wait", 30*time.Second, "how long to wait for the broker")
	quiet := f.Duration("quiet", time.Second, "with --once: all is known when nothing came for so long")
	var urls several
	f.Var(&urls, "broker", "broker, tls://host:port (default: as in the desk's folder)")
	rest, err := operands(f, args)
	if err != nil {
		return quietHelp(err)
	}
	ids := map[string]bool{}
	for _, id := range rest {
		if err := transport.CheckID(id); err != nil {
			return err
		}
		ids[id] = true
	}
	cfg, err := deskConfig(*desk, "watch", urls)
	if err != nil {
		return err
	}
	c, err := mqtt.Connect(ctx, cfg)
	if err != nil {
		return err
	}
	defer c.Close()
	up, cancel := context.WithTimeout(ctx, *wait)
	defer cancel()
	if err := c.WaitUp(up); err != nil {
		return fmt.Errorf("reach the broker: %w", err)
	}
	reports := make(chan report, 1024)
	err = c.Handle(ctx, transport.AllUp, 1, func(topic string, payload []byte, _ bool) {
		id, kind, err := transport.ParseTopic(topic)
		if err != nil || len(ids) > 0 && !ids[id] {
			return
		}
		select {
		case reports <- report{id, kind, payload, time.Now()}:
		default: // a terminal that does not keep up must not stop the connection
		}
	})
	if err != nil {
		return err
	}
	w := &watcher{out: stdout, json: *asJSON, once: *once, table: table{}}
	if file, ok := stdout.(*os.File); ok && !*asJSON && !*once {
		_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
		w.terminal = err == nil
	}
	return w.run(ctx, reports, *quiet)
}

// watcher shows reports as they come.
type watcher struct {
	out                  io.Writer
	json, once, terminal bool
	table                table
}

func (w *watcher) run(ctx context.Context, reports <-chan report, quiet time.Duration) error {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	silence := time.NewTimer(quiet)
	defer silence.Stop()
	changed := w.terminal
	for {
		select {
		case <-ctx.Done():
			return nil
		case r := <-reports:
			silence.Reset(quiet)
			if !w.table.take(r) {
				continue
			}
			changed = true
			if err := w.show(r); err != nil {
				return err
			}
		case <-silence.C:
			if !w.once {
				continue
			}
			if w.json {
				return nil
			}
			return w.table.write(w.out, time.Now())
		case now := <-tick.C:
			if !w.terminal || !changed {
				continue
			}
			changed = false
			// Home, the table, and clear what is below: no flicker.
			if _, err := io.WriteString(w.out, "\x1b[H"); err != nil {
				return err
			}
			var b strings.Builder
			if err := w.table.write(&b, now); err != nil {
				return err
			}
			if _, err := io.WriteString(w.out, strings.ReplaceAll(b.String(), "\n", "\x1b[K\n")+"\x1b[J"); err != nil {
				return err
			}
		}
	}
}

func (w *watcher) show(r report) error {
	switch {
	case w.json:
		line, err := json.Marshal(struct {
			Device  string          `json:"device"`
			Kind    string          `json:"kind"`
			At      time.Time       `json:"at"`
			Message json.RawMessage `json:"message"`
		}{r.device, strings.TrimPrefix(string(r.kind), "up/"), r.at.UTC(), r.payload})
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(w.out, "%s\n", line)
		return err
	case w.once || w.terminal:
		return nil
	}
	_, err := fmt.Fprintf(w.out, "%s  %s\n", r.at.Format("15:04:05"), strings.Join(w.table[r.device].cells(r.device), "  "))
	return err
}

// row is what is known of a device.
type row struct {
	live     *transport.Live
	state    *transport.State
	event    *transport.Event
	progress *transport.Progress
	verdict  *transport.Verdict
}

// table is what is known of the fleet, by device.
type table map[string]*row

// take adds a report and says whether it was one. What does not parse is not
// shown: it could be anything, and the terminal would act on it.
func (t table) take(r report) bool {
	old := t[r.device]
	if old == nil {
		old = &row{}
	}
	next := *old
	var err error
	switch r.kind {
	case transport.KindLive:
		var m transport.Live
		m, err = transport.ParseLive(r.payload)
		next.live = &m
	case transport.KindState:
		var m transport.State
		m, err = transport.ParseState(r.payload)
		if err == nil && m.Device != r.device {
			return false
		}
		next.state = &m
		if next.progress != nil && next.progress.Phase != m.Phase {
			next.progress = nil
		}
	case transport.KindEvent:
		var m transport.Event
		m, err = transport.ParseEvent(r.payload)
		next.event = &m
	case transport.KindProgress:
		var m transport.Progress
		m, err = transport.ParseProgress(r.payload)
		next.progress = &m
	case transport.KindVerdict:
		var m transport.Verdict
		m, err = transport.ParseVerdict(r.payload)
		if err == nil && m.Device != r.device {
			return false
		}
		next.verdict, next.progress = &m, nil
	default:
		return false
	}
	if err != nil {
		return false
	}
	t[r.device] = &next
	return true
}

// write prints the table, one line for each device in the order of ids.
func (t table) write(out io.Writer, now time.Time) error {
	ids := make([]string, 0, len(t))
	online := 0
	for id, r := range t {
		ids = append(ids, id)
		if r.live != nil && r.live.Online {
			online++
		}
	}
	sort.Strings(ids)
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "DEVICE\tLINK\tSLOT\tVERSION\tPHASE\tPROGRESS\tTRIES\tLAST UPDATE")
	for _, id := range ids {
		fmt.Fprintln(w, strings.Join(t[id].cells(id), "\t"))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "%d devices, %d online, %s\n", len(ids), online, now.Format("15:04:05"))
	return err
}

func (r *row) cells(id string) []string {
	c := []string{id, "?", "-", "-", "-", "-", "-", "-"}
	if r.live != nil {
		c[1] = map[bool]string{true: "online", false: "offline"}[r.live.Online]
	}
	if s := r.state; s != nil {
		c[2], c[3], c[4] = printable(s.Slot), printable(s.Version), printable(s.Phase)
		if s.Drift {
			c[3] += " (drift)"
		}
		if s.Tries > 0 {
			c[6] = fmt.Sprint(s.Tries)
		}
		if s.Error != "" {
			c[7] = "error: " + printable(s.Error)
		}
	}
	if p := r.progress; p != nil {
		c[4], c[5] = printable(p.Phase), bar(*p)
	}
	if v := r.verdict; v != nil && (r.state == nil || r.state.Error == "") {
		c[7] = strings.TrimSpace(printable(v.Result + " " + v.Version))
		if why := strings.TrimSpace(v.Reason + " " + v.Check); why != "" {
			c[7] += " (" + printable(why) + ")"
		}
	}
	for i := range c {
		if c[i] == "" {
			c[i] = "-"
		}
	}
	return c
}

// bar draws progress: how much of what, how fast, how long still.
func bar(p transport.Progress) string {
	const width = 20
	s := ""
	if p.Total > 0 {
		full := int(min(p.Done, p.Total) * width / p.Total)
		s = "[" + strings.Repeat("#", full) + strings.Repeat(".", width-full) + "] "
	}
	s += bytesText(p.Done)
	if p.Total > 0 {
		s += "/" + bytesText(p.Total)
	}
	if p.Rate > 0 {
		s += " " + bytesText(p.Rate) + "/s"
	}
	if p.Left > 0 {
		s += " " + (time.Duration(min(p.Left, 1<<31)) * time.Second).String()
	}
	if p.Downloaded > 0 {
		s += " (" + bytesText(p.Downloaded) + " downloaded)"
	}
	return s
}

func bytesText(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.0f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d B", n)
}

// printable makes a device's text safe for a terminal, on one line.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '.'
		}
		return r
	}, s)
	if len(s) > 60 {
		s = strings.ToValidUTF8(s[:57], "") + "..."
	}
	return s
}
