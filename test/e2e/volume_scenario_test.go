//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// A volumeKind is what the scenarios have to know of one kind of server.
type volumeKind struct {
	*fileServer
	// name is the kind's, and the beginning of its volumes' names.
	name string
	// options are those of a volume with all that the server has; what is given is added to its mount options o.
	options func(o ...string) []string
	// missing is a volume that is not there, forbidden one that this client may not use, squashed one whose server takes
	// root for nobody. None: the kind's server has no such thing.
	missing, forbidden, squashed []string
	// sayMissing and sayForbidden are what errors then say.
	sayMissing, sayForbidden string
	// withdraw takes the volume away from the server, offer gives it back; sayWithdrawn is what an error says between.
	withdraw, offer func()
	sayWithdrawn    string
	// ready waits until a server that was down serves again.
	ready func()
	// client is the program that each volume's FUSE client is, if the kernel's is not used.
	client string
	// die is what the server's end is, if not that of all its processes.
	die func()
}

// deadline is what Docker's user waits for a server at most: the 20 s of a mount, and some for Docker and a busy machine.
const deadline = 25 * time.Second

// scenario runs on one kind of server all that volumes promise of every kind. Two nodes, so that what one writes is read on
// another; `docker ps` and `docker volume ls` are watched throughout.
func (k *volumeKind) scenario(t *testing.T, hosts []volumeHost) {
	k.t = t
	defer watch(t, hosts)()
	n1, n2 := hosts[0], hosts[1]
	makeVolume(t, n1, k.name, k.options()...)
	makeVolume(t, n1, k.name+"-other") // on no server

	t.Run("moves", func(t *testing.T) {
		uses(t, n1, k.name, "echo kept >/data/f; mkdir /data/d; ln -s f /data/l")
		if got := uses(t, n2, k.name, "cat /data/l; rmdir /data/d"); got != "kept" {
			t.Errorf("the second node reads %q", got)
		}
		says(t, n2.inspect(t, k.name), `"type":"`+k.kind()+`"`, k.addr)
	})
	t.Run("subdir", func(t *testing.T) {
		makeVolume(t, n2, k.name+"-sub", append(k.options(), "subdir=web/static", "mode=2770", "uid=33", "gid=34")...)
		uses(t, n1, k.name+"-sub", "echo below >/data/g")
		const list = "cat /data/web/static/g; stat -c '%a %u:%g' /data/web/static"
		if got := uses(t, n2, k.name, list); got != "below\n2770 33:34" {
			t.Errorf("below subdir there is %q", got)
		}
	})
	t.Run("read-only", func(t *testing.T) {
		makeVolume(t, n1, k.name+"-ro", k.options("ro")...)
		got := uses(t, n1, k.name+"-ro", "cat /data/f; ! echo x 2>&1 >/data/x")
		says(t, got, "kept", "Read-only file system")
	})
	k.refusals(t, n1)
	t.Run("made anew", func(t *testing.T) { k.madeAnew(t, n1, n2) })
	t.Run("withdrawn", func(t *testing.T) { k.withdrawn(t, n1) })
	die := k.die
	if die == nil {
		die = k.stop
	}
	t.Run("killed", func(t *testing.T) { k.outage(t, hosts, die, k.start) })
	t.Run("frozen", func(t *testing.T) { k.outage(t, hosts, k.freeze, k.thaw) })
	t.Run("cut off", func(t *testing.T) { k.outage(t, hosts, k.cut, k.connect) })
	if k.client != "" { // at the end: a server waits a minute for the one that has died
		t.Run("client frozen", func(t *testing.T) { k.clientFrozen(t, n1) })
	}
}

// kind is the value of type=.
func (k *volumeKind) kind() string {
	for _, o := range k.options() {
		if value, ok := strings.CutPrefix(o, "type="); ok {
			return value
		}
	}
	return ""
}

// refusals are the errors in which the server has answered.
func (k *volumeKind) refusals(t *testing.T, n volumeHost) {
	expect := func(name string, options []string, words ...string) {
		t.Run(name, func(t *testing.T) {
			if options == nil {
				t.Logf("not with %s", k.name)
				return
			}
			volume := k.name + "-" + strings.ReplaceAll(name, " ", "-")
			makeVolume(t, n, volume, options...)
			says(t, refusal(t, n, volume), append([]string{k.kind(), k.addr}, words...)...)
			if out := run(t, n.node(), "cat", "/proc/self/mountinfo"); strings.Contains(out, "/"+volume+" ") {
				t.Errorf("it is mounted nevertheless:\n%s", out)
			}
		})
	}
	expect("missing", k.missing, k.sayMissing)
	expect("forbidden", k.forbidden, k.sayForbidden)
	if k.squashed != nil {
		expect("root squashed", append(k.squashed, "subdir=made"), "root_squash")
	}
}

// madeAnew: a directory that is mounted is deleted on the server and made again. Nobody may go on with the old one.
func (k *volumeKind) madeAnew(t *testing.T, n1, n2 volumeHost) {
	name := k.name + "-anew"
	makeVolume(t, n1, name, append(k.options(), "subdir=anew")...)
	held := n1.hold(t, name, "sleep 1000")
	uses(t, n2, k.name, "rm -r /data/anew; mkdir /data/anew; echo new >/data/anew/f")
	eventually(t, 15*time.Second, func() error {
		out, err := n1.node().Exec(t.Context(), "netdriver", "volume", "check", name)
		if err == nil {
			return fmt.Errorf("it is not noticed:\n%s", out)
		}
		return nil
	})
	says(t, run(t, n1.node(), "netdriver", "volume", "inspect", name), "STALE", "stop the containers that use it")
	says(t, refusal(t, n1, name), "1 other users hold it")
	held.end(t)
	if got := uses(t, n1, name, "cat /data/f"); got != "new" {
		t.Errorf("with its last user gone it is not mounted anew: %q", got)
	}
}

// withdrawn: the export is removed.
func (k *volumeKind) withdrawn(t *testing.T, n volumeHost) {
	k.withdraw()
	offered := false
	defer func() {
		if !offered {
			k.offer()
		}
	}()
	says(t, refusal(t, n, k.name), k.addr, k.sayWithdrawn)
	k.offer()
	offered = true
	eventually(t, 60*time.Second, func() error { return k.reads(t, n) })
}

// clientFrozen: the client process of a volume hangs, and with it a container that SIGKILL does not end. An abort frees it.
func (k *volumeKind) clientFrozen(t *testing.T, n volumeHost) {
	name := k.name + "-frozen"
	makeVolume(t, n, name, k.options()...)
	held := n.hold(t, name, "while :; do ls /data >/dev/null; sleep 0.1; done")
	abort := func() (string, error) { return n.node().Exec(t.Context(), "netdriver", "volume", "abort", name) }
	if out, err := abort(); err == nil || !strings.Contains(err.Error(), "its server answers") {
		t.Errorf("one that answers is aborted: %s, error %v", out, err)
	}
	run(t, n.node(), "pkill", "-STOP", "-f", k.client+".*/"+name+"$")
	defer func() { _, _ = n.node().Exec(context.Background(), "pkill", "-CONT", "-f", k.client+".*/"+name+"$") }()
	eventually(t, 30*time.Second, func() error {
		out, err := n.node().Exec(t.Context(), "netdriver", "volume", "check", name)
		if err == nil {
			return fmt.Errorf("that the client hangs is not noticed:\n%s", out)
		}
		return nil
	})
	says(t, run(t, n.node(), "netdriver", "volume", "inspect", name), "HUNG", "netdriver volume abort "+name)
	out, err := abort()
	if err != nil {
		t.Fatal(err)
	}
	says(t, out, "STALE", "stop the containers that use it")
	begin := time.Now()
	held.end(t)
	t.Logf("its container has ended after %s", time.Since(begin).Round(time.Millisecond))
	eventually(t, 30*time.Second, func() error { // the server counts as silent for a while
		_, err := n.use(t.Context(), name, "cat /data/f")
		return err
	})
}

// reads says whether a user gets the volume's data.
func (k *volumeKind) reads(t *testing.T, n volumeHost) error {
	got, err := n.use(t.Context(), k.name, "cat /data/f")
	if err == nil && got != "kept" {
		err = fmt.Errorf("it reads %q", got)
	}
	return err
}

// outage: the server is away for a while. Who starts a container then learns in time why it cannot; volumes of others are as
// before; and who has used the volume all the time goes on afterwards and has lost nothing.
func (k *volumeKind) outage(t *testing.T, hosts []volumeHost, down, up func()) {
	n1, n2 := hosts[0], hosts[1]
	held := n1.hold(t, k.name, "n=0; while :; do n=$((n+1)); echo $n >>/data/log && echo $n; sleep 0.2; done")
	written := func() int { return strings.Count(held.output(t), "\n") }
	eventually(t, 20*time.Second, func() error {
		if written() == 0 {
			return errors.New("nothing is written")
		}
		return nil
	})
	down()
	isUp := false
	defer func() {
		if !isUp {
			up()
		}
	}()
	begin := time.Now()
	err := refusal(t, n2, k.name)
	took := time.Since(begin)
	t.Logf("known after %s", took.Round(time.Millisecond))
	if took > deadline {
		t.Errorf("it took %s to learn that the server is away", took)
	}
	says(t, err, k.kind(), k.addr)
	uses(t, n1, k.name+"-other", "true")
	up()
	isUp = true
	k.ready()
	before := written()
	eventually(t, 90*time.Second, func() error { return k.reads(t, n2) })
	eventually(t, 90*time.Second, func() error {
		if written() <= before {
			return errors.New("who had the volume does not go on")
		}
		return nil
	})
	held.end(t)
	uses(t, n2, k.name, "rm /data/log")
}

// watch asks every host what Docker's users ask of volumes, again and again, and returns how to end that. A question that took
// more than a second is asked again at once: three such answers in a row are no matter of a busy machine.
func watch(t *testing.T, hosts []volumeHost) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, h := range hosts {
		for what, ask := range h.questions() {
			wg.Go(func() { watchOne(ctx, t, h.node(), what, ask) })
		}
	}
	return func() { cancel(); wg.Wait() }
}

func watchOne(ctx context.Context, t *testing.T, n *lab.Node, what string, ask func(context.Context) error) {
	slowest, slow, asked := time.Duration(0), 0, 0
	for ctx.Err() == nil {
		begin := time.Now()
		err := ask(ctx)
		took := time.Since(begin)
		if ctx.Err() != nil {
			break
		}
		asked++
		slowest = max(slowest, took)
		if err != nil {
			t.Errorf("%s: %s: %v", n.Name, what, err)
		}
		if took < n.Patience(time.Second) {
			slow = 0
			select {
			case <-time.After(500 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		if slow++; slow == 3 {
			t.Errorf("%s: %s took more than a second, three times in a row: %s", n.Name, what, took)
		}
	}
	t.Logf("%s: %s: %d times, at most %s", n.Name, what, asked, slowest.Round(time.Millisecond))
}
