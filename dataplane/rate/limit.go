package rate

import "fmt"

// Limit is a rate in bits per second, a multiple of 8, with as many bytes that may come at once. The zero Limit is none.
type Limit struct {
	Rate  uint64
	Burst uint32
}

// String writes a limit as tc does.
func (l Limit) String() string { return fmt.Sprintf("rate %dbit burst %d", l.Rate, l.Burst) }

// MinBurst in bytes: what the kernel segments late comes as one packet of up to 64 KB, which a smaller bucket would never
// let through.
const MinBurst = 128 << 10

// MaxBurst in bytes.
const MaxBurst = 64 << 20

// DefaultBurst is what 400 ms are worth, within 256 KB and MaxBurst. What comes too fast is dropped, not queued, and TCP then
// waits for 200 ms at times (TCP_RTO_MIN of net/tcp.h): with less in the bucket it would never make up for it. Measured: with
// 50 ms a quarter of the rate gets through, with 250 ms 93 % of it.
func DefaultBurst(rate uint64) uint32 {
	return uint32(min(max(rate/8*2/5, 256<<10), MaxBurst))
}
