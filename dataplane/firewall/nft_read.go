//go:build linux

package firewall

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/internal/netlink"
)

// readAttempts is how often a reading is tried that somebody's change interrupts.
const readAttempts = 20

// Read implements Kernel.
func (n *NFTables) Read(context.Context) (Compiled, error) {
	for range readAttempts {
		c, err := n.read()
		if !errors.Is(err, unix.EINTR) {
			return c, err
		}
	}
	return Compiled{}, fmt.Errorf("read table inet %s: it does not stop changing", Table)
}

// read is one attempt.
func (n *NFTables) read() (Compiled, error) {
	r := nftReader{n: n, chains: map[string]*CompiledChain{}}
	err := errors.Join(r.readSets(), r.readCounters(nil), r.readChains(), r.readRules())
	if err != nil {
		return Compiled{}, fmt.Errorf("read table inet %s: %w", Table, err)
	}
	for _, c := range r.chains {
		r.out.Chains = append(r.out.Chains, *c)
	}
	return r.out.sorted(), nil
}

type nftReader struct {
	n      *NFTables
	out    Compiled
	chains map[string]*CompiledChain
}

// dump asks for all objects of a kind in our table; attributes are those of each.
func (n *NFTables) dump(kind, table uint16, more func(*netlink.Message), got func(attrs map[uint16][]byte)) error {
	err := n.nl.Query(nfMessage(kind), unix.NLM_F_DUMP, func(m *netlink.Message) {
		header(m, unix.NFPROTO_INET, 0)
		m.Text(table, Table)
		if more != nil {
			more(m)
		}
	}, func(body []byte) {
		attrs := map[uint16][]byte{}
		netlink.Attrs(body[headerSize:], func(kind uint16, v []byte) { attrs[kind] = v })
		if unix.ByteSliceToString(attrs[table]) == Table {
			got(attrs)
		}
	})
	if errors.Is(err, unix.ENOENT) { // there is no such table
		return nil
	}
	return err
}

func object(name []byte) Object { return Object{familyInet, Table, unix.ByteSliceToString(name)} }

func (r *nftReader) readSets() error {
	err := r.n.dump(unix.NFT_MSG_GETSET, unix.NFTA_SET_TABLE, nil, func(a map[uint16][]byte) {
		kind := fmt.Sprintf("type %x", a[unix.NFTA_SET_KEY_TYPE])
		switch [2]uint32{be(a[unix.NFTA_SET_KEY_TYPE]), be(a[unix.NFTA_SET_KEY_LEN])} {
		case [2]uint32{datatypeIPv4, 4}:
			kind = typeIPv4
		case [2]uint32{datatypeIPv6, 16}:
			kind = typeIPv6
		case [2]uint32{datatypeInteger, 3}:
			kind = typeVNI
		}
		if flags := be(a[unix.NFTA_SET_FLAGS]); flags != 0 {
			kind = fmt.Sprintf("%s flags %#x", kind, flags)
		}
		r.out.Sets = append(r.out.Sets, CompiledSet{Object: object(a[unix.NFTA_SET_NAME]), Type: kind})
	})
	for i := range r.out.Sets {
		err = errors.Join(err, r.readElements(&r.out.Sets[i]))
	}
	return err
}

func be(b []byte) uint32 {
	if len(b) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

func (r *nftReader) readElements(s *CompiledSet) error {
	return r.n.dump(unix.NFT_MSG_GETSETELEM, unix.NFTA_SET_ELEM_LIST_TABLE,
		func(m *netlink.Message) { m.Text(unix.NFTA_SET_ELEM_LIST_SET, s.Name) },
		func(a map[uint16][]byte) {
			netlink.Attrs(a[unix.NFTA_SET_ELEM_LIST_ELEMENTS], func(_ uint16, element []byte) {
				netlink.Attrs(element, func(kind uint16, v []byte) {
					if kind == unix.NFTA_SET_ELEM_KEY {
						netlink.Attrs(v, func(_ uint16, key []byte) { s.Elements = append(s.Elements, elementText(s.Type, key)) })
					}
				})
			})
		})
}

func elementText(kind string, key []byte) string {
	if a, ok := netip.AddrFromSlice(key); ok && kind != typeVNI {
		return a.String()
	}
	return fmt.Sprintf("%#x", binary.BigEndian.Uint32(append(make([]byte, max(0, 4-len(key))), key...)))
}

// readCounters also gives what they have counted, if count is not nil.
func (r *nftReader) readCounters(count func(name string, c Count)) error {
	return r.n.dump(unix.NFT_MSG_GETOBJ, unix.NFTA_OBJ_TABLE, nil, func(a map[uint16][]byte) {
		if be(a[unix.NFTA_OBJ_TYPE]) != unix.NFT_OBJECT_COUNTER {
			return
		}
		o := object(a[unix.NFTA_OBJ_NAME])
		r.out.Counters = append(r.out.Counters, o)
		if count == nil {
			return
		}
		var c Count
		netlink.Attrs(a[unix.NFTA_OBJ_DATA], func(kind uint16, v []byte) {
			switch {
			case len(v) != 8:
			case kind == unix.NFTA_COUNTER_PACKETS:
				c.Packets = binary.BigEndian.Uint64(v)
			case kind == unix.NFTA_COUNTER_BYTES:
				c.Bytes = binary.BigEndian.Uint64(v)
			}
		})
		count(o.Name, c)
	})
}

// Counts implements Kernel.
func (n *NFTables) Counts(context.Context) (map[string]Count, error) {
	for range readAttempts {
		r, out := nftReader{n: n}, map[string]Count{}
		err := r.readCounters(func(name string, c Count) { out[name] = c })
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			err = fmt.Errorf("read the counters of table inet %s: %w", Table, err)
		}
		return out, err
	}
	return nil, fmt.Errorf("read the counters of table inet %s: it does not stop changing", Table)
}

func (r *nftReader) readChains() error {
	names := map[uint32]string{}
	for name, n := range hookNumbers() {
		names[n] = name
	}
	return r.n.dump(unix.NFT_MSG_GETCHAIN, unix.NFTA_CHAIN_TABLE, nil, func(a map[uint16][]byte) {
		c := &CompiledChain{Object: object(a[unix.NFTA_CHAIN_NAME])}
		if kind := unix.ByteSliceToString(a[unix.NFTA_CHAIN_TYPE]); kind != "" {
			var hook, priority uint32
			netlink.Attrs(a[unix.NFTA_CHAIN_HOOK], func(kind uint16, v []byte) {
				switch kind {
				case unix.NFTA_HOOK_HOOKNUM:
					hook = be(v)
				case unix.NFTA_HOOK_PRIORITY:
					priority = be(v)
				}
			})
			c.Base = fmt.Sprintf("%s hook %s priority %d", kind, names[hook], int32(priority))
		}
		if be(a[unix.NFTA_CHAIN_POLICY]) == nfDrop && c.Base != "" {
			c.Base += " policy drop"
		}
		r.chains[c.Name] = c
	})
}

func (r *nftReader) readRules() error {
	return r.n.dump(unix.NFT_MSG_GETRULE, unix.NFTA_RULE_TABLE, nil, func(a map[uint16][]byte) {
		c := r.chains[unix.ByteSliceToString(a[unix.NFTA_RULE_CHAIN])]
		if c == nil { // came in between
			return
		}
		exprs := decode(a[unix.NFTA_RULE_EXPRESSIONS])
		c.Rules = append(c.Rules, CompiledRule{Text: outline(exprs), Key: encode(exprs)})
	})
}

// outline names a rule that was read by its expressions.
func outline(exprs []expression) string {
	var names []string
	for _, e := range exprs {
		names = append(names, e.name)
	}
	return strings.Join(names, " ")
}
