package store

import (
	"fmt"
	"strings"
)

// Check refuses, with an error that wraps ErrInvalid, a transaction that can never succeed. Every implementation calls
// it first, so that a mistake shows with all of them and names the key, which etcd's own refusals do not.
func Check(conds []Cond, ops []Op) error {
	if len(conds) > MaxOps || len(ops) > MaxOps {
		return fmt.Errorf("%w: %d conditions and %d operations in one transaction, at most %d of each are allowed",
			ErrInvalid, len(conds), len(ops), MaxOps)
	}
	for _, c := range conds {
		if err := CheckKey(c.Key); err != nil {
			return fmt.Errorf("condition: %w", err)
		}
		if c.Modified < -1 {
			return fmt.Errorf("%w: condition on %s: revision %d", ErrInvalid, c.Key, c.Modified)
		}
	}
	return checkOps(ops)
}

// CheckKey refuses the empty key, with an error that wraps ErrInvalid.
func CheckKey(key string) error {
	if key == "" {
		return fmt.Errorf("%w: empty key", ErrInvalid)
	}
	return nil
}

func checkOps(ops []Op) error {
	size := 0
	named := make(map[string]bool, len(ops))
	for _, o := range ops {
		if err := CheckKey(o.Key); err != nil {
			return err
		}
		if named[o.Key] {
			return fmt.Errorf("%w: key %s is written twice in one transaction", ErrInvalid, o.Key)
		}
		named[o.Key] = true
		if len(o.Value) > MaxValue {
			return fmt.Errorf("%w: value of %s has %d bytes, at most %d are allowed", ErrInvalid, o.Key, len(o.Value), MaxValue)
		}
		size += len(o.Key) + len(o.Value)
	}
	if size > MaxRequest {
		return fmt.Errorf("%w: %d bytes in one transaction, at most %d are allowed", ErrInvalid, size, MaxRequest)
	}
	return checkPrefixes(ops)
}

// checkPrefixes refuses a put of what the same transaction deletes by prefix: etcd gives such a pair no order.
func checkPrefixes(ops []Op) error {
	for _, d := range ops {
		if !d.Prefix {
			continue
		}
		for _, o := range ops {
			if !o.Delete && strings.HasPrefix(o.Key, d.Key) {
				return fmt.Errorf("%w: key %s is written and deleted (with prefix %s) in one transaction", ErrInvalid, o.Key, d.Key)
			}
		}
	}
	return nil
}
