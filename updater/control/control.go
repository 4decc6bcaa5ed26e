// Package control is how the commands of the device program speak to the agent that
// runs: HTTP with JSON over a unix socket.
//
// The socket is readable for everybody on the device; the kernel says who is at the
// other end (SO_PEERCRED, socket(7)), and only root may change anything. FORMAT.md
// lists the requests.
package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tandem-ota/tandem/transport"
)

// Socket is where the agent listens.
const Socket = "/run/tandem/updater.sock"

// maxRequest bounds the body of a request, in bytes.
const maxRequest = 64 << 10

// ErrNoAgent means that no agent listens. Commands that are safe without one go on
// alone.
var ErrNoAgent = errors.New("the agent does not run")

// Request is the body of a request that changes something.
type Request struct {
	Release string `json:"release,omitempty"` // folder or tar file, as the agent sees it
	Force   bool   `json:"force,omitempty"`
	Full    string `json:"full,omitempty"` // as transport.FullFail and so on
	Hold    bool   `json:"hold,omitempty"` // do not reboot
}

// Line is one line of an answer: progress, and at the end the outcome.
type Line struct {
	Progress *transport.Progress `json:"progress,omitempty"`
	Done     bool                `json:"done,omitempty"`
	Error    string              `json:"error,omitempty"`
	Code     int                 `json:"code,omitempty"` // exit code for the command
}

// Failure is an error that came over the socket.
type Failure struct {
	Text string
	Code int
}

func (f *Failure) Error() string { return f.Text }

// Handler does what is asked for. Progress may be nil.
type Handler interface {
	Status(ctx context.Context) (any, error)
	Do(ctx context.Context, verb string, r Request, progress func(transport.Progress)) error
	// Code is the exit code that an error stands for.
	Code(error) int
}

type peer struct{}

// Serve answers requests on the socket at path until ctx ends.
func Serve(ctx context.Context, path string, h Handler) error {
	// A socket that a dead agent left: nobody can be listening, since there is only
	// one agent per boot record.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	server := newServer(ctx, h)
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(listener); ctx.Err() == nil {
		return fmt.Errorf("control socket: %w", err)
	}
	return context.Cause(ctx)
}

func newServer(agent context.Context, h Handler) *http.Server {
	return &http.Server{
		Handler:           routes(agent, h),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       10 * time.Second, // whoever only holds connections open must not take all descriptors
		MaxHeaderBytes:    16 << 10,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, peer{}, uid(c))
		},
	}
}

// uid is the user at the other end, -1 if the kernel does not say.
func uid(c net.Conn) int {
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return -1
	}
	id := -1
	_ = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			id = int(cred.Uid)
		}
	})
	return id
}

func routes(agent context.Context, h Handler) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		status, err := h.Status(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(status)
	})
	mux.HandleFunc("POST /v1/{verb}", func(w http.ResponseWriter, r *http.Request) {
		if id, ok := r.Context().Value(peer{}).(int); !ok || (id != 0 && id != os.Geteuid()) {
			http.Error(w, "only root may do this", http.StatusForbidden)
			return
		}
		var request Request
		decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&request); err != nil {
			http.Error(w, "request: "+err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/jsonl")
		say := func(l Line) {
			line, _ := json.Marshal(l)
			_, _ = w.Write(append(line, '\n'))
			if f, ok := w.(http.Flusher); ok {
				f.Flush()
			}
		}
		// The work goes on when the command that asked for it is gone: a technician's
		// broken ssh session must not stop an update.
		err := h.Do(agent, r.PathValue("verb"), request, func(p transport.Progress) { say(Line{Progress: &p}) })
		if err != nil {
			say(Line{Error: err.Error(), Code: h.Code(err)})
			return
		}
		say(Line{Done: true})
	})
	return mux
}
