package guard

import (
	"fmt"
	"net/netip"

	"github.com/netdriver/netdriver/vxlan"
)

// Verb is what a Change does.
type Verb uint8

// The verbs. Those that remove come last.
const (
	MakeTable Verb = iota + 1 // the table, and all that is not a network's; what is there of networks stays
	PutPort
	PutSource
	DelSource
	DelPort
)

// Removes says whether the change takes something away.
func (v Verb) Removes() bool { return v >= DelSource }

// Change is one change of the table. It is a value: two equal ones do the same.
type Change struct {
	Verb Verb
	// VNI is the network that what is put belongs to.
	VNI     vxlan.VNI
	Port    string
	MAC     vxlan.MAC
	Address netip.Addr
}

// String returns the nft command that does the same in netdriver's namespace.
func (c Change) String() string {
	switch c.Verb {
	case MakeTable:
		return "nft add table bridge " + tableName + " with its sets, chains and rules"
	case PutPort:
		return fmt.Sprintf("nft 'add element bridge %s %s { %s }; add element bridge %[1]s %[4]s { %[3]s }'",
			tableName, setSpoofed, c.Port, setDenied)
	case DelPort:
		return fmt.Sprintf("nft 'delete element bridge %s %s { %s }; delete element bridge %[1]s %[4]s { %[3]s }'",
			tableName, setSpoofed, c.Port, setDenied)
	case PutSource:
		return fmt.Sprintf("nft add element bridge %s %s { %s . %s . %s }", tableName, ownSet(c.Address), c.Port, c.MAC, c.Address)
	case DelSource:
		return fmt.Sprintf("nft delete element bridge %s %s { %s . %s . %s }", tableName, ownSet(c.Address), c.Port, c.MAC, c.Address)
	}
	return fmt.Sprintf("unknown change %d of port %s", c.Verb, c.Port)
}

func ownSet(a netip.Addr) string {
	if a.Is6() {
		return setOwn6
	}
	return setOwn4
}
