package tree

import (
	"reflect"
	"testing"

	"github.com/strake-project/strake/internal/oci/layer"
)

// What the upper layers of random stacks say is settled is so in the whole.
func TestSettled(t *testing.T) {
	settled, not := 0, 0
	for seed := range uint64(1000) {
		_, tocs, _ := randomStack(t, seed)
		whole := New(tocs, nil)
		for k := 1; k < len(tocs); k++ {
			part := New(tocs[len(tocs)-k:], nil)
			err := Walk(part, ".", func(e *layer.Entry) error {
				if !part.Settled(e.Path) {
					not++
					return nil
				}
				settled++
				got, err := whole.Lstat(e.Path)
				if err != nil || !reflect.DeepEqual(got, e) {
					t.Errorf("seed %d: by %d layers %s is %+v, by all %+v, %v\n%s", seed, k, e.Path, e, got, err, describe(tocs))
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if t.Failed() {
				return
			}
		}
	}
	t.Logf("%d settled, %d not", settled, not)
	if settled < 500 {
		t.Errorf("only %d paths were settled, %d not", settled, not)
	}
}

func TestSettledCases(t *testing.T) {
	base := []string{"d etc", "f etc/passwd old", "l lib -> usr/lib"}
	for _, c := range []struct {
		upper []string
		path  string
		want  bool
	}{
		{[]string{"d etc", "f etc/passwd new"}, "etc/passwd", true},
		{[]string{"d etc", "f etc/passwd new"}, "etc", true},
		{[]string{"d etc", "f etc/passwd new"}, "etc/group", false},
		{[]string{"d etc", "f etc/passwd new"}, "lib", false},
		{[]string{"f etc/passwd new"}, "etc/passwd", false},
		{[]string{"f lib/libc.so new", "d etc", "f etc/passwd new"}, "etc/passwd", false},
		{[]string{"f hosts new"}, "hosts", true},
	} {
		part := stack(c.upper)
		if got := part.Settled(c.path); got != c.want {
			t.Errorf("%q of %q: %t", c.path, c.upper, got)
		}
		if whole := stack(base, c.upper); c.want {
			got, err := whole.Lstat(c.path)
			want, _ := part.Lstat(c.path)
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("%q of %q is %+v, %v; want %+v", c.path, c.upper, got, err, want)
			}
		}
	}
}
