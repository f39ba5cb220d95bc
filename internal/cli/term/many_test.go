package term_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/strake-project/strake/internal/cli/term"
)

// Many rows come in their order, and one that does not fit, wherever it is,
// leaves nothing printed.
func TestManyRows(t *testing.T) {
	type row struct{ N []int }
	var rows []row
	var want strings.Builder
	for i := range 5001 {
		rows = append(rows, row{[]int{i}})
		fmt.Fprintln(&want, i)
	}
	var got bytes.Buffer
	if err := term.PrintRows(&got, "{{index .N 0}}", nil, rows); err != nil || got.String() != want.String() {
		t.Fatalf("%v, %d bytes, want %d", err, got.Len(), want.Len())
	}
	for _, i := range []int{0, 2499, 2500, 5000} {
		bad := append([]row(nil), rows...)
		bad[i].N = nil
		got.Reset()
		if err := term.PrintRows(&got, "{{index .N 0}}", nil, bad); err == nil || got.Len() > 0 {
			t.Errorf("row %d: %v, %d bytes", i, err, got.Len())
		}
	}
}
