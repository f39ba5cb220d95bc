package cli

import (
	"slices"
	"strings"
	"testing"
)

func TestVersionRange(t *testing.T) {
	for _, c := range []struct{ text, in, out string }{
		{">=1.2 <2", "1.2 1.2.0 v1.9.9 1.10", "1.1.9 2 2.0.0 1"},
		{"^1.2.3", "1.2.3 1.9", "1.2.2 2.0 1.2"},
		{"^0.2.3", "0.2.3 0.2.9", "0.3.0 0.2.2 1.0"},
		{"^0.0.3", "0.0.3", "0.0.4"},
		{"~1.2.3", "1.2.3 1.2.9", "1.3.0 1.2.2"},
		{"~1", "1.9 1", "2.0"},
		{"1.x", "1 1.0.9", "2 0.9"},
		{"1.27", "1.27 1.27.5", "1.28"},
		{"=1.27.0", "1.27.0 1.27", "1.27.1"},
		{">1.2", "1.3 2", "1.2 1.2.9"},
		{"<=1.2", "1.2.9 1", "1.3"},
		{"!=1.2", "1.3", "1.2.5"},
		{"1.2 || >= 3, <4", "1.2.1 3.5", "2.0 4.0"},
		{"*", "1 99.9", ""},
	} {
		r, err := parseRange(c.text)
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		for want, list := range map[bool]string{true: c.in, false: c.out} {
			for _, tag := range strings.Fields(list) {
				v, ok := parseVersion(tag)
				if !ok || r.has(v) != want {
					t.Errorf("%s in %q: want %v", tag, c.text, want)
				}
			}
		}
	}
	for _, bad := range []string{"", " ", ">=", "1.2 ||", "a.b", ">>1", "1.2.3.4.5", "1..2", "99999999999999999999999"} {
		if r, err := parseRange(bad); err == nil {
			t.Errorf("%q is a range: %v", bad, r)
		}
	}
	for _, bad := range []string{"latest", "", "v", "1.", ".1", "1.2.3.4.5", "1a", "99999999999999999999"} {
		if _, ok := parseVersion(bad); ok {
			t.Errorf("%q is a version", bad)
		}
	}
}

func TestCompareTags(t *testing.T) {
	want := strings.Fields("alpine latest 1-rc9 1-rc10 1 1.2-alpine 1.2 v1.2 1.2.0 1.10 2.0.0 10")
	got := slices.Clone(want)
	slices.Sort(got)
	slices.SortFunc(got, compareTags)
	if !slices.Equal(got, want) {
		t.Errorf("sorted %v, want %v", got, want)
	}
}

func FuzzRange(f *testing.F) {
	f.Add("^1.2 || ~v2.x, !=3", "v1.2-rc1")
	f.Fuzz(func(t *testing.T, text, tag string) {
		r, err := parseRange(text)
		v, ok := parseVersion(tag)
		if err == nil && ok {
			r.has(v)
		}
		if compareTags(tag, text) != -compareTags(text, tag) {
			t.Errorf("%q and %q have no order", tag, text)
		}
	})
}
