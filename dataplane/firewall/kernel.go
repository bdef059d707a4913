package firewall

import (
	"context"
	"errors"
	"fmt"
)

// ErrUnsupported is wrapped by the error of Open on a host without a packet filter that can do what is needed.
var ErrUnsupported = errors.New("no packet filter that netdriver can use")

// Kernel is a packet filter: NFTables and IPTables are real, Fake is one in memory that refuses what Linux would refuse.
type Kernel interface {
	// Name is "nftables" or "iptables".
	Name() string
	// Compile writes a ruleset that has been checked in the words of this kernel. It is pure.
	Compile(Ruleset) Compiled
	// Read returns everything of ours.
	Read(ctx context.Context) (Compiled, error)
	// Run performs operations. All those in one table are done at once or not at all; a table's failure leaves the others.
	// Removing what is gone is no error. The errors are joined, and each says what could not be done.
	Run(ctx context.Context, ops []Op) error
	// Counts returns what was counted, by owner and name: "underlay-stranger".
	Counts(ctx context.Context) (map[string]Count, error)
	// Changes tells that the packet filter was changed, perhaps by ourselves, until ctx ends; then the channel is closed.
	// Several changes may be one piece of news.
	Changes(ctx context.Context) (<-chan struct{}, error)
	Close() error
}

// Count is what a rule has matched.
type Count struct{ Packets, Bytes uint64 }

// OpError says which operation failed.
type OpError struct {
	Op  Op
	Err error
}

func (e *OpError) Error() string { return fmt.Sprintf("%s: %v", e.Op, e.Err) }

func (e *OpError) Unwrap() error { return e.Err }

// tell puts news into a channel, unless there is some unread.
func tell(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
