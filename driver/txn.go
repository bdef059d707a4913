package driver

import (
	"context"
	"errors"
	"fmt"

	"github.com/netdriver/netdriver/store"
)

// txn is a transaction in the making.
type txn struct {
	conds []store.Cond
	ops   []store.Op
}

func (t *txn) require(conds ...store.Cond) { t.conds = append(t.conds, conds...) }
func (t *txn) write(ops ...store.Op)       { t.ops = append(t.ops, ops...) }

// commit commits what prepare makes of the records as it finds them, again if somebody else has written meanwhile,
// which prepare itself may find, too. A transaction that writes nothing is not sent: there is nothing to do, and the
// revision is 0.
func (d *Driver) commit(ctx context.Context, prepare func() (txn, error)) (revision int64, err error) {
	for range retries {
		t, err := prepare()
		if err == nil && len(t.ops) > 0 {
			revision, err = d.cfg.Store.Commit(ctx, t.conds, t.ops...)
		}
		if !errors.Is(err, store.ErrConflict) {
			return revision, err
		}
	}
	return 0, fmt.Errorf("%w %d times; try again", store.ErrConflict, retries)
}

// read reads and decodes one record; found is false if there is none.
func read[R store.Record](ctx context.Context, s store.Store, key string) (r R, kv store.KV, found bool, err error) {
	kv, err = s.Get(ctx, key)
	if errors.Is(err, store.ErrNotFound) {
		return r, kv, false, nil
	}
	if err == nil {
		r, err = store.Decode[R](kv)
	}
	return r, kv, err == nil, err
}
