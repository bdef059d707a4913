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
	PutClass  // with its chain; in the place of what is there of it
	PutMember // in the place of what the address is
	Judge     // frames to a port by its class from now on
	DelSource
	Release // a port from being judged
	DelPort
	DelMember
	DelClass
	DelPolicy // what all classes of a network share
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
	// Class of PutClass, DelClass, Judge; Admits and Reaches are those of PutClass: see formatSpans.
	Class           string
	Admits, Reaches string
	// Number is that of PutMember's class. Replaces: a member, or a port's class, is there and differs.
	Number   uint32
	Replaces bool
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
	return c.policyString()
}

func (c Change) policyString() string {
	to := func(set string) string { return fmt.Sprintf("bridge %s %s", tableName, set) }
	instead := func(set, key string) string {
		if !c.Replaces {
			return ""
		}
		return fmt.Sprintf("delete element %s { %s }; ", to(set), key)
	}
	switch c.Verb {
	case PutClass:
		return fmt.Sprintf("nft 'add chain %s; add element %s { %s }; add element %s { %s }'", to(chainTo(c.VNI, c.Class)),
			to(setAdmits(c.VNI, c.Class)), c.Admits, to(setReaches(c.VNI, c.Class)), c.Reaches)
	case DelClass:
		return fmt.Sprintf("nft delete chain %s", to(chainTo(c.VNI, c.Class)))
	case PutMember:
		set := mapClasses(c.VNI, c.Address)
		return fmt.Sprintf("nft '%sadd element %s { %s : %d }'", instead(set, c.Address.String()), to(set), c.Address, c.Number)
	case DelMember:
		return fmt.Sprintf("nft delete element %s { %s }", to(mapClasses(c.VNI, c.Address)), c.Address)
	case Judge:
		return fmt.Sprintf("nft '%sadd element %s { %s : goto %s }'", instead(mapTo, c.Port), to(mapTo), c.Port, chainTo(c.VNI, c.Class))
	case Release:
		return fmt.Sprintf("nft delete element %s { %s }", to(mapTo), c.Port)
	case DelPolicy:
		return fmt.Sprintf("nft 'delete map %s; delete map %s'", to(mapClasses4(c.VNI)), to(mapClasses6(c.VNI)))
	}
	return fmt.Sprintf("unknown change %d of port %s", c.Verb, c.Port)
}

func ownSet(a netip.Addr) string {
	if a.Is6() {
		return setOwn6
	}
	return setOwn4
}
