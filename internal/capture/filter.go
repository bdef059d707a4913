// Package capture reads the frames of a network's containers at their ports, inside of VXLAN and ESP, on one node or on
// many, in the order of time. It changes nothing: what it opens goes with the process, or with the connection of who asked.
package capture

import (
	"errors"
	"fmt"

	"golang.org/x/net/bpf"
)

// ErrFilter is wrapped by every error about a filter's text.
var ErrFilter = errors.New("bad filter")

// maxProgram is how many instructions the kernel takes (BPF_MAXINSNS of linux/bpf_common.h).
const maxProgram = 4096

// The offsets in a frame with an Ethernet header, of 14 bytes; those behind an IPv4 header assume one without options.
const (
	offType    = 12
	offProto4  = 23 // IPv4's protocol (RFC 791 §3.1)
	offFrag4   = 20
	offProto6  = 20 // IPv6's next header (RFC 8200 §3)
	offProto6f = 54 // that of a fragment header (RFC 8200 §4.5)
	offPorts6  = 54
	etherSize  = 14
)

// The numbers of protocols: EtherTypes (IEEE 802 numbers) and IP's (IANA).
const (
	typeIP4, typeARP, typeRARP, typeIP6 = 0x0800, 0x0806, 0x8035, 0x86dd

	protoICMP, protoTCP, protoUDP, protoFragment, protoICMP6, protoSCTP = 1, 6, 17, 44, 58, 132
)

// Compile makes a program for packet sockets (man 7 socket, SO_ATTACH_FILTER) of a filter's text in the language of
// pcap-filter(7), as far as docs/capture.md says. An empty text lets everything through. A frame that passes is cut to
// snap bytes. names gives the addresses of a container's name; nil if names are not known.
func Compile(text string, snap uint32, names Names) ([]bpf.RawInstruction, error) {
	g := &program{}
	yes, no := g.label(), g.label()
	if text != "" {
		n, err := parse(text, names)
		if err != nil {
			return nil, fmt.Errorf("%w %q: %w", ErrFilter, text, err)
		}
		n.emit(g, yes, no)
	}
	g.place(yes)
	g.code = append(g.code, bpf.RetConstant{Val: snap})
	g.place(no)
	g.code = append(g.code, bpf.RetConstant{Val: 0})
	if len(g.code) > maxProgram {
		return nil, fmt.Errorf("%w %q: it makes %d instructions, the kernel takes %d: make it shorter", ErrFilter, text, len(g.code), maxProgram)
	}
	return bpf.Assemble(g.resolved())
}

// program is one under construction. Jumps name labels, which are placed later.
type program struct {
	code []bpf.Instruction
	// jumps has the label to which the instruction with that index jumps; places has the labels' instructions.
	jumps  map[int]label
	places []int
}

type label int

func (g *program) label() label {
	g.places = append(g.places, 0)
	return label(len(g.places) - 1)
}

func (g *program) place(l label) { g.places[l] = len(g.code) }

func (g *program) jump(l label) {
	if g.jumps == nil {
		g.jumps = map[int]label{}
	}
	g.jumps[len(g.code)] = l
	g.code = append(g.code, bpf.Jump{})
}

// resolved returns the instructions with their jumps. All go forward.
func (g *program) resolved() []bpf.Instruction {
	for at, l := range g.jumps {
		g.code[at] = bpf.Jump{Skip: uint32(g.places[l] - at - 1)}
	}
	return g.code
}

// node is a part of a filter. It jumps to yes or no.
type node interface {
	emit(g *program, yes, no label)
}

// test loads something and compares it. Conditional jumps reach 255 instructions only, so they skip unconditional ones.
type test struct {
	load  []bpf.Instruction
	cond  bpf.JumpTest
	value uint32
}

func (t test) emit(g *program, yes, no label) {
	g.code = append(append(g.code, t.load...), bpf.JumpIf{Cond: t.cond, Val: t.value, SkipTrue: 1})
	g.jump(no)
	g.jump(yes)
}

type all []node

func (a all) emit(g *program, yes, no label) {
	for _, n := range a {
		next := g.label()
		n.emit(g, next, no)
		g.place(next)
	}
	g.jump(yes)
}

type some []node

func (s some) emit(g *program, yes, no label) {
	for _, n := range s {
		next := g.label()
		n.emit(g, yes, next)
		g.place(next)
	}
	g.jump(no)
}

type not struct{ node }

func (n not) emit(g *program, yes, no label) { n.node.emit(g, no, yes) }

// at tests size bytes of the frame.
func at(offset, size int, value uint32) node {
	return test{[]bpf.Instruction{bpf.LoadAbsolute{Off: uint32(offset), Size: size}}, bpf.JumpEqual, value}
}

// masked tests four bytes of the frame, as far as a mask says.
func masked(offset int, mask, value uint32) node {
	load := []bpf.Instruction{bpf.LoadAbsolute{Off: uint32(offset), Size: 4}}
	if mask != 0xffffffff {
		load = append(load, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: mask})
	}
	return test{load, bpf.JumpEqual, value & mask}
}

func etherType(t uint32) node { return at(offType, 2, t) }

// protocol4 and protocol6 are IP packets of a protocol.
func protocol4(p uint32) node { return all{etherType(typeIP4), at(offProto4, 1, p)} }

func protocol6(p uint32) node {
	return all{etherType(typeIP6), some{at(offProto6, 1, p), all{at(offProto6, 1, protoFragment), at(offProto6f, 1, p)}}}
}

// size tests the length of the whole frame.
func size(cond bpf.JumpTest, value uint32) node {
	return test{[]bpf.Instruction{bpf.LoadExtension{Num: bpf.ExtLen}}, cond, value}
}

// ports are the packets of the protocols whose port, at an offset behind the IP header, is from low to high. A fragment
// that is not the first has none.
func ports(protocols []uint32, offset int, low, high uint32) node {
	const fragmentOffset = 0x1fff
	between := func(load ...bpf.Instruction) node {
		return all{test{load, bpf.JumpGreaterOrEqual, low}, test{load, bpf.JumpLessOrEqual, high}}
	}
	var four, six some
	for _, p := range protocols {
		four, six = append(four, at(offProto4, 1, p)), append(six, at(offProto6, 1, p))
	}
	first := test{[]bpf.Instruction{
		bpf.LoadAbsolute{Off: offFrag4, Size: 2}, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: fragmentOffset},
	}, bpf.JumpEqual, 0}
	return some{
		all{etherType(typeIP4), four, first, between(bpf.LoadMemShift{Off: etherSize}, bpf.LoadIndirect{Off: etherSize + uint32(offset), Size: 2})},
		all{etherType(typeIP6), six, between(bpf.LoadAbsolute{Off: offPorts6 + uint32(offset), Size: 2})},
	}
}
