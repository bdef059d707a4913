package diag

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// stackFirst is the number, within a direction, of the first probe that goes through the sender's own kernel: the others are
// put on its interface, past its routes, filters and neighbours.
const stackFirst = 500

// stackSizes are those of one round.
func (p *path) stackSizes() []int { return []int{small, small, p.mtu} }

// spoken are the probes that the kernel at the beginning of a direction was given.
func (p *path) spoken(back bool) (out []Spoken) {
	from := p.from
	if back {
		from = p.to
	}
	for _, s := range p.said[from.Node].Spoken {
		if s.Endpoint == from.ID && (s.Sequence >= backFirst) == back {
			out = append(out, s)
		}
	}
	return out
}

// left returns the numbers of those that have come to its interface.
func (p *path) left(back bool) map[int]bool {
	first := p.steps(back)[0]
	out := map[int]bool{}
	for _, x := range p.said[first.node].Sightings {
		if n := int(x.Sequence); x.Place == first.place && x.Out && !x.Reply && (n >= backFirst) == back && n%backFirst >= stackFirst {
			out[n] = true
		}
	}
	return out
}

// speaks says whether a kernel's small probes come to its interface, as far as any were sent.
func (p *path) speaks(back bool) bool {
	tried, left := false, p.left(back)
	for _, s := range p.spoken(back) {
		if s.Size == small {
			if left[s.Sequence] {
				return true
			}
			tried = true
		}
	}
	return !tried
}

// stackHop tells of a container's own kernel as a hop; false if none was asked.
func (p *path) stackHop(back bool) (Hop, bool) {
	first, left := p.steps(back)[0], p.left(back)
	_, id, _ := strings.Cut(first.place, " ")
	h := Hop{Node: first.node, Place: at(placeStack, id), State: HopLost}
	all := p.spoken(back)
	for _, s := range all {
		if s.Size == small {
			h.Sent++
		}
		if left[s.Sequence] {
			h.State, h.Largest = HopPassed, max(h.Largest, s.Size)
			if s.Size == small {
				h.Seen++
			}
		}
	}
	h.Evidence = []string{fmt.Sprintf("%d of %d packets that the container's kernel sent were seen on its interface", h.Seen, h.Sent)}
	return h, len(all) > 0
}

// stackLoss says why a container's kernel does not send what its interface could.
func (p *path) stackLoss(back bool) []Finding {
	first := p.steps(back)[0]
	t := p.said[first.node]
	told := slices.ContainsFunc(t.Faults, func(f Fault) bool { return f.Place == first.place && !f.Harmless })
	all := p.spoken(back)
	if told || len(all) == 0 {
		return nil
	}
	if p.speaks(back) {
		return p.tooLong(first, all)
	}
	to := p.to
	if back {
		to = p.from
	}
	_, id, _ := strings.Cut(first.place, " ")
	where := "container " + short(id)
	f := finding("container", Failed, p.placeOf(first.node, first.place), fmt.Sprintf("look at `ip route get %s`, `ip neigh` and the packet filter in the container", to.Addrs()[0]),
		"the container's own kernel does not send packets to %s", to.Addrs()[0])
	refused := all[0].Errno
	for _, d := range t.Dropped {
		if d.Where == where && (refused == unix.EPERM || refused == 0) {
			return []Finding{filtered(f, first.node, d)}
		}
	}
	switch {
	case refused == unix.EPERM:
		f.Cause += ": a packet filter there refuses them"
		f = closedIn(f, t, where, first.node)
	case refused != 0:
		f.Cause += ": " + noRoute(refused)
	case len(p.came(back)) == 0:
		return nil // nobody could answer its question for the other's MAC
	default:
		f.Cause += ": it takes them, and they do not come to its interface; its requests for the other's MAC are not answered, or it asks for none"
		f.Remedy = fmt.Sprintf("look at `ip neigh` and `ip link` (NOARP) in the container; `netdriver diff %s` shows whether the bridge can answer", p.network.Name)
	}
	if refused != 0 {
		f = f.because("send: %v", refused)
	}
	return []Finding{f}
}

// tooLong tells of a kernel that believes that the path is narrower than the network.
func (p *path) tooLong(first step, all []Spoken) []Finding {
	for _, s := range all {
		if s.Errno == unix.EMSGSIZE && s.Limit > 0 {
			return []Finding{finding("container", Degraded, p.placeOf(first.node, first.place),
				"remove the route with that MTU in the container: `ip route` shows it",
				"the container's kernel sends no packets of %d bytes, which the network carries: its route allows %d", s.Size, s.Limit)}
		}
	}
	return nil
}

// filtered makes a finding one about a rule in a container.
func filtered(f Finding, node string, d Dropped) Finding {
	f.Severity = Failed
	f.Cause = fmt.Sprintf("the packet filter in the container on %s drops the probes or the answers to them: rule %s", node, d.Rule)
	f.Remedy = "remove that rule in the container's network namespace, if it is not meant so"
	return f.because("it dropped %d packets while the probes were sent", d.Packets)
}
