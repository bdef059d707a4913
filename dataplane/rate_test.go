//go:build linux

package dataplane

import (
	"fmt"
	"io"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/netdriver/netdriver/dataplane/rate"
	"github.com/netdriver/netdriver/internal/netlink"
)

// TestAPortsRateIsKeptInBothDirections measures what TCP gets through in some seconds. The rate is so low that a busy machine keeps up with it.
func TestAPortsRateIsKeptInBothDirections(t *testing.T) {
	p := newPair(t, 1500, "192.0.2.1", "192.0.2.2")
	limit := rate.Limit{Rate: 16e6, Burst: rate.DefaultBurst(16e6)}
	n := with(p.network(0, []int{1, 2}, []int{3}), func(n *Network) { n.Ports[0].Limit = limit })
	plane := NewPlane(p.a.kernel, quiet())
	if _, err := plane.Apply(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	const size = 5 << 20
	for _, way := range []struct{ from, to int }{{1, 3}, {3, 1}, {1, 2}, {2, 1}} {
		took := p.transfer(t, way.from, way.to, size)
		got := size * 8 / took.Seconds()
		// A bucket never lets more through than its rate and what it held; a busy machine loses some of the rate.
		if most := 16e6 + float64(limit.Burst)*8/took.Seconds(); got > 1.05*most || got < .8*16e6 {
			t.Errorf("from %d to %d: %.1f Mbit/s, want 16 and %.1f at most", way.from, way.to, got/1e6, most/1e6)
		}
	}
	if got := size * 8 / p.transfer(t, 2, 3, size).Seconds(); got < 40e6 {
		t.Errorf("a container without a limit gets %.1f Mbit/s", got/1e6)
	}
}

// transfer sends size bytes by TCP and returns how long they took to arrive, from the first on.
func (p *pair) transfer(t *testing.T, from, to, size int) time.Duration {
	t.Helper()
	var l net.Listener
	p.inside(t, to, func() (err error) { l, err = net.Listen("tcp4", ":0"); return err })
	defer l.Close()
	done := make(chan time.Duration, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		var begin time.Time
		b := make([]byte, 64<<10)
		for {
			_, err := c.Read(b)
			if begin.IsZero() {
				begin = time.Now()
			}
			if err == io.EOF {
				done <- time.Since(begin)
				return
			}
		}
	}()
	p.inside(t, from, func() error {
		c, err := net.Dial("tcp4", net.JoinHostPort(endpointIP(to).String(), strconv.Itoa(l.Addr().(*net.TCPAddr).Port)))
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write(make([]byte, size))
		return err
	})
	return <-done
}

// TestALostLimitIsPutBack: others cannot take one off for longer than a second.
func TestALostLimitIsPutBack(t *testing.T) {
	h := newHost(t)
	n := with(newTestNet("192.0.2.1").local(1, 2).network(), func(n *Network) { n.Ports[0].Limit = rate.Limit{Rate: 8e6, Burst: 200000} })
	p := NewPlane(h.kernel, quiet())
	if _, err := p.Apply(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	follow(t, p, n)
	var index int
	out := h.in(t, "ip -o link show "+PortName(endpointID(1)))
	if _, err := fmt.Sscanf(out, "%d:", &index); err != nil {
		t.Fatal(err, out)
	}
	if err := netlink.In(h.kernel.ours, func() error { return rate.Clear(index) }); err != nil {
		t.Fatal(err)
	}
	within(t, 2*time.Second, "a repair", func() bool { return p.Drift(testVNI) > 0 })
	expect(t, h.kernel, n)
}
