package store

import (
	"context"
	"errors"
	"time"
)

// insistEvery is the pause between two attempts of Insist. A store that has lost its leader answers that at once, over and
// over, for an election's second or more.
const insistEvery = 250 * time.Millisecond

// Insist calls f again and again while the store is unavailable, until ctx ends: for a caller to whom late is better than
// refused. What f commits may have been applied although f failed, so f must know its own work again. It returns f's last
// error.
func Insist(ctx context.Context, f func() error) error {
	for {
		err := f()
		if !errors.Is(err, ErrUnavailable) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(insistEvery):
		}
	}
}
