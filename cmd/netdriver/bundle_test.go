package main

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestSecretsAreRemovedAndNothingElse(t *testing.T) {
	const hex = "0x00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff01234567"
	for in, want := range map[string]string{
		"a\n-----BEGIN EC PRIVATE KEY-----\nMHcC\nAQ==\n-----END EC PRIVATE KEY-----\nb": "a\n(removed)\nb",
		"-----BEGIN CERTIFICATE-----\nMIIB (cut":                                         "(removed)",
		"join with netdriver1-eyJpIjoiYWJj_-x now":                                       "join with (removed) now",
		"aead rfc4106(gcm(aes)) " + hex + " 128":                                         "aead rfc4106(gcm(aes)) (removed) 128",
		`{"password": "x y", "node": "n1"}`:                                              `{"password": (removed), "node": "n1"}`,
		"url https://user:pass@host/x":                                                   "url https://user:(removed)host/x",
		"StoreKey: /etc/netdriver/key.pem, lladdr 02:42:0a:0a:00:05 dst 10.0.0.1":        "StoreKey: /etc/netdriver/key.pem, lladdr 02:42:0a:0a:00:05 dst 10.0.0.1",
		"spi 0x00001000 mark 0x1/0xffffffff":                                             "spi 0x00001000 mark 0x1/0xffffffff",
	} {
		if got := string(clean([]byte(in))); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}

func TestABundleHasAllFilesWhateverFails(t *testing.T) {
	dir := startReports(t, all())
	if err := os.WriteFile(filepath.Join(dir, "settings.json"), []byte(`{"Node":"n1","token":"geheim"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "b.tar.gz")
	if code, out, errs := execute(t, nil, "bundle", file, "--run-dir", dir); code != 0 || !strings.Contains(out, file) {
		t.Fatalf("status %d, output %q, errors %q", code, out, errs)
	}
	names, text := untar(t, file)
	for _, want := range []string{"networks.json", "inspect.json", "check.json", "diff.json", "settings.json", "host/links.txt", "namespace/nft.txt"} {
		if !slices.Contains(names, "netdriver/"+want) {
			t.Errorf("%s is not among %v", want, names)
		}
	}
	if !strings.Contains(text, "netdriver.inspect/v1") || !strings.Contains(text, `"Node":"n1"`) {
		t.Error("the reports are not in it")
	}
	for _, secret := range []string{"geheim", "PRIVATE KEY", "BEGIN CERTIFICATE"} {
		if strings.Contains(text, secret) {
			t.Errorf("it has %q", secret)
		}
	}
}

func untar(t *testing.T, file string) (names []string, all string) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	r := tar.NewReader(z)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names, all
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		names, all = append(names, h.Name), all+string(text)
	}
}

func TestEveryVerbHasAManualPage(t *testing.T) {
	dir := t.TempDir()
	if code, _, errs := execute(t, nil, "man", dir); code != 0 {
		t.Fatal(errs)
	}
	for _, verb := range []string{"", "-inspect", "-check", "-trace", "-diff", "-ipam-check", "-bundle", "-cluster-join"} {
		text, err := os.ReadFile(filepath.Join(dir, "netdriver"+verb+".8"))
		if err != nil || !strings.Contains(string(text), ".SH NAME") {
			t.Errorf("page of netdriver%s: %v", verb, err)
		}
	}
}

func TestCheckAndTraceEndWithTheirVerdictAndTellEachFinding(t *testing.T) {
	dir := startReports(t, all())
	code, out, _ := execute(t, nil, "check", "--peer", "node2", "--run-dir", dir)
	if code != 1 {
		t.Errorf("status %d of a degraded host, want 1", code)
	}
	for _, want := range []string{"node1  DEGRADED", "at   node2", "seen e", "do   r", "CHECK", "frames"} {
		if !strings.Contains(out, want) {
			t.Errorf("check does not say %q:\n%s", want, out)
		}
	}
	code, out, _ = execute(t, nil, "trace", "a", "b", "--network", "web", "--run-dir", dir)
	if code != 2 || !strings.Contains(out, "a → b  network web  FAILED") {
		t.Errorf("trace: status %d, output %q", code, out)
	}
	if code, _, errs := execute(t, nil, "trace", "", "b", "--run-dir", dir); code != 3 || !strings.Contains(errs, "no such source") {
		t.Errorf("trace of nothing: status %d, errors %q", code, errs)
	}
	if code, out, _ := execute(t, nil, "diff", "web", "--run-dir", dir); code != 1 || !strings.Contains(out, "ip link set ndb1 up") {
		t.Errorf("diff: status %d, output %q", code, out)
	}
}
