package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/netdriver/netdriver/test/e2e/lab"
)

const (
	// bridgeRounds is how many containers are attached for each round of other benchmarks.
	bridgeRounds = 4
	// bridgeStarts is how many containers are started, which takes Docker most of a second each.
	bridgeStarts = 1
)

// attachingToBridges compares how long a real Docker engine takes to attach a container to a network with mode=bridge with what
// it takes for a bridge network of its own.
func attachingToBridges(ctx context.Context, b *bench) ([]Result, error) {
	return withDaemons(ctx, b, lab.Config{Nodes: 1}, nil, func(l *lab.Lab) ([]Result, error) {
		if err := l.StartDocker(ctx); err != nil {
			return nil, err
		}
		a := attaches{node: l.Nodes[0], docker: engineAt(l.Nodes[0], "/run/docker.sock")}
		defer a.docker.close()
		if err := a.prepare(ctx); err != nil {
			return nil, err
		}
		connected := func(network string) func() (float64, error) {
			return func() (float64, error) { return a.connect(ctx, network) }
		}
		started := func(network string) func() (float64, error) {
			return func() (float64, error) { return a.start(ctx, network) }
		}
		ours, theirs, err := inTurns(ctx, bridgeRounds*b.rounds, connected("ours"), connected("theirs"))
		if err != nil {
			return nil, err
		}
		r, err := ratioResult("a running container is connected to a network with mode=bridge, time ÷ that of Docker's own bridge",
			ours, theirs, "ms", 1)
		if err != nil {
			return nil, err
		}
		ours, theirs, err = inTurns(ctx, bridgeStarts*b.rounds, started("ours"), started("theirs"))
		if err != nil {
			return []Result{r}, err
		}
		whole, err := ratioResult("`docker start` of a container in it ÷ that in Docker's own bridge (for information)", ours, theirs, "ms", 0)
		return []Result{r, whole}, err
	})
}

// attaches is a real engine with a network of either kind, and a container that is connected to them in turns.
type attaches struct {
	node   *lab.Node
	docker *engine
}

func (a attaches) prepare(ctx context.Context) error {
	const driver = "custom-overlay"
	for _, c := range [][]string{
		{"network", "create", "--subnet", "10.9.0.0/16", "theirs"},
		{"network", "create", "-d", driver, "--ipam-driver", driver, "--subnet", "10.8.0.0/16", "--opt", "network=ours",
			"--ipam-opt", "network=ours", "--opt", "mode=bridge", "ours"},
		{"run", "--detach", "--name", "task", lab.Image, "sleep", "100000"},
		{"create", "--name", "start-ours", "--network", "ours", lab.Image, "sleep", "100000"},
		{"create", "--name", "start-theirs", "--network", "theirs", lab.Image, "sleep", "100000"},
	} {
		if _, err := a.node.Docker(ctx, c...); err != nil {
			return err
		}
	}
	return nil
}

// connect returns how long the engine takes to connect the container, in milliseconds, from the request to its answer.
func (a attaches) connect(ctx context.Context, network string) (float64, error) {
	body := map[string]any{"Container": "task"}
	begin := time.Now()
	if err := a.post(ctx, "networks/"+network+"/connect", body); err != nil {
		return 0, err
	}
	took := milliseconds(time.Since(begin))
	body["Force"] = true
	return took, a.post(ctx, "networks/"+network+"/disconnect", body)
}

// start is the same for the start of a container.
func (a attaches) start(ctx context.Context, network string) (float64, error) {
	begin := time.Now()
	if err := a.post(ctx, "containers/start-"+network+"/start", nil); err != nil {
		return 0, err
	}
	took := milliseconds(time.Since(begin))
	return took, a.post(ctx, "containers/start-"+network+"/stop?t=0", nil)
}

// post makes a call of the engine's interface.
func (a attaches) post(ctx context.Context, path string, body any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://docker/"+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	answer, err := a.docker.client.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode >= http.StatusBadRequest {
		said, _ := io.ReadAll(answer.Body)
		return fmt.Errorf("%s: %s: %s", path, answer.Status, bytes.TrimSpace(said))
	}
	return nil
}
