package page

import (
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// reports answers with what it was asked, and counts.
type reports struct {
	asked atomic.Int32
	wait  chan struct{} // closed: go on
}

func (r *reports) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.asked.Add(1)
	if r.wait != nil {
		<-r.wait
	}
	w.Header().Set("Content-Type", "application/json")
	if req.URL.Path == "/v1/networks/none" {
		w.WriteHeader(http.StatusNotFound)
	}
	fmt.Fprintf(w, `{"asked":%q}`, req.URL)
}

func newServer() (*Server, *reports) {
	r := &reports{}
	return &Server{Address: "127.0.0.1:0", Reports: r, Log: slog.New(slog.DiscardHandler)}, r
}

// ask makes one request of a handler; headers are pairs.
func ask(h http.Handler, method, path, host string, headers ...string) *http.Response {
	req := httptest.NewRequest(method, path, nil)
	req.Host = host
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	return w.Result()
}

func body(t *testing.T, r *http.Response) string {
	t.Helper()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

const local = "127.0.0.1:9473"

func TestThePageItsFilesAndTheReportsAreServed(t *testing.T) {
	s, _ := newServer()
	h := s.Handler()
	for path, c := range map[string]struct {
		status        int
		content, kind string
	}{
		"/":                     {200, "<title>netdriver</title>", "text/html"},
		"/app.js":               {200, "import", "text/javascript"},
		"/feed.js":              {200, "postMessage", "text/javascript"},
		"/style.css":            {200, "prefers-color-scheme", "text/css"},
		"/icon.svg":             {200, "<svg", "image/svg+xml"},
		"/v1/networks":          {200, `{"asked":"/v1/networks"}`, "application/json"},
		"/v1/networks/a%2Fb":    {200, `{"asked":"/v1/networks/a%2Fb"}`, "application/json"},
		"/v1/networks/none":     {404, "asked", "application/json"},
		"/v1/check?peer=n2&x=1": {200, `{"asked":"/v1/check?peer=n2"}`, "application/json"},
		"/v1/nodes?peer=n2":     {200, `{"asked":"/v1/nodes"}`, "application/json"},
		"/v1/traffic?node=n2":   {200, `{"asked":"/v1/traffic?node=n2"}`, "application/json"},
		"/v1/health":            {200, "asked", "application/json"},
		"/v1/trace?from=a":      {404, "", "text/plain"}, // it sends packets for whoever asks
		"/v1/diff":              {404, "", "text/plain"},
		"/../page.go":           {307, "", ""},
		"/none":                 {404, "", "text/plain"},
	} {
		r := ask(h, http.MethodGet, path, local)
		if text := body(t, r); r.StatusCode != c.status || !strings.Contains(text, c.content) || !strings.HasPrefix(r.Header.Get("Content-Type"), c.kind) {
			t.Errorf("%s: status %d, %s, %.200q; want %d, %s, %q", path, r.StatusCode, r.Header.Get("Content-Type"), text, c.status, c.kind, c.content)
		}
	}
}

func TestEveryAnswerForbidsWhatThePageDoesNotNeed(t *testing.T) {
	s, _ := newServer()
	h := s.Handler()
	for what, r := range map[string]*http.Response{
		"page": ask(h, http.MethodGet, "/", local), "report": ask(h, http.MethodGet, "/v1/nodes", local),
		"refusal": ask(h, http.MethodGet, "/", "evil.example"), "method": ask(h, http.MethodPost, "/", local),
	} {
		csp := r.Header.Get("Content-Security-Policy")
		if !strings.HasPrefix(csp, "default-src 'self';") || strings.Contains(csp, "unsafe") {
			t.Errorf("%s: policy %q", what, csp)
		}
		for name, want := range map[string]string{
			"X-Content-Type-Options": "nosniff", "Cross-Origin-Resource-Policy": "same-origin", "Referrer-Policy": "no-referrer",
			"X-Frame-Options": "DENY", "Cache-Control": "no-store",
		} {
			if got := r.Header.Get(name); got != want {
				t.Errorf("%s: %s %q, want %q", what, name, got, want)
			}
		}
		if r.Header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s: other origins may read it", what)
		}
	}
}

// A page from elsewhere can let its name point to 127.0.0.1, but it cannot change the name that the browser sends.
func TestOnlyNamesOfThisServerAreAnswered(t *testing.T) {
	s, _ := newServer()
	h := s.Handler()
	for host, want := range map[string]int{
		"127.0.0.1:9473": 200, "127.0.0.1": 200, "127.1.2.3:1": 200, "localhost:8080": 200, "LocalHost": 200, "[::1]:9473": 200, "[::1]": 200,
		"[::ffff:127.0.0.1]:1": 200,
		"evil.example":         421, "evil.example:9473": 421, "localhost.evil.example": 421, "127.0.0.1.evil.example": 421, "": 421,
		"192.0.2.1:9473": 421, "localhost:80:80": 421, "0.0.0.0": 421,
	} {
		for _, path := range []string{"/", "/v1/networks"} {
			if r := ask(h, http.MethodGet, path, host); r.StatusCode != want {
				t.Errorf("Host %q, %s: status %d, want %d", host, path, r.StatusCode, want)
			}
		}
	}
}

func TestNothingButGETIsAnswered(t *testing.T) {
	s, reports := newServer()
	h := s.Handler()
	for _, method := range []string{"POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "CONNECT", "TRACE", "get"} {
		for _, path := range []string{"/", "/v1/networks", "/v1/repair/my-net", "/v1/ipam/check"} {
			r := ask(h, method, path, local)
			if r.StatusCode != http.StatusMethodNotAllowed || r.Header.Get("Allow") != "GET" {
				t.Errorf("%s %s: status %d, Allow %q", method, path, r.StatusCode, r.Header.Get("Allow"))
			}
		}
	}
	if n := reports.asked.Load(); n != 0 {
		t.Errorf("%d reports were made", n)
	}
}

func TestOtherSitesCannotLetReportsBeMade(t *testing.T) {
	s, reports := newServer()
	h := s.Handler()
	for site, want := range map[string]int{"cross-site": 403, "same-site": 403, "same-origin": 200, "none": 200, "": 200} {
		before := reports.asked.Load()
		r := ask(h, http.MethodGet, "/v1/networks/"+site+"x", local, "Sec-Fetch-Site", site)
		if made := reports.asked.Load() - before; r.StatusCode != want || (made == 1) != (want == 200) {
			t.Errorf("Sec-Fetch-Site %q: status %d, %d reports; want %d", site, r.StatusCode, made, want)
		}
	}
	if r := ask(h, http.MethodGet, "/", local, "Sec-Fetch-Site", "cross-site"); r.StatusCode != 200 { // a link in a chat
		t.Errorf("a link to the page: status %d", r.StatusCode)
	}
}

func TestManyReadersCostOneReport(t *testing.T) {
	s, reports := newServer()
	reports.wait = make(chan struct{})
	shared := share(s.Reports, s.Log)
	var clock atomic.Int64
	shared.now = func() time.Time { return time.Unix(0, clock.Load()) }
	var g sync.WaitGroup
	for range 20 {
		g.Go(func() {
			if r := ask(shared, http.MethodGet, "/v1/nodes", local); r.StatusCode != 200 {
				t.Errorf("status %d", r.StatusCode)
			}
		})
	}
	for reports.asked.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	clock.Add(int64(2 * time.Second)) // that is how long it takes
	close(reports.wait)
	g.Wait()
	clock.Add(int64(rest*2*time.Second - time.Millisecond))
	ask(shared, http.MethodGet, "/v1/nodes", local)
	if n := reports.asked.Load(); n != 1 {
		t.Errorf("%d reports were made for 21 questions", n)
	}
	clock.Add(int64(2 * time.Millisecond))
	ask(shared, http.MethodGet, "/v1/nodes", local)
	if n := reports.asked.Load(); n != 2 {
		t.Errorf("%d reports after the first has become old, want 2", n)
	}
}

// count is how many answers there are.
func (s *shared) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.answers)
}

func TestTooManyDifferentQuestionsAreRefusedAndLeaveNothing(t *testing.T) {
	s, reports := newServer()
	reports.wait = make(chan struct{})
	shared := share(s.Reports, s.Log)
	var g sync.WaitGroup
	for i := range atOnce {
		g.Go(func() { ask(shared, http.MethodGet, fmt.Sprintf("/v1/networks/%d", i), local) })
	}
	for shared.count() < atOnce {
		time.Sleep(time.Millisecond)
	}
	if r := ask(shared, http.MethodGet, "/v1/networks/more", local); r.StatusCode != http.StatusServiceUnavailable || r.Header.Get("Retry-After") == "" {
		t.Errorf("status %d, Retry-After %q", r.StatusCode, r.Header.Get("Retry-After"))
	}
	close(reports.wait)
	g.Wait()
	shared.now = func() time.Time { return time.Now().Add(time.Hour) }
	if r := ask(shared, http.MethodGet, "/v1/nodes", local); r.StatusCode != 200 || shared.count() != 1 {
		t.Errorf("status %d, and %d answers are kept: want the last one only", r.StatusCode, shared.count())
	}
}

func TestAReportThatFailsBadlyEndsNeitherTheDaemonNorTheWaiting(t *testing.T) {
	s, _ := newServer()
	s.Reports = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"half":`)
		panic("nil map")
	})
	r := ask(s.Handler(), http.MethodGet, "/v1/nodes", local)
	if text := body(t, r); r.StatusCode != http.StatusInternalServerError || strings.Contains(text, "half") || !strings.Contains(text, "log") {
		t.Errorf("status %d, %q", r.StatusCode, text)
	}
}

func TestALargeReportIsPackedForWhoCanUnpackIt(t *testing.T) {
	s, _ := newServer()
	text := strings.Repeat(`{"node":"n1"},`, 10_000)
	s.Reports = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/nodes" {
			fmt.Fprint(w, text)
			return
		}
		fmt.Fprint(w, "{}")
	})
	h := s.Handler()
	if r := ask(h, http.MethodGet, "/v1/nodes", local); body(t, r) != text || r.Header.Get("Content-Encoding") != "" {
		t.Errorf("who cannot unpack gets %q", r.Header.Get("Content-Encoding"))
	}
	r := ask(h, http.MethodGet, "/v1/nodes", local, "Accept-Encoding", "gzip, br")
	z, err := gzip.NewReader(r.Body)
	if err != nil || r.Header.Get("Content-Encoding") != "gzip" || r.Header.Get("Vary") != "Accept-Encoding" {
		t.Fatalf("headers %v, error %v", r.Header, err)
	}
	if got, err := io.ReadAll(z); err != nil || string(got) != text {
		t.Errorf("%d bytes, error %v; want %d", len(got), err, len(text))
	}
	if r := ask(h, http.MethodGet, "/v1/health", local, "Accept-Encoding", "gzip"); body(t, r) != "{}" || r.Header.Get("Content-Encoding") != "" {
		t.Error("a small one is packed, too")
	}
}

// Names of containers and networks come from strangers: no code of the page may read them as markup.
func TestThePageTurnsNoTextIntoMarkupAndLoadsNothingFromElsewhere(t *testing.T) {
	markup := regexp.MustCompile(`innerHTML|outerHTML\s*=|insertAdjacentHTML|document\.write|\beval\(|new Function|setTimeout\(['"]|javascript:|DOMParser|\bstyle="`)
	elsewhere := regexp.MustCompile(`(src|href|url|from|import|fetch)\s*[=(]?\s*['"(]\s*(https?:)?//`)
	handler := regexp.MustCompile(`\son[a-z]+\s*=\s*"|<script>|<style`)
	n := 0
	err := fs.WalkDir(static, "static", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		n++
		text, err := static.ReadFile(path)
		for _, bad := range []*regexp.Regexp{markup, elsewhere, handler} {
			if found := bad.Find(text); found != nil {
				t.Errorf("%s has %q", path, found)
			}
		}
		return err
	})
	if err != nil || n < 8 {
		t.Errorf("%d files, error %v", n, err)
	}
	for _, bad := range []string{`x.innerHTML = y`, `x.outerHTML = y`, `eval(x)`} { // the test can fail
		if !markup.MatchString(bad) {
			t.Errorf("%q is not found", bad)
		}
	}
	if !elsewhere.MatchString(`src="https://cdn.example/x.js"`) || !elsewhere.MatchString(`import x from '//cdn.example/x.js'`) || !handler.MatchString(`<a onclick="x">`) {
		t.Error("what comes from elsewhere is not found")
	}
}

// authority makes certificates.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	a.cert, a.key = a.issue(name, &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name) }

// issue writes NAME.pem and NAME.key.
func (a *authority) issue(name string, c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c.SerialNumber, c.Subject = big.NewInt(time.Now().UnixNano()), pkix.Name{CommonName: name}
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	for suffix, block := range map[string]*pem.Block{".pem": {Type: "CERTIFICATE", Bytes: der}, ".key": {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(a.file(name+suffix), pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	made, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return made, key
}

// run serves at a free port until the test ends, and returns the address.
func run(t *testing.T, s *Server) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Address = l.Addr().String()
	l.Close()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	for range 500 {
		if c, err := net.Dial("tcp", s.Address); err == nil {
			c.Close()
			return s.Address
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("nobody serves")
	return ""
}

func TestWithAnAuthorityOnlyItsReadersSeeThePageByTLS(t *testing.T) {
	ours, others := newAuthority(t, "ours"), newAuthority(t, "others")
	ours.issue("server", &x509.Certificate{DNSNames: []string{"page.example"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}})
	client := &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	ours.issue("reader", client)
	others.issue("reader", client)
	s, _ := newServer()
	s.Cert, s.Key, s.CA = ours.file("server.pem"), ours.file("server.key"), ours.file("ours.pem")
	address := run(t, s)
	get := func(from *authority, host string) (int, error) {
		roots := x509.NewCertPool()
		roots.AddCert(ours.cert)
		c := &tls.Config{RootCAs: roots, ServerName: "page.example"}
		if from != nil {
			pair, err := tls.LoadX509KeyPair(from.file("reader.pem"), from.file("reader.key"))
			if err != nil {
				t.Fatal(err)
			}
			c.Certificates = []tls.Certificate{pair}
		}
		transport := &http.Transport{TLSClientConfig: c}
		defer transport.CloseIdleConnections()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+address+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		res, err := (&http.Client{Transport: transport}).Do(req)
		if err != nil {
			return 0, err
		}
		defer res.Body.Close()
		return res.StatusCode, nil
	}
	for host, want := range map[string]int{"page.example": 200, "192.0.2.1": 200, "localhost": 200, "evil.example": 421} {
		if status, err := get(ours, host); err != nil || status != want {
			t.Errorf("a reader who calls it %s: status %d, error %v; want %d", host, status, err, want)
		}
	}
	if status, err := get(others, "page.example"); err == nil {
		t.Errorf("a stranger: status %d", status)
	}
	if status, err := get(nil, "page.example"); err == nil {
		t.Errorf("somebody without a certificate: status %d", status)
	}
	if res, err := http.Get("http://" + address + "/"); err == nil {
		if res.Body.Close(); res.StatusCode == 200 {
			t.Error("the page is served in clear, too")
		}
	}
}

func TestAnAddressThatIsTakenDoesNotEndTheDaemonAndIsSaid(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var log strings.Builder
	var mu sync.Mutex
	s, _ := newServer()
	s.Address, s.Log = l.Addr().String(), slog.New(slog.NewTextHandler(locked{&log, &mu}, nil))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	said := func() bool { mu.Lock(); defer mu.Unlock(); return strings.Contains(log.String(), "--ui") }
	for range 500 {
		if said() {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if !said() {
		t.Errorf("the log says %q", log.String())
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("it ends with %v", err)
	}
}

type locked struct {
	w  io.Writer
	mu *sync.Mutex
}

func (l locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}
