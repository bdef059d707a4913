package dataplane

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/netdriver/netdriver/dataplane/guard"
	"github.com/netdriver/netdriver/dataplane/rate"
	"github.com/netdriver/netdriver/internal/golden"
	"github.com/netdriver/netdriver/vxlan"
)

// equal compares networks as values; an empty slice is as good as none.
func equal() cmp.Options {
	return cmp.Options{cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })}
}

const testVNI vxlan.VNI = 0x100001

func endpointID(i int) string { return fmt.Sprintf("%010x%054x", i, i) }

func endpointMAC(i int) vxlan.MAC {
	return vxlan.MAC{2, 0x42, 10, byte(i >> 16), byte(i >> 8), byte(i)}
}

func endpointIP(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
}

// testNet builds the wanted network "web" on the VTEP local.
type testNet struct{ Network }

func newTestNet(local string) *testNet {
	return &testNet{Network{
		Name: "web", VNI: testVNI,
		Bridge: Bridge{Present: true, MTU: 1450, Up: true},
		VXLAN: VXLAN{Present: true, Local: netip.MustParseAddr(local), Underlay: "eth0", Port: vxlan.DefaultPort,
			MTU: 1450, Up: true, Enslaved: true},
	}}
}

func (n *testNet) local(ids ...int) *testNet {
	for _, i := range ids {
		n.Ports = append(n.Ports,
			Port{Endpoint: endpointID(i), MAC: endpointMAC(i), MTU: n.Bridge.MTU, Up: true, Enslaved: true})
		n.FDB = append(n.FDB, FDBEntry{MAC: endpointMAC(i), Port: endpointID(i)})
		n.neighbour(i)
	}
	return n
}

func (n *testNet) peer(vtep string, ids ...int) *testNet {
	to := netip.MustParseAddr(vtep)
	n.FDB = append(n.FDB, FDBEntry{VTEP: to})
	for _, i := range ids {
		n.FDB = append(n.FDB, FDBEntry{MAC: endpointMAC(i), VTEP: to}, FDBEntry{MAC: endpointMAC(i)})
		n.neighbour(i)
	}
	return n
}

// guarded lets the local endpoints send from their MAC and address, and from an IPv6 one.
func (n *testNet) guarded() *testNet {
	n.Guard.Table = true
	for _, e := range n.FDB {
		for i := range 100 {
			if e.Port == endpointID(i) {
				n.Guard.AddEndpoint(guard.Port{Name: PortName(e.Port)}, e.MAC, endpointIP(i), insideIP6(i))
			}
		}
	}
	return n
}

// classes gives the endpoints classes by number: those of 1 may reach those of 2 by TCP, port 5432, and UDP, port 53.
func (n *testNet) classes(of map[int]uint32) *testNet {
	names := []string{"0", "web", "db"}
	spans := func(peer uint32) []guard.Span {
		return []guard.Span{{Peer: peer, FirstProto: 6, LastProto: 6, First: 5432, Last: 5440},
			{Peer: peer, FirstProto: 17, LastProto: 17, First: 53, Last: 53}}
	}
	n.Guard.Policy = guard.Policy{Classes: []guard.Class{{Name: names[0]},
		{Name: names[1], Reaches: spans(2)}, {Name: names[2], Admits: spans(1)}}}
	for i, class := range of {
		n.Guard.Policy.Members = append(n.Guard.Policy.Members, guard.Member{Address: endpointIP(i), Class: class},
			guard.Member{Address: insideIP6(i), Class: class})
		for k := range n.Guard.Ports {
			if n.Guard.Ports[k].Name == PortName(endpointID(i)) {
				n.Guard.Ports[k].Class = names[class]
			}
		}
	}
	return n
}

func (n *testNet) neighbour(i int) {
	n.Neighbours = append(n.Neighbours, Neighbour{endpointIP(i), endpointMAC(i)})
}

func (n *testNet) network() Network {
	n.Sort()
	return n.clone()
}

// with returns a copy of n after change.
func with(n Network, change func(*Network)) Network {
	c := n.clone()
	change(&c)
	c.Sort()
	return c
}

func TestPlanPrintsTheCommandsAnEngineerWouldType(t *testing.T) {
	full := newTestNet("192.0.2.1").local(1, 2).peer("192.0.2.2", 3, 4).peer("192.0.2.3", 5).network()
	there := full.asRead()
	tests := []struct {
		name       string
		have, want Network
	}{
		{"create", Network{}, full},
		{"add-endpoint", there,
			newTestNet("192.0.2.1").local(1, 2, 6).peer("192.0.2.2", 3, 4, 7).peer("192.0.2.3", 5).network()},
		{"remove-endpoint", there,
			newTestNet("192.0.2.1").local(1).peer("192.0.2.2", 3).peer("192.0.2.3", 5).network()},
		{"peer-moves", there,
			newTestNet("192.0.2.1").local(1, 2).peer("192.0.2.9", 3, 4).peer("192.0.2.3", 5).network()},
		{"endpoint-moves-here", there,
			newTestNet("192.0.2.1").local(1, 2, 3).peer("192.0.2.2", 4).peer("192.0.2.3", 5).network()},
		{"own-vtep-moves", there,
			newTestNet("192.0.2.8").local(1, 2).peer("192.0.2.2", 3, 4).peer("192.0.2.3", 5).network()},
		{"attribute-drift", with(there, func(n *Network) {
			n.Bridge.MTU, n.VXLAN.MTU, n.VXLAN.Up, n.Ports[0].MTU = 1400, 1400, false, 1400
		}), full},
		{"port-removed-from-bridge", with(there, func(n *Network) {
			n.Ports[0].Enslaved = false
			n.FDB = slices.DeleteFunc(n.FDB, func(e FDBEntry) bool { return e.Port == endpointID(1) })
		}), full},
		{"adopted-port-is-not-made", with(there, func(n *Network) {
			n.Ports = n.Ports[1:]
			n.FDB = slices.DeleteFunc(n.FDB, func(e FDBEntry) bool { return e.Port == endpointID(1) })
		}), with(full, func(n *Network) { n.Ports[0].Adopt = true })},
		{"bridge-lost", with(there, func(n *Network) {
			n.Bridge, n.Neighbours, n.VXLAN.Enslaved = Bridge{}, nil, false
			n.Ports[0].Enslaved, n.Ports[1].Enslaved = false, false
		}), full},
		{"remove", there, Network{}},
		{"create-guarded", Network{}, newTestNet("192.0.2.1").local(1).guarded().network()},
		{"guard-lost", there, newTestNet("192.0.2.1").local(1, 2).peer("192.0.2.2", 3, 4).peer("192.0.2.3", 5).guarded().network()},
		{"guarded-endpoint-added", newTestNet("192.0.2.1").local(1).guarded().network().asRead(),
			newTestNet("192.0.2.1").local(1, 2).guarded().network()},
		{"guarded-endpoint-removed", newTestNet("192.0.2.1").local(1, 2).guarded().network().asRead(),
			newTestNet("192.0.2.1").local(1).guarded().network()},
		{"adopted-port-is-not-guarded", newTestNet("192.0.2.1").guarded().network().asRead(),
			with(newTestNet("192.0.2.1").local(1).guarded().network(), func(n *Network) { n.Ports[0].Adopt = true })},
		{"policy-added", newTestNet("192.0.2.1").local(1).guarded().network().asRead(),
			newTestNet("192.0.2.1").local(1).guarded().classes(map[int]uint32{1: 1, 3: 2}).network()},
		{"policy-changed", newTestNet("192.0.2.1").local(1, 2).guarded().classes(map[int]uint32{1: 1, 2: 2, 3: 2}).network().asRead(),
			with(newTestNet("192.0.2.1").local(1, 2).guarded().classes(map[int]uint32{1: 2, 2: 0, 4: 2}).network(),
				func(n *Network) { n.Guard.Policy.Classes[1].Admits[0].Last = 6000 })},
		{"policy-removed", newTestNet("192.0.2.1").local(1).guarded().classes(map[int]uint32{1: 1, 3: 2}).network().asRead(),
			newTestNet("192.0.2.1").local(1).guarded().network()},
		{"limits", with(there, func(n *Network) {
			n.Ports[0].Limit, n.Ports[1].Limit = rate.Limit{Rate: 8e6, Burst: 200000}, rate.Limit{Rate: 8e6, Burst: 200000}
		}),
			with(newTestNet("192.0.2.1").local(1, 2, 6).peer("192.0.2.2", 3, 4).peer("192.0.2.3", 5).network(), func(n *Network) {
				n.Ports[1].Limit, n.Ports[2].Limit = rate.Limit{Rate: 16e6, Burst: 200000}, rate.Limit{Rate: 16e6, Burst: 200000}
			})},
		{"first-service", there, balanced(full, web(10, 2, 3))},
		{"second-service", balanced(there, web(10, 2, 3)).asRead(),
			balanced(full, db(11, 4), web(10, 2, 3))},
		{"backends-change", balanced(there, web(10, 2, 3, 4)).asRead(),
			balanced(full, draining(web(10, 1, 3, 4), 3))},
		{"vip-moves-to-another-service", balanced(there, db(10, 4), web(11, 2, 3)).asRead(),
			balanced(full, db(12, 4), web(10, 2, 3))},
		{"port-added-where-services-are", balanced(there, web(10, 2)).asRead(),
			balanced(newTestNet("192.0.2.1").local(1, 2, 6).peer("192.0.2.2", 3, 4).peer("192.0.2.3", 5).network(), web(10, 2))},
		{"last-service-removed", balanced(there, web(10, 2, 3)).asRead(), full},
		{"balancing-torn", with(balanced(there, web(10, 2, 3)).asRead(), func(n *Network) {
			n.Ports[0].Balanced, n.Services[0].Stale = false, true
			n.Services[0].Backends = n.Services[0].Backends[:1]
		}), balanced(full, web(10, 2, 3))},
		{"remove-with-services", balanced(there, web(10, 2, 3)).asRead(), Network{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var b strings.Builder
			for _, op := range plan(tt.have, tt.want) {
				fmt.Fprintln(&b, op)
			}
			golden.Compare(t, tt.name+".golden", b.String())
		})
	}
}

// balanced returns n with services; web and db are services with a VIP over endpoints.
func balanced(n Network, services ...Service) Network {
	return with(n, func(n *Network) { n.Services = services })
}

func web(vip int, ids ...int) Service { return overEndpoints("web", vip, ids) }
func db(vip int, ids ...int) Service  { return overEndpoints("db", vip, ids) }

func overEndpoints(id string, vip int, ids []int) Service {
	s := Service{ID: id, VIPs: []netip.Addr{endpointIP(vip)}}
	for _, i := range ids {
		s.Backends = append(s.Backends, Backend{Address: endpointIP(i), MAC: endpointMAC(i)})
	}
	return s
}

func draining(s Service, id int) Service {
	for i := range s.Backends {
		s.Backends[i].Draining = s.Backends[i].Draining || s.Backends[i].Address == endpointIP(id)
	}
	return s
}

// anyNetwork draws wanted networks that share endpoints, MACs and VTEPs, so that plans between two of them move things.
func anyNetwork() *rapid.Generator[Network] {
	return rapid.Custom(func(t *rapid.T) Network {
		n := newTestNet(rapid.SampledFrom([]string{"192.0.2.1", "192.0.2.8"}).Draw(t, "local"))
		n.Bridge.MTU = rapid.SampledFrom([]int{1400, 1450}).Draw(t, "mtu")
		n.VXLAN.MTU = n.Bridge.MTU
		peers := []string{"", "192.0.2.2", "192.0.2.3", "192.0.2.4"} // "" is here
		at := map[string][]int{}
		for i := range 8 {
			if rapid.Bool().Draw(t, "exists") {
				p := rapid.SampledFrom(peers).Draw(t, "place")
				at[p] = append(at[p], i+1)
			}
		}
		n.local(at[""]...)
		for _, p := range peers[1:] {
			if len(at[p]) > 0 {
				n.peer(p, at[p]...)
			}
		}
		n.Services = anyServices(t)
		for i := range n.Ports {
			n.Ports[i].Limit.Rate = rapid.SampledFrom([]uint64{0, 8e6, 16e6}).Draw(t, "rate")
		}
		n.Guard.Table = true // it stays, wanted or not
		if rapid.Bool().Draw(t, "guarded") {
			n.guarded()
			if rapid.Bool().Draw(t, "policy") {
				of := map[int]uint32{}
				for _, i := range at[""] {
					of[i] = uint32(rapid.IntRange(0, 2).Draw(t, "class"))
				}
				n.classes(of)
			}
		}
		return n.network()
	})
}

// anyServices draws services that share backends and VIPs, so that VIPs move between them.
func anyServices(t *rapid.T) (all []Service) {
	holder := map[int]bool{}
	for _, id := range []string{"db", "web"} {
		if !rapid.Bool().Draw(t, "service") {
			continue
		}
		var s Service
		for _, i := range []int{1, 2, 3} {
			if rapid.Bool().Draw(t, "backend") {
				b := overEndpoints(id, 10, []int{i}).Backends[0]
				b.Draining = rapid.Bool().Draw(t, "draining")
				b.MAC[0] = rapid.SampledFrom([]byte{2, 6}).Draw(t, "container")
				s.Backends = append(s.Backends, b)
			}
		}
		if vip := rapid.IntRange(10, 12).Draw(t, "vip"); !holder[vip] {
			holder[vip] = true
			s.ID, s.VIPs = id, []netip.Addr{endpointIP(vip)}
			all = append(all, s)
		}
	}
	return all
}

// TestPlanLeadsFromAnyNetworkToAnyOther also disturbs the start, as another program could.
func TestPlanLeadsFromAnyNetworkToAnyOther(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := anyNetwork().Draw(t, "a"), anyNetwork().Draw(t, "b")
		f := NewFake()
		mustRun(t, f, plan(Network{}, a))
		if rapid.Bool().Draw(t, "disturb") {
			disturb(t, f, a)
		}
		have, _ := f.ReadNetwork(t.Context(), testVNI)
		ops := plan(have, b)
		mustRun(t, f, ops)
		got, _ := f.ReadNetwork(t.Context(), testVNI)
		if diff := cmp.Diff(b.asRead(), got, equal()); diff != "" {
			t.Fatalf("plan:\n%v\nleads elsewhere (-want +got):\n%s", ops, diff)
		}
		if again := plan(got, b); len(again) > 0 {
			t.Fatalf("plan of what is wanted already: %v", again)
		}
		mustRun(t, f, plan(got, Network{}))
		if left, _ := f.Read(t.Context()); len(left) > 0 {
			t.Fatalf("left after removal: %+v", left)
		}
	})
}

func mustRun(t interface{ Fatal(...any) }, f *Fake, ops []Op) {
	if err := f.Run(context.Background(), ops); err != nil {
		t.Fatal(err)
	}
}

// disturb removes a device or an entry, or adds an entry.
func disturb(t *rapid.T, f *Fake, n Network) {
	op := Op{VNI: n.VNI}
	switch rapid.IntRange(0, 5).Draw(t, "disturbance") {
	case 0:
		op.Verb, op.Device = DelLink, VXLANName(n.VNI)
	case 1:
		op.Verb, op.Device = DelLink, BridgeName(n.VNI)
	case 2:
		op.Verb, op.Device = PutFDB, VXLANName(n.VNI)
		op.MAC, op.VTEP = endpointMAC(3), netip.MustParseAddr("192.0.2.77")
	case 5:
		f.DropTable()
		return
	case 4:
		f.Change(n.VNI, func(n *Network) {
			for i := range n.Ports {
				n.Ports[i].Balanced = false
			}
			for i := range n.Services {
				n.Services[i].Backends, n.Services[i].Stale = nil, true
			}
		})
		return
	case 3:
		if len(n.Neighbours) > 0 {
			op = Op{Verb: DelNeighbour, VNI: n.VNI, Device: BridgeName(n.VNI), Address: n.Neighbours[0].Address}
		} else {
			op.Verb, op.Device = DelLink, BridgeName(n.VNI)
		}
	}
	mustRun(t, f, []Op{op})
}

func TestPlanIsMinimal(t *testing.T) {
	a := newTestNet("192.0.2.1").local(1, 2).peer("192.0.2.2", 3, 4).network()
	b := newTestNet("192.0.2.1").local(1, 2).peer("192.0.2.2", 3, 4, 5).network()
	if got := plan(a.asRead(), b); len(got) != 4 {
		t.Errorf("one remote endpoint more takes %d operations, want its three entries and its announcement: %v", len(got), got)
	}
	if got := plan(b.asRead(), a); len(got) != 3 {
		t.Errorf("one remote endpoint less takes %d operations, want its three entries: %v", len(got), got)
	}
}

func TestImpossibleNetworksAreRefused(t *testing.T) {
	ok := newTestNet("192.0.2.1").local(1, 2).peer("192.0.2.2", 3).network()
	if err := ok.Check(); err != nil {
		t.Fatalf("possible network: %v", err)
	}
	tests := []struct {
		name   string
		break_ func(*Network)
		want   string
	}{
		{"ids alike", func(n *Network) {
			twin := endpointID(1)[:63] + "f"
			n.Ports = append(n.Ports, Port{Endpoint: twin})
		}, "begin with the same 10 characters"},
		{"no VNI", func(n *Network) { n.VNI = 0 }, "VNI 0"},
		{"no bridge", func(n *Network) { n.Bridge = Bridge{} }, "without a bridge"},
		{"entry on no port", func(n *Network) {
			n.FDB = append(n.FDB, FDBEntry{MAC: endpointMAC(9), Port: "x"})
		}, "has no port"},
		{"MAC twice", func(n *Network) {
			n.FDB = append(n.FDB, FDBEntry{MAC: endpointMAC(3), VTEP: netip.MustParseAddr("192.0.2.3")})
		}, "in two places"},
		{"MAC here and there", func(n *Network) {
			n.FDB = append(n.FDB, FDBEntry{MAC: endpointMAC(1)})
		}, "in two places"},
		{"MAC on two ports", func(n *Network) {
			n.FDB = append(n.FDB, FDBEntry{MAC: endpointMAC(1), Port: endpointID(2)})
		}, "in two places"},
		{"IP versions mixed", func(n *Network) {
			n.FDB = append(n.FDB, FDBEntry{VTEP: netip.MustParseAddr("2001:db8::1")})
		}, "same IP version"},
		{"IPv6 on a small MTU", func(n *Network) {
			n.Bridge.MTU = 1279
			n.Neighbours = append(n.Neighbours, Neighbour{netip.MustParseAddr("2001:db8::1"), endpointMAC(1)})
		}, "at least 1280"},
		{"VIP of two services", func(n *Network) { n.Services = []Service{db(10, 1), web(10, 2)} }, "is that of service db too"},
		{"service twice", func(n *Network) { n.Services = []Service{web(10), web(11)} }, "is there twice"},
		{"address of two backends", func(n *Network) { n.Services = []Service{web(10, 1, 1)} }, "same address"},
		{"long service id", func(n *Network) {
			n.Services = []Service{overEndpoints(strings.Repeat("x", 65), 10, nil)}
		}, "1 to 64 characters"},
		{"backend without MAC", func(n *Network) {
			n.Services = []Service{web(10, 1)}
			n.Services[0].Backends[0].MAC = vxlan.MAC{}
		}, "no MAC"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := with(ok, tt.break_).Check()
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
		})
	}
}
