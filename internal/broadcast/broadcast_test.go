package broadcast

import (
	"context"
	"testing"
)

func TestASlowListenerIsToldThatItLostEvents(t *testing.T) {
	const lost = -1
	s := New(2, lost)
	ctx, cancel := context.WithCancel(t.Context())
	slow, quick := s.Listen(ctx), s.Listen(ctx)
	for i := range 4 {
		s.Send(i)
		if got := <-quick; got != i {
			t.Errorf("the quick listener got %d, want %d", got, i)
		}
	}
	found := false
	for range 2 {
		found = <-slow == lost || found
	}
	if !found {
		t.Error("the slow listener does not know that it lost events")
	}
	cancel()
	if _, open := <-slow; open {
		t.Error("its channel is open after its context's end")
	}
}
