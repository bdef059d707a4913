package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/netdriver/netdriver/ipsec"
	"github.com/netdriver/netdriver/store"
)

// guards is an Encryption that can be made to fail.
type guards struct {
	mu sync.Mutex
	// unsupported and broken are the errors of the two questions.
	unsupported, broken error
	ports               []uint16
}

func (g *guards) fail(unsupported, broken error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.unsupported, g.broken = unsupported, broken
}

func (g *guards) Supports(context.Context, ipsec.Cipher) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.unsupported
}

func (g *guards) Guard(_ context.Context, port uint16) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ports = append(g.ports, port)
	return g.broken
}

func TestAnEncryptedNetworkHasItsOwnPortAndMTU(t *testing.T) {
	mem, h1, h2 := two(t)
	for _, c := range []struct {
		subnet string
		pairs  []string
		want   store.Network
	}{
		{"10.10.0.0/24", []string{"encrypted", ""}, store.Network{Rekey: time.Hour}},
		{"10.11.0.0/24", []string{"encrypted", "aes-128-gcm", "rekey", "10m"}, store.Network{Cipher: "aes-128-gcm", Rekey: 10 * time.Minute}},
	} {
		id := "d" + c.subnet[3:5]
		if _, err := h1.createNetwork(id, c.subnet, c.pairs...); err != nil {
			t.Fatal(err)
		}
		got := record[store.Network](t, mem, store.NetworkKey("net-"+id))
		if !got.Encrypted || got.Port != 4790 || got.MTU != 1416 || got.Cipher != c.want.Cipher || got.Rekey != c.want.Rekey {
			t.Errorf("%v: %+v", c.pairs, got)
		}
	}
	// Who does not ask gets it all the same.
	if _, err := h2.createNetwork("d2", "10.10.0.0/24", "network", "net-d10"); err != nil {
		t.Fatal(err)
	}
	if n := h2.networks()[0]; n.VXLAN.Port != 4790 || n.Bridge.MTU != 1416 {
		t.Errorf("on the second node: port %d, MTU %d", n.VXLAN.Port, n.Bridge.MTU)
	}
	if !slices.Contains(h2.guards.ports, 4790) {
		t.Error("the second node has the network's device and did not guard its port")
	}
}

func TestEncryptionOptionsThatCannotBeAreRefusedWithWhatIsAllowed(t *testing.T) {
	_, h1, h2 := two(t)
	if _, err := h1.createNetwork("d1", "10.10.0.0/24", "network", "web", "encrypted", "aes-256-gcm"); err != nil {
		t.Fatal(err)
	}
	if _, err := h1.createNetwork("p1", "10.20.0.0/24", "network", "plain", "port", "5000"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		subnet string
		pairs  []string
		want   []string
	}{
		{"10.12.0.0/24", []string{"encrypted", "rot13"}, []string{"encrypted=rot13", "chacha20-poly1305"}},
		{"10.12.0.0/24", []string{"encrypted", "", "rekey", "1ms"}, []string{"rekey=1ms", "1s..24h"}},
		{"10.12.0.0/24", []string{"encrypted", "", "rekey", "soon"}, []string{"rekey=soon", "1s..24h"}},
		{"10.12.0.0/24", []string{"encrypted", "", "rekey", "25h"}, []string{"rekey=25h", "1s..24h"}},
		{"10.12.0.0/24", []string{"rekey", "1h"}, []string{"--opt rekey", "--opt encrypted"}},
		{"10.12.0.0/24", []string{"encrypted", "false", "rekey", "1h"}, []string{"--opt rekey", "--opt encrypted"}},
		{"10.12.0.0/24", []string{"encrypted", "chacha20-poly1305"}, []string{"web", "aes-256-gcm", "chacha20", "pairs of nodes"}},
		{"10.12.0.0/24", []string{"encrypted", "", "port", "4791"}, []string{"web", "4790", "4791"}},
		{"10.12.0.0/24", []string{"encrypted", "", "port", "4789"}, []string{"4789", "in clear"}},
		{"10.12.0.0/24", []string{"port", "4790"}, []string{"4790", "web"}},
		{"10.12.0.0/24", []string{"encrypted", "", "mtu", "1417"}, []string{"1417", "1416", "ESP"}},
		{"10.10.0.0/24", []string{"network", "web", "encrypted", "false"}, []string{"encrypted is true", "asked for false"}},
		{"10.10.0.0/24", []string{"network", "web", "encrypted", "aes-128-gcm"}, []string{"cipher is aes-256-gcm", "aes-128-gcm"}},
		{"10.10.0.0/24", []string{"network", "web", "rekey", "2h"}, []string{"rekey is 1h0m0s", "2h0m0s"}},
		{"10.20.0.0/24", []string{"network", "plain", "encrypted", ""}, []string{"encrypted is false", "asked for true"}},
	} {
		_, err := h2.createNetwork("d2", c.subnet, c.pairs...)
		for _, w := range c.want {
			if err == nil || !strings.Contains(err.Error(), w) {
				t.Errorf("%v: error %v does not say %q", c.pairs, err, w)
			}
		}
	}
	if len(h2.networks()) != 0 {
		t.Errorf("the refused networks left %v", h2.networks())
	}
	for i, pairs := range [][]string{{"encrypted", "aes-256-gcm"}, {"encrypted", "true", "rekey", "5m"}, {"encrypted", "false"}, nil} {
		if _, err := h2.createNetwork(fmt.Sprintf("ok%d", i), fmt.Sprintf("10.3%d.0.0/24", i), pairs...); err != nil {
			t.Errorf("%v is refused: %v", pairs, err)
		}
	}
}

func TestTwoNodesThatDemandDifferentCiphersAtOnceCannotBothHaveThem(t *testing.T) {
	for range 10 {
		mem, h1, h2 := two(t)
		var g sync.WaitGroup
		for i, h := range []*host{h1, h2} {
			g.Go(func() {
				_, _ = h.createNetwork("d1", fmt.Sprintf("10.1%d.0.0/24", i), "encrypted", []string{"aes-256-gcm", "aes-128-gcm"}[i])
			})
		}
		g.Wait()
		if n, err := mem.Count(t.Context(), store.NetworkPrefix); n != 1 || err != nil {
			t.Fatalf("%d networks, error %v; want the one that came first", n, err)
		}
	}
}

func TestANodeThatCannotEncryptRefusesWithTheReason(t *testing.T) {
	mem, h1, h2 := two(t)
	reason := errors.New("ESP is missing: modprobe esp4")
	h2.guards.fail(reason, nil)
	if _, err := h2.createNetwork("d2", "10.10.0.0/24", "network", "web", "encrypted", ""); err == nil || !strings.Contains(err.Error(), "modprobe esp4") {
		t.Errorf("creating it: error %v, want the reason", err)
	}
	if n, _ := mem.Count(t.Context(), store.NetworkPrefix); n != 0 {
		t.Errorf("the refused network has left %d records", n)
	}
	if _, err := h1.createNetwork("d1", "10.10.0.0/24", "network", "web", "encrypted", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := h2.createNetwork("d2", "10.10.0.0/24", "network", "web"); err == nil || !strings.Contains(err.Error(), "modprobe esp4") {
		t.Errorf("joining it: error %v, want the reason", err)
	}
	if _, err := h2.createNetwork("d3", "10.30.0.0/24"); err != nil {
		t.Errorf("a network in clear is refused, too: %v", err)
	}
	h2.guards.fail(nil, nil)
	n2, err := h2.createNetwork("d2", "10.10.0.0/24", "network", "web")
	if err != nil {
		t.Fatal(err)
	}
	h2.guards.fail(reason, nil)
	if _, err := h2.run(n2, container{id: "e1", mac: macN(1)}); err == nil || !strings.Contains(err.Error(), "modprobe esp4") {
		t.Errorf("attaching a container: error %v, want the reason", err)
	}
}

func TestWithoutItsGuardAnEncryptedNetworkIsCutOff(t *testing.T) {
	_, h1, h2 := two(t)
	var n dockerNetwork
	for i, h := range []*host{h1, h2} {
		var err error
		if n, err = h.createNetwork("d"+h.name, "10.10.0.0/24", "network", "web", "encrypted", ""); err != nil {
			t.Fatal(err)
		}
		if _, err := h.run(n, container{id: "e" + h.name, mac: macN(i + 1)}); err != nil {
			t.Fatal(err)
		}
	}
	device := func(want bool) func() error {
		return func() error {
			if n := h2.networks()[0]; n.VXLAN.Present != want || len(n.Ports) != 1 {
				return fmt.Errorf("VXLAN device present %t, %d ports", n.VXLAN.Present, len(n.Ports))
			}
			return nil
		}
	}
	h2.eventually("the network reaches other nodes", device(true))
	h2.guards.fail(nil, errors.New("no packet filter"))
	h2.driver.check(t.Context())
	h2.eventually("it is cut off", device(false))
	if err := h2.driver.Problems()["web"]; err == nil || !strings.Contains(err.Error(), "no packet filter") {
		t.Errorf("problem %v, want the reason", err)
	}
	if _, err := h2.run(n, container{id: "e9", mac: macN(9)}); err == nil || !strings.Contains(err.Error(), "no packet filter") {
		t.Errorf("another container: error %v, want the reason", err)
	}
	h2.guards.fail(nil, nil)
	h2.driver.check(t.Context())
	h2.eventually("it is back", device(true))
	if err := h2.driver.Problems()["web"]; err != nil {
		t.Error(err)
	}
}

func TestASwarmsAnswerHasTheEncryption(t *testing.T) {
	mem := store.NewMemory()
	s := swarmOf(t, mem, newHost(t, mem, "n1", "192.0.2.1"), newHost(t, mem, "n2", "192.0.2.2"))
	s.hosts[0].guards.fail(errors.New("a manager without ESP"), nil)
	s.must(s.createNetwork("s1", "10.10.0.0/24", "encrypted", ""))
	if s.options["encrypted"] != "true" || s.options["rekey"] != "1h0m0s" || s.options["port"] != "4790" || s.options["mtu"] != "1416" {
		t.Errorf("options %v", s.options)
	}
	if _, err := s.start(s.hosts[1]); err != nil {
		t.Errorf("a node that is given them: %v", err)
	}
	if _, err := s.start(s.hosts[0]); err == nil || !strings.Contains(err.Error(), "without ESP") {
		t.Errorf("a task on the manager: error %v, want the reason", err)
	}
	s.must(s.lead(s.hosts[1]))
}
