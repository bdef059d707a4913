package guard

// The table and what is in it by name. Nothing else in netdriver's namespace is ours.
const (
	tableName = "netdriver"

	setOwn4    = "own4"    // what IPv4 and ARP may come from: port . MAC . address
	setOwn6    = "own6"    // the same for IPv6
	setSpoofed = "spoofed" // ports, each with a counter of what was dropped there as not its own
	setDenied  = "denied"  // ports, each with a counter of what did not get through to it

	// portPrefix begins the names of all ports that have containers behind them.
	portPrefix = "ndp"

	prefixSpoofed = "spoofed"
)

// LogGroup is the group of nfnetlink_log to which some dropped frames are copied, in netdriver's namespace.
const LogGroup = 0x4e44
