package store

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/netdriver/netdriver/vxlan"
)

// The kinds of network.
const (
	// ModeOverlay is a VXLAN network over several hosts.
	ModeOverlay = "overlay"
	// ModeMacvlan and ModeIPvlan put containers into the LAN that an interface of each host is in.
	ModeMacvlan = "macvlan"
	ModeIPvlan  = "ipvlan"
	// ModeBridge is a network of one host, with a bridge that is the containers' gateway.
	ModeBridge = "bridge"
)

// LAN says how a macvlan or ipvlan network uses the LAN.
type LAN struct {
	// Parent is what the user gave: an interface, perhaps with a VLAN (eth1.10), a subnet of the LAN, or a name of the
	// nodes' own lists. Each node finds its interface by it.
	Parent string `json:"parent,omitempty"`
	// Submode is bridge, private, vepa or passthru for macvlan (man ip-link), empty for ipvlan, which is l2.
	Submode string `json:"submode,omitempty"`
}

// OnLAN says whether the network's containers are in the hosts' LAN.
func (n Network) OnLAN() bool { return n.Mode == ModeMacvlan || n.Mode == ModeIPvlan }

// MACScope is what a MAC address is unique in, for MACKey: the network, or the whole cluster for those in a LAN, since
// several of them may be in the same one.
func (n Network) MACScope() string {
	if n.OnLAN() {
		return lanScope
	}
	return n.Name
}

// lanScope cannot be a network's name.
const lanScope = "@lan"

// checkMode refuses what contradicts the network's mode.
func (n Network) checkMode() error {
	switch {
	case n.Mode == ModeOverlay && n.Port == 0:
		return errors.New("UDP port 0")
	case n.Mode == ModeOverlay:
		return vxlan.CheckVNI(n.VNI)
	case n.VNI != 0 || n.Port != 0:
		return fmt.Errorf("VNI %d and UDP port %d on a network of mode %s", n.VNI, n.Port, n.Mode)
	case n.OnLAN() && n.LAN.Parent == "":
		return fmt.Errorf("mode %s without parent", n.Mode)
	case !n.OnLAN() && n.Mode != ModeBridge:
		return fmt.Errorf("mode %q is not one that this program knows; upgrade netdriver on this node", n.Mode)
	}
	return nil
}

// HostEndpoint is the id of a node's own endpoint in a network with host access: always the same one, so that it is
// made once however often that is tried.
func HostEndpoint(node, network string) string {
	sum := sha256.Sum256([]byte("host access\x00" + node + "\x00" + network))
	return hex.EncodeToString(sum[:])
}

// Conflict is an address of a network in a LAN that somebody outside the cluster answers for. It is shown, and found
// out anew whenever the address is to be given out.
type Conflict struct {
	Network string     `json:"network"`
	Address netip.Addr `json:"address"`
	// MAC is what answered, Node the node that asked.
	MAC  vxlan.MAC `json:"mac"`
	Node string    `json:"node"`
	Seen time.Time `json:"seen"`
}
