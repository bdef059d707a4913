package host

import (
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/dataplane/balance"
	"github.com/netdriver/netdriver/dataplane/guard"
	nl "github.com/netdriver/netdriver/internal/netlink"
)

// Ability is something that the kernel can or cannot do.
type Ability struct {
	Name string
	// Modules are those that have it, Essential says whether nothing works without.
	Modules   string
	Essential bool
	Err       error
}

// Abilities tries what netdriver needs of the kernel, in a network namespace that exists only meanwhile.
func Abilities() ([]Ability, error) {
	var out []Ability
	err := nl.OnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace to try in: %w", err)
		}
		ns, err := netns.Get()
		if err != nil {
			return err
		}
		defer ns.Close()
		h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		named := func(name string) netlink.LinkAttrs { return netlink.LinkAttrs{Name: name} }
		veth := &netlink.Veth{LinkAttrs: named("try0"), PeerName: "try1"}
		out = []Ability{
			{"veth pairs", "veth", true, h.LinkAdd(veth)},
			{"bridges", "bridge", true, h.LinkAdd(&netlink.Bridge{LinkAttrs: named("try2")})},
			{"VXLAN", "vxlan", true, h.LinkAdd(&netlink.Vxlan{LinkAttrs: named("try3"), VxlanId: 1, Port: 4789})},
		}
		table, err := guard.Open(int(ns))
		if err == nil {
			err = table.Close()
		}
		out = append(out, Ability{"nftables for bridges", "nf_tables", false, err})
		if l, err := h.LinkByName("try0"); err == nil {
			out = append(out, Ability{"eBPF at tc", "sch_ingress and cls_bpf", false, balance.Supported(l.Attrs().Index)})
		}
		return nil
	})
	return out, err
}
