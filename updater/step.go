package updater

import (
	"sync"
	"time"

	"github.com/tandem-ota/tandem/bootctl/watchdog"
)

// step is a piece of local work that the watchdog watches: it must move on, or the
// machine is not well. Waiting for the network is not part of it.
type step struct {
	keeper *watchdog.Keeper
	name   string
	limit  time.Duration

	mu    sync.Mutex
	check *watchdog.Check // nil while it is not watched
	over  bool            // for good, though somebody who works for it may not know yet
}

// watch begins a step that has to report progress within limit each time.
func (u *Updater) watch(name string, limit time.Duration) *step {
	s := &step{keeper: u.p.Keeper, name: name, limit: limit}
	s.resume()
	return s
}

func (s *step) progress() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.check != nil {
		s.check.Report()
	}
}

func (s *step) pause() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.check != nil {
		s.check.Unregister()
		s.check = nil
	}
}

func (s *step) resume() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.keeper != nil && s.check == nil && !s.over {
		s.check = s.keeper.Register(s.name, s.limit)
	}
}

func (s *step) done() {
	s.mu.Lock()
	s.over = true
	s.mu.Unlock()
	s.pause()
}
