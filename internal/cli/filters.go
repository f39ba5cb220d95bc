package cli

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// filter is one --filter KEY=VALUE.
type filter struct{ key, value string }

// filters is the flag --filter, which may be given several times.
type filters []filter

// Set implements pflag.Value.
func (f *filters) Set(s string) error {
	if s == "" {
		return nil
	}
	key, value, ok := strings.Cut(s, "=")
	if !ok {
		return errors.New("bad format of filter (expected name=value)")
	}
	key = strings.ToLower(strings.TrimSpace(key))
	if bare, not := strings.CutSuffix(key, "!"); not && bare != "" {
		key = bare + "!"
	}
	*f = append(*f, filter{key, strings.TrimSpace(value)})
	return nil
}

// Type implements pflag.Value.
func (f *filters) Type() string { return "filter" }

func (f *filters) String() string { return "" }

// check refuses keys that the command does not know.
func (f filters) check(known ...string) error {
	for _, x := range f {
		if !slices.Contains(known, x.key) {
			return daemonf("invalid filter '%s'", x.key)
		}
	}
	return nil
}

// values lists what was given for key.
func (f filters) values(key string) []string {
	var out []string
	for _, x := range f {
		if x.key == key {
			out = append(out, x.value)
		}
	}
	return out
}

// boolean is the value of a key that is true or false.
func (f filters) boolean(key string) (bool, error) {
	v := f.values(key)
	for i, text := range v {
		b, err := parseBool(text)
		if err != nil || i > 0 && text != v[0] {
			break
		}
		if i == len(v)-1 {
			return b, nil
		}
	}
	return false, daemonf("invalid filter '%s=[%s]'", key, strings.Join(v, " "))
}

func parseBool(s string) (bool, error) {
	switch s {
	case "1", "true":
		return true, nil
	case "0", "false":
		return false, nil
	}
	return false, strconv.ErrSyntax
}

// before is the moment that the filter until= names, or none.
func (f filters) before() (time.Time, error) {
	v := f.values("until")
	switch len(v) {
	case 0:
		return time.Time{}, nil
	case 1:
		t, err := timestamp(v[0], time.Now())
		return t, daemon(err)
	}
	return time.Time{}, daemonf("more than one until filter specified")
}

// timestamp reads docker's forms of a time: Unix seconds with a fraction,
// RFC 3339 whole or cut short, or a duration before now.
func timestamp(s string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02T15", "2006-01-02Z07:00", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	whole, fraction, _ := strings.Cut(s, ".")
	sec, err := strconv.ParseInt(whole, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("failed to parse value as time or duration: %q", s)
	}
	nano := int64(0)
	if fraction != "" {
		if len(fraction) > 9 {
			return time.Time{}, fmt.Errorf("failed to parse value as time or duration: %q", s)
		}
		if nano, err = strconv.ParseInt((fraction + "000000000")[:9], 10, 64); err != nil {
			return time.Time{}, fmt.Errorf("failed to parse value as time or duration: %q", s)
		}
	}
	return time.Unix(sec, nano), nil
}
