package engine

import (
	"context"
	"sync"
	"time"

	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
)

// reconnect is the pause before a lost stream of events is opened again.
const reconnect = time.Second

// listeners are those who are told of events, all from one stream: the engine writes each event once per stream.
type listeners struct {
	mu  sync.Mutex
	all map[listener]bool
	// stop ends the stream; set while there are listeners.
	stop context.CancelFunc
}

// listener is told by a channel of everything, or of new streams only.
type listener struct {
	tell   chan struct{}
	opened bool
}

// Wake reports that something happened that may concern services or containers, until ctx ends. Docker tells of services,
// nodes and its own containers, not of tasks elsewhere; several events may be one report, and none may be lost for ever: one
// follows each reconnection.
func (e *Engine) Wake(ctx context.Context) <-chan struct{} { return e.listen(ctx, false) }

// Opened reports that the engine may have started: at first, and whenever its stream of events is opened anew.
func (e *Engine) Opened(ctx context.Context) <-chan struct{} { return e.listen(ctx, true) }

func (e *Engine) listen(ctx context.Context, opened bool) <-chan struct{} {
	l := listener{make(chan struct{}, 1), opened}
	l.tell <- struct{}{}
	e.listeners.mu.Lock()
	defer e.listeners.mu.Unlock()
	if len(e.listeners.all) == 0 {
		e.listeners.all = map[listener]bool{}
		var streaming context.Context
		streaming, e.listeners.stop = context.WithCancel(context.WithoutCancel(ctx))
		go e.stream(streaming)
	}
	e.listeners.all[l] = true
	context.AfterFunc(ctx, func() {
		e.listeners.mu.Lock()
		defer e.listeners.mu.Unlock()
		if delete(e.listeners.all, l); len(e.listeners.all) == 0 {
			e.listeners.stop()
		}
	})
	return l.tell
}

// tell tells the listeners, those for new streams only if one was opened.
func (l *listeners) tell(opened bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for each := range l.all {
		if each.opened && !opened {
			continue
		}
		select {
		case each.tell <- struct{}{}:
		default: // one is waiting already
		}
	}
}

// streaming says whether there is a stream, or soon will be.
func (l *listeners) streaming() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.all) > 0
}

// stream keeps a stream of events open until ctx ends.
func (e *Engine) stream(ctx context.Context) {
	for ctx.Err() == nil {
		e.pass(ctx)
		select {
		case <-ctx.Done():
		case <-time.After(reconnect):
		}
	}
}

// pass passes events on until the stream ends.
func (e *Engine) pass(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	filter := filters.NewArgs()
	for _, t := range []events.Type{
		events.ServiceEventType, events.NodeEventType, events.ContainerEventType, events.NetworkEventType,
	} {
		filter.Add("type", string(t))
	}
	messages, failed := e.api.Events(ctx, events.ListOptions{Filters: filter})
	e.version.Store(nil) // it may have been restarted
	defer e.version.Store(nil)
	for opened := true; ; opened = false {
		e.listeners.tell(opened)
		select {
		case <-messages:
		case <-failed:
			return
		}
	}
}

// Pause returns after d, or as soon as wake reports something; a nil wake reports nothing. The error is ctx's.
func Pause(ctx context.Context, wake <-chan struct{}, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-wake:
	case <-timer.C:
	}
	return nil
}
