package keying

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/netdriver/netdriver/ipsec"
)

const (
	// tryTimeout is what finding out may take: the kernel loads modules meanwhile, on a slow host for seconds.
	tryTimeout = 2 * time.Minute
	// tryEvery is the pause after a kernel that cannot: modules may be loaded.
	tryEvery = time.Second
)

// errTrying says that it is not known yet.
var errTrying = errors.New("it is still being found out which ciphers this kernel has; try again in some seconds")

// ability is which ciphers can be used here. Finding out takes time and loads modules, so it is done when the cluster has an
// encrypted network or Docker asks for one, once, at the side of everything else.
type ability struct {
	kernel    ipsec.Kernel
	preferred []ipsec.Cipher
	log       *slog.Logger
	asked     chan struct{}

	mu sync.Mutex
	// have are the ciphers, the preferred one first; err says why there are none. tried is closed, and made anew, with each
	// attempt's end.
	have  []ipsec.Cipher
	err   error
	tried chan struct{}
	at    time.Time
}

func newAbility(cfg Config) *ability {
	return &ability{
		kernel: cfg.Kernel, preferred: cfg.Preferred, log: cfg.Log, asked: make(chan struct{}, 1), tried: make(chan struct{}), err: errTrying,
	}
}

// prepare asks, and does not wait.
func (a *ability) prepare() {
	a.mu.Lock()
	known := a.have != nil
	a.mu.Unlock()
	if known {
		return
	}
	select {
	case a.asked <- struct{}{}:
	default:
	}
}

// now returns what is known, and asks if that is nothing.
func (a *ability) now() ([]ipsec.Cipher, error) {
	a.prepare()
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.have, a.err
}

// get waits for an attempt that begins now, if nothing is known, but not beyond ctx.
func (a *ability) get(ctx context.Context) ([]ipsec.Cipher, error) {
	a.mu.Lock()
	have, err, tried, recent := a.have, a.err, a.tried, time.Since(a.at) < tryEvery
	a.mu.Unlock()
	if have != nil || recent && err != nil {
		return have, err
	}
	a.prepare()
	select {
	case <-tried:
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.have, a.err
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", errTrying, ctx.Err())
	}
}

// run tries when it is asked, until ctx ends or it is known. It tells the loop.
func (a *ability) run(ctx context.Context, tell func()) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.asked:
		}
		if a.try(ctx) {
			tell()
			return
		}
		tell()
		select {
		case <-ctx.Done():
			return
		case <-time.After(tryEvery):
		}
	}
}

func (a *ability) try(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	begin := time.Now()
	have, err := a.kernel.Supports(ctx)
	usable := slices.DeleteFunc(slices.Clone(a.preferred), func(c ipsec.Cipher) bool { return !slices.Contains(have, c) })
	a.mu.Lock()
	defer a.mu.Unlock()
	known := err != nil && a.err != nil && err.Error() == a.err.Error()
	a.have, a.err, a.at = usable, err, time.Now()
	if err != nil {
		a.have = nil
	}
	switch {
	case err == nil:
		a.log.Info("this node can be in encrypted networks", "ciphers", usable, "took", time.Since(begin))
	case !known:
		a.log.Warn("this node cannot be in encrypted networks", "reason", err)
	}
	close(a.tried)
	a.tried = make(chan struct{})
	return err == nil
}
