package diag

import (
	"os"
	"reflect"
	"strings"
	"testing"
)

// fields returns the names that a type's JSON has.
func fields(t reflect.Type) []string {
	switch t.Kind() {
	case reflect.Slice, reflect.Pointer:
		return fields(t.Elem())
	case reflect.Struct:
	default:
		return nil
	}
	var out []string
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" {
			continue
		}
		out = append(append(out, name), fields(f.Type)...)
	}
	return out
}

func TestTheDocumentNamesEveryFieldOfTheJSON(t *testing.T) {
	text, err := os.ReadFile("../docs/inspect.md")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	reports := []reflect.Type{reflect.TypeFor[NetworksReport](), reflect.TypeFor[NodesReport](), reflect.TypeFor[Health]()}
	for _, typ := range reports {
		for _, name := range fields(typ) {
			n++
			if !strings.Contains(string(text), "`"+name+"`") && !strings.Contains(string(text), "`"+name+"[]`") {
				t.Errorf("docs/inspect.md does not name the field %s of %s", name, typ.Name())
			}
		}
	}
	if n < 50 {
		t.Errorf("only %d fields were found", n)
	}
}
