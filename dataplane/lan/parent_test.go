package lan

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// office is a host with an interface in the LAN, a trunk, and others that cannot be parents.
func office() []Interface {
	nic := func(name, kind string, addrs ...string) Interface {
		i := Interface{Name: name, Kind: kind, MTU: 1500, Up: true, Running: true, Ethernet: true}
		for _, a := range addrs {
			i.Addrs = append(i.Addrs, prefix(a))
		}
		return i
	}
	lo, wifi, port, off := nic("lo", ""), nic("wlan0", ""), nic("eth3", ""), nic("eth4", "")
	lo.Loopback, lo.Ethernet, wifi.Wireless, port.Master, off.Running = true, false, true, "br0", false
	tag := nic("office", "vlan")
	tag.VLANParent, tag.VLANID = "eth1", 30
	ours := nic("eth1.10", "vlan")
	ours.VLANParent, ours.VLANID, ours.Ours = "eth1", 10, true
	tun := nic("wg0", "wireguard", "10.9.0.1/24")
	tun.Ethernet = false
	return []Interface{
		lo, nic("eth0", "", "192.0.2.10/24", "2001:db8::10/64"), nic("eth1", ""), wifi, port, off, tag, ours, tun,
		nic("enp129s0f0np0", ""), nic("br0", "bridge", "198.51.100.7/24"), nic("br1", "bridge", "198.51.100.8/24"),
	}
}

func TestAParentIsFound(t *testing.T) {
	vlan := func(device, parent string, id int) Parent {
		return Parent{Device: device, MTU: 1500, VLAN: VLAN{Device: device, Parent: parent, ID: id, Up: true}}
	}
	names := map[string]string{"lan": "eth1", "front": "192.0.2.0/24", "eth9": "eth0"}
	for spec, want := range map[string]Parent{
		"eth0":               {Device: "eth0", MTU: 1500},
		"eth1.10":            vlan("eth1.10", "eth1", 10), // ours already
		"eth1.20":            vlan("eth1.20", "eth1", 20),
		"eth1.30":            {Device: "office", MTU: 1500}, // somebody else's interface of that VLAN
		"192.0.2.0/24":       {Device: "eth0", MTU: 1500},
		"192.0.2.128/25":     {Device: "eth0", MTU: 1500}, // a part of the LAN
		"2001:db8::/64":      {Device: "eth0", MTU: 1500},
		"192.0.2.0/24.5":     vlan("eth0.5", "eth0", 5),
		"lan":                {Device: "eth1", MTU: 1500},
		"lan.20":             vlan("eth1.20", "eth1", 20),
		"front":              {Device: "eth0", MTU: 1500},
		"eth9":               {Device: "eth0", MTU: 1500},
		"eth4":               {Device: "eth4", MTU: 1500, Down: true},
		"enp129s0f0np0.100":  vlan(vlanName("enp129s0f0np0", 100), "enp129s0f0np0", 100),
		"enp129s0f0np0.4094": vlan(vlanName("enp129s0f0np0", 4094), "enp129s0f0np0", 4094),
	} {
		got, err := Resolve(spec, names, office())
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%s: error %v (-want +got):\n%s", spec, err, diff)
		}
		if len(got.Device) > mostBytes {
			t.Errorf("%s: the kernel takes no name as long as %s", spec, got.Device)
		}
	}
}

func TestAParentThatCannotBeUsedIsRefusedWithWhatCanBeDone(t *testing.T) {
	for spec, words := range map[string][]string{
		"eth7":            {"no interface eth7", "parents", "eth0 192.0.2.10/24"},
		"eth7.10":         {"no interface eth7"},
		"lo":              {"loopback"},
		"wlan0":           {"wireless", "mode=bridge"},
		"wlan0.10":        {"wireless"},
		"eth3":            {"port of br0", "parent=br0"},
		"wg0":             {"no Ethernet"},
		"198.51.100.0/24": {"br0 and br1"},
		"203.0.113.0/24":  {"no interface has an address in 203.0.113.0/24", "this host has"},
		"eth1.4095":       {"1..4094"},
	} {
		_, err := Resolve(spec, nil, office())
		if err == nil {
			t.Errorf("%s is accepted", spec)
			continue
		}
		for _, w := range words {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %q lacks %q", spec, err, w)
			}
		}
	}
}

func TestOnlyParentsThatCouldExistAreAccepted(t *testing.T) {
	for spec, good := range map[string]bool{
		"eth1": true, "eth1.10": true, "192.0.2.0/24": true, "192.0.2.0/24.10": true, "2001:db8::/64": true, "my-lan": true,
		"": false, "eth 1": false, "192.0.2.1/24": false, "192.0.2.0/33": false, "192.0.2.0/24.0": false, "a/b": false,
	} {
		if err := CheckSpec(spec); (err == nil) != good {
			t.Errorf("%q: %v", spec, err)
		}
	}
}

func TestNamesOfVLANsNeverClashAndFitTheKernel(t *testing.T) {
	if vlanName("eth1", 10) != "eth1.10" || vlanName("enp129s0f0np0", 10) == vlanName("enp129s0f0np1", 10) {
		t.Error(vlanName("eth1", 10), vlanName("enp129s0f0np0", 10))
	}
}
