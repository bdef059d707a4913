package capture

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// Summary describes a frame in a line, as tcpdump does. length is the whole frame's in bytes, of which data may be the first.
func Summary(data []byte, length int) string {
	p := gopacket.NewPacket(data, layers.LayerTypeEthernet, gopacket.DecodeOptions{Lazy: true, NoCopy: true})
	if arp, ok := p.Layer(layers.LayerTypeARP).(*layers.ARP); ok {
		return summaryARP(arp, length)
	}
	switch ip := p.NetworkLayer().(type) {
	case *layers.IPv4:
		if fragment := ip.FragOffset > 0; fragment {
			return fmt.Sprintf("IP %s > %s: %s, fragment at %d, length %d", ip.SrcIP, ip.DstIP, ip.Protocol, int(ip.FragOffset)*8, len(ip.Payload))
		}
		return "IP " + summaryIP(p, ip.SrcIP.String(), ip.DstIP.String(), ip.Protocol, int(ip.Length)-int(ip.IHL)*4)
	case *layers.IPv6:
		return "IP6 " + summaryIP(p, ip.SrcIP.String(), ip.DstIP.String(), ip.NextHeader, int(ip.Length))
	}
	if ether, ok := p.LinkLayer().(*layers.Ethernet); ok {
		return fmt.Sprintf("%s > %s, ethertype %#04x, length %d", ether.SrcMAC, ether.DstMAC, uint16(ether.EthernetType), length)
	}
	return fmt.Sprintf("%d bytes that are no Ethernet frame", length)
}

func summaryARP(a *layers.ARP, length int) string {
	if len(a.SourceProtAddress) != 4 || len(a.DstProtAddress) != 4 {
		return fmt.Sprintf("ARP for a protocol other than IPv4, length %d", length-etherSize)
	}
	from, to := dotted(a.SourceProtAddress), dotted(a.DstProtAddress)
	if a.Operation == layers.ARPRequest {
		return fmt.Sprintf("ARP, Request who-has %s tell %s, length %d", to, from, length-etherSize)
	}
	return fmt.Sprintf("ARP, Reply %s is-at %s, length %d", from, hex(a.SourceHwAddress), length-etherSize)
}

func dotted(b []byte) string { return fmt.Sprintf("%d.%d.%d.%d", b[0], b[1], b[2], b[3]) }

func hex(b []byte) string { return strings.ReplaceAll(fmt.Sprintf("% x", b), " ", ":") }

// printable is a name that a container has chosen, without what would move a terminal's cursor.
func printable(name []byte) string { return strings.Trim(strconv.QuoteToASCII(string(name)), `"`) }

// summaryIP describes what an IP packet carries: length bytes behind its header.
func summaryIP(p gopacket.Packet, from, to string, protocol layers.IPProtocol, length int) string {
	for _, layer := range p.Layers() {
		switch l := layer.(type) {
		case *layers.TCP:
			return fmt.Sprintf("%s.%d > %s.%d: %s", from, l.SrcPort, to, l.DstPort, summaryTCP(l, length))
		case *layers.UDP:
			text := fmt.Sprintf("%s.%d > %s.%d: UDP, length %d", from, l.SrcPort, to, l.DstPort, int(l.Length)-8)
			if dns, ok := p.Layer(layers.LayerTypeDNS).(*layers.DNS); ok && len(dns.Questions) > 0 {
				q := dns.Questions[0]
				text += fmt.Sprintf(", DNS %d %s? %s", dns.ID, q.Type, printable(q.Name))
				if dns.QR {
					text += fmt.Sprintf(" %s, %d answers", dns.ResponseCode, len(dns.Answers))
				}
			}
			return text
		case *layers.ICMPv4:
			if echo := l.TypeCode.Type() == layers.ICMPv4TypeEchoRequest || l.TypeCode.Type() == layers.ICMPv4TypeEchoReply; echo {
				return fmt.Sprintf("%s > %s: ICMP %s, id %d, seq %d, length %d", from, to, l.TypeCode, l.Id, l.Seq, length)
			}
			return fmt.Sprintf("%s > %s: ICMP %s, length %d", from, to, l.TypeCode, length)
		case *layers.ICMPv6:
			return fmt.Sprintf("%s > %s: ICMP6 %s, length %d", from, to, l.TypeCode, length)
		}
	}
	return fmt.Sprintf("%s > %s: %s, length %d", from, to, protocol, length)
}

func summaryTCP(l *layers.TCP, length int) string {
	flags := ""
	for _, f := range []struct {
		set  bool
		name string
	}{{l.SYN, "S"}, {l.FIN, "F"}, {l.PSH, "P"}, {l.RST, "R"}, {l.URG, "U"}, {l.ECE, "E"}, {l.CWR, "W"}, {l.ACK, "."}} {
		if f.set {
			flags += f.name
		}
	}
	payload := length - int(l.DataOffset)*4
	text := fmt.Sprintf("Flags [%s], seq %d", flags, l.Seq)
	if payload > 0 {
		text += fmt.Sprintf(":%d", l.Seq+uint32(payload))
	}
	if l.ACK {
		text += fmt.Sprintf(", ack %d", l.Ack)
	}
	return text + fmt.Sprintf(", win %d, length %d", l.Window, payload)
}
