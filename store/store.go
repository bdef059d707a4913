// Package store is the cluster's truth: small versioned JSON records under one prefix, changed by compare-and-swap
// transactions and followed by watches. The interface has three implementations that pass one suite (store/storetest):
// Memory in this package, and package store/etcd for an embedded and for a remote etcd.
package store

import (
	"context"
	"errors"
)

var (
	// ErrNotFound says that a key does not exist.
	ErrNotFound = errors.New("not found in the store")
	// ErrConflict says that a transaction's condition did not hold: somebody else wrote first. Read again and retry.
	ErrConflict = errors.New("the store changed meanwhile")
	// ErrUnavailable says that the store could not be asked in time. Existing traffic is not affected.
	ErrUnavailable = errors.New("the store cannot be reached")
	// ErrInvalid says that a request can never succeed as it is: an empty key, a key written twice in one transaction
	// (also a put of what the same transaction deletes by prefix), a value or a transaction that is too large.
	ErrInvalid = errors.New("invalid store request")
)

const (
	// MaxOps is the largest number of operations, or of conditions, in one transaction (etcd's default --max-txn-ops).
	MaxOps = 128
	// MaxValue is the largest value in bytes; etcd's default --max-request-bytes is 1.5 MiB for a whole request.
	MaxValue = 1 << 20
	// MaxRequest is the size of all keys and values of one transaction, in bytes, with room below etcd's limit for what
	// its encoding adds.
	MaxRequest = 5 << 18
)

// KV is one key with its value. Revisions are those of etcd: cluster-wide, growing with each transaction.
type KV struct {
	Key   string
	Value []byte
	// Created is the revision at which the key last came into being, Modified that of its last change.
	Created, Modified int64
}

// Cond is one condition of a transaction on a key. Exactly one of its forms is used; make it with Absent, Exists or
// Unchanged.
type Cond struct {
	Key string
	// Modified is the modification revision that the key must have; 0 means that it must not exist and -1 that it must
	// exist, whatever its revision.
	Modified int64
}

// Absent holds if key does not exist.
func Absent(key string) Cond { return Cond{Key: key} }

// Exists holds if key exists, whatever its value.
func Exists(key string) Cond { return Cond{Key: key, Modified: -1} }

// Unchanged holds if key has not been written since kv was read.
func Unchanged(kv KV) Cond { return Cond{Key: kv.Key, Modified: kv.Modified} }

// Op is one write of a transaction; make it with Put, Delete or DeletePrefix.
type Op struct {
	Key   string
	Value []byte
	// Delete removes the key; with Prefix, every key that starts with it.
	Delete, Prefix bool
	// Alive ties the key to this process' liveness: it goes when the process has not been heard of for AliveTTL.
	Alive bool
}

// Put writes value under key.
func Put(key string, value []byte) Op { return Op{Key: key, Value: value} }

// PutAlive writes value under key for as long as this process is alive and connected.
func PutAlive(key string, value []byte) Op { return Op{Key: key, Value: value, Alive: true} }

// Delete removes key; removing what does not exist is no error.
func Delete(key string) Op { return Op{Key: key, Delete: true} }

// DeletePrefix removes every key that starts with prefix.
func DeletePrefix(prefix string) Op { return Op{Key: prefix, Delete: true, Prefix: true} }

// Event is one change seen by a watch.
type Event struct {
	// KV is the new state; of a deleted key it has only Key and Modified (the revision of the deletion).
	KV      KV
	Deleted bool
}

// Batch is what a watch delivers: all changes of one or more whole transactions, in order.
type Batch struct {
	// Events in order of revision.
	Events []Event
	// Revision is the store's revision up to which the watch is complete after this batch.
	Revision int64
	// Reset is true when changes were lost (the store compacted them, or the watch begins): Events then hold the
	// complete present content as puts, and whatever is not among them does not exist any more.
	Reset bool
}

// Store is the cluster's truth. Every method ends when its context does, with an error that wraps ErrUnavailable if the
// store did not answer in time. All methods may be called concurrently.
type Store interface {
	// Get returns one key, or an error that wraps ErrNotFound. Reads are linearizable.
	Get(ctx context.Context, key string) (KV, error)
	// List returns the keys that start with prefix, in order of key, and the store's revision at that moment.
	List(ctx context.Context, prefix string) ([]KV, int64, error)
	// Count returns how many keys start with prefix.
	Count(ctx context.Context, prefix string) (int64, error)
	// Commit applies ops if all conditions hold, atomically, and returns the new revision. If one does not hold
	// nothing is changed and the error wraps ErrConflict.
	Commit(ctx context.Context, conds []Cond, ops ...Op) (int64, error)
	// Watch delivers the content under prefix, first as one Batch with Reset, then every change. It survives
	// disconnection and compaction (then with another Reset) and closes the channel only when ctx ends.
	Watch(ctx context.Context, prefix string) <-chan Batch
}
