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

// TestAPortsRateIsKeptInBothDirections measures over two seconds what TCP gets through, less what the bucket holds at the
// beginning. The rate is so low that a busy machine keeps up with it.
func TestAPortsRateIsKeptInBothDirections(t *testing.T) {
	p := newPair(t, 1500, "192.0.2.1", "192.0.2.2")
	limit := rate.Limit{Rate: 16e6, Burst: rate.DefaultBurst(16e6)}
	n := with(p.network(0, []int{1, 2}, []int{3}), func(n *Network) { n.Ports[0].Limit = limit })
	plane := NewPlane(p.a.kernel, quiet())
	if _, err := plane.Apply(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	for _, way := range []struct{ from, to int }{{1, 3}, {3, 1}, {1, 2}, {2, 1}} {
		got := p.throughput(t, way.from, way.to, 4<<20, limit.Burst)
		if low, high := .9*16e6, 1.1*16e6; got < low || got > high {
			t.Errorf("from %d to %d: %.1f Mbit/s, want 16", way.from, way.to, got/1e6)
		}
	}
	if got := p.throughput(t, 2, 3, 4<<20, 0); got < 40e6 {
		t.Errorf("a container without a limit gets %.1f Mbit/s", got/1e6)
	}
}

// throughput sends size bytes by TCP and returns bits per second, without the first burst bytes.
func (p *pair) throughput(t *testing.T, from, to, size int, burst uint32) float64 {
	t.Helper()
	var l net.Listener
	p.inside(t, to, func() (err error) { l, err = net.Listen("tcp4", ":0"); return err })
	defer l.Close()
	done := make(chan float64, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		got, begin := 0, time.Time{}
		b := make([]byte, 64<<10)
		for {
			n, err := c.Read(b)
			got += n
			if begin.IsZero() && got >= int(burst) {
				begin, got = time.Now(), 0
			}
			if err == io.EOF {
				done <- float64(got) * 8 / time.Since(begin).Seconds()
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
