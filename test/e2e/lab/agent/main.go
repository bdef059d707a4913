// Agent is the program of a virtual node: its first process, the server of its commands, and the client that the lab
// runs outside of the node.
//
//	agent                            the first process
//	agent serve ADDRESS FILE         the server; FILE appears when it is ready
//	agent run ADDRESS COMMAND...     runs a command in the node at ADDRESS
//	agent dial ADDRESS SOCKET        connects standard input and output to a socket of that node
package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/netdriver/netdriver/test/e2e/lab/guest"
)

// cannotRun is the exit status when there is no command to take one from, that of env(1) and others.
const cannotRun = 125

func main() {
	if os.Getpid() == 1 {
		// The end of the first process would be a kernel panic, whose trace hides the reason.
		fmt.Fprintln(os.Stderr, "agent:", guest.Init())
		unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}
	status, err := dispatch(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "agent:", err)
		status = cannotRun
	}
	os.Exit(status)
}

func dispatch(args []string) (status int, err error) {
	if len(args) < 2 {
		return 0, errors.New("want serve, run or dial, and an address")
	}
	addr, err := netip.ParseAddr(args[1])
	if err != nil {
		return 0, err
	}
	at := netip.AddrPortFrom(addr, guest.CommandPort)
	switch {
	case args[0] == "serve" && len(args) == 3:
		return 0, guest.Serve(at, args[2])
	case args[0] == "run" && len(args) > 2:
		return guest.Run(at, args[2:])
	case args[0] == "dial" && len(args) == 3:
		return 0, guest.Dial(at, args[2])
	}
	return 0, fmt.Errorf("cannot %q", args)
}
