package capture

import (
	"net"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

func TestAFrameIsDescribedAsTcpdumpDoes(t *testing.T) {
	a, b := mac("02:42:0a:0a:00:02"), mac("02:42:0a:0a:00:03")
	ether := func(kind layers.EthernetType) *layers.Ethernet {
		return &layers.Ethernet{SrcMAC: a, DstMAC: b, EthernetType: kind}
	}
	ip := func(p layers.IPProtocol) *layers.IPv4 {
		return &layers.IPv4{Version: 4, IHL: 5, TTL: 64, Protocol: p, SrcIP: net.IP{10, 10, 0, 2}, DstIP: net.IP{10, 10, 0, 3}}
	}
	ip6 := func(p layers.IPProtocol) *layers.IPv6 {
		return &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: p, SrcIP: net.ParseIP("fd00::2"), DstIP: net.ParseIP("fd00::3")}
	}
	part := ip(layers.IPProtocolUDP)
	part.FragOffset = 185
	query := &layers.DNS{ID: 7, Questions: []layers.DNSQuestion{{Name: []byte("web\x1b[2J"), Type: layers.DNSTypeA, Class: layers.DNSClassIN}}}
	for want, all := range map[string][]gopacket.SerializableLayer{
		"IP 10.10.0.2.4000 > 10.10.0.3.80: Flags [S], seq 5, win 100, length 0": {ether(layers.EthernetTypeIPv4), ip(layers.IPProtocolTCP), &layers.TCP{SrcPort: 4000, DstPort: 80, Seq: 5, SYN: true, Window: 100}},
		"IP 10.10.0.2.4000 > 10.10.0.3.80: Flags [P.], seq 5:8, ack 9, win 100, length 3": {
			ether(layers.EthernetTypeIPv4), ip(layers.IPProtocolTCP), &layers.TCP{SrcPort: 4000, DstPort: 80, Seq: 5, ACK: true, PSH: true, Ack: 9, Window: 100}, gopacket.Payload("abc"),
		},
		"IP6 fd00::2.4000 > fd00::3.81: UDP, length 3": {ether(layers.EthernetTypeIPv6), ip6(layers.IPProtocolUDP), &layers.UDP{SrcPort: 4000, DstPort: 81}, gopacket.Payload("abc")},
		`IP 10.10.0.2.4000 > 10.10.0.3.53: UDP, length 25, DNS 7 A? web\x1b[2J`: {
			ether(layers.EthernetTypeIPv4), ip(layers.IPProtocolUDP), &layers.UDP{SrcPort: 4000, DstPort: 53}, query,
		},
		"IP 10.10.0.2 > 10.10.0.3: ICMP EchoRequest, id 1, seq 2, length 11": {
			ether(layers.EthernetTypeIPv4), ip(layers.IPProtocolICMPv4), &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0), Id: 1, Seq: 2}, gopacket.Payload("abc"),
		},
		"IP 10.10.0.2 > 10.10.0.3: UDP, fragment at 1480, length 100": {ether(layers.EthernetTypeIPv4), part, gopacket.Payload(make([]byte, 100))},
		"IP 10.10.0.2 > 10.10.0.3: GRE, length 20":                    {ether(layers.EthernetTypeIPv4), ip(layers.IPProtocolGRE), gopacket.Payload(make([]byte, 20))},
		"ARP, Request who-has 10.10.0.3 tell 10.10.0.2, length 46": {ether(layers.EthernetTypeARP), &layers.ARP{
			AddrType: 1, Protocol: 0x800, HwAddressSize: 6, ProtAddressSize: 4, Operation: 1, SourceHwAddress: a, SourceProtAddress: []byte{10, 10, 0, 2},
			DstHwAddress: make([]byte, 6), DstProtAddress: []byte{10, 10, 0, 3},
		}},
		"ARP, Reply 10.10.0.3 is-at 02:42:0a:0a:00:03, length 46": {ether(layers.EthernetTypeARP), &layers.ARP{
			AddrType: 1, Protocol: 0x800, HwAddressSize: 6, ProtAddressSize: 4, Operation: 2, SourceHwAddress: b, SourceProtAddress: []byte{10, 10, 0, 3},
			DstHwAddress: a, DstProtAddress: []byte{10, 10, 0, 2},
		}},
		"02:42:0a:0a:00:02 > 02:42:0a:0a:00:03, ethertype 0x88b5, length 64": {ether(0x88b5), gopacket.Payload(make([]byte, 50))},
	} {
		buffer := gopacket.NewSerializeBuffer()
		if err := gopacket.SerializeLayers(buffer, gopacket.SerializeOptions{FixLengths: true}, all...); err != nil {
			t.Fatal(err)
		}
		if got := Summary(buffer.Bytes(), len(buffer.Bytes())); got != want {
			t.Errorf("%s\nwant %s", got, want)
		}
	}
}

// Containers send what they like, and a frame may be cut anywhere.
func FuzzSummary(f *testing.F) {
	f.Add([]byte{})
	f.Add(make([]byte, 60))
	f.Fuzz(func(t *testing.T, data []byte) {
		text := Summary(data, len(data))
		if text == "" || strings.ContainsAny(text, "\x1b\n\r") {
			t.Errorf("%q", text)
		}
	})
}

func TestAFrameThatIsCutAnywhereIsDescribed(t *testing.T) {
	for _, f := range frames(t)[:300] {
		for n := range len(f) {
			if Summary(f[:n], len(f)) == "" {
				t.Fatalf("nothing is said of the first %d bytes of %x", n, f)
			}
		}
	}
}
