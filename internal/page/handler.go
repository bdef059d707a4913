package page

import (
	"embed"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
)

//go:embed static
var static embed.FS

// security are the headers of every answer. The page loads nothing from elsewhere, runs nothing that is written into it, and
// nobody may put it into a frame or read it from another origin.
func security() map[string]string {
	return map[string]string{
		"Content-Security-Policy":      "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'",
		"Cross-Origin-Opener-Policy":   "same-origin",
		"Cross-Origin-Resource-Policy": "same-origin",
		"Referrer-Policy":              "no-referrer",
		"X-Content-Type-Options":       "nosniff",
		"X-Frame-Options":              "DENY",
		"Cache-Control":                "no-store",
	}
}

// Handler answers GET requests for the page, its files and the reports.
func (s *Server) Handler() http.Handler {
	files, err := fs.Sub(static, "static")
	if err != nil {
		panic(err) // the directory is part of the program
	}
	mux := http.NewServeMux()
	mux.Handle("/", http.FileServerFS(files))
	reports := sameOrigin(share(s.Reports, s.Log))
	for _, path := range []string{"/v1/networks", "/v1/networks/{name}", "/v1/nodes", "/v1/health", "/v1/check", "/v1/traffic"} {
		mux.Handle(path, reports)
	}
	return s.guard(mux)
}

// guard refuses what no page of ours sends.
func (s *Server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for name, value := range security() {
			w.Header().Set(name, value)
		}
		switch {
		case !s.ours(r.Host):
			http.Error(w, "this server is not called "+strings.ToValidUTF8(r.Host, "?")+": use its address, or a name of its certificate",
				http.StatusMisdirectedRequest)
		case r.Method != http.MethodGet:
			w.Header().Set("Allow", http.MethodGet)
			http.Error(w, "only GET is answered here: nothing can be changed", http.StatusMethodNotAllowed)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// ours says whether a Host header can be meant for us. A page from elsewhere that lets its name point to our address (DNS
// rebinding) sends that name; it cannot make a browser send an address, localhost (RFC 6761 §6.3), or a name of our certificate.
// The port is not looked at, because tunnels have others.
func (s *Server) ours(header string) bool {
	name := header
	if host, _, err := net.SplitHostPort(header); err == nil {
		name = host
	}
	name = strings.TrimSuffix(strings.TrimPrefix(name, "["), "]")
	if a, err := netip.ParseAddr(name); err == nil {
		return s.Cert != "" || a.Unmap().IsLoopback()
	}
	if strings.EqualFold(name, "localhost") {
		return true
	}
	if s.Cert == "" || name == "" {
		return false
	}
	pair, err := s.pair()
	return err == nil && pair.Leaf.VerifyHostname(name) == nil
}

// sameOrigin refuses requests that a browser says another site has caused: reports cost the daemon work.
func sameOrigin(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Header.Get("Sec-Fetch-Site") {
		case "", "same-origin", "none": // no browser, our page, a person
			next.ServeHTTP(w, r)
		default:
			http.Error(w, "reports are not for other sites' pages", http.StatusForbidden)
		}
	})
}

// question is what a report depends on: the path, and of the query the node that it is about.
func question(r *http.Request) string {
	q := r.URL.EscapedPath()
	key := map[string]string{"/v1/check": "peer", "/v1/traffic": "node"}[r.URL.Path]
	if node := r.URL.Query().Get(key); node != "" {
		q += "?" + url.Values{key: {node}}.Encode()
	}
	return q
}
