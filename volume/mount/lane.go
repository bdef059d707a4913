package mount

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// laneWidth is how many mounts of one server are made at a time. The others wait, so that a hundred containers that
	// start at once do not cost a hundred processes.
	laneWidth = 8
	// breakFor is how long a server that has not answered is not asked again.
	breakFor = 10 * time.Second
)

// lanes keep servers apart: each has its own queue, so that a dead one holds up nobody else's volumes.
type lanes struct {
	now func() time.Time
	mu  sync.Mutex
	all map[string]*lane
}

// lane is the queue of one server; lanes' lock guards all but slots.
type lane struct {
	slots chan struct{}
	// until is when the server may be asked again; cause is why it is not.
	until time.Time
	cause error
}

func newLanes(now func() time.Time) *lanes { return &lanes{now: now, all: map[string]*lane{}} }

// enter waits for a place in the server's queue and returns how to leave it, with the error of what was done. It fails at
// once, with an error that wraps ErrOpen and the cause, while the server is known not to answer.
func (l *lanes) enter(ctx context.Context, server string) (leave func(error), err error) {
	q := l.lane(server)
	if err := l.check(q); err != nil {
		return nil, err
	}
	select {
	case q.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for other mounts of %s: %w (%w)", server, ErrDeadline, ctx.Err())
	}
	if err := l.check(q); err != nil { // it may have been found dead while this one waited
		<-q.slots
		return nil, err
	}
	return func(err error) {
		<-q.slots
		l.note(q, err)
	}, nil
}

func (l *lanes) lane(server string) *lane {
	l.mu.Lock()
	defer l.mu.Unlock()
	q := l.all[server]
	if q == nil {
		q = &lane{slots: make(chan struct{}, laneWidth)}
		l.all[server] = q
	}
	return q
}

func (l *lanes) check(q *lane) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if rest := q.until.Sub(l.now()); rest > 0 {
		return fmt.Errorf("%w, in %s: %w", ErrOpen, rest.Round(time.Second), q.cause)
	}
	return nil
}

// note closes or opens the lane after an attempt. Only silence opens it: a refusal is an answer, and may be another for
// the next volume.
func (l *lanes) note(q *lane, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case silent(err):
		q.until, q.cause = l.now().Add(breakFor), err
	case err == nil:
		q.until, q.cause = time.Time{}, nil
	}
}

// silent says whether an error means that nobody answers. That of a child which has tried to mount is an answer, in which the
// kernel's CephFS client says "no route to host" of a client that may not use the file system (fs/ceph/super.c,
// ceph_get_tree).
func silent(err error) bool {
	if f := (Failure{}); errors.As(err, &f) && (f.Errno == unix.EHOSTUNREACH || f.Errno == unix.EHOSTDOWN) {
		return false
	}
	for _, e := range []error{ErrDeadline, unix.ETIMEDOUT, unix.EHOSTUNREACH, unix.EHOSTDOWN, context.DeadlineExceeded} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
