package main

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/netdriver/netdriver/internal/events"
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
	data := t.TempDir()
	settings := fmt.Sprintf(`{"Node":"n1","DataDir":%q,"token":"geheim"}`, data)
	err := errors.Join(
		os.WriteFile(filepath.Join(dir, "settings.json"), []byte(settings), 0o600),
		events.New(events.Dir(data), time.Now).Add(events.Event{Kind: events.Refused, Text: "NetworkDriver.Join: no room, password: geheim"}),
	)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "b.tar.gz")
	if code, out, errs := execute(t, nil, "bundle", file, "--run-dir", dir); code != 0 || !strings.Contains(out, file) {
		t.Fatalf("status %d, output %q, errors %q", code, out, errs)
	}
	names, text := untar(t, file)
	for _, want := range []string{"networks.json", "inspect.json", "check.json", "diff.json", "settings.json", "volumes.json", "events.jsonl", "host/links.txt", "namespace/nft.txt"} {
		if !slices.Contains(names, "netdriver/"+want) {
			t.Errorf("%s is not among %v", want, names)
		}
	}
	if !strings.Contains(text, "no room, ") {
		t.Error("the events are not in it")
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
	n := 0
	every(app{}.root(), func(cmd *cobra.Command) {
		if cmd.Hidden || !cmd.IsAvailableCommand() && !cmd.HasSubCommands() {
			return
		}
		n++
		page := strings.ReplaceAll(cmd.CommandPath(), " ", "-") + ".8"
		text, err := os.ReadFile(filepath.Join(dir, page))
		if err != nil || !strings.Contains(string(text), ".SH NAME") {
			t.Errorf("%s: %v", page, err)
		}
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden && f.Name != "help" && !strings.Contains(string(text), "--"+f.Name) {
				t.Errorf("%s does not name --%s", page, f.Name)
			}
		})
	})
	if n < 30 {
		t.Errorf("only %d verbs were found", n)
	}
}

// every calls f with a command and all below it.
func every(cmd *cobra.Command, f func(*cobra.Command)) {
	f(cmd)
	for _, sub := range cmd.Commands() {
		every(sub, f)
	}
}

// What a verb is about is completed, unless it is a file, a secret, or something new.
func TestTheShellCompletesWhatVerbsAreAbout(t *testing.T) {
	free := []string{"bundle", "man", "cluster join", "cluster recover", "cluster restore", "cluster backup", "cluster size", "cluster members", "volume restore", "volume verify"}
	every(app{}.root(), func(cmd *cobra.Command) {
		name := strings.TrimPrefix(cmd.CommandPath(), "netdriver ")
		_, words, takes := strings.Cut(cmd.Use, " ")
		if takes && !cmd.Hidden && strings.ToUpper(words) == words && cmd.ValidArgsFunction == nil && !slices.Contains(free, name) {
			t.Errorf("netdriver %s: nothing completes %s", name, words)
		}
	})
	dir := startReports(t, reports{"my-net": healthy()})
	for words, want := range map[string]string{
		"inspect ":            "my-net\n",
		"inspect -o ":         "text\njson\n",
		"check --peer ":       "node1\n",
		"trace --network ":    "my-net\n",
		"events --network ":   "my-net\n",
		"capture --node ":     "node1\n",
		"capture ":            "my-net\n",
		"capture my-net ":     endpointNames(healthy())[0] + "\n",
		"trace ":              endpointNames(healthy())[0] + "\n",
		"volumes --output ":   "text\njson\n",
		"volume ls --format ": "text\njson\n",
	} {
		_, out, _ := execute(t, []string{"NETDRIVER_RUN_DIR=" + dir}, append([]string{"__complete"}, strings.Split(words, " ")...)...)
		if !strings.HasPrefix(out, want) {
			t.Errorf("%q is completed by %q, want %q", words, out, want)
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
