//go:build linux

package firewall

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/internal/netlink"
)

// NFTables is the Kernel of hosts with nf_tables for the family inet. It has the table "inet netdriver" and looks at no
// other.
type NFTables struct {
	ns   int // network namespace
	nl   *netlink.Socket
	once sync.Once
}

// OpenNFTables opens the packet filter of a network namespace, given by its file; empty is the process's own.
func OpenNFTables(ns string) (*NFTables, error) {
	fd, err := netlink.Namespace(ns)
	if err != nil {
		return nil, err
	}
	n := &NFTables{ns: fd}
	err = netlink.In(fd, func() (err error) { n.nl, err = netlink.Open(unix.NETLINK_NETFILTER); return err })
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return n, nil
}

// Name implements Kernel.
func (n *NFTables) Name() string { return "nftables" }

// Compile implements Kernel.
func (n *NFTables) Compile(s Ruleset) Compiled { return compileNFT(s) }

// Close implements Kernel.
func (n *NFTables) Close() (err error) {
	n.once.Do(func() { err = errors.Join(n.nl.Close(), unix.Close(n.ns)) })
	return err
}

// nfMessage is a type of nf_tables' subsystem.
func nfMessage(kind uint16) uint16 { return unix.NFNL_SUBSYS_NFTABLES<<8 | kind }

// header appends a struct nfgenmsg (linux/netfilter/nfnetlink.h).
func header(m *netlink.Message, family uint8, resource uint16) {
	m.Bytes(append([]byte{family, unix.NFNETLINK_V0}, binary.BigEndian.AppendUint16(nil, resource)...)...)
}

const headerSize = 4

func be32(m *netlink.Message, kind uint16, v uint32) {
	m.Attr(kind, binary.BigEndian.AppendUint32(nil, v)...)
}

// Run implements Kernel: all in one transaction.
func (n *NFTables) Run(_ context.Context, ops []Op) error {
	for len(ops) > 0 {
		failures, err := n.transact(ops)
		if err != nil || len(failures) == 0 {
			return err
		}
		var left []Op
		var errs []error
		for i, op := range ops {
			switch err := failures[i]; {
			case err == nil:
				left = append(left, op)
			case !op.removes() || !errors.Is(err, unix.ENOENT):
				errs = append(errs, &OpError{op, err})
			}
		}
		if len(errs) > 0 {
			return errors.Join(errs...)
		}
		ops = left // nothing was done since something to be removed is gone already
	}
	return nil
}

// removes says whether it is no error if what the operation is about is gone.
func (o Op) removes() bool { return o.Verb == FlushChain || o.Verb >= Unhang }

// transact tries one transaction. If it fails nothing was done; the failures are by the operation's index.
func (n *NFTables) transact(ops []Op) (failures map[int]error, err error) {
	var first, last uint32
	failures = map[int]error{}
	answers := 0
	var refused error
	err = n.nl.Exchange(func(seq uint32) ([]byte, uint32) {
		b := batch{next: seq}
		first, last = seq+1, seq+uint32(len(ops))
		b.next = last // what is wrong with the whole is said of the first message alone, and must end the exchange
		b.message(unix.NFNL_MSG_BATCH_BEGIN, unix.AF_UNSPEC, 0, unix.NFNL_SUBSYS_NFTABLES, nil)
		b.next = seq
		b.message(nfMessage(unix.NFT_MSG_NEWTABLE), unix.NFPROTO_INET, unix.NLM_F_CREATE|unix.NLM_F_ACK, 0,
			func(m *netlink.Message) { m.Text(unix.NFTA_TABLE_NAME, Table) })
		for _, op := range ops {
			b.op(op)
		}
		b.message(unix.NFNL_MSG_BATCH_END, unix.AF_UNSPEC, 0, unix.NFNL_SUBSYS_NFTABLES, nil)
		return b.out, last
	}, func(r netlink.Reply) {
		if r.Kind != unix.NLMSG_ERROR {
			return
		}
		answers++
		i := int(r.Seq) - int(first)
		switch {
		case r.Err() == nil:
		case answers == 1 || i < 0 || i >= len(ops):
			refused = r.Err()
		default:
			failures[i] = r.Err()
		}
	})
	if err = errors.Join(err, refused); err != nil {
		return nil, fmt.Errorf("nft transaction of %d operations: %w", len(ops), err)
	}
	return failures, nil
}

// batch is a transaction under construction.
type batch struct {
	out  []byte
	next uint32
}

func (b *batch) message(kind uint16, family uint8, flags, resource uint16, fill func(*netlink.Message)) {
	start := len(b.out)
	m := netlink.AppendMessage(b.out, kind, flags, b.next)
	header(m, family, resource)
	if fill != nil {
		fill(m)
	}
	b.out = m.Finish(start)
	b.next++
}

// op appends the message of an operation: exactly one each.
func (b *batch) op(o Op) {
	put := func(kind, flags uint16, fill func(*netlink.Message)) {
		b.message(nfMessage(kind), unix.NFPROTO_INET, flags|unix.NLM_F_ACK, 0, fill)
	}
	const create = unix.NLM_F_CREATE
	switch o.Verb {
	case AddSet:
		put(unix.NFT_MSG_NEWSET, create, func(m *netlink.Message) { newSet(m, o, b.next) })
	case DelSet:
		put(unix.NFT_MSG_DELSET, 0, named(unix.NFTA_SET_TABLE, unix.NFTA_SET_NAME, o))
	case AddElement, DelElement:
		kind, flags := uint16(unix.NFT_MSG_NEWSETELEM), uint16(create)
		if o.Verb == DelElement {
			kind, flags = unix.NFT_MSG_DELSETELEM, 0
		}
		put(kind, flags, func(m *netlink.Message) { element(m, o) })
	case AddCounter, DelCounter:
		kind, flags := uint16(unix.NFT_MSG_NEWOBJ), uint16(create)
		if o.Verb == DelCounter {
			kind, flags = unix.NFT_MSG_DELOBJ, 0
		}
		put(kind, flags, func(m *netlink.Message) {
			named(unix.NFTA_OBJ_TABLE, unix.NFTA_OBJ_NAME, o)(m)
			be32(m, unix.NFTA_OBJ_TYPE, unix.NFT_OBJECT_COUNTER)
			m.Nest(unix.NFTA_OBJ_DATA, func() {})
		})
	case AddChain:
		put(unix.NFT_MSG_NEWCHAIN, create, func(m *netlink.Message) { newChain(m, o) })
	case DelChain:
		put(unix.NFT_MSG_DELCHAIN, 0, named(unix.NFTA_CHAIN_TABLE, unix.NFTA_CHAIN_NAME, o))
	case FlushChain:
		put(unix.NFT_MSG_DELRULE, 0, named(unix.NFTA_RULE_TABLE, unix.NFTA_RULE_CHAIN, o))
	case AddRule:
		put(unix.NFT_MSG_NEWRULE, create|unix.NLM_F_APPEND, func(m *netlink.Message) {
			named(unix.NFTA_RULE_TABLE, unix.NFTA_RULE_CHAIN, o)(m)
			m.Attr(unix.NFTA_RULE_EXPRESSIONS|unix.NLA_F_NESTED, []byte(o.Key)...)
		})
	default: // of no kernel: an operation that the kernel refuses
		put(unix.NFT_MSG_NEWRULE, 0, func(*netlink.Message) {})
	}
}

// named names the table and the object.
func named(table, name uint16, o Op) func(*netlink.Message) {
	return func(m *netlink.Message) {
		m.Text(table, o.Table)
		m.Text(name, o.Name)
	}
}

// The numbers by which nft(8) knows the types of keys, for its own display (libnftables' datatype.h).
const datatypeInteger, datatypeIPv4, datatypeIPv6 = 4, 7, 8

func newSet(m *netlink.Message, o Op, id uint32) {
	named(unix.NFTA_SET_TABLE, unix.NFTA_SET_NAME, o)(m)
	kind, size := uint32(datatypeIPv4), uint32(4)
	switch o.Text {
	case typeIPv6:
		kind, size = datatypeIPv6, 16
	case typeVNI:
		kind, size = datatypeInteger, 3
	}
	be32(m, unix.NFTA_SET_KEY_TYPE, kind)
	be32(m, unix.NFTA_SET_KEY_LEN, size)
	be32(m, unix.NFTA_SET_ID, id)
	be32(m, unix.NFTA_SET_FLAGS, 0)
}

// element appends one element of a set; Key of the operation is the set's type. Text that is none becomes an element that
// the kernel refuses.
func element(m *netlink.Message, o Op) {
	var key []byte
	if o.Key == typeVNI {
		if v, err := vniOf(o.Text); err == nil {
			key = []byte{byte(v >> 16), byte(v >> 8), byte(v)}
		}
	} else if a, err := netip.ParseAddr(o.Text); err == nil {
		key = a.AsSlice()
	}
	named(unix.NFTA_SET_ELEM_LIST_TABLE, unix.NFTA_SET_ELEM_LIST_SET, o)(m)
	m.Nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func() {
		m.Nest(unix.NFTA_LIST_ELEM, func() {
			m.Nest(unix.NFTA_SET_ELEM_KEY, func() { m.Attr(unix.NFTA_DATA_VALUE, key...) })
		})
	})
}

func newChain(m *netlink.Message, o Op) {
	named(unix.NFTA_CHAIN_TABLE, unix.NFTA_CHAIN_NAME, o)(m)
	var kind, hook string
	var priority int32
	if _, err := fmt.Sscanf(o.Text, "%s hook %s priority %d", &kind, &hook, &priority); err != nil {
		return // a chain that hangs nowhere
	}
	m.Nest(unix.NFTA_CHAIN_HOOK, func() {
		be32(m, unix.NFTA_HOOK_HOOKNUM, hookNumbers()[hook])
		be32(m, unix.NFTA_HOOK_PRIORITY, uint32(priority))
	})
	be32(m, unix.NFTA_CHAIN_POLICY, nfAccept)
	m.Text(unix.NFTA_CHAIN_TYPE, kind)
}

func hookNumbers() map[string]uint32 {
	return map[string]uint32{
		"prerouting": unix.NF_INET_PRE_ROUTING, "input": unix.NF_INET_LOCAL_IN, "forward": unix.NF_INET_FORWARD,
		"output": unix.NF_INET_LOCAL_OUT, "postrouting": unix.NF_INET_POST_ROUTING,
	}
}

// Changes implements Kernel. Every change of the table is an event: also that somebody flushed the whole ruleset.
func (n *NFTables) Changes(ctx context.Context) (<-chan struct{}, error) {
	return follow(ctx, n.ns, concerns)
}

// follow tells of nf_tables' events that matter, and of lost ones.
func follow(ctx context.Context, ns int, matter func([]byte) bool) (<-chan struct{}, error) {
	var f *os.File
	err := netlink.In(ns, func() (err error) {
		f, err = netlink.Subscribe(unix.NETLINK_NETFILTER, eventBuffer, unix.NFNLGRP_NFTABLES)
		return err
	})
	if err != nil {
		return nil, err
	}
	out := make(chan struct{}, 1)
	stop := context.AfterFunc(ctx, func() { f.Close() })
	go func() {
		defer close(out)
		defer stop()
		b := make([]byte, 1<<16)
		for {
			size, err := f.Read(b)
			if err != nil && !errors.Is(err, unix.ENOBUFS) {
				return // closed
			}
			if err != nil || matter(b[:size]) {
				tell(out)
			}
		}
	}()
	return out, nil
}

// eventBuffer is the receive buffer for events, in bytes: a ruleset of thousands of lines is a burst of as many events.
const eventBuffer = 4 << 20

// concerns says whether any of the messages is about our table, whose name is the first attribute of them all.
func concerns(b []byte) (ours bool) {
	netlink.Messages(b, func(r netlink.Reply) {
		if len(r.Body) < headerSize || r.Kind>>8 != unix.NFNL_SUBSYS_NFTABLES || r.Body[0] != unix.NFPROTO_INET {
			return
		}
		netlink.Attrs(r.Body[headerSize:], func(kind uint16, v []byte) {
			ours = ours || kind == unix.NFTA_TABLE_NAME && unix.ByteSliceToString(v) == Table
		})
	})
	return ours
}
