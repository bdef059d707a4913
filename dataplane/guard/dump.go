//go:build linux

package guard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// The library reads sets of a few kinds only and hides error numbers, so what is in the table is read here.

// dump is all that the table holds, in one generation of it.
type dump struct {
	generation uint32
	// rules are the rules' comments by chain, elements those of our sets by name.
	rules    map[string][]string
	elements map[string][]element
}

// element is one element of a set or map.
type element struct {
	key, end []byte // end is that of a range
	value    []byte // of a map
	chain    string // of a verdict map
	comment  string
	packets  uint64 // of a set that counts
}

// read dumps the table, unless it is of the generation that was dumped last. A change meanwhile shows in the generation.
func (t *Table) read() (*dump, error) {
	const tries = 20
	for range tries {
		before, err := t.generation()
		if err != nil {
			return nil, err
		}
		if t.dump != nil && t.dump.generation == before {
			return t.dump, nil
		}
		d, err := t.dumpAll()
		if err != nil {
			return nil, err
		}
		if d.generation, err = t.generation(); err != nil {
			return nil, err
		}
		if d.generation == before {
			t.dump = d
			return d, nil
		}
	}
	return nil, errors.New("it changes all the time")
}

func (t *Table) dumpAll() (*dump, error) {
	d := &dump{rules: map[string][]string{}, elements: map[string][]element{}}
	err := t.get(unix.NFT_MSG_GETRULE, netlink.Dump, []netlink.Attribute{text(unix.NFTA_RULE_TABLE, tableName)},
		func(a *netlink.AttributeDecoder) {
			var chain, comment string
			for a.Next() {
				switch a.Type() {
				case unix.NFTA_RULE_CHAIN:
					chain = a.String()
				case unix.NFTA_RULE_USERDATA:
					comment, _ = userdata.GetString(a.Bytes(), userdata.TypeComment)
				}
			}
			d.rules[chain] = append(d.rules[chain], comment)
		})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("list the rules: %w", err)
	}
	names, err := t.setNames()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if d.elements[name], err = t.elements(name); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// setNames are all sets and maps but those that frames fill.
func (t *Table) setNames() (all []string, err error) {
	err = t.get(unix.NFT_MSG_GETSET, netlink.Dump, []netlink.Attribute{text(unix.NFTA_SET_TABLE, tableName)},
		func(a *netlink.AttributeDecoder) {
			for a.Next() {
				if a.Type() == unix.NFTA_SET_NAME {
					all = append(all, a.String())
				}
			}
		})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("list the sets: %w", err)
	}
	return slices.DeleteFunc(all, func(s string) bool { return s == setFlows4 || s == setFlows6 }), nil
}

// elements lists those of a set; none if there is no such set.
func (t *Table) elements(set string) (all []element, err error) {
	err = t.get(unix.NFT_MSG_GETSETELEM, netlink.Dump,
		[]netlink.Attribute{text(unix.NFTA_SET_ELEM_LIST_TABLE, tableName), text(unix.NFTA_SET_ELEM_LIST_SET, set)},
		func(a *netlink.AttributeDecoder) {
			for a.Next() {
				if a.Type() == unix.NFTA_SET_ELEM_LIST_ELEMENTS {
					a.Nested(func(list *netlink.AttributeDecoder) error {
						for list.Next() {
							var e element
							list.Nested(e.decode)
							all = append(all, e)
						}
						return nil
					})
				}
			}
		})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("list the elements of %s: %w", set, err)
	}
	return all, nil
}

func (e *element) decode(a *netlink.AttributeDecoder) error {
	for a.Next() {
		switch a.Type() {
		case unix.NFTA_SET_ELEM_KEY:
			e.key = dataOf(a)
		case nftaSetElemKeyEnd:
			e.end = dataOf(a)
		case unix.NFTA_SET_ELEM_DATA:
			a.Nested(e.decodeData)
		case unix.NFTA_SET_ELEM_USERDATA:
			e.comment, _ = userdata.GetString(a.Bytes(), userdata.TypeComment)
		case unix.NFTA_SET_ELEM_EXPR:
			a.Nested(e.decodeCounter)
		}
	}
	return nil
}

// nftaSetElemKeyEnd is NFTA_SET_ELEM_KEY_END of linux/netfilter/nf_tables.h.
const nftaSetElemKeyEnd = 10

// dataOf returns the value in a nested struct nft_data.
func dataOf(a *netlink.AttributeDecoder) (b []byte) {
	a.Nested(func(a *netlink.AttributeDecoder) error {
		for a.Next() {
			if a.Type() == unix.NFTA_DATA_VALUE {
				b = slices.Clone(a.Bytes())
			}
		}
		return nil
	})
	return b
}

func (e *element) decodeData(a *netlink.AttributeDecoder) error {
	for a.Next() {
		switch a.Type() {
		case unix.NFTA_DATA_VALUE:
			e.value = slices.Clone(a.Bytes())
		case unix.NFTA_DATA_VERDICT:
			a.Nested(func(a *netlink.AttributeDecoder) error {
				for a.Next() {
					if a.Type() == unix.NFTA_VERDICT_CHAIN {
						e.chain = a.String()
					}
				}
				return nil
			})
		}
	}
	return nil
}

func (e *element) decodeCounter(a *netlink.AttributeDecoder) error {
	for a.Next() {
		if a.Type() == unix.NFTA_EXPR_DATA {
			a.Nested(func(a *netlink.AttributeDecoder) error {
				for a.Next() {
					if a.Type() == unix.NFTA_COUNTER_PACKETS {
						e.packets = a.Uint64()
					}
				}
				return nil
			})
		}
	}
	return nil
}

// generation is the number of changes to any table of the namespace.
func (t *Table) generation() (id uint32, err error) {
	err = t.get(unix.NFT_MSG_GETGEN, 0, nil, func(a *netlink.AttributeDecoder) {
		for a.Next() {
			if a.Type() == unix.NFTA_GEN_ID {
				id = a.Uint32()
			}
		}
	})
	if err != nil {
		return 0, fmt.Errorf("ask for the generation: %w", err)
	}
	return id, nil
}

func text(kind uint16, s string) netlink.Attribute {
	return netlink.Attribute{Type: kind, Data: append([]byte(s), 0)}
}

// get asks about the bridge family's tables and calls f with the attributes of each answer.
func (t *Table) get(kind uint16, flags netlink.HeaderFlags, attrs []netlink.Attribute, f func(*netlink.AttributeDecoder)) error {
	b, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		return err
	}
	answers, err := t.reader.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind), Flags: netlink.Request | flags},
		Data:   append([]byte{unix.NFPROTO_BRIDGE, unix.NFNETLINK_V0, 0, 0}, b...),
	})
	if err != nil {
		return err
	}
	for _, m := range answers {
		a, err := attributes(m)
		if err != nil {
			return err
		}
		f(a)
		if err := a.Err(); err != nil {
			return err
		}
	}
	return nil
}

// attributes are those of a message of nf_tables, after its struct nfgenmsg.
func attributes(m netlink.Message) (*netlink.AttributeDecoder, error) {
	const header = 4
	if len(m.Data) < header {
		return nil, errors.New("short message")
	}
	a, err := netlink.NewAttributeDecoder(m.Data[header:])
	if err == nil {
		a.ByteOrder = binary.BigEndian
	}
	return a, err
}
