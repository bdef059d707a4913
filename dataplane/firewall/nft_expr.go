package firewall

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/internal/netlink"
)

// attribute is one of an expression.
type attribute struct {
	kind  uint16
	value []byte
}

// number is in network order, as all of nf_tables' are.
func number(kind uint16, n uint32) attribute {
	return attribute{kind, binary.BigEndian.AppendUint32(nil, n)}
}

func text(kind uint16, s string) attribute { return attribute{kind, append([]byte(s), 0)} }

func nested(kind uint16, inside ...attribute) attribute {
	m := netlink.Message{}
	for _, a := range inside {
		m.Attr(a.kind, a.value...)
	}
	return attribute{kind, m.Buffer()}
}

// expression is one step of a rule: the kernel's word for it and its attributes.
type expression struct {
	name  string
	attrs []attribute
}

// key returns a rule's expressions as the kernel takes them (the value of NFTA_RULE_EXPRESSIONS), in the one form by which
// they are compared.
func (w *nftRule) key() string { return encode(w.exprs) }

func encode(exprs []expression) string {
	m := netlink.Message{}
	for _, e := range exprs {
		m.Nest(unix.NFTA_LIST_ELEM, func() {
			m.Text(unix.NFTA_EXPR_NAME, e.name)
			m.Nest(unix.NFTA_EXPR_DATA, func() {
				for _, a := range e.canonical() {
					m.Attr(a.kind, a.value...)
				}
			})
		})
	}
	return string(m.Buffer())
}

// canonical sorts the attributes. Some expressions' zeros are optional, and not every kernel reports them.
func (e expression) canonical() []attribute {
	out := slices.Clone(e.attrs)
	if e.name == "lookup" || e.name == "bitwise" || e.name == "nat" || e.name == "masq" {
		out = slices.DeleteFunc(out, func(a attribute) bool { return len(bytes.Trim(a.value, "\x00")) == 0 })
	}
	slices.SortStableFunc(out, func(a, b attribute) int { return cmp.Compare(a.kind, b.kind) })
	return out
}

// decode reads the value of NFTA_RULE_EXPRESSIONS as the kernel reports it.
func decode(b []byte) []expression {
	var out []expression
	netlink.Attrs(b, func(_ uint16, element []byte) {
		var e expression
		netlink.Attrs(element, func(kind uint16, v []byte) {
			switch kind {
			case unix.NFTA_EXPR_NAME:
				e.name = unix.ByteSliceToString(v)
			case unix.NFTA_EXPR_DATA:
				netlink.Attrs(v, func(kind uint16, v []byte) { e.attrs = append(e.attrs, attribute{kind, v}) })
			}
		})
		out = append(out, e)
	})
	return out
}
