//go:build linux

// Package rate limits what a container sends and what it is sent: a token bucket in each direction, which an eBPF program
// keeps at the host's side of its veth pair. It needs no queue and no second device, and works on every kernel that can
// balance. All of it works in the calling thread's network namespace.
package rate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/dataplane/tc"
)

// The programs' names, by which a fresh daemon finds them. The kernel keeps 15 bytes.
const (
	fromContainer = "nd_rate_from"
	toContainer   = "nd_rate_to"
)

func places() []tc.Place {
	return []tc.Place{tc.Ingress(fromContainer, tc.Rate), tc.Egress(toContainer, tc.Rate)}
}

// bucket is the one value of a program's map. Tokens are bytes times nanoseconds per second, so that nothing is lost to
// rounding however short the time between two packets is.
type bucket struct {
	Rate, Burst  uint64 // bytes per second; bytes
	Tokens, Last uint64 // Last in nanoseconds since the boot
	Dropped      uint64 // packets
}

// The offsets in a bucket.
const (
	atRate    = 0
	atBurst   = 8
	atTokens  = 16
	atLast    = 24
	atDropped = 32
)

// program lets a packet pass if there are tokens for it. Two CPUs that do so at once may count a moment twice; that is
// little against what a packet costs.
func program(m *ebpf.Map) asm.Instructions {
	const second = int32(time.Second)
	const next, shot = -1, 2 // TCX_NEXT, which is TC_ACT_UNSPEC, and TC_ACT_SHOT of linux/pkt_cls.h
	return asm.Instructions{
		asm.LoadMem(asm.R8, asm.R1, 0, asm.Word), // __sk_buff.len
		asm.FnKtimeGetNs.Call(),
		asm.LoadMapValue(asm.R7, m.FD(), 0),
		asm.LoadMem(asm.R1, asm.R7, atLast, asm.DWord),
		asm.Mov.Reg(asm.R2, asm.R0),
		asm.Sub.Reg(asm.R2, asm.R1),
		asm.StoreMem(asm.R7, atLast, asm.R0, asm.DWord),
		asm.JLE.Imm(asm.R2, second, "short"),
		asm.Mov.Imm(asm.R2, second),
		asm.LoadMem(asm.R3, asm.R7, atRate, asm.DWord).WithSymbol("short"),
		asm.Mul.Reg(asm.R2, asm.R3),
		asm.LoadMem(asm.R1, asm.R7, atTokens, asm.DWord),
		asm.Add.Reg(asm.R1, asm.R2),
		asm.LoadMem(asm.R3, asm.R7, atBurst, asm.DWord),
		asm.Mul.Imm(asm.R3, second),
		asm.JLE.Reg(asm.R1, asm.R3, "fits"),
		asm.Mov.Reg(asm.R1, asm.R3),
		asm.Mul.Imm(asm.R8, second).WithSymbol("fits"),
		asm.JGE.Reg(asm.R1, asm.R8, "pass"),
		asm.StoreMem(asm.R7, atTokens, asm.R1, asm.DWord),
		asm.LoadMem(asm.R2, asm.R7, atDropped, asm.DWord),
		asm.Add.Imm(asm.R2, 1),
		asm.StoreMem(asm.R7, atDropped, asm.R2, asm.DWord),
		asm.Mov.Imm(asm.R0, shot),
		asm.Return(),
		asm.Sub.Reg(asm.R1, asm.R8).WithSymbol("pass"),
		asm.StoreMem(asm.R7, atTokens, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, next),
		asm.Return(),
	}
}

// Set puts the limit on the device with that index, in the place of another one.
func Set(index int, l Limit) error {
	h := tc.Choose()
	for _, p := range places() {
		if err := set(h, index, p, l); err != nil {
			return fmt.Errorf("limit the rate, program %s: %w", p.Program, err)
		}
	}
	return nil
}

func set(h tc.Hook, index int, p tc.Place, l Limit) error {
	if err := rlimit.RemoveMemlock(); err != nil {
		return err
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: mapName, Type: ebpf.Array, KeySize: 4, ValueSize: uint32(binary.Size(bucket{})), MaxEntries: 1})
	if err != nil {
		return err
	}
	defer m.Close()
	burst := uint64(l.Burst)
	if err := m.Put(uint32(0), bucket{Rate: l.Rate / 8, Burst: burst, Tokens: burst * uint64(time.Second)}); err != nil {
		return err
	}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: p.Program, Type: ebpf.SchedCLS, License: "GPL", Instructions: program(m)})
	if err != nil {
		return err
	}
	defer prog.Close()
	present, err := h.Programs(index, p)
	if err != nil {
		return err
	}
	var old *ebpf.Program
	if len(present) > 0 {
		if old, err = ebpf.NewProgramFromID(present[0]); err == nil {
			defer old.Close()
		}
	}
	return h.Attach(index, p, prog, old)
}

const mapName = "nd_rate"

// Clear takes the limit off the device. One that has none, or that is gone, is as wanted.
func Clear(index int) error {
	h := tc.Choose()
	var errs []error
	for _, p := range places() {
		present, err := h.Programs(index, p)
		errs = append(errs, err)
		for _, id := range present {
			prog, err := ebpf.NewProgramFromID(id)
			if err != nil {
				continue // gone
			}
			errs = append(errs, h.Detach(index, p, prog), prog.Close())
		}
	}
	if err := errors.Join(errs...); !errors.Is(err, unix.ENODEV) {
		return err
	}
	return nil
}

// Read returns the limit of the device and how many packets it has cost: from the container, and to it. The zero Limit
// means that there is none, or that it is not whole.
func Read(index int) (l Limit, from, to uint64, err error) {
	h := tc.Choose()
	var found [2]bucket
	for i, p := range places() {
		present, err := h.Programs(index, p)
		if err != nil || len(present) != 1 {
			return Limit{}, 0, 0, err
		}
		if found[i], err = read(present[0]); err != nil {
			return Limit{}, 0, 0, nil // gone meanwhile, or another version's
		}
	}
	if found[0].Rate != found[1].Rate || found[0].Burst != found[1].Burst {
		return Limit{}, found[0].Dropped, found[1].Dropped, nil
	}
	return Limit{Rate: found[0].Rate * 8, Burst: uint32(found[0].Burst)}, found[0].Dropped, found[1].Dropped, nil
}

// read returns the bucket of a program.
func read(id ebpf.ProgramID) (b bucket, err error) {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return b, err
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return b, err
	}
	ids, _ := info.MapIDs()
	if len(ids) != 1 {
		return b, errors.New("it has not one map")
	}
	m, err := ebpf.NewMapFromID(ids[0])
	if err != nil {
		return b, err
	}
	defer m.Close()
	return b, m.Lookup(uint32(0), &b)
}
