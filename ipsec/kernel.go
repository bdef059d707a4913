package ipsec

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// ErrUnsupported is wrapped by the error of a kernel that cannot do what encrypted networks need. It says what is
// missing and where it comes from.
var ErrUnsupported = errors.New("this kernel cannot encrypt")

// Kernel is where SAs and policies are: package ipsec/xfrm has Linux's, Fake is one in memory that refuses what Linux would
// refuse.
type Kernel interface {
	// Supports returns those of all ciphers that the kernel can use in both address families, in the order of Ciphers,
	// after trying each. The error wraps ErrUnsupported if there is none.
	Supports(ctx context.Context) ([]Cipher, error)
	// Read returns what is ours: SAs with ReqID, policies with our two priorities. Keys are zero in it.
	Read(ctx context.Context) (State, error)
	// Run performs the operations in order and calls done, which may be nil, after each one that succeeded. One that fails
	// does not stop the others, but a policy whose SA could not be added is left as it was: the errors are joined and
	// each is an *OpError. Removing what is gone is no error.
	Run(ctx context.Context, ops []Op, done func(Op)) error
	// Events reports what happens to SAs and policies, our own operations included, until ctx ends; then the channel is
	// closed.
	Events(ctx context.Context) (<-chan Event, error)
	// Counters returns what the kernel has counted.
	Counters(ctx context.Context) (Counters, error)
	// Close gives up the sockets; SAs and policies stay.
	Close() error
}

// EventKind is what an Event is about.
type EventKind uint8

// The kinds of events.
const (
	Lost            EventKind = iota + 1 // events were missed: everything must be read again
	SAsFlushed                           // ip xfrm state flush, whoever's they were
	PoliciesFlushed                      // ip xfrm policy flush
	SAChanged                            // it was added, changed, removed, or has expired
	PolicyChanged
)

// Event is news from the kernel.
type Event struct {
	Kind EventKind
	// SA of SAChanged. Gone: it is not there any more.
	SA SAID
	// Policy of PolicyChanged.
	Policy PolicyID
	Gone   bool
}

// OpError says which operation failed.
type OpError struct {
	Op  Op
	Err error
}

func (e *OpError) Error() string { return fmt.Sprintf("%s: %v", e.Op, e.Err) }

func (e *OpError) Unwrap() error { return e.Err }

// Counters are what the kernel has counted.
type Counters struct {
	// SAs are sorted as in State.
	SAs []SACount
	Drops
}

// SACount are the counters of one SA. Packets and Bytes are those that went through it, Bytes as the kernel counts them: the
// packet's payload before encryption.
type SACount struct {
	SA             SA
	Packets, Bytes uint64
	// Replayed came twice, Late before the window; Forged failed the integrity check.
	Replayed, Late, Forged uint64
	// Added is when it came into the kernel, Used when the first packet used it, on the host's clock.
	Added, Used time.Time
}

// Drops are packets that the host's XFRM refused (Linux's Documentation/networking/xfrm_proc.rst), whoever's they were: the
// kernel counts them for all policies together.
type Drops struct {
	// NoSA: an ESP packet with an unknown SPI.
	NoSA uint64
	// Integrity: modified, or of another key. Replay: repeated or too late.
	Integrity, Replay uint64
	// PlainIn: came in clear where a policy wants ESP, or is blocked. PlainOut: would have gone out in clear to a blocked
	// port. OutNoSA: its policy's SA is not there.
	PlainIn, PlainOut, OutNoSA uint64
	// Mismatch: the SA is not for this packet, by its addresses or its mode.
	Mismatch uint64
	// Other are all the rest.
	Other uint64
}
