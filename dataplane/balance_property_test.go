//go:build linux

package dataplane

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// TestConnectionsLiveExactlyAsLongAsTheirBackend: services change at random; whatever happens, a connection works if and
// only if its backend was there all the time, and a new one goes to a backend that takes new ones.
func TestConnectionsLiveExactlyAsLongAsTheirBackend(t *testing.T) {
	c := newCluster(t, 2, 3)
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	var open []held
	there, draining := []int{2, 3}, []int(nil)
	for step := range 300 {
		vip := []string{vip4, vip6}[r.IntN(2)]
		switch r.IntN(3) {
		case 0:
			there, draining = randomBackends(r)
			c.balance(t, service(there, draining...))
			var lost []held
			open, lost = partition(open, func(h held) bool { return h.by(there) })
			dead(t, lost)
		case 1:
			if len(there) == len(draining) {
				refused(t, c, 1, vip)
				break
			}
			more := c.hold(t, 1, target(vip, tcpPort), 3)
			if wrong, _ := partition(more, func(h held) bool { return h.by(draining) }); len(wrong) > 0 {
				t.Errorf("%d new connections to draining servers", len(wrong))
			}
			open = append(open, more...)
		case 2:
			live(t, open)
		}
		if t.Failed() {
			t.Fatalf("seed %d step %d: servers %v, of which %v drain", seed, step, there, draining)
		}
	}
}

// randomBackends draws which servers are there and which of them drain.
func randomBackends(r *rand.Rand) (there, draining []int) {
	for _, i := range []int{2, 3} {
		switch r.IntN(5) {
		case 0:
		case 1:
			there, draining = append(there, i), append(draining, i)
		default:
			there = append(there, i)
		}
	}
	return there, draining
}

// by says whether one of these servers answered.
func (h held) by(servers []int) bool {
	return slices.ContainsFunc(servers, func(i int) bool { return h.who == fmt.Sprint(i) })
}

// dead checks that connections are reset.
func dead(t *testing.T, all []held) {
	t.Helper()
	for _, h := range all {
		if err := h.echo(); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("connection %s to server %s, which is gone: %v, want ECONNRESET", h.LocalAddr(), h.who, err)
		}
	}
}

func partition(all []held, first func(held) bool) (yes, no []held) {
	for _, h := range all {
		if first(h) {
			yes = append(yes, h)
		} else {
			no = append(no, h)
		}
	}
	return yes, no
}
