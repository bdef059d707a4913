//go:build linux

package balance

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// direction is one of the two places on a device, and the name of our program there.
type direction struct {
	program string
	tcx     ebpf.AttachType
	clsact  uint32
}

// ingress is what comes from the container, egress what goes to it. The device is the host's end.
func ingress() direction {
	return direction{fromContainer, ebpf.AttachTCXIngress, netlink.HANDLE_MIN_INGRESS}
}
func egress() direction {
	return direction{toContainer, ebpf.AttachTCXEgress, netlink.HANDLE_MIN_EGRESS}
}

// hook is how programs are put on a device. What is attached without a link belongs to the device: it stays when the
// daemon dies, and goes with the device.
type hook interface {
	// programs returns the ids of the programs with our name on the device.
	programs(index int, d direction) ([]ebpf.ProgramID, error)
	// attach puts p there, in the place of old if there is one.
	attach(index int, d direction, p, old *ebpf.Program) error
	detach(index int, d direction, old *ebpf.Program) error
}

// chooseHook returns TCX where the kernel has it (Linux 6.6), else clsact. TCX lets several programs stand side by side
// and costs less.
func chooseHook() hook {
	const noDevice = 1<<31 - 1
	_, err := link.QueryPrograms(link.QueryOptions{Target: noDevice, Attach: ebpf.AttachTCXIngress})
	if errors.Is(err, unix.ENODEV) {
		return tcx{}
	}
	return clsact{}
}

type tcx struct{}

func (tcx) programs(index int, d direction) ([]ebpf.ProgramID, error) {
	all, err := link.QueryPrograms(link.QueryOptions{Target: index, Attach: d.tcx})
	if err != nil {
		return nil, err
	}
	var ours []ebpf.ProgramID
	for _, p := range all.Programs {
		if named(p.ID, d.program) {
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

func (tcx) attach(index int, d direction, p, old *ebpf.Program) error {
	o := link.RawAttachProgramOptions{Target: index, Program: p, Attach: d.tcx}
	if old != nil {
		o.Anchor = link.ReplaceProgram(old)
	}
	return link.RawAttachProgram(o)
}

func (tcx) detach(index int, d direction, old *ebpf.Program) error {
	return link.RawDetachProgram(link.RawDetachProgramOptions{Target: index, Program: old, Attach: d.tcx})
}

// clsact puts the programs into filters of the qdisc of that name (man 8 tc-bpf).
type clsact struct{}

// clsactPriority is the preference of our filters. Other programs' usually begin at 1; ours need no first place, since
// they let everything go on that is not for a virtual address.
const clsactPriority = 0x4e44

func (clsact) filter(index int, d direction) *netlink.BpfFilter {
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: d.clsact, Handle: 1, Protocol: unix.ETH_P_ALL,
			Priority: clsactPriority},
		Name: d.program, DirectAction: true,
	}
}

func onDevice(index int) netlink.Link {
	return &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: index}}
}

func (clsact) programs(index int, d direction) ([]ebpf.ProgramID, error) {
	filters, err := netlink.FilterList(onDevice(index), d.clsact)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) { // which means that there is no qdisc
		return nil, err
	}
	var ours []ebpf.ProgramID
	for _, f := range filters {
		if b, ok := f.(*netlink.BpfFilter); ok && b.Name == d.program && b.Priority == clsactPriority {
			ours = append(ours, ebpf.ProgramID(b.Id))
		}
	}
	return ours, nil
}

func (c clsact) attach(index int, d direction, p, _ *ebpf.Program) error {
	qdisc := &netlink.GenericQdisc{QdiscType: "clsact", QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index,
		Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
	if err := netlink.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add a clsact qdisc: %w", err)
	}
	f := c.filter(index, d)
	f.Fd = p.FD()
	return netlink.FilterReplace(f)
}

func (c clsact) detach(index int, d direction, _ *ebpf.Program) error {
	return netlink.FilterDel(c.filter(index, d))
}
