package engine

import (
	"context"
	"time"

	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
)

// reconnect is the pause before a lost stream of events is opened again.
const reconnect = time.Second

// Wake reports that something happened that may concern services or containers, until ctx ends. Docker tells of services,
// nodes and its own containers, not of tasks elsewhere; several events may be one report, and none may be lost for ever: one
// follows each reconnection.
func (e *Engine) Wake(ctx context.Context) <-chan struct{} {
	wake := make(chan struct{}, 1)
	go func() {
		for ctx.Err() == nil {
			e.listen(ctx, wake)
			select {
			case <-ctx.Done():
			case <-time.After(reconnect):
			}
		}
	}()
	return wake
}

// listen passes events on until the stream ends.
func (e *Engine) listen(ctx context.Context, wake chan<- struct{}) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	filter := filters.NewArgs()
	for _, t := range []events.Type{
		events.ServiceEventType, events.NodeEventType, events.ContainerEventType, events.NetworkEventType,
	} {
		filter.Add("type", string(t))
	}
	messages, failed := e.api.Events(ctx, events.ListOptions{Filters: filter})
	for {
		select {
		case wake <- struct{}{}:
		default: // one is waiting already
		}
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
