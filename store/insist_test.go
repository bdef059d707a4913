package store_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/netdriver/netdriver/store"
)

func TestInsistOutlivesAnAbsenceOfTheStoreButNotItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		away := fmt.Errorf("get: %w", store.ErrUnavailable)
		for what, test := range map[string]struct {
			back  time.Duration // when the store is back
			after error         // what it then says
			want  error
			took  time.Duration
		}{
			"there":        {want: nil},
			"back in time": {back: 10 * time.Second, took: 10 * time.Second},
			"refuses then": {back: 10 * time.Second, after: store.ErrConflict, want: store.ErrConflict, took: 10 * time.Second},
			"back late":    {back: time.Hour, want: store.ErrUnavailable, took: 22 * time.Second},
		} {
			ctx, cancel := context.WithTimeout(t.Context(), 22*time.Second)
			start := time.Now()
			err := store.Insist(ctx, func() error {
				if time.Since(start) < test.back {
					return away
				}
				return test.after
			})
			if took := time.Since(start); !errors.Is(err, test.want) || took != test.took {
				t.Errorf("%s: %v after %s, want %v after %s", what, err, took, test.want, test.took)
			}
			cancel()
		}
	})
}
