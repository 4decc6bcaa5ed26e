package tests

import (
	"bufio"
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// broker is the desk's broker of a story: `tandem broker`, or mosquitto with the
// block server beside it.
type broker struct {
	home  string
	port  string
	stops []func()
}

func (b *broker) stop() {
	if b == nil {
		return
	}
	for _, s := range b.stops {
		s()
	}
	b.stops = nil
}

// broker start runs `tandem broker`, on the port that it had before if it was
// stopped, and sets PORT. The folder is $WORK/broker.
//
// broker stop kills it.
//
// broker enroll ID [rate BYTES] makes the provisioning folder of a device and sets PROVISION.
func brokerCmd(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	if neg || len(args) == 0 {
		ts.Fatalf("usage: broker start | stop | enroll ID")
	}
	switch args[0] {
	case "start":
		if s.broker == nil {
			s.broker = &broker{home: ts.MkAbs("broker"), port: "0"}
		}
		ts.Check(s.broker.start(s))
		ts.Setenv("PORT", s.broker.port)
	case "stop":
		s.broker.stop()
	case "enroll":
		argv := []string{"broker", "enroll", "-url", "tls://10.0.2.2:" + s.port(ts)}
		if len(args) == 4 && args[2] == "rate" {
			argv, args = append(argv, "-rate", args[3]), args[:2]
		}
		if len(args) != 2 {
			ts.Fatalf("usage: broker enroll ID [rate BYTES], after broker start")
		}
		out, err := exec.Command(s.tandem(), append(argv, "-home", s.broker.home, args[1])...).Output()
		ts.Check(err)
		ts.Setenv("PROVISION", strings.TrimSpace(string(out)))
	default:
		ts.Fatalf("broker: cannot %s", args[0])
	}
}

// port is where the story's broker listens.
func (s *story) port(ts *testscript.TestScript) string {
	if s.broker == nil {
		ts.Fatalf("no broker yet: broker start")
	}
	return s.broker.port
}

// tandem is the desk program.
func (s *story) tandem() string { return filepath.Join(s.factory.Bin(), "tandem") }

func (b *broker) start(s *story) error {
	if len(b.stops) > 0 {
		return fmt.Errorf("the broker runs already")
	}
	line, stop, err := s.service("broker", regexp.MustCompile(`listening on (tls://\S+),`), s.tandem(),
		"broker", "-init", "-v", "-home", b.home, "-listen", "127.0.0.1:"+b.port, "-host", "10.0.2.2")
	if err != nil {
		return err
	}
	b.stops = append(b.stops, stop)
	u, err := url.Parse(line[1])
	if err != nil {
		return err
	}
	b.port = u.Port()
	return nil
}

// service starts a program that goes on running, and waits until a line of its
// output matches. Its output goes to a log of the story.
func (s *story) service(name string, ready *regexp.Regexp, argv ...string) ([]string, func(), error) {
	log, err := os.OpenFile(filepath.Join(s.logs, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		log.Close()
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(s.ctx)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = w, w
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		cancel()
		r.Close()
		log.Close()
		return nil, nil, err
	}
	found := make(chan []string, 1)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		defer log.Close()
		defer r.Close()
		for lines := bufio.NewScanner(r); lines.Scan(); {
			fmt.Fprintln(log, lines.Text())
			if m := ready.FindStringSubmatch(lines.Text()); m != nil {
				select {
				case found <- m:
				default:
				}
			}
		}
		cmd.Wait()
	}()
	stop := func() {
		cancel()
		<-gone
	}
	select {
	case m := <-found:
		return m, stop, nil
	case <-gone:
		cancel()
		return nil, nil, fmt.Errorf("%s ended before it was ready; see %s", name, log.Name())
	case <-time.After(time.Minute):
		stop()
		return nil, nil, fmt.Errorf("%s was not ready in a minute; see %s", name, log.Name())
	}
}

// mqtt expect TOPIC REGEXP waits, as mosquitto_sub with the desk's certificate,
// for a message on a topic that matches, retained ones too, and prints it.
func mqttCmd(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	if neg || len(args) != 3 || args[0] != "expect" || s.broker == nil {
		ts.Fatalf("usage: mqtt expect TOPIC REGEXP, after broker start")
	}
	re, err := regexp.Compile(args[2])
	ts.Check(err)
	desk := filepath.Join(s.broker.home, "desk")
	m, stop, err := s.service("mosquitto_sub", re, "mosquitto_sub", "-h", "127.0.0.1", "-p", s.broker.port, "-q", "1", "-i", "desk-story",
		"-u", "desk-story", "--cafile", filepath.Join(desk, "ca.pem"), "--cert", filepath.Join(desk, "client.pem"), "--key", filepath.Join(desk, "client-key.pem"), "-t", args[1])
	ts.Check(err)
	stop()
	fmt.Fprintln(ts.Stdout(), m[0])
}
