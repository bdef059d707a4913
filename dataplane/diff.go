package dataplane

import (
	"context"
	"fmt"
)

// Diff reads the network from the kernel and returns what Apply would have to do; nothing is changed.
func (p *Plane) Diff(ctx context.Context, want Network) ([]Op, error) {
	if err := want.Check(); err != nil {
		return nil, err
	}
	want = p.possible(want)
	have, err := p.kernel.ReadNetwork(ctx, want.VNI)
	if err != nil {
		return nil, fmt.Errorf("read network %s from the kernel: %w", want.Name, err)
	}
	return plan(have, want), nil
}
