package diag

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/diag/host"
	"github.com/netdriver/netdriver/internal/golden"
	"github.com/netdriver/netdriver/store"
	"github.com/netdriver/netdriver/vxlan"
)

// walk is a path whose frames are let through or lost as a case wants.
type walk struct {
	*path
	// cut says whether a frame of a size is lost before a step of a direction.
	cut func(back bool, n, size int, s step) bool
	// silent kernels take what they are to send and do not send it.
	silent map[string]bool
	// deaf kernels do not answer.
	deaf map[string]bool
}

// newWalk is from c1 on n1 to c2 on n2.
func newWalk() *walk {
	end := func(id, node, address string, i byte) party {
		a := netip.MustParsePrefix(address + "/24")
		e := store.Endpoint{ID: id, Node: node, IPv4: a, MAC: vxlan.MAC{2, 66, 10, 0, 0, i}}
		return party{e, store.Name{Container: "c-" + node}}
	}
	nodes := map[string]store.Node{}
	alive := map[string]string{}
	for i, name := range []string{"n1", "n2"} {
		nodes[name] = store.Node{Name: name, ID: "id-" + name, VTEP: netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), UnderlayMTU: 1500}
		alive[name] = "id-" + name
	}
	nw := network{Network: store.Network{Name: "web", Mode: store.ModeOverlay, VNI: 7, Port: 4789, MTU: 1450}}
	p := newPath(way{network: nw, source: end("aaaa0123456789", "n1", "10.0.0.1", 1)}, end("bbbb0123456789", "n2", "10.0.0.2", 2),
		cluster{nodes: nodes, alive: alive})
	return &walk{
		path: &p, cut: func(bool, int, int, step) bool { return false }, silent: map[string]bool{}, deaf: map[string]bool{},
	}
}

// run sends one round of probes.
func (w *walk) run(unheard ...string) {
	sizes := slices.Concat(slices.Repeat([]int{small}, smallProbes), slices.Repeat([]int{w.mtu}, largeProbes))
	said := map[string]*Testimony{}
	for i, node := range w.nodes() {
		said[node] = &Testimony{Node: node, Now: start.Add(time.Duration(i) * time.Second)}
	}
	for _, s := range append(w.steps(false), w.steps(true)...) {
		t := said[s.node]
		if d := (Device{s.place, "dev-" + strings.Fields(s.place)[0], 1450}); !slices.Contains(t.Devices, d) {
			t.Devices = append(t.Devices, d)
		}
	}
	for _, back := range []bool{false, true} {
		for i, size := range sizes {
			w.fly(said, back, w.next+i, size)
		}
		w.speakOf(said, back)
	}
	for node, t := range said {
		if slices.Contains(unheard, node) {
			w.heard(node, Testimony{}, fmt.Errorf("ask %s: %w", node, ErrSilent))
			continue
		}
		w.heard(node, *t, nil)
	}
	w.count(sizes, w.stackSizes())
}

func (w *walk) fly(said map[string]*Testimony, back bool, n, size int) {
	at := start
	see := func(s step, reply bool) {
		at = at.Add(10 * time.Microsecond)
		sequence := n
		if back {
			sequence += backFirst
		}
		t := said[s.node]
		if w.network.Encrypted && s.place == placeUnderlay {
			return // in ESP no mark is seen
		}
		t.Sightings = append(t.Sightings, host.Sighting{Place: s.place, Out: s.out, Reply: reply, Sequence: uint16(sequence), Size: size, At: at})
	}
	steps := w.steps(back)
	for _, s := range steps {
		if w.cut(back, n, size, s) {
			return
		}
		see(s, false)
	}
	if w.deaf[steps[len(steps)-1].node] {
		return
	}
	for _, s := range w.steps(!back) {
		if w.cut(!back, n, size, s) {
			return
		}
		see(s, true)
	}
}

func (w *walk) speakOf(said map[string]*Testimony, back bool) {
	first := w.steps(back)[0]
	t, base := said[first.node], w.talk
	if back {
		base += backFirst
	}
	for i, size := range w.stackSizes() {
		t.Spoken = append(t.Spoken, Spoken{Endpoint: strings.Fields(first.place)[1], Sequence: base + i, Size: size})
		if !w.silent[first.node] {
			t.Sightings = append(t.Sightings, host.Sighting{Place: first.place, Out: true, Sequence: uint16(base + i), Size: size, At: start})
		}
	}
}

// lose cuts the way forward before a place of a node.
func (w *walk) lose(node, place string) {
	w.cut = func(back bool, _, _ int, s step) bool {
		return !back && s.node == node && strings.HasPrefix(s.place, place)
	}
}

// says changes what a node said.
func (w *walk) says(node string, change func(*Testimony)) {
	t := w.said[node]
	change(&t)
	w.said[node] = t
}

func TestFromWhatWasSeenFollowsWhatIsWrong(t *testing.T) {
	cases := map[string]func(w *walk){
		"all is well": func(w *walk) { w.run() },
		"udp is dropped between the hosts": func(w *walk) {
			w.lose("n2", placeUnderlay)
			w.run()
		},
		"a rule of the receiving host drops": func(w *walk) {
			w.lose("n2", placeVXLAN)
			w.run()
			w.says("n2", func(t *Testimony) {
				t.Dropped = []Dropped{{"host", "ip filter INPUT: udp dport 4789 drop", 3}, {"host", "ip filter INPUT: udp dport 4789 drop", 4}}
			})
		},
		"a chain of the receiving host drops by default": func(w *walk) {
			w.lose("n2", placeVXLAN)
			w.run()
			w.says("n2", func(t *Testimony) {
				t.Closed = []Closed{{"host", "output", "not this"}, {"host", "input", "ip filter INPUT (hook input): policy drop"}}
			})
		},
		"rp_filter drops": func(w *walk) {
			w.lose("n2", placeVXLAN)
			w.run()
			w.says("n2", func(t *Testimony) {
				t.Moved = []host.Moved{{Name: "host: IPReversePathFilter", Meaning: "packets", By: 7}}
			})
		},
		"anti-spoofing drops": func(w *walk) {
			w.lose("n1", placeVXLAN)
			w.run()
			w.says("n1", func(t *Testimony) { t.Dropped = []Dropped{{"netdriver", "policy: anti-spoofing: port p", 7}} })
		},
		"large packets do not pass": func(w *walk) {
			w.cut = func(_ bool, _, size int, s step) bool {
				return size > small && s.node == "n2" && s.place == placeUnderlay && !s.out
			}
			w.run()
		},
		"every other packet is lost": func(w *walk) {
			w.cut = func(back bool, n, _ int, s step) bool {
				return !back && n%2 == 0 && s.node == "n2" && s.place == placeUnderlay
			}
			w.run()
		},
		"the sender's kernel sends nothing": func(w *walk) {
			w.silent["n1"] = true
			w.run()
		},
		"the sender's kernel has a blackhole": func(w *walk) {
			w.silent["n1"] = true
			w.run()
			w.says("n1", func(t *Testimony) {
				for i := range t.Spoken {
					t.Spoken[i].Errno = unix.EINVAL
				}
			})
		},
		"the sender's kernel believes in a small MTU": func(w *walk) {
			w.run()
			w.says("n1", func(t *Testimony) {
				last := &t.Spoken[len(t.Spoken)-1]
				last.Errno, last.Limit = unix.EMSGSIZE, 600
			})
		},
		"the receiver answers nothing": func(w *walk) {
			w.deaf["n2"] = true
			w.run()
		},
		"the receiver's filter drops by default": func(w *walk) {
			w.deaf["n2"] = true
			w.run()
			w.says("n2", func(t *Testimony) {
				t.Closed = []Closed{{"container bbbb012345", "input", "ip filter INPUT (hook input): policy drop"}}
			})
		},
		"an entry is wrong and nothing passes": func(w *walk) {
			w.lose("n2", placeUnderlay)
			w.run()
			w.says("n1", func(t *Testimony) {
				t.Faults = []Fault{{Place: placeVXLAN, Cause: "the entry is wrong", Remedy: "repair it"}}
			})
		},
		"an entry is wrong and packets pass": func(w *walk) {
			w.run()
			w.says("n1", func(t *Testimony) {
				t.Faults = []Fault{{Place: placeBridge, Cause: "an entry is missing", Remedy: "repair it", Harmless: true}}
			})
		},
		"the other daemon's port is closed and packets pass": func(w *walk) { w.run("n2") },
		"the other host is dead": func(w *walk) {
			w.lose("n2", placeUnderlay)
			w.door = doorSilent
			w.run("n2")
			delete(w.cluster.alive, "n2")
		},
		"the other host is up and nothing comes back": func(w *walk) {
			w.lose("n2", placeUnderlay)
			w.door = doorOpen
			w.run("n2")
		},
		"the other daemon is dead and packets pass": func(w *walk) {
			w.run("n2")
			w.errs["n2"] = fmt.Errorf("dial: %w", unix.ECONNREFUSED)
			delete(w.cluster.alive, "n2")
		},
		"the daemons refuse each other's certificates": func(w *walk) {
			w.run("n2")
			w.errs["n2"] = errors.New("x509: certificate has expired")
		},
		"ESP is dropped between the hosts": func(w *walk) {
			w.network.Encrypted = true
			w.lose("n2", placeVXLAN)
			w.run()
		},
		"keys do not fit": func(w *walk) {
			w.network.Encrypted = true
			w.lose("n2", placeVXLAN)
			w.run()
			w.says("n2", func(t *Testimony) { t.Moved = []host.Moved{{Name: "host: XfrmInNoStates", Meaning: "packets", By: 7}} })
		},
		"there is no key": func(w *walk) {
			w.network.Encrypted = true
			w.lose("n2", placeVXLAN)
			w.run()
			w.says("n1", func(t *Testimony) { t.Moved = []host.Moved{{Name: "host: XfrmOutPolBlock", Meaning: "packets", By: 7}} })
		},
		"the other's clock is an hour behind": func(w *walk) {
			w.run()
			w.says("n2", func(t *Testimony) { t.Now = start.Add(-time.Hour) })
		},
	}
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(cases)) {
		w := newWalk()
		cases[name](w)
		var r Trace
		w.judge(&r)
		fmt.Fprintf(&b, "== %s: %s, %d/%d, %d bytes\n", name, verdictOf(r.Findings), r.Arrived, r.Sent, r.PathMTU)
		for _, f := range r.Findings {
			fmt.Fprintf(&b, "%s [%s] %s\n  at %s\n  do %s\n", f.Severity, f.Check, f.Cause, f.Place, f.Remedy)
			for _, e := range f.Evidence {
				fmt.Fprintf(&b, "  seen %s\n", e)
			}
		}
		for _, way := range [][]Hop{r.Forward, r.Back} {
			for _, h := range way {
				fmt.Fprintf(&b, "  %s/%s %s %d/%d %d;", h.Node, strings.Fields(h.Place)[0], h.State, h.Seen, h.Sent, h.Largest)
			}
			b.WriteString("\n")
		}
	}
	golden.Compare(t, "paths.txt", b.String())
}
