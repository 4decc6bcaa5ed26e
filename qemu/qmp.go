package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// Event is something QEMU reports about the machine (QEMU's qapi/run-state.json):
// WATCHDOG, RESET, SHUTDOWN, STOP, RESUME, DEVICE_DELETED and others.
type Event struct {
	Name string          `json:"event"`
	Data json.RawMessage `json:"data,omitempty"`
	Time struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

func (e Event) String() string {
	return fmt.Sprintf("%s %s %s", time.Unix(e.Time.Seconds, e.Time.Microseconds*1000).UTC().Format("15:04:05.000"), e.Name, e.Data)
}

// monitor speaks QMP, one JSON object a line in each direction.
type monitor struct {
	conn     io.ReadWriter
	greeting chan struct{} // closed when QEMU has introduced itself
	gone     chan struct{} // closed when the connection has ended

	mu      sync.Mutex
	id      int
	waiting map[int]chan qmpReply
}

type qmpReply struct {
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	ID int `json:"id"`
}

func newMonitor(conn io.ReadWriter) *monitor {
	return &monitor{conn: conn, greeting: make(chan struct{}), gone: make(chan struct{}), waiting: map[int]chan qmpReply{}}
}

// read takes in messages until the connection ends.
func (m *monitor) read(event func(Event, []byte)) {
	defer close(m.gone)
	s := bufio.NewScanner(m.conn)
	s.Buffer(nil, 16<<20)
	for s.Scan() {
		var kind struct {
			QMP   json.RawMessage `json:"QMP"`
			Event string          `json:"event"`
		}
		if json.Unmarshal(s.Bytes(), &kind) != nil {
			continue
		}
		switch {
		case kind.QMP != nil:
			close(m.greeting)
		case kind.Event != "":
			var e Event
			if json.Unmarshal(s.Bytes(), &e) == nil {
				event(e, append([]byte(nil), s.Bytes()...))
			}
		default:
			var r qmpReply
			if json.Unmarshal(s.Bytes(), &r) != nil {
				continue
			}
			m.mu.Lock()
			w := m.waiting[r.ID]
			delete(m.waiting, r.ID)
			m.mu.Unlock()
			if w != nil {
				w <- r
			}
		}
	}
}

// greet waits for QEMU's greeting and enters command mode.
func (m *monitor) greet(ctx context.Context) error {
	select {
	case <-m.greeting:
	case <-m.gone:
		return errors.New("QEMU ended before it was ready")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return m.do(ctx, "qmp_capabilities", nil, nil)
}

// do sends one command and decodes its answer into out unless that is nil.
func (m *monitor) do(ctx context.Context, name string, args, out any) error {
	w := make(chan qmpReply, 1)
	m.mu.Lock()
	m.id++
	id := m.id
	m.waiting[id] = w
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        int    `json:"id"`
	}{name, args, id})
	if err == nil {
		_, err = m.conn.Write(append(line, '\n'))
	}
	m.mu.Unlock()
	if err != nil {
		return fmt.Errorf("send %s to QEMU: %w", name, err)
	}
	select {
	case r := <-w:
		if r.Error != nil {
			return fmt.Errorf("QEMU refused %s: %s", name, r.Error.Desc)
		}
		if out == nil {
			return nil
		}
		return json.Unmarshal(r.Return, out)
	case <-m.gone:
		return fmt.Errorf("%s: %w", name, ErrOff)
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", name, context.Cause(ctx))
	}
}

// WaitEvent waits for an event of QEMU after the last one that WaitEvent
// returned. Events before it are passed.
func (d *Device) WaitEvent(ctx context.Context, name string, within time.Duration) (Event, error) {
	var found Event
	err := d.until(ctx, "event "+name, within, func() (bool, error) {
		for i := d.seen; i < len(d.events); i++ {
			if d.events[i].Name == name {
				found, d.seen = d.events[i], i+1
				return true, nil
			}
		}
		if d.run == nil {
			return false, ErrOff
		}
		return false, nil
	})
	return found, err
}

// Events are all events since the Device was made.
func (d *Device) Events() []Event {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]Event(nil), d.events...)
}

// SkipEvents makes the next WaitEvent look only at what happens from now on.
func (d *Device) SkipEvents() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.seen = len(d.events)
}
