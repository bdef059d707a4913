package ipam

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/netdriver/netdriver/store"
)

// use is what a test knows of one address: who has it.
type use struct {
	swarm          bool
	node, endpoint string
}

// automaton drives the leases of one pool as a swarm and its nodes do, in any order, and knows what must come of it.
type automaton struct {
	t      *testing.T
	nodes  []*node
	leader *node
	// local and global are the pool in the two address spaces.
	local, global string
	uses          map[string]use
	// asked are the addresses of the leader's term; those before its daemon's last start are forgotten.
	asked map[string]bool
	count int
}

func newAutomaton(t *testing.T) *automaton {
	mem := store.NewMemory()
	a := &automaton{t: t, uses: map[string]use{}, asked: map[string]bool{}}
	for _, name := range []string{"n1", "n2", "n3"} {
		a.nodes = append(a.nodes, newNode(t, mem, name))
	}
	a.leader = a.nodes[0]
	a.global = a.leader.lead("10.10.0.0/29") // of six addresses one is the gateway
	a.leader.allocateNetwork("web", a.global)
	for _, n := range a.nodes {
		n.alive()
		a.local = n.web("10.10.0.0/29")
	}
	return a
}

// next returns a number that was not used before.
func (a *automaton) next() int { a.count++; return a.count }

// new notes an address that was chosen, which nobody may have had.
func (a *automaton) new(t *rapid.T, who, cidr string, err error, u use) {
	if err != nil {
		if len(a.uses) < 5 || !strings.Contains(err.Error(), "is full") {
			t.Fatalf("%s asks for any address, with %v in use: %v", who, a.uses, err)
		}
		return
	}
	address, _, _ := strings.Cut(cidr, "/")
	if old, used := a.uses[address]; used {
		t.Fatalf("%s is given %s, which is used: %+v", who, address, old)
	}
	a.uses[address] = u
	if u.swarm {
		a.asked[address] = true
	}
}

// set notes who has an address.
func (a *automaton) set(address string, u use) {
	if a.uses[address] = u; u == (use{}) {
		delete(a.uses, address)
	}
}

// steps are the things that may happen.
func (a *automaton) steps() map[string]func(*rapid.T) {
	address := func(t *rapid.T) string { return fmt.Sprintf("10.10.0.%d", rapid.IntRange(2, 6).Draw(t, "address")) }
	some := func(t *rapid.T) *node { return rapid.SampledFrom(a.nodes).Draw(t, "node") }
	return map[string]func(*rapid.T){
		"": a.check,
		"swarm allocates": func(t *rapid.T) {
			got, err := a.leader.address(a.global, "", nil)
			a.new(t, "the swarm", got, err, use{swarm: true})
		},
		"swarm asks":     func(t *rapid.T) { a.ask(t, address(t)) },
		"swarm releases": func(t *rapid.T) { a.releaseSwarm(address(t)) },
		"node allocates": func(t *rapid.T) {
			n := some(t)
			got, err := n.run(a.local, "", a.next())
			a.new(t, n.name, got, err, use{node: n.name})
		},
		"node asks":      func(t *rapid.T) { a.start(t, some(t), address(t)) },
		"node releases":  func(t *rapid.T) { a.releaseNode(some(t), address(t)) },
		"endpoint made":  func(t *rapid.T) { a.attach(address(t), fmt.Sprintf("e%d", a.next())) },
		"endpoint ended": func(t *rapid.T) { a.attach(address(t), "") },
		"daemon killed": func(t *rapid.T) {
			n := some(t)
			if n.restart(); n == a.leader {
				clear(a.asked)
			}
		},
		"new leader": func(t *rapid.T) { a.lead(t, some(t)) },
	}
}

// check compares the store's leases with the uses.
func (a *automaton) check(t *rapid.T) {
	want := []string{}
	for _, address := range slices.Sorted(maps.Keys(a.uses)) {
		u := a.uses[address]
		want = append(want, fmt.Sprintf("%s swarm=%v node=%s endpoint=%s", address, u.swarm, u.node, u.endpoint))
	}
	if diff := cmp.Diff(want, held(a.t, a.leader.mem)); diff != "" {
		t.Fatalf("leases (-want +got):\n%s", diff)
	}
}

// ask asks for an address in the global space: a user's --ip, or a replay. Only what the swarm has and has asked for in
// this term is refused.
func (a *automaton) ask(t *rapid.T, address string) {
	u := a.uses[address]
	_, err := a.leader.address(a.global, address, nil)
	if refuse := u.swarm && a.asked[address]; refuse != (err != nil) {
		t.Fatalf("the swarm asks for %s, which is used: %+v, asked in this term: %v; error %v", address, u, a.asked[address], err)
	}
	if err == nil {
		u.swarm, a.asked[address] = true, true
		a.set(address, u)
	}
}

// start asks for an address on a node, for a new container: never granted while an endpoint has it.
func (a *automaton) start(t *rapid.T, n *node, address string) {
	u := a.uses[address]
	_, err := n.run(a.local, address, a.next())
	switch {
	case err == nil && u.endpoint != "":
		t.Fatalf("%s is given %s, which an endpoint has: %+v", n.name, address, u)
	case err != nil && u.node == "":
		t.Fatalf("%s is refused %s, which no node has: %+v: %v", n.name, address, u, err)
	case err == nil:
		a.set(address, use{swarm: u.swarm, node: n.name})
	}
}

// attach gives an address that a node has to an endpoint there, or takes it from it.
func (a *automaton) attach(address, endpoint string) {
	u := a.uses[address]
	if u.node == "" || (u.endpoint == "") == (endpoint == "") {
		return
	}
	a.nodes[0].attach(a.local, address, endpoint)
	u.endpoint = endpoint
	a.set(address, u)
}

func (a *automaton) releaseSwarm(address string) {
	a.leader.release(a.global, address)
	u := a.uses[address]
	u.swarm = false
	a.set(address, u)
	delete(a.asked, address)
}

// releaseNode releases an address on a node, which has no effect unless it is that node's and no endpoint has it.
func (a *automaton) releaseNode(n *node, address string) {
	n.release(a.local, address)
	if u := a.uses[address]; u.node == n.name && u.endpoint == "" {
		a.set(address, use{swarm: u.swarm})
	}
}

// lead makes n the leader, who is granted everything that the swarm has.
func (a *automaton) lead(t *rapid.T, n *node) {
	a.leader = n
	n.lead("10.10.0.0/29")
	clear(a.asked)
	for address, u := range a.uses {
		if u.swarm {
			a.ask(t, address)
		}
	}
}

func TestALeaseLastsExactlyAsLongAsTheSwarmOrANodeHasItsAddress(t *testing.T) {
	a := newAutomaton(t)
	rapid.Check(t, func(rt *rapid.T) {
		if len(a.uses) > 0 { // a run has failed: rapid looks for a shorter one
			a = newAutomaton(t)
		}
		clear(a.asked)
		a.lead(rt, a.nodes[0])
		rt.Repeat(a.steps())
		for address, u := range maps.Clone(a.uses) {
			a.attach(address, "")
			a.releaseSwarm(address)
			for _, n := range a.nodes {
				if n.name == u.node {
					a.releaseNode(n, address)
				}
			}
		}
		if a.check(rt); len(a.uses) != 0 {
			rt.Fatalf("in use after all is released: %v", a.uses)
		}
	})
}
