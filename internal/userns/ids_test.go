package userns

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// Ranges are taken by name or number, in their order, from 1 on inside. What
// is no range, or reaches beyond the last id, is left out: newuidmap would
// refuse all of them for it.
func TestSubordinate(t *testing.T) {
	file := filepath.Join(t.TempDir(), "subuid")
	text := `# comment
me:100000:65536
other:200000:65536
 1000:400000:10
me:5:0
me:5:-1
me:-5:10
me:x:10
me:5:y
me:7
me:7:8:9
me:4294967296:1
me:9223372036854775807:1
me:1:9223372036854775807
me:4294967295:1
:1:1
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	want := []span{{1, 100000, 65536}, {65537, 400000, 10}, {65547, 4294967295, 1}}
	if got := subordinate(file, "me", "1000"); !slices.Equal(got, want) {
		t.Errorf("ranges: %v, want %v", got, want)
	}
	if got := subordinate(file, "nobody", "7"); got != nil {
		t.Errorf("ranges of a user without any: %v", got)
	}
	if got := subordinate(file+".missing", "me", "1000"); got != nil {
		t.Errorf("ranges of no file: %v", got)
	}
}

// What is written to a map is read from it again, as the kernel spaces it.
func TestMaps(t *testing.T) {
	file := filepath.Join(t.TempDir(), "uid_map")
	spans := []span{{0, 1000, 1}, {1, 100000, 65536}}
	kernel := "         0       1000          1\n         1     100000      65536\n"
	for _, text := range []string{lines(spans), kernel} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := mapped(file); !slices.Equal(got, spans) {
			t.Errorf("%q is read as %v", text, got)
		}
	}
	for id, want := range map[uint32]bool{0: true, 1: true, 65536: true, 65537: false, 4294967295: false} {
		if got := has(spans, id); got != want {
			t.Errorf("id %d is there: %v", id, got)
		}
	}
	if got := same(spans); !slices.Equal(got, []span{{0, 0, 1}, {1, 1, 65536}}) || spans[0].outside != 1000 {
		t.Errorf("to themselves: %v, of %v", got, spans)
	}
}
