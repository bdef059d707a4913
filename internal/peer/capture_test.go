package peer

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/diag"
	"github.com/netdriver/netdriver/internal/capture"
	"github.com/netdriver/netdriver/internal/nettest"
	"github.com/netdriver/netdriver/store"
)

// capturing runs a node's server with a port of network web, and returns a client, the node's namespace and what the node
// was told of who asks.
func capturing(t *testing.T) (c Client, ns string, asked chan string) {
	t.Helper()
	dir, ns := t.TempDir(), nettest.Namespace(t)
	if err := os.Symlink(ns, dataplane.NamespaceIn(dir)); err != nil {
		t.Fatal(err)
	}
	nettest.Sh(t, ns, "ip link add ndpaaaaaaaaaa type veth peer name c; ip link set c up; "+
		"ip link set ndpaaaaaaaaaa up alias 'netdriver endpoint aaaaaaaaaa network web vni 7'")
	asked = make(chan string, 10)
	c = serveWith(t, certificate(t), Server{
		Refused: func(context.Context, string) (bool, error) { return false, nil }, Captures: &capture.Node{RunDir: dir},
		Captured: func(asker string, q capture.Question) { asked <- asker + " " + q.Network },
	})
	return c, ns, asked
}

func question(t *testing.T) capture.Question {
	t.Helper()
	filter, err := capture.Compile("", 100, nil)
	if err != nil {
		t.Fatal(err)
	}
	return capture.Question{Network: "web", VNI: 7, Filter: filter, Seconds: 60}
}

func node() store.Node { return store.Node{Name: "n2", VTEP: here} }

// sockets is how many packet sockets a namespace has.
func sockets(t *testing.T, ns string) int {
	t.Helper()
	return strings.Count(nettest.Sh(t, ns, "cat /proc/net/packet"), "\n") - 1
}

func TestANodeGivesFramesUntilItIsToldToStopAndThenTheLastOnes(t *testing.T) {
	c, ns, asked := capturing(t)
	s, err := c.Capture(t.Context(), node(), question(t))
	if err != nil {
		t.Fatal(err)
	}
	if s.Clock.Ahead != 0 || s.Clock.Uncertain <= 0 || s.Clock.Uncertain > time.Second {
		t.Errorf("the same clock is %+v", s.Clock)
	}
	ctx, cancel := context.WithCancel(t.Context())
	frames, ports := 0, 0
	err = s.Read(ctx, func(b capture.Batch) error {
		if ports += len(b.Ports); ctx.Err() == nil && ports == 1 {
			nettest.Sh(t, ns, "ip link set c down; ip link set c up; ip address add fd00::1/64 dev c") // it says so by multicast
			time.Sleep(50 * time.Millisecond)
			cancel()
		}
		frames += len(b.Packets)
		return nil
	})
	if err != nil || ports != 1 || frames == 0 {
		t.Errorf("error %v, %d ports, %d frames", err, ports, frames)
	}
	if who := <-asked; !strings.HasSuffix(who, " web") || who == " web" {
		t.Errorf("the node was told that %q asks", who)
	}
	gone(t, ns)
}

// gone demands that nothing of a capture stays on the node.
func gone(t *testing.T, ns string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); sockets(t, ns) > 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d packet sockets stay", sockets(t, ns))
		}
	}
}

func TestACaptureEndsWithTheConnectionOfWhoAsked(t *testing.T) {
	c, ns, _ := capturing(t)
	s, err := c.Capture(t.Context(), node(), question(t))
	if err != nil {
		t.Fatal(err)
	}
	dead := fmt.Errorf("the program is killed")
	err = s.Read(t.Context(), func(b capture.Batch) error {
		if n := sockets(t, ns); n != 1 {
			t.Errorf("%d packet sockets while it captures", n)
		}
		return dead
	})
	if err == nil {
		t.Error("it goes on")
	}
	gone(t, ns)
	if _, ready, err := ask(t, c, diag.Question{Network: "web", VNI: 7, MTU: 1450, Millis: 10}); err != nil || ready != 1 {
		t.Errorf("the next question: %v", err)
	}
}

func TestANodeCapturesForFewAtOnceAndSaysSo(t *testing.T) {
	c, _, _ := capturing(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range captures {
		if _, err := c.Capture(ctx, node(), question(t)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Capture(ctx, node(), question(t)); err == nil || !strings.Contains(err.Error(), "capturing for 2 others already") {
		t.Errorf("one more: %v", err)
	}
	if _, ready, err := ask(t, c, diag.Question{Network: "web", VNI: 7, MTU: 1450, Millis: 10}); err != nil || ready != 1 {
		t.Errorf("traces are answered all the same: %v", err)
	}
	cancel()
	again, cancel2 := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel2()
	for {
		if _, err := c.Capture(again, node(), question(t)); err == nil {
			return
		} else if again.Err() != nil {
			t.Fatalf("after they have ended: %v", err)
		}
	}
}

func TestANodeThatLetsNobodyCaptureAndABadQuestionAreToldApart(t *testing.T) {
	never := serve(t, certificate(t), false)
	if _, err := never.Capture(t.Context(), node(), question(t)); err == nil || !strings.Contains(err.Error(), "answer-captures") {
		t.Errorf("a node that does not answer: %v", err)
	}
	c, _, asked := capturing(t)
	bad := question(t)
	bad.Seconds = 100_000
	if _, err := c.Capture(t.Context(), node(), bad); err == nil || !strings.Contains(err.Error(), "impossible question") {
		t.Errorf("a bad question: %v", err)
	}
	stranger := certificate(t)
	stranger.CA = c.Files.CA
	if _, err := (Client{stranger, c.Port}).Capture(t.Context(), node(), question(t)); err == nil {
		t.Error("a stranger captures")
	}
	if len(asked) > 0 {
		t.Errorf("%s captured", <-asked)
	}
}

// A clock that is an hour ahead is told with what the measurement allows; the quickest answer counts.
func TestAnotherNodesClockIsMeasured(t *testing.T) {
	asker, node := net.Pipe()
	defer asker.Close()
	const ahead = time.Hour
	go func() {
		defer node.Close()
		in, out := json.NewDecoder(node), json.NewEncoder(node)
		var q request
		_ = in.Decode(&q)
		for i := range clockTries {
			var m message
			if in.Decode(&m) != nil || m.Clock == nil {
				return
			}
			if i != 1 {
				time.Sleep(200 * time.Millisecond) // before it looks at its clock: half of that is mistaken for a difference
			}
			now := time.Now().Add(ahead)
			_ = out.Encode(message{Clock: &now})
		}
		_, _ = io.Copy(io.Discard, node) // that it may begin
	}()
	c, err := begin(asker, json.NewDecoder(asker), question(t))
	if err != nil {
		t.Fatal(err)
	}
	if off := (c.Ahead - ahead).Abs(); off > c.Uncertain || c.Uncertain > 90*time.Millisecond {
		t.Errorf("%s ahead, give or take %s; want %s", c.Ahead, c.Uncertain, ahead)
	}
}
