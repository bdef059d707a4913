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
	n := 0
	for typ, file := range map[reflect.Type]string{
		reflect.TypeFor[NetworksReport](): "inspect.md", reflect.TypeFor[NodesReport](): "inspect.md", reflect.TypeFor[Health](): "inspect.md",
		reflect.TypeFor[NetworkTraffic](): "ui.md", reflect.TypeFor[Flow](): "ui.md",
	} {
		text, err := os.ReadFile("../docs/" + file)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range fields(typ) {
			n++
			if !strings.Contains(string(text), "`"+name+"`") && !strings.Contains(string(text), "`"+name+"[]`") {
				t.Errorf("docs/%s does not name the field %s of %s", file, name, typ.Name())
			}
		}
	}
	if n < 50 {
		t.Errorf("only %d fields were found", n)
	}
}
