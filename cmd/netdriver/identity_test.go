package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"
)

func TestASecondDaemonOnTheSameRunDirectoryIsRefusedWithTheFirstOnesProcess(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	lock, err := lockRunDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockRunDir(dir); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("process %d:", os.Getpid())) {
		t.Errorf("error %v, want one that names process %d", err, os.Getpid())
	}
	lock.Close()
	again, err := lockRunDir(dir)
	if err != nil {
		t.Fatalf("after the first one's end: %v", err)
	}
	again.Close()
}

func TestANodeKeepsItsIdentity(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	first, err := nodeID(dir)
	if err != nil || uuid.Validate(first) != nil {
		t.Fatalf("id %q, error %v", first, err)
	}
	second, err := nodeID(dir)
	if err != nil || second != first {
		t.Errorf("the second start has %q, error %v; want %q", second, err, first)
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 {
		t.Errorf("files %v, error %v; want node-id only", files, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "node-id"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := nodeID(dir); err == nil || !strings.Contains(err.Error(), "node-id") {
		t.Errorf("a damaged file: error %v, want one that names it", err)
	}
}
