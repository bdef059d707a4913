package main

import (
	"fmt"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// inside runs f on a thread in the namespace ns. Sockets that f opens stay in ns for whoever uses them.
func inside(ns netns.NsHandle, f func() error) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the runtime ends the thread along with the goroutine, so it needs no way back.
		runtime.LockOSThread()
		if err := netns.Set(ns); err != nil {
			done <- fmt.Errorf("enter a network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// A host is a network namespace that exists for as long as this process has it open.
type host struct {
	// port is where servers listen, any one if 0.
	port int
	ns   netns.NsHandle
	// links works inside ns from any thread.
	links *netlink.Handle
}

// newHost makes a namespace. IPv6 is off in it, so that no neighbour discovery runs beside a measurement.
func newHost() (*host, error) {
	h := &host{ns: netns.None()}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		var err error
		if h.ns, err = netns.New(); err == nil {
			err = setting("net/ipv6/conf/default/disable_ipv6", "1")
		}
		done <- err
	}()
	err := <-done
	if err == nil {
		h.links, err = netlink.NewHandleAt(h.ns)
	}
	if err != nil {
		h.close()
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	return h, nil
}

// path names the namespace for this process.
func (h *host) path() string { return fmt.Sprintf("/proc/self/fd/%d", int(h.ns)) }

func (h *host) close() {
	if h.links != nil {
		h.links.Close()
	}
	if h.ns.IsOpen() {
		h.ns.Close()
	}
}

// setting sets a sysctl of the calling thread's namespace.
func setting(name, value string) error { return os.WriteFile("/proc/sys/"+name, []byte(value), 0) }

// addressed gives a device an address and brings it up.
func (h *host) addressed(device, cidr string) error {
	link, err := h.links.LinkByName(device)
	if err != nil {
		return fmt.Errorf("find device %s: %w", device, err)
	}
	addr, err := netlink.ParseAddr(cidr)
	if err != nil {
		return err
	}
	if err := h.links.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("add address %s to %s: %w", cidr, device, err)
	}
	if err := h.links.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring %s up: %w", device, err)
	}
	return nil
}
