package guest

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// service is a program that init keeps alive.
type service struct {
	name     string
	argv     []string
	name0    string // what the program sees as its name, if not argv[0]
	terminal string // controlling terminal, or
	log      string // file that its output is added to
	// hasWatchdog: it inherits the descriptor watchdog, under the same number.
	watchdog    int
	hasWatchdog bool
	// After burst ends within window it is given up. 0 means never.
	burst  int
	window time.Duration

	process *os.Process
	began   time.Time
	ends    []time.Time
	quick   int       // ends in a row that came soon after the start
	next    time.Time // not before
	gaveUp  bool
}

const (
	// respawn is the pause before a program that ended is started again. It
	// doubles up to maxRespawn as long as the program lives shorter than soon:
	// a prompt on a port that nobody can read from must not keep the machine busy.
	respawn    = time.Second
	maxRespawn = 16 * time.Second
	soon       = 5 * time.Second
)

// processTable is all of init's services. Only init's one goroutine uses it.
type processTable struct {
	services []*service
	due      chan struct{} // somebody's pause is over
}

func newProcesses() *processTable {
	return &processTable{due: make(chan struct{}, 1)}
}

func (t *processTable) add(s service) { t.services = append(t.services, &s) }

// startAll starts what does not run and may.
func (t *processTable) startAll(console io.Writer) {
	now := time.Now()
	for _, s := range t.services {
		if s.process != nil || s.gaveUp || now.Before(s.next) {
			continue
		}
		if err := s.start(); err != nil {
			fmt.Fprintf(console, "tiny: start %s: %v\n", s.name, err)
			t.ended(s)
		}
		if s.gaveUp {
			fmt.Fprintf(console, "tiny: %s ended %d times within %v and stays down\n", s.name, s.burst, s.window)
		}
	}
}

func (s *service) start() error {
	env := path
	attr := &os.ProcAttr{Dir: "/", Sys: &syscall.SysProcAttr{Setsid: true}}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	out := null
	switch {
	case s.terminal != "":
		tty, err := os.OpenFile(s.terminal, os.O_RDWR|unix.O_NOCTTY, 0)
		if err != nil {
			return err
		}
		defer tty.Close()
		null, out = tty, tty
		attr.Sys.Setctty = true
	case s.log != "":
		file, err := os.OpenFile(s.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
		if err != nil {
			return err
		}
		defer file.Close()
		out = file
	}
	attr.Files = []*os.File{null, out, out}
	if s.hasWatchdog {
		// The n-th entry becomes descriptor n. The numbers between stay closed.
		for len(attr.Files) < s.watchdog {
			attr.Files = append(attr.Files, nil)
		}
		// The duplicate keeps os.File from closing the one that init guards.
		fd, err := unix.FcntlInt(uintptr(s.watchdog), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return err
		}
		dog := os.NewFile(uintptr(fd), "watchdog")
		defer dog.Close()
		attr.Files = append(attr.Files, dog)
		env = append(env[:len(env):len(env)], "WATCHDOG_FD="+strconv.Itoa(s.watchdog))
	}
	attr.Env = env
	argv := s.argv
	if s.name0 != "" {
		argv = append([]string{s.name0}, argv[2:]...)
	}
	s.began = time.Now()
	s.process, err = os.StartProcess(s.argv[0], argv, attr)
	return err
}

// reap takes in every process that ended, services and orphans.
func (t *processTable) reap() {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		for _, s := range t.services {
			if s.process != nil && s.process.Pid == pid {
				_ = s.process.Release()
				s.process = nil
				t.ended(s)
			}
		}
	}
}

// ended decides when s runs again.
func (t *processTable) ended(s *service) {
	now := time.Now()
	pause := min(respawn<<s.quick, maxRespawn)
	if now.Sub(s.began) >= soon {
		pause, s.quick = respawn, 0
	} else if pause < maxRespawn {
		s.quick++
	}
	s.next = now.Add(pause)
	s.ends = append(s.ends, now)
	if s.burst > 0 {
		if len(s.ends) > s.burst {
			s.ends = s.ends[1:]
		}
		s.gaveUp = len(s.ends) == s.burst && now.Sub(s.ends[0]) < s.window
	} else {
		s.ends = nil
	}
	time.AfterFunc(pause, func() {
		select {
		case t.due <- struct{}{}:
		default:
		}
	})
}

// stop asks a service to end and waits for it, at most for grace.
func (t *processTable) stop(name string, grace time.Duration) {
	for _, s := range t.services {
		if s.name != name || s.process == nil {
			continue
		}
		s.gaveUp = true
		_ = s.process.Signal(unix.SIGTERM)
		for end := time.Now().Add(grace); s.process != nil && time.Now().Before(end); {
			time.Sleep(20 * time.Millisecond)
			t.reap()
		}
	}
}
