// Package imports holds the import graph: which package of netdriver may use which. The arrows are those of DESIGN.md.
package imports

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/netdriver/netdriver/"

// allowed lists, for each package, the packages of ours that it may import besides store and vxlan, which all may. A
// package that is not listed here may not exist: adding one means deciding on its arrows.
func allowed() map[string][]string {
	return map[string][]string{
		"vxlan":              {},
		"store":              {},
		"store/etcd":         {},
		"store/storetest":    {},
		"dataplane":          {"internal/broadcast", "internal/sorted", "dataplane/balance", "dataplane/discovery", "dataplane/guard", "dataplane/rate", "internal/netlink"},
		"dataplane/balance":  {"dataplane/tc"},
		"dataplane/rate":     {"dataplane/tc"},
		"dataplane/tc":       {},
		"dataplane/guard":    {"internal/sorted"},
		"internal/netlink":   {},
		"internal/plugin":    {},
		"internal/cluster":   {"ipsec", "store/etcd"},
		"internal/keying":    {"ipsec"},
		"internal/proof":     {"internal/netlink"},
		"internal/engine":    {},
		"internal/swarm":     {"internal/engine"},
		"internal/names":     {"internal/engine"},
		"internal/door":      {"internal/plugin"},
		"internal/install":   {"internal/config", "internal/door", "internal/plugin"},
		"internal/underlay":  {"internal/netlink"},
		"internal/config":    {},
		"internal/imports":   {},
		"volume/option":      {},
		"volume/mount":       {},
		"volume/backup":      {},
		"volume/backend":     {"volume/mount", "volume/option", "volume/tunnel"},
		"volume/tunnel":      {},
		"volume":             {"internal/engine", "internal/local", "internal/plugin", "volume/backend", "volume/mount", "volume/option"},
		"ipsec":              {"internal/broadcast"},
		"policy":             {},
		"ipam":               {"internal/plugin"},
		"driver":             {"dataplane", "dataplane/firewall", "dataplane/guard", "dataplane/lan", "dataplane/rate", "ipam", "ipsec", "internal/plugin", "policy"},
		"diag":               {"dataplane", "dataplane/balance", "dataplane/firewall", "dataplane/guard", "dataplane/lan", "dataplane/rate", "diag/host", "internal/netlink"},
		"diag/host":          {"dataplane/balance", "dataplane/discovery", "dataplane/guard", "internal/netlink"},
		"internal/peer":      {"diag", "internal/capture"},
		"internal/capture":   {"dataplane", "diag/host"},
		"internal/control":   {"diag", "internal/local"},
		"internal/local":     {},
		"internal/page":      {},
		"internal/events":    {},
		"internal/metrics":   {"dataplane", "dataplane/balance", "dataplane/firewall", "dataplane/guard", "dataplane/lan", "driver"},
		"internal/nettest":   {"internal/netlink"},
		"internal/sorted":    {},
		"internal/golden":    {},
		"internal/broadcast": {},

		"dataplane/firewall": {"internal/broadcast", "internal/netlink"},

		"dataplane/discovery": {},
		"dataplane/lan":       {"internal/broadcast", "internal/netlink", "dataplane/discovery"},

		"ipsec/xfrm": {"internal/netlink", "ipsec"},
	}
}

// lowest lists what the bottom of the graph may not even share.
func lowest() map[string][]string {
	return map[string][]string{
		"vxlan": {"store"},
		"store": {"store/etcd", "store/storetest"},
	}
}

// free may import anything: the command wires all parts, tests and benchmarks look at all of them.
func free(pkg string) bool { return pkg == "cmd/netdriver" || strings.HasPrefix(pkg, "test/") }

func TestImportsGoOneWay(t *testing.T) {
	seen := map[string]bool{}
	for file, imports := range sources(t) {
		pkg := filepath.ToSlash(filepath.Dir(file))
		seen[pkg] = true
		if free(pkg) {
			continue
		}
		may, known := allowed()[pkg]
		if !known {
			t.Errorf("package %s is not in the graph: add it to allowed with its arrows", pkg)
			continue
		}
		for _, imp := range imports {
			shared := imp == "store" || imp == "vxlan"
			if imp != pkg && !slices.Contains(may, imp) && !shared || slices.Contains(lowest()[pkg], imp) {
				t.Errorf("%s imports %s: %s may import only %v, store and vxlan", file, imp, pkg, may)
			}
		}
	}
	for pkg := range allowed() {
		if !seen[pkg] && pkg != "internal/imports" {
			t.Errorf("package %s is in the graph and not in the tree", pkg)
		}
	}
}

// sources returns the imports of ours in every Go file of the module that is no test.
func sources(t *testing.T) map[string][]string {
	t.Helper()
	root := "../.."
	out := map[string][]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && path != root || d.Name() == "tools" || d.Name() == "bin") && d.Name() != ".." {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		out[rel] = []string{}
		for _, i := range f.Imports {
			if imp, ours := strings.CutPrefix(strings.Trim(i.Path.Value, `"`), module); ours {
				out[rel] = append(out[rel], imp)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
