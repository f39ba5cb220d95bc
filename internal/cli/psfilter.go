package cli

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/strake-project/strake/internal/container"
	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
)

// psTest tells whether a container is shown; at is its place in the list, the
// newest first.
type psTest func(at int, c *container.Container) bool

// psTests makes the tests of `ps --filter` over list. Filters of different keys
// must all fit; of one key's several values any, but all of the labels.
func psTests(ctx context.Context, s *store.Store, fs filters, list []*container.Container) ([]psTest, error) {
	if err := fs.check("ancestor", "before", "exited", "expose", "health", "id", "is-task", "isolation",
		"label", "name", "network", "publish", "since", "status", "volume"); err != nil {
		return nil, err
	}
	var tests []psTest
	for _, make := range []func() (psTest, error){
		func() (psTest, error) { return psExited(fs) },
		func() (psTest, error) { return psStatus(fs) },
		func() (psTest, error) { return psTask(fs) },
		func() (psTest, error) { return psHealth(fs) },
		func() (psTest, error) { return psPlace(fs, list) },
		func() (psTest, error) { return psAncestor(ctx, s, fs) },
		func() (psTest, error) { return psPorts(fs) },
	} {
		test, err := make()
		if err != nil {
			return nil, err
		}
		if test != nil {
			tests = append(tests, test)
		}
	}
	return append(tests, psPlain(fs)), nil
}

// psPlain are the filters that cannot be wrong.
func psPlain(fs filters) psTest {
	names, ids, volumes, networks := fs.values("name"), fs.values("id"), fs.values("volume"), fs.values("network")
	return func(_ int, c *container.Container) bool {
		for _, l := range fs.values("label") {
			if !hasLabel(c.Labels, l) {
				return false
			}
		}
		mounted := func(v string) bool {
			return slices.ContainsFunc(c.Mounts, func(m container.Mount) bool { return m.Source == v || m.Destination == v })
		}
		return (len(names) == 0 || matchesAny(names, "/"+c.Name) || matchesAny(names, c.Name)) &&
			(len(ids) == 0 || matchesAny(ids, c.ID)) &&
			(len(volumes) == 0 || slices.ContainsFunc(volumes, mounted)) &&
			(len(networks) == 0 || slices.Contains(networks, c.Network))
	}
}

// matchesAny is docker's match of a filter's values: the value itself or, as a
// regular expression, a part of it. One that does not parse matches nothing.
func matchesAny(values []string, s string) bool {
	return slices.ContainsFunc(values, func(v string) bool {
		if v == s {
			return true
		}
		re, err := regexp.Compile(v)
		return err == nil && re.MatchString(s)
	})
}

func psExited(fs filters) (psTest, error) {
	var codes []int
	for _, v := range fs.values("exited") {
		n, err := strconv.Atoi(v)
		if err != nil {
			return nil, daemonf("invalid filter 'exited=%s': %w", v, err)
		}
		codes = append(codes, n)
	}
	if codes == nil {
		return nil, nil
	}
	return func(_ int, c *container.Container) bool {
		return c.State == container.Exited && !c.Started.IsZero() && slices.Contains(codes, c.ExitCode)
	}, nil
}

// among checks that all values are of those that the key knows.
func (f filters) among(key, what string, known ...string) ([]string, error) {
	values := f.values(key)
	for _, v := range values {
		if !slices.Contains(known, v) {
			return nil, daemonf("invalid filter '%s=%s': invalid value for %s (%s): must be one of %s", key, v, what, v, strings.Join(known, ", "))
		}
	}
	return values, nil
}

func psStatus(fs filters) (psTest, error) {
	states, err := fs.among("status", "state", "created", "running", "paused", "restarting", "removing", "exited", "dead")
	if err != nil || states == nil {
		return nil, err
	}
	return func(_ int, c *container.Container) bool { return slices.Contains(states, string(c.State)) }, nil
}

// psTask: docker's tasks are a swarm's, of which there is none.
func psTask(fs filters) (psTest, error) {
	if fs.values("is-task") == nil {
		return nil, nil
	}
	want, err := fs.boolean("is-task")
	return func(int, *container.Container) bool { return !want }, err
}

// psHealth: no container's health is checked, which docker calls none.
func psHealth(fs filters) (psTest, error) {
	wanted, err := fs.among("health", "health", "none", "starting", "healthy", "unhealthy")
	if err != nil || wanted == nil {
		return nil, err
	}
	return func(int, *container.Container) bool { return slices.Contains(wanted, "none") }, nil
}

// psPlace are before= and since=: what was created before or after another.
func psPlace(fs filters, list []*container.Container) (psTest, error) {
	first, last := 0, len(list)
	for key, set := range map[string]func(int){"before": func(i int) { first = i + 1 }, "since": func(i int) { last = i }} {
		for _, name := range fs.values(key) {
			one, err := container.Among(list, name)
			if err != nil {
				if isNotFound(err) {
					err = fmt.Errorf("No such container: %s", name)
				}
				return nil, daemon(err)
			}
			set(slices.Index(list, one))
		}
	}
	return func(at int, _ *container.Container) bool { return first <= at && at < last }, nil
}

// psAncestor fits containers of the image and of all that were made on top of it.
func psAncestor(ctx context.Context, s *store.Store, fs filters) (psTest, error) {
	names := fs.values("ancestor")
	if names == nil {
		return nil, nil
	}
	var stacks [][]oci.Digest
	ids := map[oci.Digest]bool{}
	for _, name := range names {
		img, err := s.Find(ctx, name)
		if isNotFound(err) || errors.Is(err, oci.ErrInvalid) {
			continue // docker: no container is of an image that is not there
		}
		if err != nil {
			return nil, daemon(err)
		}
		ids[img.ID] = true
		if len(img.Layers) > 0 {
			stacks = append(stacks, img.Layers)
		}
	}
	return func(_ int, c *container.Container) bool {
		return ids[c.ImageID] || slices.ContainsFunc(stacks, func(below []oci.Digest) bool {
			return len(c.Layers) > len(below) && slices.Equal(c.Layers[:len(below)], below)
		})
	}, nil
}

// psPorts: no container publishes a port, so that none fits.
func psPorts(fs filters) (psTest, error) {
	given := false
	for _, key := range []string{"publish", "expose"} {
		for _, v := range fs.values(key) {
			given = true
			if strings.Contains(v, ":") {
				return nil, daemonf("filter for '%s' should not contain ':': %s", key, v)
			}
			ports, _, _ := strings.Cut(v, "/")
			first, last, ranged := strings.Cut(ports, "-")
			if !ranged {
				last = first
			}
			for _, p := range []string{first, last} {
				if _, err := strconv.ParseUint(p, 10, 16); err != nil {
					return nil, daemonf("error while looking up for %s %s: %w", key, v, err)
				}
			}
		}
	}
	if !given {
		return nil, nil
	}
	return func(int, *container.Container) bool { return false }, nil
}
