package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/net/bpf"
)

// frames are a few of every kind that a container sends, among a few addresses and ports, so that filters hit and miss.
func frames(t *testing.T) [][]byte {
	t.Helper()
	random := rand.New(rand.NewPCG(1, 2))
	pick := func(s ...string) string { return s[random.IntN(len(s))] }
	var out [][]byte
	for range 3000 {
		ether := &layers.Ethernet{
			SrcMAC: mac(pick("02:42:0a:0a:00:02", "02:42:0a:0a:00:03")), DstMAC: mac(pick("02:42:0a:0a:00:02", "ff:ff:ff:ff:ff:ff", "33:33:00:00:00:01")),
		}
		ports := [2]uint16{uint16(50 + random.IntN(60)), uint16(50 + random.IntN(60))}
		var transport gopacket.SerializableLayer
		var number layers.IPProtocol
		switch random.IntN(4) {
		case 0:
			transport, number = &layers.TCP{SrcPort: layers.TCPPort(ports[0]), DstPort: layers.TCPPort(ports[1]), SYN: true}, layers.IPProtocolTCP
		case 1:
			transport, number = &layers.UDP{SrcPort: layers.UDPPort(ports[0]), DstPort: layers.UDPPort(ports[1])}, layers.IPProtocolUDP
		case 2:
			transport, number = &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0)}, layers.IPProtocolICMPv4
		default:
			transport, number = gopacket.Payload(make([]byte, 30)), layers.IPProtocol(random.IntN(256))
		}
		a4 := func() net.IP { return net.ParseIP(pick("10.10.0.2", "10.10.0.3", "10.11.0.2", "192.0.2.1")).To4() }
		a6 := func() net.IP { return net.ParseIP(pick("fd00::2", "fd00::3", "fd01::2")) }
		all := []gopacket.SerializableLayer{ether}
		switch random.IntN(5) {
		case 0, 1:
			ether.EthernetType = layers.EthernetTypeIPv4
			ip := &layers.IPv4{Version: 4, IHL: 5, TTL: 64, Protocol: number, SrcIP: a4(), DstIP: a4()}
			if random.IntN(5) == 0 {
				ip.FragOffset = 100
			}
			if random.IntN(5) == 0 {
				ip.Options = []layers.IPv4Option{{OptionType: 1}, {OptionType: 1}, {OptionType: 1}, {OptionType: 0}}
			}
			all = append(all, ip, transport)
		case 2, 3:
			ether.EthernetType = layers.EthernetTypeIPv6
			all = append(all, &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: number, SrcIP: a6(), DstIP: a6()}, transport)
		default:
			ether.EthernetType = layers.EthernetTypeARP
			all = append(all, &layers.ARP{
				AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: 1,
				SourceHwAddress: ether.SrcMAC, SourceProtAddress: a4(), DstHwAddress: make([]byte, 6), DstProtAddress: a4(),
			})
		}
		all = append(all, gopacket.Payload(make([]byte, 60+random.IntN(100))))
		b := gopacket.NewSerializeBuffer()
		if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true}, all...); err != nil {
			t.Fatal(err)
		}
		out = append(out, b.Bytes())
	}
	return out
}

func mac(s string) net.HardwareAddr {
	m, err := net.ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return m
}

// tcpdump compiles a filter as libpcap does.
func tcpdump(t *testing.T, filter string) *bpf.VM {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "tcpdump", "-y", "EN10MB", "-ddd", filter).Output()
	if err != nil {
		t.Fatalf("tcpdump -ddd %q: %v", filter, err)
	}
	var code []bpf.RawInstruction
	for _, line := range strings.Split(strings.TrimSpace(string(out)), "\n")[1:] {
		var r bpf.RawInstruction
		if _, err := fmt.Sscan(line, &r.Op, &r.Jt, &r.Jf, &r.K); err != nil {
			t.Fatal(err)
		}
		code = append(code, r)
	}
	return machine(t, code)
}

func machine(t *testing.T, code []bpf.RawInstruction) *bpf.VM {
	t.Helper()
	program, whole := bpf.Disassemble(code)
	if !whole {
		t.Fatalf("%v cannot be read", code)
	}
	vm, err := bpf.NewVM(program)
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

func TestFiltersPassWhatTcpdumpsDo(t *testing.T) {
	all := frames(t)
	for _, filter := range []string{
		"ip", "ip6", "arp", "tcp", "udp", "icmp", "icmp6", "sctp", "ip proto 47", "ip6 proto 17", "proto 6", "ether proto 0x86dd",
		"host 10.10.0.2", "src host 10.10.0.2", "dst host fd00::3", "arp host 10.10.0.3", "ip src host 10.10.0.2",
		"net 10.10.0.0/16", "src net 10.10.0.0/16", "net 10.10.0.2/31", "ip6 net fd00::/16", "net fd00::/128 or dst net 0.0.0.0/1",
		"port 80", "tcp port 80", "udp dst port 77", "src port 60", "portrange 60-70", "tcp src portrange 50-80", "tcp port http or domain",
		"ether host 02:42:0a:0a:00:02", "ether src 02:42:0a:0a:00:03", "ether broadcast", "multicast", "less 130", "greater 120",
		"not tcp", "! ( tcp or udp )", "tcp and not port 80", "host 10.10.0.2 or 10.10.0.3", "tcp or udp and host 10.10.0.2",
		"udp and (port 53 or port 80) and not host 10.10.0.3", "src or dst host 10.10.0.2", "src and dst host 10.10.0.2", "not (not arp)",
		"port 50||port 51&&host 10.10.0.2", "src host 10.10.0.2 and dst host 10.10.0.3 or icmp",
	} {
		want := tcpdump(t, filter)
		code, err := Compile(filter, 262144, nil)
		if err != nil {
			t.Errorf("%s: %v", filter, err)
			continue
		}
		got, passed := machine(t, code), 0
		for _, f := range all {
			w, err := want.Run(f)
			g, err2 := got.Run(f)
			if err := errors.Join(err, err2); err != nil {
				t.Fatal(err)
			}
			if (w > 0) != (g > 0) {
				t.Errorf("%s: tcpdump passes %v, this one %v: %s", filter, w > 0, g > 0, gopacket.NewPacket(f, layers.LayerTypeEthernet, gopacket.Default))
				break
			}
			if g > 0 {
				passed++
			}
		}
		if rare := filter == "src and dst host 10.10.0.2" || filter == "ip proto 47"; (passed == 0 && !strings.Contains(filter, "sctp") && !rare) || passed == len(all) {
			t.Errorf("%s: %d of %d frames passed: it decides nothing", filter, passed, len(all))
		}
	}
}

func TestAFilterKnowsContainersByName(t *testing.T) {
	names := func(name string) []netip.Addr {
		if name != "web.1" {
			return nil
		}
		return []netip.Addr{netip.MustParseAddr("10.10.0.2"), netip.MustParseAddr("fd00::2")}
	}
	want := tcpdump(t, "tcp and (host 10.10.0.2 or host fd00::2)")
	for _, filter := range []string{"tcp and host web.1", "tcp and web.1", "tcp and (10.10.0.2 or fd00::2)"} {
		code, err := Compile(filter, 100, names)
		if err != nil {
			t.Fatal(err)
		}
		vm := machine(t, code)
		for _, f := range frames(t) {
			g, _ := vm.Run(f)
			w, _ := want.Run(f)
			if (g > 0) != (w > 0) {
				t.Fatalf("%s: %v, want %v", filter, g, w)
			}
		}
	}
}

func TestAFilterThatIsNotUnderstoodSaysWhere(t *testing.T) {
	for filter, want := range map[string]string{
		"tcp[13] & 2 != 0":     `tcp[13]`,
		"port":                 `after "port" something is missing`,
		"tcp and":              "something is missing at its end",
		"(tcp":                 "parenthesis is not closed",
		"tcp udp":              `"udp" is one too many`,
		"host nobody":          `host "nobody": want an IPv4 or IPv6 address, or the name of a container`,
		"port 80-90":           "portrange",
		"portrange 90-80":      `portrange "90-80"`,
		"port 70000":           `port "70000": want a port`,
		"icmp port 80":         "icmp has no ports",
		"net 10.10.0.1/24":     "want 10.10.0.0/24",
		"net 10.10":            `net "10.10": want a subnet`,
		"ether host 1.2.3.4":   "want a MAC",
		"tcp host 10.0.0.1":    "tcp cannot have host",
		"ip6 host 10.0.0.1":    "ip6 has no address like 10.0.0.1",
		"less many":            `"many": want a length`,
		"proto 300":            `proto "300"`,
		"vlan 7":               `"vlan" is not understood: want host net`,
		"container web":        `"container" is not understood`,
		"tcp port 80 or 10.10": `port "10.10"`,
		strings.Repeat("port 1 or ", 300) + "tcp": "make it shorter",
	} {
		_, err := Compile(filter, 1, nil)
		if !errors.Is(err, ErrFilter) || !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%.40s: error %v, want one with %q", filter, err, want)
		}
	}
}

func TestNoFilterPassesEverythingCut(t *testing.T) {
	code, err := Compile("", 60, nil)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := machine(t, code).Run(binary.BigEndian.AppendUint64(nil, 1)); err != nil || n != 60 {
		t.Errorf("%d bytes of a frame pass, error %v", n, err)
	}
}

func FuzzCompile(f *testing.F) {
	f.Add("tcp and not (port 80 or host 10.0.0.1)")
	f.Add("! ! src or dst net fd00::/8")
	f.Fuzz(func(t *testing.T, text string) {
		code, err := Compile(text, 100, nil)
		if err != nil {
			if !errors.Is(err, ErrFilter) {
				t.Errorf("%q: %v", text, err)
			}
			return
		}
		if _, err := machine(t, code).Run(make([]byte, 100)); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	})
}
