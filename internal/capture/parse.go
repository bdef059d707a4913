package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/bpf"
)

// Names returns the addresses of a container, by its name.
type Names func(name string) []netip.Addr

// keywords are what a filter may be made of, besides identifiers and parentheses.
const keywords = "host net port portrange proto ether ip ip6 arp rarp tcp udp sctp icmp icmp6 broadcast multicast less greater src dst and or not"

// Begins says whether a filter may begin with a word.
func Begins(word string) bool { return slices.Contains(strings.Fields(keywords), word) }

// qualifiers are what stands before an identifier, in pcap-filter(7)'s terms.
type qualifiers struct{ protocol, direction, kind string }

// parser reads a filter's words.
type parser struct {
	words []string
	names Names
	// last are the qualifiers of the identifier before, which one without any takes over.
	last *qualifiers
}

func parse(text string, names Names) (node, error) {
	for _, sign := range []string{"(", ")", "!", "&&", "||"} {
		text = strings.ReplaceAll(text, sign, " "+sign+" ")
	}
	p := &parser{words: strings.Fields(text), names: names}
	n, err := p.expression()
	if err == nil && p.peek() != "" {
		err = fmt.Errorf("%q is one too many, or \"and\" or \"or\" is missing before it", p.peek())
	}
	return n, err
}

func (p *parser) peek() string {
	if len(p.words) == 0 {
		return ""
	}
	return p.words[0]
}

// take returns the next word if it is one of those.
func (p *parser) take(words ...string) (string, bool) {
	w := p.peek()
	if w == "" || !slices.Contains(words, w) {
		return "", false
	}
	p.words = p.words[1:]
	return w, true
}

// expression reads terms. And and or bind equally, from the left, as pcap-filter(7) has it.
func (p *parser) expression() (node, error) {
	n, err := p.term()
	for err == nil {
		w, found := p.take("and", "&&", "or", "||")
		if !found {
			return n, nil
		}
		var right node
		if right, err = p.term(); w == "or" || w == "||" {
			n = some{n, right}
		} else {
			n = all{n, right}
		}
	}
	return nil, err
}

func (p *parser) term() (node, error) {
	if _, found := p.take("not", "!"); found {
		n, err := p.term()
		return not{n}, err
	}
	if _, found := p.take("("); found {
		n, err := p.expression()
		if _, closed := p.take(")"); err == nil && !closed {
			return nil, errors.New("a parenthesis is not closed")
		}
		return n, err
	}
	return p.primitive()
}

func (p *parser) primitive() (node, error) {
	if w, found := p.take("less", "greater"); found {
		n, err := p.number("a length in bytes", 1<<31)
		if w == "less" {
			return size(bpf.JumpLessOrEqual, n), err
		}
		return size(bpf.JumpGreaterOrEqual, n), err
	}
	var q qualifiers
	q.protocol, _ = p.take("ether", "ip", "ip6", "arp", "rarp", "tcp", "udp", "sctp", "icmp", "icmp6")
	if q.protocol == "" || q.protocol == "ether" {
		if w, found := p.take("broadcast", "multicast"); found {
			return group(w), nil
		}
	}
	q.direction = p.direction()
	q.kind, _ = p.take("host", "net", "port", "portrange", "proto")
	word := p.peek()
	ends := word == "" || slices.Contains([]string{"and", "&&", "or", "||", ")"}, word)
	switch {
	case ends && q.direction == "" && q.kind == "" && q.protocol != "" && q.protocol != "ether":
		return named(q.protocol), nil
	case ends && q == (qualifiers{}):
		return nil, errors.New("something is missing at its end, or between two words")
	case ends:
		return nil, fmt.Errorf("after %q something is missing", strings.Join(strings.Fields(q.protocol+" "+q.direction+" "+q.kind), " "))
	case q == (qualifiers{}) && p.last != nil:
		q = *p.last
	case q.kind == "" && Begins(word):
		return nil, fmt.Errorf("%q is one too many, or \"and\" or \"or\" is missing before it", word)
	case q == (qualifiers{}) && !isAddress(word) && len(p.addresses(word)) == 0:
		return nil, fmt.Errorf("%q is not understood: want %s; for more, write a file (-w) and look at it with tshark", word, keywords)
	case q.kind == "":
		q.kind = "host"
	}
	p.words = p.words[1:]
	p.last = &q
	return p.identifier(q, word)
}

// direction reads src, dst, or both.
func (p *parser) direction() string {
	w, _ := p.take("src", "dst")
	if len(p.words) > 1 && w != "" && (p.words[0] == "or" || p.words[0] == "and") && (p.words[1] == "src" || p.words[1] == "dst") && p.words[1] != w {
		w = p.words[0]
		p.words = p.words[2:]
	}
	return w
}

// sides combines what is tested of the source and of the destination.
func (q qualifiers) sides(src, dst node) node {
	switch q.direction {
	case "src":
		return src
	case "dst":
		return dst
	case "and":
		return all{src, dst}
	}
	return some{src, dst}
}

func (p *parser) identifier(q qualifiers, word string) (node, error) {
	bad := func(kind string) error {
		return fmt.Errorf("%s cannot have %s: its kinds are those of pcap-filter(7)", q.protocol, kind)
	}
	switch q.kind {
	case "port", "portrange":
		return q.port(word)
	case "proto":
		return q.proto(word)
	case "net":
		if !slices.Contains([]string{"", "ip", "ip6", "arp", "rarp"}, q.protocol) {
			return nil, bad("net")
		}
		return q.net(word)
	}
	switch q.protocol {
	case "ether":
		mac, err := net.ParseMAC(word)
		if err != nil || len(mac) != 6 {
			return nil, fmt.Errorf("ether host %q: want a MAC such as 02:42:0a:0a:00:05", word)
		}
		return q.sides(hardware(6, mac), hardware(0, mac)), nil
	case "", "ip", "ip6", "arp", "rarp":
	default:
		return nil, bad("host; want, for example, " + q.protocol + " port 80 or " + q.protocol + " and host " + word)
	}
	if a, err := netip.ParseAddr(word); err == nil {
		return q.prefix(netip.PrefixFrom(a, a.BitLen()))
	}
	var one some
	for _, a := range p.addresses(word) {
		if n, err := q.prefix(netip.PrefixFrom(a, a.BitLen())); err == nil { // else not of that IP version
			one = append(one, n)
		}
	}
	if one == nil {
		return nil, fmt.Errorf("host %q: want an IPv4 or IPv6 address, or the name of a container in the network", word)
	}
	return one, nil
}

func (p *parser) addresses(name string) []netip.Addr {
	if p.names == nil {
		return nil
	}
	return p.names(name)
}

func isAddress(word string) bool {
	_, err := netip.ParseAddr(word)
	return err == nil
}

func (p *parser) number(what string, most uint64) (uint32, error) {
	n, err := strconv.ParseUint(p.peek(), 0, 32)
	if err != nil || n > most {
		return 0, fmt.Errorf("%q: want %s, 0 to %d", p.peek(), what, most)
	}
	p.words = p.words[1:]
	return uint32(n), nil
}

// named is a protocol by its name alone.
func named(protocol string) node {
	switch protocol {
	case "ip":
		return etherType(typeIP4)
	case "ip6":
		return etherType(typeIP6)
	case "arp":
		return etherType(typeARP)
	case "rarp":
		return etherType(typeRARP)
	case "icmp":
		return protocol4(protoICMP)
	case "icmp6":
		return protocol6(protoICMP6)
	}
	p := transports(protocol)[0]
	return some{protocol4(p), protocol6(p)}
}

// transports are the protocols with ports that a word stands for, all if it is empty; nil if it has none.
func transports(protocol string) []uint32 {
	switch protocol {
	case "":
		return []uint32{protoTCP, protoUDP, protoSCTP}
	case "tcp":
		return []uint32{protoTCP}
	case "udp":
		return []uint32{protoUDP}
	case "sctp":
		return []uint32{protoSCTP}
	}
	return nil
}

func (q qualifiers) port(word string) (node, error) {
	protocols := transports(q.protocol)
	if protocols == nil {
		return nil, fmt.Errorf("%s has no ports: want tcp, udp or sctp before %s", q.protocol, q.kind)
	}
	from, to, ranged := strings.Cut(word, "-")
	if !ranged {
		to = from
	}
	low, err := portNumber(q.protocol, from)
	high, err2 := portNumber(q.protocol, to)
	if err := errors.Join(err, err2); err != nil || ranged != (q.kind == "portrange") || low > high {
		return nil, fmt.Errorf("%s %q: want a port, 0 to 65535, or a name of /etc/services; for several, portrange 8000-8080", q.kind, word)
	}
	return q.sides(ports(protocols, 0, low, high), ports(protocols, 2, low, high)), nil
}

func portNumber(protocol, word string) (uint32, error) {
	if n, err := strconv.ParseUint(word, 10, 16); err == nil {
		return uint32(n), nil
	}
	if protocol != "udp" {
		protocol = "tcp"
	}
	n, err := net.LookupPort(protocol, word)
	return uint32(n), err
}

func (q qualifiers) proto(word string) (node, error) {
	known := map[string]uint64{"icmp": protoICMP, "tcp": protoTCP, "udp": protoUDP, "icmp6": protoICMP6, "sctp": protoSCTP}
	n, found := known[strings.TrimPrefix(word, `\`)]
	most := uint64(255)
	if q.protocol == "ether" {
		known = map[string]uint64{"ip": typeIP4, "arp": typeARP, "rarp": typeRARP, "ip6": typeIP6}
		n, found = known[strings.TrimPrefix(word, `\`)]
		most = 65535
	}
	if !found {
		var err error
		if n, err = strconv.ParseUint(word, 0, 32); err != nil || n > most {
			return nil, fmt.Errorf("proto %q: want a number, 0 to %d, or a protocol's name", word, most)
		}
	}
	switch q.protocol {
	case "ether":
		return etherType(uint32(n)), nil
	case "ip":
		return protocol4(uint32(n)), nil
	case "ip6":
		return protocol6(uint32(n)), nil
	case "":
		return some{protocol4(uint32(n)), protocol6(uint32(n))}, nil
	}
	return nil, fmt.Errorf("%s proto: want ether, ip or ip6 before proto", q.protocol)
}

func (q qualifiers) net(word string) (node, error) {
	prefix, err := netip.ParsePrefix(word)
	if err != nil {
		return nil, fmt.Errorf("net %q: want a subnet such as 10.10.0.0/24 or fd00::/64", word)
	}
	if prefix.Masked() != prefix {
		return nil, fmt.Errorf("net %s has bits of hosts: want %s", prefix, prefix.Masked())
	}
	return q.prefix(prefix)
}

// prefix tests addresses, of IP and of ARP.
func (q qualifiers) prefix(x netip.Prefix) (node, error) {
	if x.Addr().Is4() && q.protocol == "ip6" || x.Addr().Is6() && q.protocol != "" && q.protocol != "ip6" {
		return nil, fmt.Errorf("%s has no address like %s", q.protocol, x.Addr())
	}
	if x.Addr().Is6() {
		return all{etherType(typeIP6), q.sides(words(22, x), words(38, x))}, nil
	}
	const srcIP, dstIP, srcARP, dstARP = 26, 30, 28, 38
	four := map[string]node{
		"ip":   all{etherType(typeIP4), q.sides(words(srcIP, x), words(dstIP, x))},
		"arp":  all{etherType(typeARP), q.sides(words(srcARP, x), words(dstARP, x))},
		"rarp": all{etherType(typeRARP), q.sides(words(srcARP, x), words(dstARP, x))},
	}
	if q.protocol != "" {
		return four[q.protocol], nil
	}
	return some{four["ip"], four["arp"], four["rarp"]}, nil
}

// words tests an address at an offset, four bytes at a time.
func words(offset int, x netip.Prefix) node {
	address, bits := x.Addr().AsSlice(), x.Bits()
	out := all{}
	for i := 0; i < len(address) && bits > i*8; i += 4 {
		mask := ^uint32(0)
		if rest := bits - i*8; rest < 32 {
			mask <<= 32 - rest
		}
		out = append(out, masked(offset+i, mask, binary.BigEndian.Uint32(address[i:])))
	}
	return out
}

// hardware tests a MAC.
func hardware(offset int, mac net.HardwareAddr) node {
	return all{at(offset+2, 4, binary.BigEndian.Uint32(mac[2:])), at(offset, 2, uint32(binary.BigEndian.Uint16(mac)))}
}

// group is frames to all, or to a group.
func group(word string) node {
	if word == "broadcast" {
		return hardware(0, net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	}
	return not{test{
		[]bpf.Instruction{bpf.LoadAbsolute{Off: 0, Size: 1}, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 1}}, bpf.JumpEqual, 0,
	}}
}
