package store

import (
	"errors"
	"fmt"
	"regexp"
)

// Name is what users call the container that has an endpoint. Docker's calls carry ids only, so each daemon looks the names
// of its own endpoints up afterwards and publishes them; they are shown and never acted upon.
type Name struct {
	Network  string `json:"network"`
	Endpoint string `json:"endpoint"`
	// Container is the container's name, ContainerID Docker's id of it.
	Container   string `json:"container"`
	ContainerID string `json:"containerID"`
	// Service and Task are those of the swarm that the container runs for, such as web and web.1.<id>; empty if none.
	Service string `json:"service,omitempty"`
	Task    string `json:"task,omitempty"`
}

// Engine is what a node says of its Docker engine and its kernel. It goes with the daemon's liveness.
type Engine struct {
	Node string `json:"node"`
	// Version is the engine's, Role that of the node in its swarm.
	Version string `json:"version,omitempty"`
	Role    string `json:"role,omitempty"`
	// Unbalanced says why the node's kernel cannot balance virtual addresses; empty if it can.
	Unbalanced string `json:"unbalanced,omitempty"`
}

// The roles of a node in a swarm. A node of no swarm has none.
const (
	RoleLeader  = "leader"
	RoleManager = "manager"
	RoleWorker  = "worker"
)

// DockerNames returns the names that Docker has for the network, by Docker's id, as far as they are known.
func (n Network) DockerNames() map[string]string {
	out := map[string]string{}
	for _, m := range n.Members {
		if m.Name != "" {
			out[m.DockerID] = m.Name
		}
	}
	if n.SwarmName != "" {
		out[n.Swarm] = n.SwarmName
	}
	return out
}

// shown is what names of containers, services and tasks are made of (moby daemon/names/names.go; longer ones than Docker
// makes are allowed). Labels can hold anything, also what a terminal would obey.
var shown = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}$`)

// CheckShown says whether s can be shown to users as the name of a container, a service or a task.
func CheckShown(what, s string) error {
	if !shown.MatchString(s) {
		return fmt.Errorf("%s name %q: want 1 to 255 letters, digits, '_', '.' or '-'", what, s)
	}
	return nil
}

func (n Name) check() error {
	errs := []error{CheckID("endpoint", n.Endpoint), CheckShown("container", n.Container)}
	if n.Service != "" {
		errs = append(errs, CheckShown("service", n.Service))
	}
	if n.Task != "" {
		errs = append(errs, CheckShown("task", n.Task))
	}
	return errors.Join(errs...)
}
