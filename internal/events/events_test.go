package events

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func texts(t *testing.T, dir string) (out []string) {
	t.Helper()
	err := Read(dir, func(e Event) error { out = append(out, fmt.Sprintf("%s×%d", e.Text, e.Count)); return nil })
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestEventsThatAreAlikeAreCounted(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	dir := filepath.Join(t.TempDir(), "events")
	r := New(dir, func() time.Time { return now })
	add := func(text string) {
		if err := r.Add(Event{Kind: Denied, Text: text}); err != nil {
			t.Fatal(err)
		}
	}
	if got := texts(t, dir); len(got) != 0 {
		t.Errorf("before the first: %v", got)
	}
	for range 5 {
		add("a")
	}
	add("b")
	now = now.Add(quiet)
	add("a")
	if got := fmt.Sprint(texts(t, dir)); got != "[a×1 b×1 a×5]" {
		t.Errorf("got %s", got)
	}
}

func TestTheRingIsBounded(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	dir := t.TempDir()
	r := New(dir, func() time.Time { now = now.Add(quiet); return now })
	long := string(make([]byte, 1000))
	for i := range 1000 {
		if err := r.Add(Event{Kind: Denied, Text: fmt.Sprint(i, long)}); err != nil {
			t.Fatal(err)
		}
	}
	var size int64
	for _, name := range []string{older, current} {
		if st, err := os.Stat(filepath.Join(dir, name)); err == nil {
			size += st.Size()
		}
	}
	if size > 2*half+10000 || size < half {
		t.Errorf("%d bytes are kept", size)
	}
	got := texts(t, dir)
	if last := got[len(got)-1]; last[:3] != "999" {
		t.Errorf("the last event is %.10s", last)
	}
}

func TestATornLineIsLeftOut(t *testing.T) {
	dir := t.TempDir()
	text := "{\"kind\":\"denied\",\"text\":\"a\",\"count\":1}\n{\"kind\":\"den\n{\"kind\":\"denied\",\"text\":\"b\",\"count\":1}\n{\"kind"
	if err := os.WriteFile(filepath.Join(dir, current), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(texts(t, dir)); got != "[a×1 b×1]" {
		t.Errorf("got %s", got)
	}
}

func TestAFollowerSeesWhatComes(t *testing.T) {
	dir := t.TempDir()
	r := New(dir, time.Now)
	if err := r.Add(Event{Text: "old"}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	done := errors.New("done")
	var got []string
	err := Follow(ctx, dir, func(e Event) error {
		got = append(got, e.Text)
		switch len(got) {
		case 1:
			time.AfterFunc(300*time.Millisecond, func() { _ = r.Add(Event{Text: "new"}) })
		case 2:
			_ = os.Rename(filepath.Join(dir, current), filepath.Join(dir, older))
			time.AfterFunc(300*time.Millisecond, func() { _ = r.Add(Event{Text: "newer"}) })
		case 3:
			return done
		}
		return nil
	})
	if !errors.Is(err, done) || fmt.Sprint(got) != "[old new newer]" {
		t.Errorf("%v: %v", err, got)
	}
}

func TestAFollowerMissesNothingWhenTheFileIsPutAside(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	r := New(dir, func() time.Time { now = now.Add(quiet); return now })
	long := string(make([]byte, 1000))
	add := func(i int) {
		if err := r.Add(Event{Kind: Denied, Text: fmt.Sprintf("%04d %s", i, long)}); err != nil {
			t.Error(err)
		}
	}
	const before, all = 100, 250 // a file holds about 170: a zero takes six bytes in JSON
	for i := range before {
		add(i)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	done := errors.New("done")
	next := 0
	err := Follow(ctx, dir, func(e Event) error {
		if want := fmt.Sprintf("%04d", next); e.Text[:4] != want {
			return fmt.Errorf("%s comes where %s should", e.Text[:4], want)
		}
		next++
		switch next {
		case before: // what comes while the file is read, and while it is put aside
			for i := before; i < all; i++ {
				add(i)
			}
		case all:
			return done
		}
		return nil
	})
	if !errors.Is(err, done) {
		t.Errorf("after %d: %v", next, err)
	}
	if _, err := os.Stat(filepath.Join(dir, older)); err != nil {
		t.Errorf("the file was not put aside: %v", err)
	}
}
