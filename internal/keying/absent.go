package keying

import (
	"context"

	"github.com/netdriver/netdriver/ipsec"
)

// NoKernel is the kernel of a host that has no XFRM, NoFilter the filter of one that has no packet filter: whatever is asked of
// them fails with the reason.
type (
	NoKernel struct{ Err error }
	NoFilter struct{ Err error }
)

var (
	_ ipsec.Kernel = NoKernel{}
	_ Filter       = NoFilter{}
)

// Supports implements ipsec.Kernel, as do the others.
func (n NoKernel) Supports(context.Context) ([]ipsec.Cipher, error)       { return nil, n.Err }
func (n NoKernel) Read(context.Context) (ipsec.State, error)              { return ipsec.State{}, n.Err }
func (n NoKernel) Run(context.Context, []ipsec.Op, func(ipsec.Op)) error  { return n.Err }
func (n NoKernel) Events(context.Context) (<-chan ipsec.Event, error)     { return nil, n.Err }
func (n NoKernel) Counters(context.Context) (c ipsec.Counters, err error) { return c, n.Err }
func (n NoKernel) Close() error                                           { return nil }

// Apply implements Filter, as do the others. What is not there need not be removed.
func (n NoFilter) Apply(_ context.Context, port uint16) error {
	if port == 0 {
		return nil
	}
	return n.Err
}
func (n NoFilter) Problem() error                                    { return nil }
func (n NoFilter) Drops(context.Context) (in, out uint64, err error) { return 0, 0, n.Err }
