package capture

import (
	"os"
	"reflect"
	"strings"
	"testing"
)

func TestTheDocumentNamesEveryWordOfAFilterAndEveryField(t *testing.T) {
	b, err := os.ReadFile("../../docs/capture.md")
	if err != nil {
		t.Fatal(err)
	}
	words := strings.Fields(keywords)
	for f := range reflect.TypeFor[line]().Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		words = append(words, "`"+name)
	}
	text := string(b) + "`" + Schema
	for _, word := range words {
		if !strings.Contains(text, word) {
			t.Errorf("docs/capture.md does not name %s", word)
		}
	}
	if len(words) < 30 || !strings.Contains(string(b), Schema) {
		t.Errorf("%d words were looked for", len(words))
	}
}
