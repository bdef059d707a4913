package driver

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/docker/go-plugins-helpers/network"

	"github.com/netdriver/netdriver/dataplane"
	"github.com/netdriver/netdriver/store"
)

// twoWeb is a cluster of two hosts that are both members of network web.
func twoWeb(t *testing.T) (mem *store.Memory, h1, h2 *host, n1, n2 dockerNetwork) {
	t.Helper()
	mem, h1, h2 = two(t)
	n1, err1 := h1.createNetwork("d1", "10.10.0.0/24", "network", "web")
	n2, err2 := h2.createNetwork("d2", "10.10.0.0/24", "network", "web")
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return mem, h1, h2, n1, n2
}

func TestAContainersInterfaceIsThereBeforeDockerAsksToJoin(t *testing.T) {
	h := newHost(t, store.NewMemory(), "n1", "192.0.2.1")
	n := web(h)
	if err := h.createEndpoint(n, container{id: "e1", address: "10.10.0.5/24", mac: macN(1)}); err != nil {
		t.Fatal(err)
	}
	if ps := h.networks()[0].Ports; len(ps) != 1 || ps[0].Endpoint != "e1" || ps[0].MTU != 1450 {
		t.Errorf("ports %+v", ps)
	}
	if made := func(op dataplane.Op) bool { return op.Endpoint == "e1" && op.MAC.String() == macN(1) }; !slices.ContainsFunc(h.kernel.Ran(), made) {
		t.Errorf("no interface with Docker's MAC was made: %v", h.kernel.Ran())
	}
	res, err := call[network.JoinResponse](h, "NetworkDriver.Join", map[string]any{"NetworkID": n.id, "EndpointID": "e1"})
	want := network.InterfaceName{SrcName: dataplane.ContainerEnd("e1"), DstPrefix: "eth"}
	if err != nil || res.InterfaceName != want || res.Gateway != "" || res.DisableGatewayService {
		t.Errorf("join answered %+v, error %v; want only %+v", res, err, want)
	}
}

func TestAnEndpointReachesTheOtherHostsFDBAndLeavesIt(t *testing.T) {
	_, h1, h2, n1, _ := twoWeb(t)
	c, err := h1.run(n1, container{id: "e1", mac: macN(1)})
	if err != nil {
		t.Fatal(err)
	}
	entries := func() int {
		return len(slices.DeleteFunc(h2.networks()[0].FDB, func(e dataplane.FDBEntry) bool { return e.MAC.String() != macN(1) }))
	}
	want := func(n int) func() error {
		return func() error {
			if got := entries(); got != n {
				return fmt.Errorf("%d entries for the endpoint, want %d", got, n)
			}
			return nil
		}
	}
	h2.eventually("endpoint in both tables", want(2))
	if err := h1.remove(n1, c); err != nil {
		t.Fatal(err)
	}
	h2.eventually("endpoint gone", want(0))
}

func TestAnAnswerNamesOnlyWhatDockerLeftOpen(t *testing.T) {
	h := newHost(t, store.NewMemory(), "n1", "192.0.2.1")
	n := web(h)
	for i, given := range []string{"", macN(9)} {
		id := fmt.Sprintf("e%d", i)
		address := fmt.Sprintf("10.10.0.%d/24", 5+i)
		res, err := call[network.CreateEndpointResponse](h, "NetworkDriver.CreateEndpoint", map[string]any{
			"NetworkID": n.id, "EndpointID": id, "Interface": map[string]string{"Address": address, "MacAddress": given},
		})
		if err != nil || res.Interface == nil || (res.Interface.MacAddress == "") == (given == "") || res.Interface.Address != "" {
			t.Errorf("MAC given %q: answer %+v, error %v", given, res.Interface, err)
		}
	}
}

func TestTheSameEndpointAskedAgainIsGrantedAndAnotherOneOfThatIDRefused(t *testing.T) {
	h := newHost(t, store.NewMemory(), "n1", "192.0.2.1")
	n := web(h)
	c := container{id: "e1", address: "10.10.0.5/24", mac: macN(1)}
	if err := errors.Join(h.createEndpoint(n, c), h.createEndpoint(n, c), h.join(n, c), h.join(n, c)); err != nil {
		t.Errorf("the same again: %v", err)
	}
	c.mac = macN(2)
	if err := h.createEndpoint(n, c); err == nil || !strings.Contains(err.Error(), macN(1)) {
		t.Errorf("error %v, want the MAC it has", err)
	}
}

func TestAnAddressOrMACInUseIsRefusedWithItsHolder(t *testing.T) {
	_, h1, h2, n1, n2 := twoWeb(t)
	if _, err := h1.run(n1, container{id: "e1", address: "10.10.0.5", mac: macN(1)}); err != nil {
		t.Fatal(err)
	}
	if _, err := h2.run(n2, container{id: "e2", address: "10.10.0.5", mac: macN(2)}); err == nil ||
		!strings.Contains(err.Error(), "e1") || !strings.Contains(err.Error(), "n1") {
		t.Errorf("address in use: error %v, want its holder", err)
	}
	if _, err := h2.run(n2, container{id: "e2", mac: macN(1)}); err == nil || !strings.Contains(err.Error(), "e1") {
		t.Errorf("MAC in use: error %v, want its holder", err)
	}
	if _, err := h2.run(n2, container{id: "e2", address: "10.10.0.6", mac: macN(2)}); err != nil {
		t.Errorf("free address and MAC are refused: %v", err)
	}
}

func TestBadEndpointRequestsAreRefusedWithTheReason(t *testing.T) {
	h := newHost(t, store.NewMemory(), "n1", "192.0.2.1")
	n := web(h)
	iface := func(address, mac string) map[string]string {
		return map[string]string{"Address": address, "MacAddress": mac}
	}
	for what, c := range map[string]struct {
		req  map[string]any
		want string
	}{
		"no interface":     {map[string]any{"EndpointID": "e1"}, "no interface"},
		"no address":       {map[string]any{"EndpointID": "e1", "Interface": iface("", macN(1))}, "without address"},
		"malformed":        {map[string]any{"EndpointID": "e1", "Interface": iface("10.10.0.5", macN(1))}, "prefix length"},
		"outside":          {map[string]any{"EndpointID": "e1", "Interface": iface("10.99.0.5/24", macN(1))}, "in no subnet"},
		"bad MAC":          {map[string]any{"EndpointID": "e1", "Interface": iface("10.10.0.5/24", "01:00:5e:00:00:01")}, "unicast"},
		"bad id":           {map[string]any{"EndpointID": "../x", "Interface": iface("10.10.0.5/24", macN(1))}, "letters or digits"},
		"unknown option":   {map[string]any{"EndpointID": "e1", "Interface": iface("10.10.0.5/24", macN(1)), "Options": map[string]any{"grop": "x"}}, "grop"},
		"unknown network":  {map[string]any{"NetworkID": "dx", "EndpointID": "e1", "Interface": iface("10.10.0.5/24", macN(1))}, "not known"},
		"a wrong net's id": {map[string]any{"NetworkID": "", "EndpointID": "e1"}, "letters or digits"},
	} {
		if _, given := c.req["NetworkID"]; !given {
			c.req["NetworkID"] = n.id
		}
		if err := h.do("NetworkDriver.CreateEndpoint", c.req); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", what, err, c.want)
		}
	}
	if err := h.onlyNetwork("web"); err != nil {
		t.Errorf("something is left of the refused ones: %v", err)
	}
	if err := h.createEndpoint(n, container{id: "e1", address: "10.10.0.5/24", mac: macN(1)}); err != nil {
		t.Errorf("a good one is refused: %v", err)
	}
}

func TestJoiningAnUnknownEndpointSaysWhatToDo(t *testing.T) {
	h := newHost(t, store.NewMemory(), "n1", "192.0.2.1")
	if err := h.join(web(h), container{id: "e9"}); err == nil || !strings.Contains(err.Error(), "start the container again") {
		t.Errorf("error %v", err)
	}
}

func TestReleasingTwiceOrTheUnknownIsNoError(t *testing.T) {
	h := newHost(t, store.NewMemory(), "n1", "192.0.2.1")
	n := web(h)
	c, err := h.run(n, container{id: "e1", mac: macN(1)})
	if err := errors.Join(err, h.remove(n, c), h.remove(n, c), h.removeNetwork(n), h.removeNetwork(n), h.remove(n, c)); err != nil {
		t.Error(err)
	}
	if err := h.empty(); err != nil {
		t.Error(err)
	}
}

func TestARestartedDaemonChangesNothingOfARunningNetwork(t *testing.T) {
	h := newHost(t, store.NewMemory(), "n1", "192.0.2.1")
	n := web(h)
	if _, err := h.run(n, container{id: "e1", mac: macN(1)}); err != nil {
		t.Fatal(err)
	}
	before := len(h.kernel.Ran())
	h.restart()
	h.eventually("the network is known again", func() error { _, err := h.driver.Diff(t.Context(), "web"); return err })
	if ops := h.kernel.Ran()[before:]; len(ops) != 0 {
		t.Errorf("the restart ran %v", ops)
	}
	if c, err := h.run(n, container{id: "e2", mac: macN(2)}); err != nil || c.address == "" {
		t.Errorf("a new container after the restart: %v", err)
	}
}

func TestARebootedHostMakesNetworksAnewButNoInterfaceForAContainerThatIsGone(t *testing.T) {
	h := newHost(t, store.NewMemory(), "n1", "192.0.2.1")
	n := web(h)
	if _, err := h.run(n, container{id: "e1", mac: macN(1)}); err != nil {
		t.Fatal(err)
	}
	h.eventually("the join is recorded", func() error {
		if e := record[store.Endpoint](t, h.mem, store.EndpointKey("web", "e1")); e.Phase != store.PhaseJoined {
			return fmt.Errorf("phase %s", e.Phase)
		}
		return nil
	})
	h.kernel = dataplane.NewFake()
	h.restart()
	h.eventually("the network is back", func() error {
		if ns := h.networks(); len(ns) != 1 || !ns[0].VXLAN.Enslaved {
			return fmt.Errorf("kernel has %+v", ns)
		}
		return nil
	})
	if ps := h.networks()[0].Ports; len(ps) != 0 {
		t.Errorf("ports %+v", ps)
	}
}
