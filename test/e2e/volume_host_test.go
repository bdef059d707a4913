//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

// A volumeHost uses volumes: a node with Docker, whose users are containers, or one without, whose users are processes and
// for which the test makes the calls that Docker makes. A virtual node's containers start in seconds, and most of what is
// promised of a server is not about them.
type volumeHost interface {
	node() *lab.Node
	create(ctx context.Context, name string, options ...string) error
	// use runs a shell line that has the volume at /data, and returns its trimmed output.
	use(ctx context.Context, name, line string) (string, error)
	// hold starts a shell line that goes on.
	hold(t *testing.T, name, line string) volumeHolder
	// inspect returns Docker's report on a volume, without spaces.
	inspect(t *testing.T, name string) string
	// questions are those that Docker's users ask, by what they say.
	questions() map[string]func(context.Context) error
}

// A volumeHolder is a shell line that has a volume.
type volumeHolder interface {
	output(t *testing.T) string
	end(t *testing.T)
}

// makeVolume makes a volume and removes it at the test's end.
func makeVolume(t *testing.T, h volumeHost, name string, options ...string) {
	t.Helper()
	if err := h.create(t.Context(), name, options...); err != nil {
		t.Fatal(err)
	}
	atEndRun(t, h.node(), "netdriver", "volume", "rm", name)
}

// uses is use, and an error ends the test.
func uses(t *testing.T, h volumeHost, name, line string) string {
	t.Helper()
	out, err := h.use(t.Context(), name, line)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// refusal is the error of a use that has to fail.
func refusal(t *testing.T, h volumeHost, name string) string {
	t.Helper()
	out, err := h.use(t.Context(), name, "true")
	if err == nil {
		t.Fatalf("volume %s can be used: %s", name, out)
	}
	return err.Error()
}

// A dockerHost is a node with Docker.
type dockerHost struct{ n *lab.Node }

func dockerHosts(nodes []*lab.Node) []volumeHost {
	var out []volumeHost
	for _, n := range nodes {
		out = append(out, dockerHost{n})
	}
	return out
}

func (h dockerHost) node() *lab.Node { return h.n }

func (h dockerHost) create(ctx context.Context, name string, options ...string) error {
	args := []string{"volume", "create", "-d", "custom-volume"}
	for _, o := range options {
		args = append(args, "-o", o)
	}
	_, err := h.n.Docker(ctx, append(args, name)...)
	return err
}

func (h dockerHost) use(ctx context.Context, name, line string) (string, error) {
	out, err := h.n.Docker(ctx, "run", "--rm", "--network", "none", "-v", name+":/data", lab.Image, "sh", "-c", line)
	return strings.TrimSpace(out), err
}

func (h dockerHost) hold(t *testing.T, name, line string) volumeHolder {
	t.Helper()
	id := docker(t, h.n, "run", "--detach", "--network", "none", "-v", name+":/data", lab.Image, "sh", "-c", line)
	atEndRun(t, h.n, "docker", "rm", "--force", id)
	return heldContainer{h.n, id}
}

type heldContainer struct {
	n  *lab.Node
	id string
}

func (c heldContainer) output(t *testing.T) string { return docker(t, c.n, "logs", c.id) }
func (c heldContainer) end(t *testing.T)           { docker(t, c.n, "rm", "--force", c.id) }

func (h dockerHost) inspect(t *testing.T, name string) string {
	t.Helper()
	return docker(t, h.n, "volume", "inspect", "--format", "{{json .}}", name)
}

func (h dockerHost) questions() map[string]func(context.Context) error {
	out := map[string]func(context.Context) error{}
	for _, question := range [][]string{{"ps"}, {"volume", "ls"}} {
		out["docker "+strings.Join(question, " ")] = func(ctx context.Context) error {
			_, err := h.n.Docker(ctx, question...)
			return err
		}
	}
	return out
}

// A bareHost is a node with netdriver and without Docker.
type bareHost struct {
	n  *lab.Node
	mu *sync.Mutex
	// last numbers the users.
	last *int
}

func bareHosts(nodes []*lab.Node) []volumeHost {
	var out []volumeHost
	for _, n := range nodes {
		out = append(out, bareHost{n, new(sync.Mutex), new(int)})
	}
	return out
}

func (h bareHost) node() *lab.Node { return h.n }

// call makes a call as Docker does.
func (h bareHost) call(ctx context.Context, method string, request any) (string, error) {
	answer, err := h.n.Call(ctx, "/run/docker/plugins/custom-volume.sock", "VolumeDriver."+method, request)
	return string(answer), err
}

func (h bareHost) create(ctx context.Context, name string, options ...string) error {
	set := map[string]string{}
	for _, o := range options {
		key, value, _ := strings.Cut(o, "=")
		set[key] = value
	}
	_, err := h.call(ctx, "Create", map[string]any{"Name": name, "Opts": set})
	return err
}

// mount mounts a volume for a user of its own.
func (h bareHost) mount(ctx context.Context, name string) (path, id string, err error) {
	h.mu.Lock()
	*h.last++
	id = fmt.Sprintf("%s-%d", h.n.Name, *h.last)
	h.mu.Unlock()
	answer, err := h.call(ctx, "Mount", map[string]string{"Name": name, "ID": id})
	var mounted struct{ Mountpoint string }
	if err == nil {
		err = json.Unmarshal([]byte(answer), &mounted)
	}
	return mounted.Mountpoint, id, err
}

func (h bareHost) unmount(ctx context.Context, name, id string) error {
	_, err := h.call(ctx, "Unmount", map[string]string{"Name": name, "ID": id})
	return err
}

func (h bareHost) use(ctx context.Context, name, line string) (string, error) {
	path, id, err := h.mount(ctx, name)
	if err != nil {
		return "", err
	}
	out, err := h.n.Exec(ctx, "sh", "-c", strings.ReplaceAll(line, "/data", path))
	return strings.TrimSpace(out), errors.Join(err, h.unmount(ctx, name, id))
}

func (h bareHost) hold(t *testing.T, name, line string) volumeHolder {
	t.Helper()
	path, id, err := h.mount(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	p := &heldProcess{h: h, name: name, id: id, pidFile: "/run/" + id}
	script := "echo $$ >" + p.pidFile + "; " + strings.ReplaceAll(line, "/data", path)
	cmd := h.n.Command(context.Background(), "sh", "-c", script)
	cmd.Stdout, cmd.Stderr = &p.out, &p.out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.wait = cmd.Wait
	t.Cleanup(func() { p.stop(context.Background()) })
	return p
}

type heldProcess struct {
	h                 bareHost
	name, id, pidFile string
	out               safeBuffer
	wait              func() error
	once              sync.Once
	err               error
}

func (p *heldProcess) output(*testing.T) string { return p.out.String() }

func (p *heldProcess) end(t *testing.T) {
	if err := p.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (p *heldProcess) stop(ctx context.Context) error {
	p.once.Do(func() {
		_, err := p.h.n.Exec(ctx, "sh", "-c", "kill -9 $(cat "+p.pidFile+")")
		_ = p.wait()
		p.err = errors.Join(err, p.h.unmount(ctx, p.name, p.id))
	})
	return p.err
}

// safeBuffer is a buffer that is read while it is written.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func (h bareHost) inspect(t *testing.T, name string) string {
	t.Helper()
	answer, err := h.call(t.Context(), "Get", map[string]string{"Name": name})
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

func (h bareHost) questions() map[string]func(context.Context) error {
	return map[string]func(context.Context) error{"VolumeDriver.List": func(ctx context.Context) error {
		_, err := h.call(ctx, "List", map[string]string{})
		return err
	}}
}
