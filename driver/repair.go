package driver

import "context"

// Repair reads a network from the kernel again and makes it as wanted at once, as the daemon does every 30 s by itself.
func (d *Driver) Repair(ctx context.Context, network string) error {
	d.applied.mu.Lock()
	vni := d.applied.networks[network].vni
	d.applied.mu.Unlock()
	if vni != 0 {
		d.cfg.Plane.Refresh(vni)
	}
	d.doubt(network)
	return d.apply(ctx, network)
}
