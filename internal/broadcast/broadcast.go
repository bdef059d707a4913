// Package broadcast gives what happens to everybody who listens, as the kernel does: a listener that is slow loses events,
// and is told.
package broadcast

import (
	"context"
	"sync"
)

// A Source has any number of listeners. Its methods may be called from any goroutine.
type Source[T any] struct {
	backlog int
	lost    T

	mu        sync.Mutex
	listeners map[chan T]bool
}

// New returns a source whose listeners may have that many events unread. One that has more finds the event lost among
// them, for all that it missed.
func New[T any](backlog int, lost T) *Source[T] {
	return &Source[T]{backlog: backlog, lost: lost, listeners: map[chan T]bool{}}
}

// Listen returns what is sent from now on until ctx ends; then the channel is closed.
func (s *Source[T]) Listen(ctx context.Context) <-chan T {
	c := make(chan T, s.backlog)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listeners[c] = true
	context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.listeners, c)
		close(c)
	})
	return c
}

// Heard says whether anybody listens.
func (s *Source[T]) Heard() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.listeners) > 0
}

// Send gives e to every listener, and waits for none.
func (s *Source[T]) Send(e T) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.listeners {
		select {
		case c <- e:
			continue
		default:
		}
		select {
		case <-c: // make room for the news
		default:
		}
		c <- s.lost
	}
}
