package capture

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/bpf"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/diag/host"
	"github.com/netdriver/netdriver/internal/nettest"
)

// bench is a run directory with a namespace that has ports of networks.
type bench struct {
	t       *testing.T
	dir, ns string
	space   *host.Space
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, dir: t.TempDir(), ns: nettest.Namespace(t)}
	err := os.Symlink(b.ns, dataplane.NamespaceIn(b.dir))
	if err == nil {
		b.space, err = host.Open(b.ns)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.space.Close() })
	return b
}

// port makes the port of an endpoint, whose other end stays in the namespace under the name "c" and the id.
func (b *bench) port(id, network string) {
	b.t.Helper()
	nettest.Sh(b.t, b.ns, fmt.Sprintf("set -e; ip link add %[1]s mtu 1450 type veth peer name c%[2]s; ip link set c%[2]s up; "+
		"ip link set %[1]s up alias 'netdriver endpoint %[2]s network %[3]s vni 7'", dataplane.PortName(id), id, network))
}

// send sends frames through a device.
func (b *bench) send(device string, frames ...[]byte) {
	b.t.Helper()
	l, there := b.space.Link(device)
	if !there {
		b.t.Fatalf("no device %s", device)
	}
	if err := host.Send(host.Point{Space: b.space, Link: l}, frames...); err != nil {
		b.t.Fatal(err)
	}
}

// question asks for all frames of a network that a filter passes, cut to snap bytes.
func question(t *testing.T, network, filter string, snap uint32) Question {
	t.Helper()
	code, err := Compile(filter, snap, nil)
	if err != nil {
		t.Fatal(err)
	}
	return Question{Network: network, VNI: 7, Filter: code, Seconds: 60}
}

// probe is a frame of a type that nobody has (IEEE 802 9.2.4), told from others by its number.
func probe(number byte, size int) []byte {
	f := make([]byte, size)
	copy(f, []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5, number})
	return f
}

func TestANodeTellsTheFramesOfANetworksPortsInTimeOrder(t *testing.T) {
	b := newBench(t)
	b.port("aaaaaaaaaaaa", "web")
	b.port("bbbbbbbbbbbb", "web")
	b.port("cccccccccccc", "other")
	var ports []string
	var seen []string
	var last int64
	step := 0
	err := Node{b.dir}.Run(t.Context(), question(t, "web", "ether proto 0x88b5", 40), func(batch Batch) error {
		for _, p := range batch.Ports {
			ports = append(ports, p.Endpoint)
		}
		for _, p := range batch.Packets {
			if p.Time < last || p.Time > batch.Until {
				return fmt.Errorf("a frame of %d after %d, until %d", p.Time, last, batch.Until)
			}
			last = p.Time
			seen = append(seen, fmt.Sprintf("%s sent=%v number=%d %d/%d", ports[p.Port][:1], p.Sent, p.Data[14], len(p.Data), p.Length))
		}
		switch {
		case step == 0 && len(ports) == 2: // both are heard: now the traffic, of which some is of another network or type
			step = 1
			b.send("caaaaaaaaaaaa", probe(1, 100), make([]byte, 60))
			b.send("ccccccccccccc", probe(2, 100))
			b.send(dataplane.PortName("bbbbbbbbbbbb"), probe(3, 20))
			b.port("dddddddddddd", "web")
		case step == 1 && len(ports) == 3: // one that came meanwhile
			step = 2
			b.send("cdddddddddddd", probe(4, 60))
		case len(seen) == 3:
			return ErrEnough
		}
		return nil
	})
	want := []string{"a sent=true number=1 40/100", "b sent=false number=3 20/20", "d sent=true number=4 40/60"}
	if !errors.Is(err, ErrEnough) || fmt.Sprint(seen) != fmt.Sprint(want) {
		t.Errorf("error %v, seen %q, want %q", err, seen, want)
	}
}

func TestOnlyTheEndpointsThatAreAskedForAreHeard(t *testing.T) {
	b := newBench(t)
	b.port("aaaaaaaaaaaa", "web")
	b.port("bbbbbbbbbbbb", "web")
	q := question(t, "web", "", 100)
	q.Endpoints = []string{"bbbbbbbbbbbb"}
	err := Node{b.dir}.Run(t.Context(), q, func(batch Batch) error {
		if len(batch.Ports) == 1 && batch.Ports[0] == (Port{"bbbbbbbbbbbb", "ndpbbbbbbbbbb", 1450}) {
			return ErrEnough
		}
		return fmt.Errorf("ports %v", batch.Ports)
	})
	if !errors.Is(err, ErrEnough) {
		t.Error(err)
	}
}

// What finds no room is counted, and what found some is told: memory is bounded.
func TestWhatANodeHasNoRoomForIsCounted(t *testing.T) {
	b := newBench(t)
	b.port("aaaaaaaaaaaa", "web")
	const sent = 20000
	var told int
	var lost uint64
	began := false
	err := Node{b.dir}.Run(t.Context(), question(t, "web", "ether proto 0x88b5", 1500), func(batch Batch) error {
		told += len(batch.Packets)
		lost += batch.Lost[0]
		switch {
		case !began && len(batch.Ports) == 1:
			began = true
			b.send("caaaaaaaaaaaa", manyProbes(sent)...)
		case began && told+int(lost) >= sent:
			return ErrEnough
		}
		return nil
	})
	if !errors.Is(err, ErrEnough) || told == 0 || lost == 0 {
		t.Errorf("error %v: %d told and %d lost of %d", err, told, lost, sent)
	}
}

func manyProbes(n int) [][]byte {
	out := make([][]byte, n)
	for i := range out {
		out[i] = probe(byte(i), 1400)
	}
	return out
}

func TestANodeEndsWithWhoAskedAndAtItsTime(t *testing.T) {
	b := newBench(t)
	b.port("aaaaaaaaaaaa", "web")
	ctx, cancel := context.WithCancel(t.Context())
	last := false
	err := Node{b.dir}.Run(ctx, question(t, "web", "ether proto 0x88b5", 100), func(batch Batch) error {
		if ctx.Err() == nil {
			b.send("caaaaaaaaaaaa", probe(9, 60)) // the last moment's frame is told all the same
			cancel()
		}
		last = last || len(batch.Packets) > 0
		return nil
	})
	if err != nil || !last {
		t.Errorf("error %v; the last frame was told: %v", err, last)
	}
	q := question(t, "web", "", 100)
	q.Seconds = 1
	begin := time.Now()
	if err := (Node{b.dir}).Run(t.Context(), q, func(Batch) error { return nil }); err != nil || time.Since(begin) < time.Second {
		t.Errorf("after %s: %v", time.Since(begin), err)
	}
}

func TestAQuestionThatCostsTooMuchIsRefused(t *testing.T) {
	good := question(t, "web", "", 100)
	if err := good.Check(); err != nil {
		t.Errorf("a good one: %v", err)
	}
	for what, change := range map[string]func(*Question){
		"no time": func(q *Question) { q.Seconds = 0 }, "two hours": func(q *Question) { q.Seconds = 7200 }, "no filter": func(q *Question) { q.Filter = nil },
		"a long filter": func(q *Question) { q.Filter = make([]bpf.RawInstruction, 5000) }, "many endpoints": func(q *Question) { q.Endpoints = make([]string, 300) },
	} {
		q := good
		change(&q)
		if err := (Node{t.TempDir()}).Run(t.Context(), q, nil); !errors.Is(err, ErrQuestion) {
			t.Errorf("%s: %v", what, err)
		}
	}
	err := Node{filepath.Join(t.TempDir(), "none")}.Run(t.Context(), good, nil)
	if err == nil || !strings.Contains(err.Error(), "no daemon has run") {
		t.Errorf("without a namespace: %v", err)
	}
}

func TestANetworkWithTooManyPortsIsCapturedInPartAndThatIsSaid(t *testing.T) {
	b := newBench(t)
	var batchFile strings.Builder
	for i := range maxPorts + 1 {
		id := fmt.Sprintf("%012x", i<<20)
		fmt.Fprintf(&batchFile, "link add %[1]s type veth peer name c%[2]d\nlink set %[1]s alias \"netdriver endpoint %[3]s network web vni 7\"\n",
			dataplane.PortName(id), i, id)
	}
	file := filepath.Join(b.dir, "links")
	if err := os.WriteFile(file, []byte(batchFile.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	nettest.Sh(t, b.ns, "ip -batch "+file)
	err := Node{b.dir}.Run(t.Context(), question(t, "web", "", 100), func(batch Batch) error {
		if len(batch.Ports) != maxPorts || !strings.Contains(batch.Note, "name an endpoint") {
			return fmt.Errorf("%d ports, note %q", len(batch.Ports), batch.Note)
		}
		return ErrEnough
	})
	if !errors.Is(err, ErrEnough) {
		t.Error(err)
	}
}
