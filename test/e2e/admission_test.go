//go:build e2e

package e2e

import (
	endian "encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/netdriver/netdriver/test/e2e/lab"
	"github.com/netdriver/netdriver/vxlan"
)

// forgery is a VXLAN packet's payload: a UDP datagram to a port that nobody listens on, which the container's kernel counts.
type forgery struct {
	vni            vxlan.VNI
	fromMAC, toMAC vxlan.MAC
	from, to       netip.Addr
	port           uint16
	underlay       netip.Addr // where it is sent to
}

func (f forgery) payload() []byte {
	b := []byte{8, 0, 0, 0, byte(f.vni >> 16), byte(f.vni >> 8), byte(f.vni), 0}
	b = append(append(append(b, f.toMAC[:]...), f.fromMAC[:]...), 0x08, 0x00)
	ip := []byte{0x45, 0, 0, 28, 0, 1, 0, 0, 64, 17, 0, 0}
	ip = append(append(ip, f.from.AsSlice()...), f.to.AsSlice()...)
	sum := uint32(0)
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(endian.BigEndian.Uint16(ip[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	endian.BigEndian.PutUint16(ip[10:], ^uint16(sum))
	return append(append(b, ip...), 0x30, 0x39, 0, 9, 0, 8, 0, 0) // from port 12345 to 9, without a checksum
}

// script sends it a number of times. It goes through dd, since bash would begin another datagram after each byte that is a
// line feed.
func (f forgery) script(times int) string {
	var text strings.Builder
	for _, b := range f.payload() {
		fmt.Fprintf(&text, `\x%02x`, b)
	}
	return fmt.Sprintf(`for i in {1..%d}; do
		printf '%s' | dd bs=64k iflag=fullblock status=none >/dev/udp/%s/%d; done`, times, text.String(), f.underlay, f.port)
}

// forge sends it from a node, in that node's own name.
func forge(t *testing.T, n *lab.Node, f forgery, times int) {
	t.Helper()
	run(t, n, "bash", "-c", f.script(times))
}

// forgeryOf is one in the name of one container to another one in the same network.
func forgeryOf(t *testing.T, network string, from *lab.Node, sender string, to *lab.Node, target string) forgery {
	t.Helper()
	hw := func(n *lab.Node, container string) vxlan.MAC {
		m, err := vxlan.ParseMAC(address(t, n, network, container, "MacAddress"))
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	addr := func(n *lab.Node, container string) netip.Addr {
		return netip.MustParseAddr(address(t, n, network, container, "IPAddress"))
	}
	r := report(t, to, network)
	return forgery{
		vni: r.VNI, port: r.Port, underlay: to.Addr, fromMAC: hw(from, sender), toMAC: hw(to, target),
		from: addr(from, sender), to: addr(to, target),
	}
}

// refusals is how many datagrams came to a container that nobody there wanted.
func refusals(t *testing.T, n *lab.Node, container string) int {
	t.Helper()
	for line := range strings.Lines(docker(t, n, "exec", container, "cat", "/proc/net/snmp")) {
		if words := strings.Fields(line); len(words) > 2 && words[0] == "Udp:" && words[1] != "InDatagrams" {
			count, err := strconv.Atoi(words[2]) // NoPorts
			if err != nil {
				t.Fatal(err)
			}
			return count
		}
	}
	t.Fatal("no Udp line in /proc/net/snmp")
	return 0
}

func TestFramesThatStrangersSendReachNoContainerAndAreCounted(t *testing.T) {
	c := hosts(t)
	network := overlay(t, c.Nodes[:2], "--subnet", "10.146.1.0/24")
	target, sender := serve(t, c.Nodes[0], network), serve(t, c.Nodes[1], network)
	f := forgeryOf(t, network, c.Nodes[1], sender, c.Nodes[0], target)
	const frames = 6
	before := refusals(t, c.Nodes[0], target)
	forge(t, c.Nodes[1], f, frames) // the control: a node of the cluster is believed
	eventually(t, 5*time.Second, func() error {
		if n := refusals(t, c.Nodes[0], target) - before; n != frames {
			return fmt.Errorf("%d of %d frames from a node arrived", n, frames)
		}
		return nil
	})
	dropped := report(t, c.Nodes[0], network).Admission.Strangers
	forge(t, c.Outside, f, frames)
	eventually(t, 5*time.Second, func() error {
		if n := report(t, c.Nodes[0], network).Admission.Strangers - dropped; n != frames {
			return fmt.Errorf("%d of %d frames from a stranger were counted", n, frames)
		}
		return nil
	})
	if n := refusals(t, c.Nodes[0], target) - before; n != frames {
		t.Errorf("%d frames from a stranger arrived", n-frames)
	}
	says(t, run(t, c.Nodes[0], "netdriver", "inspect", network), "the cluster's nodes (nftables)", "from strangers")
}

func TestTheFilterIsBackWithinASecondAndShown(t *testing.T) {
	c := hosts(t)
	network := overlay(t, c.Nodes[:1], "--subnet", "10.146.2.0/24")
	rules := func() string { return run(t, c.Nodes[0], "nft", "list", "table", "inet", "netdriver") }
	says(t, rules(), "@underlay-nodes4", "underlay-stranger")
	run(t, c.Nodes[0], "nft", "delete", "table", "inet", "netdriver")
	eventually(t, time.Second, func() error {
		out, err := c.Nodes[0].Exec(t.Context(), "nft", "list", "table", "inet", "netdriver")
		if err == nil && !strings.Contains(out, "underlay-stranger") {
			err = fmt.Errorf("not whole: %s", out)
		}
		return err
	})
	eventually(t, 5*time.Second, func() error {
		if a := report(t, c.Nodes[0], network).Admission; len(a.Drifts) == 0 || a.Error != "" {
			return fmt.Errorf("admission %+v", a)
		}
		return nil
	})
}
