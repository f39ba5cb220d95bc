package cli

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/strake-project/strake/internal/oci"
)

// version is a tag read as a version: one to four numbers, with or without a v
// before and "-SUFFIX" behind. A suffix is a pre-release ("-rc1") or a variant
// ("-alpine"): tags do not say which.
type version struct {
	numbers []uint64
	suffix  string
}

func parseVersion(tag string) (version, bool) {
	core, suffix, _ := strings.Cut(strings.TrimPrefix(tag, "v"), "-")
	var v version
	for part := range strings.SplitSeq(core, ".") {
		n, err := strconv.ParseUint(part, 10, 64)
		if err != nil || len(v.numbers) == 4 {
			return version{}, false
		}
		v.numbers = append(v.numbers, n)
	}
	v.suffix = suffix
	return v, true
}

// compareNumbers compares the first n numbers; those that are missing are 0.
func compareNumbers(a, b []uint64, n int) int {
	at := func(v []uint64, i int) uint64 {
		if i < len(v) {
			return v[i]
		}
		return 0
	}
	for i := range n {
		if c := cmp.Compare(at(a, i), at(b, i)); c != 0 {
			return c
		}
	}
	return 0
}

// compareTags orders by version: what is none comes first, by name; a suffix
// comes before the version without one, as semver has it.
func compareTags(a, b string) int {
	va, isA := parseVersion(a)
	vb, isB := parseVersion(b)
	switch {
	case isA != isB:
		if isA {
			return 1
		}
		return -1
	case !isA:
		return strings.Compare(a, b)
	}
	if c := compareNumbers(va.numbers, vb.numbers, 4); c != 0 {
		return c
	}
	if (va.suffix == "") != (vb.suffix == "") {
		if va.suffix == "" {
			return 1
		}
		return -1
	}
	return cmp.Or(compareNatural(va.suffix, vb.suffix), cmp.Compare(len(va.numbers), len(vb.numbers)), strings.Compare(a, b))
}

// compareNatural compares digits as numbers: rc9 before rc10.
func compareNatural(a, b string) int {
	run := func(s string) (digits bool, n int) {
		digit := func(c byte) bool { return c >= '0' && c <= '9' }
		for n = 1; n < len(s) && digit(s[n]) == digit(s[0]); n++ {
		}
		return digit(s[0]), n
	}
	for a != "" && b != "" {
		da, na := run(a)
		db, nb := run(b)
		x, y := a[:na], b[:nb]
		if da && db {
			x, y = strings.TrimLeft(x, "0"), strings.TrimLeft(y, "0")
			if c := cmp.Compare(len(x), len(y)); c != 0 {
				return c
			}
		}
		if c := strings.Compare(x, y); c != 0 {
			return c
		}
		a, b = a[na:], b[nb:]
	}
	return cmp.Compare(len(a), len(b))
}

// versionRange is a parsed --semver: any of several lists of comparisons that
// all hold.
type versionRange [][]comparison

type comparison struct {
	op      string
	numbers []uint64
}

// parseRange reads ">=1.2 <2", "^1.2", "~1.2.3", "1.x", "1.27 || 1.29": as npm
// and cargo write ranges. A version cut short stands for all that it begins.
func parseRange(s string) (versionRange, error) {
	var all versionRange
	for part := range strings.SplitSeq(s, "||") {
		var list []comparison
		op := ""
		for _, word := range strings.FieldsFunc(part, func(r rune) bool { return r == ' ' || r == ',' }) {
			rest := strings.TrimLeft(word, "<>=!^~")
			op += word[:len(word)-len(rest)]
			if rest == "" {
				continue // ">= 1.2"
			}
			c := comparison{op: op}
			op = ""
			if !slices.Contains([]string{"", "=", "==", "!=", "<", "<=", ">", ">=", "^", "~"}, c.op) {
				return nil, fmt.Errorf("version range %q: %q is no comparison: %w", s, c.op, oci.ErrInvalid)
			}
			rest = strings.TrimPrefix(rest, "v")
			for n := range strings.SplitSeq(rest, ".") {
				if n == "x" || n == "X" || n == "*" {
					break
				}
				number, err := strconv.ParseUint(n, 10, 64)
				if err != nil || len(c.numbers) == 4 {
					return nil, fmt.Errorf("version range %q: %q is no version: %w", s, rest, oci.ErrInvalid)
				}
				c.numbers = append(c.numbers, number)
			}
			list = append(list, c)
		}
		if op != "" || len(list) == 0 {
			return nil, fmt.Errorf("version range %q: a version is missing: %w", s, oci.ErrInvalid)
		}
		all = append(all, list)
	}
	return all, nil
}

// has tells whether v's numbers are in the range.
func (r versionRange) has(v version) bool {
	return slices.ContainsFunc(r, func(list []comparison) bool {
		return !slices.ContainsFunc(list, func(c comparison) bool { return !c.holds(v.numbers) })
	})
}

func (c comparison) holds(v []uint64) bool {
	n := len(c.numbers)
	short, whole := compareNumbers(v, c.numbers, n), compareNumbers(v, c.numbers, 4)
	switch c.op {
	case "!=":
		return short != 0
	case "<":
		return whole < 0
	case "<=":
		return short <= 0
	case ">":
		return short > 0
	case ">=":
		return whole >= 0
	case "~": // the last number but the major may grow
		return whole >= 0 && compareNumbers(v, c.numbers, min(n, 2)) == 0
	case "^": // what is left of the first number that is not 0 stays
		keep := 1
		for keep < n && c.numbers[keep-1] == 0 {
			keep++
		}
		return whole >= 0 && compareNumbers(v, c.numbers, min(n, keep)) == 0
	}
	return short == 0
}
