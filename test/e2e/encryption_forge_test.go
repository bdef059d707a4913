//go:build e2e && virtual

package e2e

import (
	bytesof "encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/netdriver/netdriver/test/e2e/lab"
	"github.com/netdriver/netdriver/vxlan"
)

// echo is a VXLAN payload (RFC 7348 §5) with an ICMP echo request from one container to another.
func echo(vni vxlan.VNI, from, to vxlan.MAC, src, dst netip.Addr) []byte {
	b := []byte{8, 0, 0, 0, byte(vni >> 16), byte(vni >> 8), byte(vni), 0}
	b = append(append(append(b, to[:]...), from[:]...), 8, 0)
	ip := make([]byte, 20)
	ip[0], ip[8], ip[9] = 0x45, 64, 1
	icmp := make([]byte, 64)
	icmp[0] = 8
	bytesof.BigEndian.PutUint16(icmp[2:], checksum(icmp))
	bytesof.BigEndian.PutUint16(ip[2:], uint16(len(ip)+len(icmp)))
	copy(ip[12:], src.AsSlice())
	copy(ip[16:], dst.AsSlice())
	bytesof.BigEndian.PutUint16(ip[10:], checksum(ip))
	return append(append(b, ip...), icmp...)
}

// checksum is that of RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(bytesof.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// echoes is how many echo requests a container has got since it began.
func (e *encrypted) echoes(n *lab.Node) int {
	e.t.Helper()
	out := docker(e.t, n, "exec", e.tasks[n], "grep", "Icmp:", "/proc/net/snmp")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	for i, name := range strings.Fields(lines[0]) {
		if name == "InEchos" {
			v, err := strconv.Atoi(strings.Fields(lines[1])[i])
			if err != nil {
				e.t.Fatal(err)
			}
			return v
		}
	}
	e.t.Fatalf("no InEchos in %s", out)
	return 0
}

// forged: frames in clear with the right VNI, MACs and addresses, from a stranger and in the name of a member. The plain
// network shows that such a frame of a member arrives where nothing guards it.
func (e *encrypted) forged(t *testing.T) {
	member, target := e.nodes[1], e.nodes[0]
	stranger := e.Outside
	file := func(network string) string {
		mac := func(n *lab.Node) vxlan.MAC {
			m, err := vxlan.ParseMAC(docker(t, n, "inspect", "--format", "{{.NetworkSettings.Networks."+network+".MacAddress}}", e.tasks[n]))
			if err != nil {
				t.Fatal(err)
			}
			return m
		}
		addr := func(n *lab.Node) netip.Addr {
			return netip.MustParseAddr(docker(t, n, "inspect", "--format", "{{.NetworkSettings.Networks."+network+".IPAddress}}", e.tasks[n]))
		}
		out := run(t, target, "sh", "-c", "netdriver inspect -o json "+network+` | grep -m1 '"vni"' | tr -dc 0-9`)
		vni, err := strconv.Atoi(out)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(e.Dir, "forged-"+network)
		if err := os.WriteFile(name, echo(vxlan.VNI(vni), mac(member), mac(target), addr(member), addr(target)), 0o644); err != nil {
			t.Fatal(err)
		}
		return name
	}
	send := func(file string, port int) {
		t.Helper()
		const script = `for i in 1 2 3 4 5; do cat "$0" >"/dev/udp/$1/$2"; done`
		run(t, stranger, "bash", "-c", script, file, target.Addr.String(), fmt.Sprint(port))
	}
	// In a member's name: the switch's namespace takes the member's address and says nothing of it.
	as := func(do func()) {
		t.Helper()
		run(t, stranger, "sh", "-c", `sysctl -qw net.ipv4.conf.all.arp_ignore=8 && ip addr add "$0/32" dev lo && ip route add "$1/32" dev br0 src "$0"`,
			member.Addr.String(), target.Addr.String())
		defer run(t, stranger, "sh", "-c", `ip route del "$1/32" dev br0; ip addr del "$0/32" dev lo; sysctl -qw net.ipv4.conf.all.arp_ignore=0`,
			member.Addr.String(), target.Addr.String())
		do()
	}
	secret, plain := file(secretNet), file(clearNet)
	before := e.echoes(target)
	drops, err := e.report(target)
	if err != nil {
		t.Fatal(err)
	}
	send(secret, 4790)
	as(func() { send(secret, 4790) })
	time.Sleep(time.Second)
	if got := e.echoes(target); got != before {
		t.Errorf("%d forged frames arrived in the encrypted network", got-before)
	}
	now, err := e.report(target)
	if err != nil {
		t.Fatal(err)
	}
	d, was := now.Encryption.Drops, drops.Encryption.Drops
	if d.PlainIn+d.FilterIn < was.PlainIn+was.FilterIn+10 {
		t.Errorf("inspect counted %+v before and %+v afterwards, want 10 more in clear", was, d)
	}
	as(func() { send(plain, 4789) })
	e.within(5*time.Second, func() error {
		if got := e.echoes(target); got < before+5 {
			return fmt.Errorf("in the plain network only %d of 5 frames arrived: the forgery itself is wrong", got-before)
		}
		return nil
	})
}
