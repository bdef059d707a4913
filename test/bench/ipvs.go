package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"

	"github.com/moby/ipvs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/vxlan"
)

// dockerMark is the firewall mark by which Docker's load balancer knows the service.
const dockerMark = 256

// balanceDocker makes what Docker makes for a service's virtual address on a node (moby daemon/libnetwork,
// service_linux.go): a namespace of the network's own with an address in it and the virtual address, where packets to
// that are marked, given to IPVS by the mark, and leave with that namespace's address as their source.
func (b *testbed) balanceDocker(n, server *node) (netip.Addr, error) {
	vip, own := netip.AddrFrom4([4]byte{10, 9, 0, 100}), netip.AddrFrom4([4]byte{10, 9, 0, 50})
	mac := vxlan.MAC{2, 0x42, 10, 9, 0, 50}
	lb, err := newHost()
	if err != nil {
		return vip, err
	}
	b.close = append(b.close, lb.close)
	bridge, err := n.sandbox.links.LinkByName("br0")
	if err != nil {
		return vip, err
	}
	port := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "veth1", MTU: overlayMTU, MasterIndex: bridge.Attrs().Index},
		PeerName:  "eth0", PeerHardwareAddr: mac.HardwareAddr(), PeerNamespace: netlink.NsFd(int(lb.ns)),
	}
	err = errors.Join(
		n.sandbox.links.LinkAdd(port), n.sandbox.links.LinkSetUp(port),
		lb.addressed("eth0", own.String()+"/24"), lb.addressed("eth0", vip.String()+"/32"),
		server.dockerPeer(own, mac, n.vtep))
	if err != nil {
		return vip, err
	}
	return vip, inside(lb.ns, func() error { return ipvsService(vip, own, server.docker) })
}

// ipvsService runs in the load balancer's namespace.
func ipvsService(vip, own, task netip.Addr) error {
	for _, rule := range [][]string{
		{"-t", "mangle", "-A", "INPUT", "-d", vip.String() + "/32", "-j", "MARK", "--set-mark", fmt.Sprint(dockerMark)},
		{"-t", "nat", "-A", "POSTROUTING", "-d", "10.9.0.0/24", "-m", "ipvs", "--ipvs", "-j", "SNAT", "--to-source", own.String()},
	} {
		if out, err := exec.Command("iptables-legacy", rule...).CombinedOutput(); err != nil {
			return fmt.Errorf("iptables-legacy %v: %w: %s", rule, err, out)
		}
	}
	if err := errors.Join(setting("net/ipv4/vs/conntrack", "1"), setting("net/ipv4/ip_forward", "1")); err != nil {
		return err
	}
	h, err := ipvs.New("")
	if err != nil {
		return fmt.Errorf("open IPVS: %w", err)
	}
	defer h.Close()
	s := &ipvs.Service{AddressFamily: unix.AF_INET, FWMark: dockerMark, SchedName: ipvs.RoundRobin}
	d := &ipvs.Destination{AddressFamily: unix.AF_INET, Address: task.AsSlice(), Weight: 1, ConnectionFlags: ipvs.ConnFwdMasq}
	return errors.Join(h.NewService(s), h.NewDestination(s, d))
}
