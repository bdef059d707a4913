package guard

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Policy says who may speak to whom in a network. Without classes everybody may.
type Policy struct {
	// Classes are sorted by Name.
	Classes []Class
	// Members say which class each address of the network is in, of all nodes; sorted by Address. One that is not here has
	// class 0.
	Members []Member
}

// Class is a kind of endpoint, judged alike.
type Class struct {
	Name string
	// Admits is what endpoints of the class may be sent, Reaches what they may send: of the latter, replies come back. Both
	// are sorted.
	Admits, Reaches []Span
}

// Span is a range of protocols and ports that one class may use towards another.
type Span struct {
	// Peer is the number of the other class.
	Peer                  uint32
	FirstProto, LastProto uint8
	First, Last           uint16
}

// Member is an address with the number of its class.
type Member struct {
	Address netip.Addr
	Class   uint32
}

// single says whether it is one port of one protocol.
func (s Span) single() bool { return s.FirstProto == s.LastProto && s.First == s.Last }

func compareClasses(a, b Class) int  { return cmp.Compare(a.Name, b.Name) }
func compareMembers(a, b Member) int { return a.Address.Compare(b.Address) }

func compareSpans(a, b Span) int {
	return cmp.Or(cmp.Compare(a.Peer, b.Peer), cmp.Compare(a.FirstProto, b.FirstProto), cmp.Compare(a.LastProto, b.LastProto),
		cmp.Compare(a.First, b.First), cmp.Compare(a.Last, b.Last))
}

func (c Class) equal(d Class) bool {
	return c.Name == d.Name && slices.Equal(c.Admits, d.Admits) && slices.Equal(c.Reaches, d.Reaches)
}

// kin are the classes with which c has anything to do: errors and later fragments pass between them.
func (c Class) kin() []uint32 {
	var all []uint32
	for _, s := range slices.Concat(c.Admits, c.Reaches) {
		all = append(all, s.Peer)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func (p *Policy) sort() {
	for _, c := range p.Classes {
		slices.SortFunc(c.Admits, compareSpans)
		slices.SortFunc(c.Reaches, compareSpans)
	}
	slices.SortFunc(p.Classes, compareClasses)
	slices.SortFunc(p.Members, compareMembers)
}

func (p Policy) clone() Policy {
	return Policy{slices.Clone(p.Classes), slices.Clone(p.Members)}
}

// has says whether there is a class of that name.
func (p Policy) has(class string) bool {
	_, found := slices.BinarySearchFunc(p.Classes, Class{Name: class}, compareClasses)
	return found
}

func (p Policy) check(ports []Port) error {
	for i, c := range p.Classes {
		if c.Name == "" || len(c.Name) > maxClassName {
			return fmt.Errorf("class %q: 1 to %d characters are allowed", c.Name, maxClassName)
		}
		if i > 0 && compareClasses(p.Classes[i-1], c) >= 0 || !slices.IsSortedFunc(c.Admits, compareSpans) || !slices.IsSortedFunc(c.Reaches, compareSpans) {
			return errors.New("classes or what they may do are not sorted, or one is there twice")
		}
	}
	for i, m := range p.Members {
		if i > 0 && compareMembers(p.Members[i-1], m) >= 0 || !m.Address.IsValid() {
			return errors.New("members are not sorted, or one is there twice")
		}
	}
	if len(p.Members) > 0 && len(p.Classes) == 0 {
		return errors.New("members without classes")
	}
	for _, port := range ports {
		if port.Class != "" && !p.has(port.Class) {
			return fmt.Errorf("port %s is of class %q, which is not there", port.Name, port.Class)
		}
	}
	return nil
}

// maxClassName leaves room for a prefix and a VNI in the kernel's 255 bytes.
const maxClassName = 64

// formatSpans writes spans as the elements of a set, so that a Change stays a value.
func formatSpans(all []Span) string {
	words := make([]string, len(all))
	for i, s := range all {
		words[i] = fmt.Sprintf("%d . %s . %s", s.Peer, formatRange(uint64(s.FirstProto), uint64(s.LastProto)),
			formatRange(uint64(s.First), uint64(s.Last)))
	}
	return strings.Join(words, ", ")
}

func formatRange(first, last uint64) string {
	if first == last {
		return strconv.FormatUint(first, 10)
	}
	return fmt.Sprintf("%d-%d", first, last)
}

func parseSpans(text string) (all []Span, err error) {
	if text == "" {
		return nil, nil
	}
	for word := range strings.SplitSeq(text, ", ") {
		var s Span
		parts := strings.Split(word, " . ")
		if len(parts) != 3 {
			return nil, fmt.Errorf("element %q: want class . protocol . port", word)
		}
		peer, err1 := strconv.ParseUint(parts[0], 10, 32)
		p, q, err2 := parseRange(parts[1], 8)
		f, l, err3 := parseRange(parts[2], 16)
		if err := errors.Join(err1, err2, err3); err != nil {
			return nil, fmt.Errorf("element %q: %w", word, err)
		}
		s.Peer, s.FirstProto, s.LastProto, s.First, s.Last = uint32(peer), uint8(p), uint8(q), uint16(f), uint16(l)
		all = append(all, s)
	}
	return all, nil
}

func parseRange(s string, bits int) (first, last uint64, err error) {
	a, b, ranged := strings.Cut(s, "-")
	if !ranged {
		b = a
	}
	first, err1 := strconv.ParseUint(a, 10, bits)
	last, err2 := strconv.ParseUint(b, 10, bits)
	return first, last, errors.Join(err1, err2)
}
