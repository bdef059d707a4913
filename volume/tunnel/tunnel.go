// Package tunnel carries NFS through TLS to a server that wants it, such as Amazon EFS. The kernel's client connects to a
// process on the loopback, which outlives the daemon: a mount must not depend on that. The process ends by itself when no
// mount goes through it any more.
package tunnel

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

const (
	// dialTimeout bounds one attempt to reach the server. The kernel's client repeats a connection that fails.
	dialTimeout = 10 * time.Second
	// lookEvery is how often a tunnel looks for its mount; it ends when that was missing patience times in a row.
	lookEvery = 30 * time.Second
	patience  = 2
)

// Config says where a tunnel leads.
type Config struct {
	// Server is the address and port of the server.
	Server netip.AddrPort `json:"server"`
	// Name is what the server's certificate has to be for.
	Name string `json:"name"`
	// CAFile has the CAs that may have signed it, in PEM; the system's if empty.
	CAFile string `json:"caFile,omitempty"`
}

// TLS returns the client's side. TLS 1.2 is what EFS speaks at least.
func (c Config) TLS() (*tls.Config, error) {
	t := &tls.Config{ServerName: c.Name, MinVersion: tls.VersionTLS12}
	if c.CAFile == "" {
		return t, nil
	}
	pem, err := os.ReadFile(c.CAFile)
	if err != nil {
		return nil, err
	}
	t.RootCAs = x509.NewCertPool()
	if !t.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s has no certificate in PEM", c.CAFile)
	}
	return t, nil
}

// opened is what a tunnel's process answers, and what is remembered of it.
type opened struct {
	Port  uint16 `json:"port"`
	PID   int    `json:"pid,omitempty"`
	Error string `json:"error,omitempty"`
}

// Open returns the loopback's port of a tunnel, and starts its process, with a command line that ends in Main, unless it
// runs already: the kernel takes two ways to one NFS 4.1 server for one (RFC 8881 §2.10.5), so all volumes of a server
// share a tunnel. Directory dir remembers it across restarts of the daemon.
func Open(ctx context.Context, dir string, command []string, cfg Config) (uint16, error) {
	text, err := json.Marshal(cfg)
	if err != nil {
		return 0, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return 0, fmt.Errorf("open a TLS tunnel: %w", err)
	}
	sum := sha256.Sum256(text)
	file, err := os.OpenFile(filepath.Join(dir, hex.EncodeToString(sum[:8])), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return 0, fmt.Errorf("open a TLS tunnel: %w", err)
	}
	defer file.Close()
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX); err != nil { // another volume's mount may be at it
		return 0, fmt.Errorf("open a TLS tunnel: %w", err)
	}
	var known opened
	if json.NewDecoder(file).Decode(&known) == nil && known.alive(command) {
		return known.Port, nil
	}
	port, process, err := start(ctx, command, cfg)
	if err != nil {
		return 0, err
	}
	text, err = json.Marshal(opened{Port: port, PID: process.Pid})
	if err == nil {
		err = file.Truncate(0)
	}
	if err == nil {
		_, err = file.WriteAt(text, 0)
	}
	if err != nil {
		return 0, fmt.Errorf("remember a TLS tunnel: %w", err)
	}
	return port, nil
}

// alive says whether the process that was started still is that of the tunnel, and listens.
func (o opened) alive(command []string) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", o.PID))
	if err != nil || !strings.HasSuffix(string(text), "\x00"+command[len(command)-1]+"\x00") {
		return false
	}
	conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", o.Port), time.Second)
	if err != nil {
		return false
	}
	return conn.Close() == nil
}

func start(ctx context.Context, command []string, cfg Config) (uint16, *os.Process, error) {
	text, err := json.Marshal(cfg)
	if err != nil {
		return 0, nil, err
	}
	cmd := exec.Command(command[0], command[1:]...)
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true} // a signal for the daemon's group is none for it
	cmd.Stdin = strings.NewReader(string(text))
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return 0, nil, fmt.Errorf("start a TLS tunnel: %w", err)
	}
	answers := make(chan opened, 1)
	go func() {
		var o opened
		if err := json.NewDecoder(bufio.NewReader(out)).Decode(&o); err != nil {
			o.Error = err.Error()
		}
		answers <- o
		_ = cmd.Wait() // whenever that is
	}()
	select {
	case o := <-answers:
		if o.Error != "" {
			return 0, nil, fmt.Errorf("start a TLS tunnel: %s", o.Error)
		}
		return o.Port, cmd.Process, nil
	case <-ctx.Done():
		_ = cmd.Process.Kill()
		return 0, nil, fmt.Errorf("start a TLS tunnel: %w", ctx.Err())
	}
}

// Main is the whole program of a tunnel's process; it returns the exit status.
func Main(in io.Reader, out io.Writer) int {
	var cfg Config
	err := json.NewDecoder(in).Decode(&cfg)
	var client *tls.Config
	if err == nil {
		client, err = cfg.TLS()
	}
	var l net.Listener
	if err == nil {
		l, err = net.Listen("tcp", "127.0.0.1:0")
	}
	answer := opened{}
	if err != nil {
		answer.Error = err.Error()
	} else {
		answer.Port = uint16(l.Addr().(*net.TCPAddr).Port)
	}
	if encodeErr := json.NewEncoder(out).Encode(answer); encodeErr != nil || err != nil {
		return 1
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer cancel()
		tick := time.NewTicker(lookEvery)
		defer tick.Stop()
		untilUnused(tick.C, func() (bool, error) { return mounted(answer.Port) })
	}()
	Serve(ctx, l, cfg.Server, client)
	return 0
}

// untilUnused returns when the mount was missing several times in a row: at first it is not there yet.
func untilUnused(tick <-chan time.Time, mounted func() (bool, error)) {
	for missing := 0; missing < patience; {
		<-tick
		there, err := mounted()
		switch {
		case there:
			missing = 0
		case err == nil:
			missing++
		}
	}
}

// mounted says whether an NFS mount of this mount namespace goes through the port.
func mounted(port uint16) (bool, error) {
	want := fmt.Sprintf(",port=%d,", port)
	infos, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		return !strings.HasPrefix(i.FSType, "nfs") || !strings.Contains(","+i.VFSOptions+",", want), false
	})
	return len(infos) > 0, err
}

// Serve carries connections until ctx ends.
func Serve(ctx context.Context, l net.Listener, server netip.AddrPort, client *tls.Config) {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			time.Sleep(time.Second) // out of file descriptors, say: what runs goes on
			continue
		}
		wg.Go(func() { carry(ctx, conn, server, client) })
	}
}

// carry joins one connection with one to the server. When either ends, both do: the kernel's client then connects anew.
func carry(ctx context.Context, conn net.Conn, server netip.AddrPort, client *tls.Config) {
	defer conn.Close()
	dialer := tls.Dialer{NetDialer: &net.Dialer{Timeout: dialTimeout}, Config: client}
	far, err := dialer.DialContext(ctx, "tcp", server.String())
	if err != nil {
		return // the client sees its connection end, and tries again
	}
	defer far.Close()
	stop := context.AfterFunc(ctx, func() { _ = errors.Join(conn.Close(), far.Close()) })
	defer stop()
	done := make(chan struct{}, 2)
	for _, p := range [][2]net.Conn{{conn, far}, {far, conn}} {
		go func() {
			_, _ = io.Copy(p[0], p[1])
			done <- struct{}{}
		}()
	}
	<-done
}
