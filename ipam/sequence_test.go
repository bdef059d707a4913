package ipam

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// step is one call of an engine with what it must answer.
type step struct {
	call          string // pool, gateway, plain (no options), run, release, release pool; create and attach are the driver's
	address, want string
	mac           int
}

// play sends the calls in order to a node whose Docker network is web.
func (n *node) play(pool string, steps ...step) {
	n.t.Helper()
	for i, s := range steps {
		var got string
		var err error
		switch s.call {
		case "pool":
			got, err = n.pool(s.address, "web")
		case "gateway":
			got, err = n.gateway(pool, s.address)
		case "plain":
			got, err = n.replay(pool, s.address)
		case "run":
			got, err = n.run(pool, s.address, s.mac)
		case "release":
			n.release(pool, s.address)
		case "release pool":
			n.releasePool(pool)
		case "create":
			n.createNetwork("web", pool)
		case "attach":
			n.attach(pool, s.address, s.want)
			got = s.want
		default:
			n.t.Fatalf("no call %q", s.call)
		}
		if err != nil || got != s.want {
			n.t.Errorf("step %d, %s %s: %q, %v, want %q", i, s.call, s.address, got, err, s.want)
		}
	}
}

const web = LocalSpace + "/10.10.0.0/24"

// creation is `docker network create --subnet 10.10.0.0/24 --aux-address x=10.10.0.9`, life is a container's start, and end
// its stop.
func creation() []step {
	return []step{
		{call: "pool", address: "10.10.0.0/24", want: web}, {call: "gateway", want: "10.10.0.1/24"},
		{call: "plain", address: "10.10.0.9", want: "10.10.0.9/24"}, {call: "create"},
	}
}

func life() []step {
	return []step{{call: "run", mac: 1, want: "10.10.0.2/24"}, {call: "attach", address: "10.10.0.2", want: "e1"}}
}

func end() []step {
	return []step{{call: "attach", address: "10.10.0.2"}, {call: "release", address: "10.10.0.2"}}
}

// replayed is what an engine sends at its start: what it was told, explicitly.
func replayed() []step {
	return []step{
		{call: "pool", address: "10.10.0.0/24", want: web}, {call: "gateway", address: "10.10.0.1", want: "10.10.0.1/24"},
		{call: "plain", address: "10.10.0.9", want: "10.10.0.9/24"},
	}
}

// TestDockersSequences plays what engines were measured to send and looks at the leases that are left.
func TestDockersSequences(t *testing.T) {
	reserved := []string{"10.10.0.1 gateway n1", "10.10.0.9 aux n1"}
	running := []string{"10.10.0.1 gateway n1", "10.10.0.2 endpoint n1", "10.10.0.9 aux n1"}
	live := []step{{call: "plain", address: "10.10.0.2", want: "10.10.0.2/24"}}
	next := []step{{call: "run", mac: 2, want: "10.10.0.3/24"}}
	tests := []struct {
		name          string
		before, after [][]step // the daemon restarts between them
		want          []string
	}{
		{"network create", [][]step{creation()}, nil, reserved},
		{"container start", [][]step{creation(), life()}, nil, running},
		{"container stop", [][]step{creation(), life(), end()}, nil, reserved},
		{"the next start has a new MAC and a new address", [][]step{creation(), life(), end(), next}, nil,
			[]string{"10.10.0.1 gateway n1", "10.10.0.3 endpoint n1", "10.10.0.9 aux n1"}},
		{"orderly restart of dockerd", [][]step{creation(), life(), end()}, [][]step{replayed(), next},
			[]string{"10.10.0.1 gateway n1", "10.10.0.3 endpoint n1", "10.10.0.9 aux n1"}},
		{"crash with live-restore", [][]step{creation(), life()}, [][]step{replayed(), live}, running},
		{"crash without live-restore", [][]step{creation(), life()}, [][]step{replayed(), live, end(), next},
			[]string{"10.10.0.1 gateway n1", "10.10.0.3 endpoint n1", "10.10.0.9 aux n1"}},
		{"CreateEndpoint fails", [][]step{creation(), {{call: "run", mac: 1, want: "10.10.0.2/24"}, {call: "release", address: "10.10.0.2"}}},
			nil, reserved},
		{"CreateNetwork fails", [][]step{creation()[:3], {{call: "release", address: "10.10.0.1"}, {call: "release pool"}}},
			nil, []string{}},
		{"network rm, before DeleteNetwork", [][]step{creation(), {{call: "release", address: "10.10.0.1"}, {call: "release pool"}}},
			nil, reserved},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			n, _ := twoNodes(t)
			for _, steps := range test.before {
				n.play(web, steps...)
			}
			if test.after != nil {
				n.restart()
			}
			for _, steps := range test.after {
				n.play(web, steps...)
			}
			if diff := cmp.Diff(test.want, leases(t, n.mem)); diff != "" {
				t.Errorf("leases (-want +got):\n%s", diff)
			}
		})
	}
}
