package clitest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// CheckJSON says whether text is exactly one JSON object that fits the schema
// it names, docs/schema/NAME.json.
func CheckJSON(text []byte) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var v map[string]any
	if err := d.Decode(&v); err != nil {
		return fmt.Errorf("not a JSON object: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("more than one JSON object")
	}
	name, _ := v["schema"].(string)
	if name == "" || strings.ContainsRune(name, '/') {
		return fmt.Errorf("the object names no schema: %v", v["schema"])
	}
	s := schemas{}
	node, err := s.load(name + ".json")
	if err != nil {
		return err
	}
	return s.check(node, v, name, name+".json")
}

// schemas are the files of docs/schema, by name.
type schemas map[string]map[string]any

func (s schemas) load(file string) (map[string]any, error) {
	if n := s[file]; n != nil {
		return n, nil
	}
	b, err := os.ReadFile(filepath.Join(root(), "docs", "schema", file))
	if err != nil {
		return nil, err
	}
	var n map[string]any
	if err := json.Unmarshal(b, &n); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	s[file] = n
	return n, nil
}

// known are the keywords that check understands; a schema with another one
// would promise more than is checked.
var known = []string{"$schema", "$id", "$ref", "$defs", "title", "description", "type", "properties", "required",
	"additionalProperties", "items", "enum", "const", "pattern", "minimum", "format"}

// check is the part of JSON Schema (2020-12) that docs/schema uses.
func (s schemas) check(node map[string]any, v any, path, file string) error {
	for k := range node {
		if !slices.Contains(known, k) {
			return fmt.Errorf("%s: schema keyword %q is not checked", path, k)
		}
	}
	if ref, ok := node["$ref"].(string); ok {
		target, file, err := s.resolve(ref, file)
		if err != nil {
			return err
		}
		return s.check(target, v, path, file)
	}
	if t, ok := node["type"].(string); ok && !hasType(v, t) {
		return fmt.Errorf("%s: %v is not of type %s", path, v, t)
	}
	if c, ok := node["const"]; ok && fmt.Sprint(c) != fmt.Sprint(v) {
		return fmt.Errorf("%s: %v instead of %v", path, v, c)
	}
	if e, ok := node["enum"].([]any); ok && !slices.Contains(e, v) {
		return fmt.Errorf("%s: %v is not one of %v", path, v, e)
	}
	if p, ok := node["pattern"].(string); ok {
		if text, isText := v.(string); isText && !regexp.MustCompile(p).MatchString(text) {
			return fmt.Errorf("%s: %q does not match %s", path, text, p)
		}
	}
	if m, ok := node["minimum"].(float64); ok {
		if n, isNumber := v.(json.Number); isNumber {
			if f, err := n.Float64(); err != nil || f < m {
				return fmt.Errorf("%s: %v is less than %v", path, v, m)
			}
		}
	}
	switch v := v.(type) {
	case map[string]any:
		return s.checkObject(node, v, path, file)
	case []any:
		items, ok := node["items"].(map[string]any)
		for i := 0; ok && i < len(v); i++ {
			if err := s.check(items, v[i], fmt.Sprintf("%s[%d]", path, i), file); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s schemas) checkObject(node map[string]any, v map[string]any, path, file string) error {
	props, _ := node["properties"].(map[string]any)
	required, _ := node["required"].([]any)
	for _, r := range required {
		if _, ok := v[r.(string)]; !ok {
			return fmt.Errorf("%s: %v is missing", path, r)
		}
	}
	for key, value := range v {
		p, ok := props[key].(map[string]any)
		if !ok {
			p, ok = node["additionalProperties"].(map[string]any)
		}
		if !ok {
			// Fields may be added; the schema must tell of them all the same.
			return fmt.Errorf("%s: field %q is not in the schema", path, key)
		}
		if err := s.check(p, value, path+"."+key, file); err != nil {
			return err
		}
	}
	return nil
}

func (s schemas) resolve(ref, file string) (map[string]any, string, error) {
	name, place, _ := strings.Cut(ref, "#")
	if name == "" {
		name = file
	}
	node, err := s.load(name)
	if err != nil {
		return nil, "", err
	}
	for _, step := range strings.Split(strings.Trim(place, "/"), "/") {
		if step == "" {
			continue
		}
		next, ok := node[step].(map[string]any)
		if !ok {
			return nil, "", fmt.Errorf("%s: %s does not exist", file, ref)
		}
		node = next
	}
	return node, name, nil
}

func hasType(v any, t string) bool {
	switch v := v.(type) {
	case map[string]any:
		return t == "object"
	case []any:
		return t == "array"
	case string:
		return t == "string"
	case bool:
		return t == "boolean"
	case json.Number:
		return t == "number" || t == "integer" && !strings.ContainsAny(v.String(), ".eE")
	}
	return false
}
