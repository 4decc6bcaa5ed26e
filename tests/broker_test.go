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
	kind  string // "" or "mosquitto"
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

// broker start [mosquitto] runs `tandem broker`, or mosquitto with the shipped
// configuration and our block server beside it, on the port that it had before if
// it was stopped. It sets PORT, and DESK to the folder that publishes. The
// broker's folder is $WORK/broker.
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
			if len(args) == 2 && args[1] == "mosquitto" {
				s.broker.kind = args[1]
			}
		}
		ts.Check(s.broker.start(s))
		ts.Setenv("PORT", s.broker.port)
		ts.Setenv("DESK", s.broker.desk("publish"))
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

// desk is the provisioning folder of one of the desk's tools.
func (b *broker) desk(tool string) string {
	if b.kind == "mosquitto" {
		return filepath.Join(b.home, "devices", "desk-"+tool)
	}
	return filepath.Join(b.home, "desk")
}

func (b *broker) start(s *story) error {
	if len(b.stops) > 0 {
		return fmt.Errorf("the broker runs already")
	}
	if b.kind == "mosquitto" && b.port != "0" {
		return b.mosquitto(s)
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
	if b.kind != "mosquitto" {
		return nil
	}
	// It has made the certificates and found a port; now the other one has it.
	b.stop()
	for _, tool := range []string{"blocks", "publish", "watch"} {
		out, err := exec.CommandContext(s.ctx, s.tandem(), "broker", "enroll", "-desk", "-home", b.home, "-url", "tls://127.0.0.1:"+b.port, "desk-"+tool).CombinedOutput()
		if err != nil {
			return fmt.Errorf("enroll %s: %w: %s", tool, err, out)
		}
	}
	return b.mosquitto(s)
}

// mosquitto runs Debian's broker with transport/mosquitto.conf.
func (b *broker) mosquitto(s *story) error {
	for _, name := range []string{"mosquitto.conf", "mosquitto.acl"} {
		text, err := os.ReadFile(filepath.Join("..", "transport", name))
		if err != nil {
			return err
		}
		conf := strings.ReplaceAll(string(text), "HOME/", b.home+"/")
		// It would give up the rights to read the keys, which are the test's own.
		conf = strings.Replace(conf, "listener 8883", "user root\nlistener "+b.port+" 127.0.0.1", 1)
		if err := os.WriteFile(filepath.Join(b.home, name), []byte(conf), 0o600); err != nil {
			return err
		}
	}
	_, stop, err := s.service("mosquitto", regexp.MustCompile(`mosquitto version .* running`), "mosquitto", "-v", "-c", filepath.Join(b.home, "mosquitto.conf"))
	if err != nil {
		return err
	}
	b.stops = append(b.stops, stop)
	_, stop, err = s.service("blocks", regexp.MustCompile(`serving .* on `), s.tandem(),
		"broker", "-home", b.home, "-connect", "tls://127.0.0.1:"+b.port, "-desk", b.desk("blocks"), "-store", filepath.Join(b.home, "store"))
	if err != nil {
		return err
	}
	b.stops = append(b.stops, stop)
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
	// A test that is killed takes its services with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
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
	case <-time.After(eventLimit):
		stop()
		return nil, nil, fmt.Errorf("%s did not say %q in %s; see %s", name, ready, eventLimit, log.Name())
	}
}

// mqtt expect TOPIC REGEXP waits, as mosquitto_sub with the desk's certificate,
// for a message on a topic that matches, retained ones too, and prints it.
func mqttCmd(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	if neg || len(args) != 3 || args[0] != "expect" || s.broker == nil {
		ts.Fatalf("usage: mqtt expect TOPIC REGEXP, after broker start")
	}
	// The whole message is printed, for the lines after this one to look at.
	re, err := regexp.Compile(".*(?:" + args[2] + ").*")
	ts.Check(err)
	desk, id := s.broker.desk("watch"), "story"
	if s.broker.kind == "mosquitto" {
		id = "watch" // the certificate's name is the client id
	}
	m, stop, err := s.service("mosquitto_sub", re, "mosquitto_sub", "-h", "127.0.0.1", "-p", s.broker.port, "-q", "1", "-i", "desk-"+id,
		"--cafile", filepath.Join(desk, "ca.pem"), "--cert", filepath.Join(desk, "client.pem"), "--key", filepath.Join(desk, "client-key.pem"), "-t", args[1])
	ts.Check(err)
	stop()
	fmt.Fprintln(ts.Stdout(), m[0])
}
