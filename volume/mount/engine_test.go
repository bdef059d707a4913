package mount

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// newEngine starts an engine as a fresh daemon does.
func newEngine(t interface {
	Helper()
	Fatal(args ...any)
}, f *Fake, journal, boot string, now func() time.Time) *Engine {
	t.Helper()
	e, err := New(Config{
		Dir: "/run/v", Journal: journal, Mounter: f, Log: slog.New(slog.DiscardHandler), Now: now, Boot: boot,
	})
	if err == nil {
		err = e.Recover(context.Background())
	}
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// of is a volume of a server.
func of(server, name string) Volume {
	return Volume{Name: name, Server: server, Options: "o", Prepare: func(context.Context) (Plan, error) {
		return Plan{Attempts: []Attempt{{Label: "fake", Source: server}}}, nil
	}}
}

func TestAVolumeIsMountedForItsFirstUserAndUnmountedAfterItsLast(t *testing.T) {
	f := NewFake()
	e := newEngine(t, f, t.TempDir(), "b", nil)
	for _, id := range []string{"a", "b", "b"} { // a repeated call changes nothing
		if path, err := e.Acquire(t.Context(), of("s", "v"), id); err != nil || path != "/run/v/v" {
			t.Fatalf("path %q, error %v", path, err)
		}
	}
	for _, id := range []string{"b", "b", "unknown"} {
		if err := e.Release(t.Context(), "v", id); err != nil || !f.Mounted("/run/v/v") {
			t.Fatalf("unmounted while a uses it, error %v", err)
		}
	}
	if err := e.Release(t.Context(), "v", "a"); err != nil || f.Mounted("/run/v/v") {
		t.Fatalf("still mounted, error %v", err)
	}
	if diff := cmp.Diff([]string{"mount v", "unmount v"}, f.log); diff != "" {
		t.Errorf("tasks (-want +got):\n%s", diff)
	}
}

func TestARefusedMountLeavesNothingBehindAndSaysWhy(t *testing.T) {
	f, dir := NewFake(), t.TempDir()
	e := newEngine(t, f, dir, "b", nil)
	v := of("s", "v")
	v.Prepare = func(context.Context) (Plan, error) {
		return Plan{Attempts: []Attempt{{Source: "s", FSType: "refused"}}}, nil
	}
	_, err := e.Acquire(t.Context(), v, "a")
	if errno, ok := Refused(err); !ok || errno != unix.EACCES {
		t.Errorf("error %v, want EACCES", err)
	}
	files, _ := os.ReadDir(dir)
	if len(files) != 0 || len(e.Users("v")) != 0 || !errors.Is(e.State("v").Problem, unix.EACCES) {
		t.Errorf("left %v, users %v, problem %v", files, e.Users("v"), e.State("v").Problem)
	}
	if _, err := e.Acquire(t.Context(), of("s", "w"), "a"); err != nil {
		t.Errorf("another volume of a server that refuses one: %v", err)
	}
}

func TestADeadServerCostsItsOwnVolumesADeadlineAndOthersNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewFake()
		f.wait, f.hung["dead"] = true, true
		e := newEngine(t, f, t.TempDir(), "b", nil)
		start := time.Now()
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				_, err := e.Acquire(t.Context(), of("dead", fmt.Sprint("d", i)), "a")
				if took := time.Since(start); !errors.Is(err, ErrDeadline) || took > mountTimeout+time.Second {
					t.Errorf("error %v after %s", err, took)
				}
			})
		}
		if _, err := e.Acquire(t.Context(), of("alive", "v"), "a"); err != nil || time.Since(start) > 0 {
			t.Errorf("the living server's volume: error %v after %s", err, time.Since(start))
		}
		wg.Wait()
		asked := time.Now()
		if _, err := e.Acquire(t.Context(), of("dead", "x"), "a"); !errors.Is(err, ErrOpen) || !errors.Is(err, ErrDeadline) ||
			time.Since(asked) > 0 {
			t.Errorf("right afterwards: error %v after %s; want the breaker's answer with its cause", err, time.Since(asked))
		}
		f.Hang("dead", false)
		time.Sleep(breakFor)
		if _, err := e.Acquire(t.Context(), of("dead", "x"), "a"); err != nil {
			t.Errorf("after the break: %v", err)
		}
	})
}

func TestUnmountIsAlwaysAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewFake()
		f.wait = true
		e := newEngine(t, f, t.TempDir(), "b", nil)
		if _, err := e.Acquire(t.Context(), of("s", "v"), "a"); err != nil {
			t.Fatal(err)
		}
		f.Hang("s", true)
		start := time.Now()
		if err := e.Release(t.Context(), "v", "a"); err != nil || f.Mounted("/run/v/v") || time.Since(start) > unmountTimeout {
			t.Errorf("error %v after %s", err, time.Since(start))
		}
		// Only an abort frees who waits for a frozen FUSE daemon.
		want := []string{"mount v", "unmount v", "detach v", "abort v"}
		if diff := cmp.Diff(want, f.log); diff != "" {
			t.Errorf("tasks (-want +got):\n%s", diff)
		}
	})
}

func TestAStaleVolumeIsMountedAnewOnlyWhenNobodyElseHoldsIt(t *testing.T) {
	now := time.Now()
	f := NewFake()
	e := newEngine(t, f, t.TempDir(), "b", func() time.Time { return now })
	if _, err := e.Acquire(t.Context(), of("s", "v"), "a"); err != nil {
		t.Fatal(err)
	}
	f.GoStale("/run/v/v")
	now = now.Add(time.Minute)
	if _, err := e.Acquire(t.Context(), of("s", "v"), "b"); !errors.Is(err, ErrStale) || e.State("v").Health != Stale {
		t.Errorf("error %v, health %s; want stale, since a holds it", err, e.State("v").Health)
	}
	if _, err := e.Acquire(t.Context(), of("s", "v"), "a"); err != nil || e.State("v").Health != Healthy {
		t.Errorf("error %v, health %s; want it mounted anew for its only user", err, e.State("v").Health)
	}
}

func TestAVolumeThatHangsIsAbortedAndOneThatAnswersOnlyByForce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewFake()
		f.wait = true
		e := newEngine(t, f, t.TempDir(), "b", nil)
		abort := func(force bool, want error, health Health) {
			t.Helper()
			if err := e.Abort(t.Context(), "v", force); !errors.Is(err, want) || e.State("v").Health != health {
				t.Errorf("error %v, want %v; health %s, want %s", err, want, e.State("v").Health, health)
			}
		}
		abort(true, ErrNotMounted, "")
		acquire := func() {
			t.Helper()
			if _, err := e.Acquire(t.Context(), of("s", "v"), "a"); err != nil || e.State("v").Health != Healthy {
				t.Fatalf("error %v, health %s", err, e.State("v").Health)
			}
		}
		acquire()
		abort(false, ErrAnswers, Healthy)
		abort(true, nil, Stale)
		acquire() // mounted anew for its only user
		f.Hang("s", true)
		abort(false, nil, Stale)
		f.Hang("s", false)
		acquire()
		f.kernel("/run/v/v")
		abort(true, ErrNoFUSE, Healthy)
	})
}

func TestChangedOptionsTakeEffectOnceNobodyUsesTheOldOnes(t *testing.T) {
	f := NewFake()
	e := newEngine(t, f, t.TempDir(), "b", nil)
	v := of("s", "v")
	if _, err := e.Acquire(t.Context(), v, "a"); err != nil {
		t.Fatal(err)
	}
	v.Options = "other"
	if _, err := e.Acquire(t.Context(), v, "b"); err != nil || !e.State("v").Outdated {
		t.Errorf("error %v, outdated %v", err, e.State("v").Outdated)
	}
	for _, id := range []string{"a", "b"} {
		if err := e.Release(t.Context(), "v", id); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := e.Acquire(t.Context(), v, "c"); err != nil || e.State("v").Outdated {
		t.Errorf("error %v, outdated %v", err, e.State("v").Outdated)
	}
}

func TestAHundredUsersAtOnceShareOneMount(t *testing.T) {
	f := NewFake()
	e := newEngine(t, f, t.TempDir(), "b", nil)
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			if _, err := e.Acquire(t.Context(), of("s", "v"), fmt.Sprint(i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := len(e.Users("v")); n != 100 || len(f.log) != 1 {
		t.Errorf("%d users, tasks %v", n, f.log)
	}
}

func TestADamagedJournalIsNamedAndNothingIsUnmounted(t *testing.T) {
	f, dir := NewFake(), t.TempDir()
	f.mounts["/run/v/v"] = Mounted{Source: "s"}
	if err := os.WriteFile(filepath.Join(dir, "v.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	e, err := New(Config{Dir: "/run/v", Journal: dir, Mounter: f, Log: slog.New(slog.DiscardHandler), Boot: "b"})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Recover(t.Context()); err == nil || !strings.Contains(err.Error(), "v.json") || !f.Mounted("/run/v/v") {
		t.Errorf("error %v, mounted %v", err, f.Mounted("/run/v/v"))
	}
}

// world is the model of the property below: who was told that a volume is mounted and has not given it back.
type world struct {
	f       *Fake
	e       *Engine
	journal string
	boot    int
	now     time.Time
	users   map[string]map[string]bool
}

func (w *world) restart(t *rapid.T) {
	w.e = newEngine(t, w.f, w.journal, fmt.Sprint("boot", w.boot), func() time.Time { return w.now })
}

func (w *world) check(t *rapid.T) {
	if w.f.broken != nil {
		t.Fatal(w.f.broken)
	}
	for name, users := range w.users {
		want := make([]string, 0)
		for id := range users {
			want = append(want, id)
		}
		slices.Sort(want)
		if got := w.e.Users(name); !slices.Equal(got, want) {
			t.Fatalf("volume %s: users %v, want %v", name, got, want)
		}
		if mounted := w.f.Mounted(w.e.Path(name)); mounted != (len(want) > 0) {
			t.Fatalf("volume %s: mounted %v with users %v", name, mounted, want)
		}
	}
}

func TestWhoHoldsAVolumeHasItAndNobodyElseDoesWhateverHappens(t *testing.T) {
	volumes := map[string]string{"v1": "s1", "v2": "s1", "v3": "s2"}
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "journal")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		w := &world{f: NewFake(), journal: dir, now: time.Unix(0, 0), users: map[string]map[string]bool{}}
		for name := range volumes {
			w.users[name] = map[string]bool{}
		}
		w.restart(t)
		name := rapid.SampledFrom([]string{"v1", "v2", "v3"})
		id := rapid.SampledFrom([]string{"a", "b", "c"})
		server := rapid.SampledFrom([]string{"s1", "s2"})
		t.Repeat(map[string]func(*rapid.T){
			"acquire": func(t *rapid.T) {
				n, i := name.Draw(t, "volume"), id.Draw(t, "id")
				v := of(volumes[n], n)
				v.Options = rapid.SampledFrom([]string{"o", "p"}).Draw(t, "options")
				if _, err := w.e.Acquire(t.Context(), v, i); err == nil {
					w.users[n][i] = true
				} else if !w.f.hung[volumes[n]] && !errors.Is(err, ErrOpen) && !errors.Is(err, ErrStale) {
					t.Fatal(err)
				}
				// A failed remount of a stale volume leaves its only user without: the kernel's copy in the container is
				// what it has.
				if !w.f.Mounted(w.e.Path(n)) {
					for u := range w.users[n] {
						if err := w.e.Release(t.Context(), n, u); err != nil {
							t.Fatal(err)
						}
					}
					clear(w.users[n])
				}
			},
			"release": func(t *rapid.T) {
				n, i := name.Draw(t, "volume"), id.Draw(t, "id")
				if err := w.e.Release(t.Context(), n, i); err != nil {
					t.Fatal(err)
				}
				delete(w.users[n], i)
			},
			"hang":  func(t *rapid.T) { w.f.Hang(server.Draw(t, "server"), true) },
			"thaw":  func(t *rapid.T) { w.f.Hang(server.Draw(t, "server"), false) },
			"later": func(*rapid.T) { w.now = w.now.Add(time.Minute) },
			"check": func(t *rapid.T) { w.e.Check(t.Context()) },
			"go stale": func(t *rapid.T) {
				if n := name.Draw(t, "volume"); w.f.Mounted(w.e.Path(n)) {
					w.f.GoStale(w.e.Path(n))
				}
			},
			"kill the daemon": func(t *rapid.T) { w.restart(t) },
			"kill it after a mount and before the journal": func(t *rapid.T) {
				if n := name.Draw(t, "volume"); !w.f.Mounted(w.e.Path(n)) {
					w.f.mounts[w.e.Path(n)] = Mounted{Source: volumes[n]}
				}
				w.restart(t)
			},
			"reboot": func(t *rapid.T) {
				w.f.Reboot()
				w.boot++
				for n := range w.users {
					clear(w.users[n])
				}
				w.restart(t)
			},
			"": w.check,
		})
	})
}

// The kernel's CephFS client says so of a wrong key; other volumes of that server go on.
func TestNoRouteToHostFromAMountIsAnAnswerAndOfADialIsSilence(t *testing.T) {
	for err, want := range map[error]bool{
		Failure{Step: "mount", Errno: unix.EHOSTUNREACH}: false,
		unix.EHOSTUNREACH: true,
		Failure{Step: "mount", Errno: unix.ETIMEDOUT}: true,
		unix.EACCES: false,
	} {
		if got := silent(err); got != want {
			t.Errorf("silent(%v) is %t", err, got)
		}
	}
}
