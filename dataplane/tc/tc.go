//go:build linux

// Package tc puts eBPF programs on devices, where frames come in and go out. What is attached without a link belongs to the
// device: it stays when the daemon dies, and goes with the device. All of it works in the calling thread's network namespace.
package tc

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Place is one of the two places on a device, and the name of our program there.
type Place struct {
	Program string
	// priority is the preference of the filter where there is no TCX.
	priority uint16
	tcx      ebpf.AttachType
	clsact   uint32
}

// The preferences of our filters. Other programs' usually begin at 1; ours need no first place, since they let everything
// go on that they have nothing to do with.
const (
	Balance uint16 = 0x4e44
	Rate    uint16 = 0x4e45
)

// Ingress is what comes in at a device, Egress what goes out there: for the host's end of a veth pair, what comes from the
// container and what goes to it.
func Ingress(program string, priority uint16) Place {
	return Place{program, priority, ebpf.AttachTCXIngress, netlink.HANDLE_MIN_INGRESS}
}

func Egress(program string, priority uint16) Place {
	return Place{program, priority, ebpf.AttachTCXEgress, netlink.HANDLE_MIN_EGRESS}
}

// Hook is how programs are put on a device.
type Hook interface {
	// Programs returns the ids of the programs with our name on the device.
	Programs(index int, d Place) ([]ebpf.ProgramID, error)
	// Attach puts p there, in the place of old if there is one.
	Attach(index int, d Place, p, old *ebpf.Program) error
	Detach(index int, d Place, old *ebpf.Program) error
}

// Choose returns TCX where the kernel has it (Linux 6.6), else clsact. TCX lets several programs stand side by side
// and costs less.
func Choose() Hook {
	const noDevice = 1<<31 - 1
	_, err := link.QueryPrograms(link.QueryOptions{Target: noDevice, Attach: ebpf.AttachTCXIngress})
	if errors.Is(err, unix.ENODEV) {
		return tcx{}
	}
	return clsact{}
}

type tcx struct{}

func (tcx) Programs(index int, d Place) ([]ebpf.ProgramID, error) {
	all, err := link.QueryPrograms(link.QueryOptions{Target: index, Attach: d.tcx})
	if err != nil {
		return nil, err
	}
	var ours []ebpf.ProgramID
	for _, p := range all.Programs {
		if named(p.ID, d.Program) {
			ours = append(ours, p.ID)
		}
	}
	return ours, nil
}

// named says whether the program has that name. One that is gone meanwhile has none.
func named(id ebpf.ProgramID, name string) bool {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return false
	}
	defer p.Close()
	i, err := p.Info()
	return err == nil && i.Name == name
}

func (tcx) Attach(index int, d Place, p, old *ebpf.Program) error {
	o := link.RawAttachProgramOptions{Target: index, Program: p, Attach: d.tcx}
	if old != nil {
		o.Anchor = link.ReplaceProgram(old)
	}
	return link.RawAttachProgram(o)
}

func (tcx) Detach(index int, d Place, old *ebpf.Program) error {
	return link.RawDetachProgram(link.RawDetachProgramOptions{Target: index, Program: old, Attach: d.tcx})
}

// clsact puts the programs into filters of the qdisc of that name (man 8 tc-bpf).
type clsact struct{}

func (clsact) filter(index int, d Place) *netlink.BpfFilter {
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: d.clsact, Handle: 1, Protocol: unix.ETH_P_ALL,
			Priority: d.priority},
		Name: d.Program, DirectAction: true,
	}
}

func onDevice(index int) netlink.Link {
	return &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: index}}
}

func (clsact) Programs(index int, d Place) ([]ebpf.ProgramID, error) {
	filters, err := netlink.FilterList(onDevice(index), d.clsact)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) { // which means that there is no qdisc
		return nil, err
	}
	var ours []ebpf.ProgramID
	for _, f := range filters {
		if b, ok := f.(*netlink.BpfFilter); ok && b.Name == d.Program && b.Priority == d.priority {
			ours = append(ours, ebpf.ProgramID(b.Id))
		}
	}
	return ours, nil
}

func (c clsact) Attach(index int, d Place, p, _ *ebpf.Program) error {
	qdisc := &netlink.GenericQdisc{QdiscType: "clsact", QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index,
		Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
	if err := netlink.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add a clsact qdisc: %w", err)
	}
	f := c.filter(index, d)
	f.Fd = p.FD()
	return netlink.FilterReplace(f)
}

func (c clsact) Detach(index int, d Place, _ *ebpf.Program) error {
	return netlink.FilterDel(c.filter(index, d))
}
