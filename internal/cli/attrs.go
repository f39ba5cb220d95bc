package cli

import (
	"encoding/csv"
	"fmt"
	"strings"
)

// attr is one KEY=VALUE of a flag such as --output.
type attr struct{ key, value string }

// splitAttrs reads KEY=VALUE,… as docker and buildx do: a line of CSV, so that
// quotes keep a comma in a value, and keys in any case, which it gives in lower
// case. An error calls the text what; malformed is what is said of a field that
// is no KEY=VALUE.
func splitAttrs(what, text, malformed string) ([]attr, error) {
	fields, err := csv.NewReader(strings.NewReader(text)).Read()
	if err != nil {
		return nil, fmt.Errorf("invalid %s %q: %w", what, text, err)
	}
	list := make([]attr, len(fields))
	for i, f := range fields {
		k, v, ok := strings.Cut(f, "=")
		if !ok {
			return nil, fmt.Errorf(malformed, f)
		}
		list[i] = attr{strings.ToLower(strings.TrimSpace(k)), v}
	}
	return list, nil
}
