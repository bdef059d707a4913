package tunnel

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "volume-tunnel" {
		os.Exit(Main(os.Stdin, os.Stdout))
	}
	os.Exit(m.Run())
}

// echo starts a TLS server that sends lines back, with a certificate for "nas", and returns its address and the file with
// that certificate.
func echo(t *testing.T) (netip.AddrPort, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "nas"}, DNSNames: []string{"nas"}, IsCA: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				lines := bufio.NewScanner(conn)
				for lines.Scan() {
					fmt.Fprintln(conn, lines.Text())
				}
			}()
		}
	}()
	return netip.MustParseAddrPort(l.Addr().String()), file
}

// say sends a line through a tunnel and returns what comes back.
func say(port uint16, line string) (string, error) {
	conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), 5*time.Second)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return "", err
	}
	fmt.Fprintln(conn, line)
	return bufio.NewReader(conn).ReadString('\n')
}

func TestATunnelCarriesBothWaysToTheServerThatItKnows(t *testing.T) {
	server, ca := echo(t)
	for name, c := range map[string]struct {
		cfg   Config
		works bool
	}{
		"right":            {Config{Server: server, Name: "nas", CAFile: ca}, true},
		"another's name":   {Config{Server: server, Name: "other", CAFile: ca}, false},
		"the system's CAs": {Config{Server: server, Name: "nas"}, false},
	} {
		client, err := c.cfg.TLS()
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); Serve(ctx, l, server, client) }()
		got, err := say(uint16(l.Addr().(*net.TCPAddr).Port), "hello")
		if (got == "hello\n") != c.works {
			t.Errorf("%s: %q, error %v", name, got, err)
		}
		cancel()
		<-done
	}
}

func TestATunnelsProcessListensOnTheLoopback(t *testing.T) {
	server, ca := echo(t)
	command := []string{"/proc/self/exe", "volume-tunnel"}
	dir := t.TempDir()
	right := Config{Server: server, Name: "nas", CAFile: ca}
	port, err := Open(t.Context(), dir, command, right)
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("remembered: %v, error %v", files, err)
	}
	text, err := os.ReadFile(files[0])
	var known opened
	if err := errors.Join(err, json.Unmarshal(text, &known)); err != nil {
		t.Fatal(err)
	}
	process, err := os.FindProcess(known.PID)
	if err != nil {
		t.Fatal(err)
	}
	defer process.Kill()
	if again, err := Open(t.Context(), dir, command, right); again != port || err != nil {
		t.Errorf("a second volume's port is %d, the first's %d, error %v; want one tunnel for both", again, port, err)
	}
	if got, err := say(port, "hello"); got != "hello\n" {
		t.Errorf("%q, error %v", got, err)
	}
	if _, err := Open(t.Context(), dir, command, Config{Server: server, Name: "nas", CAFile: ca + "x"}); err == nil {
		t.Error("a tunnel without its CAs is started")
	}
}

func TestATunnelEndsOnceItsMountIsGone(t *testing.T) {
	tick := make(chan time.Time)
	seen := []bool{false, true, true, false, true, false, false}
	done := make(chan struct{})
	go func() {
		defer close(done)
		i := -1
		untilUnused(tick, func() (bool, error) { i++; return seen[i], nil })
	}()
	for range seen {
		tick <- time.Time{}
	}
	<-done
	if there, err := mounted(1); there || err != nil {
		t.Errorf("a mount that nobody made: %v, error %v", there, err)
	}
}
