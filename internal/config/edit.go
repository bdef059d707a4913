package config

import (
	"bytes"
	"fmt"
	"path/filepath"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// Given is a setting that somebody gave, by the name that a file has for it.
type Given struct{ Name, Value string }

// Gather returns the settings that flags or environ give, in the order of the documents; a flag wins. Values are not
// checked, but names of files are made absolute: the service that will read them runs elsewhere.
func Gather(flags *pflag.FlagSet, environ []string) ([]Given, error) {
	env, err := environment(environ)
	if err != nil {
		return nil, err
	}
	var given []Given
	for _, s := range table() {
		value, ok := env[s.name]
		if f := flags.Lookup(s.name); f != nil && f.Changed {
			value, ok = f.Value.String(), true
		}
		if ok && s.file && value != "" {
			if value, err = filepath.Abs(value); err != nil {
				return nil, fmt.Errorf("%w: %s: %w", ErrSetting, s.name, err)
			}
		}
		if ok {
			given = append(given, Given{s.name, value})
		}
	}
	return given, nil
}

// Edit returns the text of a configuration file with the given settings in it. What else it says stays, comments
// included; a setting that has the given value stays as it is written.
func Edit(text []byte, given []Given) ([]byte, error) {
	have, err := parse(text)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSetting, err)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSetting, err)
	}
	var out bytes.Buffer
	if len(have) == 0 { // nothing, or comments, which would get lost
		out.Write(text)
		doc = yaml.Node{Kind: yaml.DocumentNode, Content: []*yaml.Node{{Kind: yaml.MappingNode}}}
	}
	changed := false
	for _, g := range given {
		if value, ok := have[g.Name]; !ok || value != g.Value {
			set(doc.Content[0], g)
			changed = true
		}
	}
	if !changed {
		return text, nil
	}
	encoder := yaml.NewEncoder(&out)
	encoder.SetIndent(2)
	if err := encoder.Encode(&doc); err != nil {
		return nil, fmt.Errorf("write the configuration: %w", err)
	}
	return out.Bytes(), encoder.Close()
}

// set replaces a key's value in a mapping, or appends both. Values are written as text: they are what a flag would say.
func set(mapping *yaml.Node, g Given) {
	value := &yaml.Node{}
	value.SetString(g.Value)
	for i := 0; i < len(mapping.Content); i += 2 {
		if mapping.Content[i].Value == g.Name {
			value.LineComment = mapping.Content[i+1].LineComment
			mapping.Content[i+1] = value
			return
		}
	}
	key := &yaml.Node{}
	key.SetString(g.Name)
	mapping.Content = append(mapping.Content, key, value)
}
