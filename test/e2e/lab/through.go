package lab

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// A throughConn is a connection whose other end is the standard input and output of a command.
type throughConn struct {
	net.Conn
	cmd *exec.Cmd
}

// dialThrough starts a command that prints a zero byte once it has a connection, and then is that connection.
func dialThrough(cmd *exec.Cmd) (net.Conn, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "socketpair"), os.NewFile(uintptr(pair[1]), "socketpair")
	defer ours.Close()
	defer theirs.Close()
	connection, err := net.FileConn(ours)
	if err != nil {
		return nil, err
	}
	cmd.Stdin, cmd.Stdout = theirs, theirs
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, connection.Close())
	}
	through := throughConn{connection, cmd}
	theirs.Close() // so that the command's end is an end of file
	if _, err := io.ReadFull(connection, make([]byte, 1)); err != nil {
		return nil, errors.Join(fmt.Errorf("no connection: %w", err), through.Close())
	}
	return through, nil
}

// Close ends the command, too.
func (c throughConn) Close() error {
	err := c.Conn.Close()
	c.cmd.Process.Kill()
	c.cmd.Wait()
	return err
}
