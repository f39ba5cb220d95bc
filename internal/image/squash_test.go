package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/tree"
)

// random makes layers that are valid on their own, of few names, so that they
// replace, delete and hide each other's entries in every way.
func random(r *rand.Rand) []*layer.TOC {
	names := []string{"a", "b", "b-", "c"}
	var tocs []*layer.TOC
	for range 2 + r.IntN(4) {
		toc := &layer.TOC{}
		var fill func(dir string, depth int)
		fill = func(dir string, depth int) {
			for _, n := range names {
				p := strings.TrimPrefix(dir+"/"+n, "/")
				e := layer.Entry{Path: p, Mode: []uint32{0o644, 0o755, 0o600}[r.IntN(3)], UID: r.IntN(2), ModTime: time.Unix(int64(r.IntN(3)), 0)}
				switch r.IntN(9) {
				case 0, 1:
					text := fmt.Sprint("text", r.IntN(3))
					e.Type, e.Size, e.Digest = layer.Regular, int64(len(text)), digest.FromString(text)
				case 2:
					e.Type, e.Link, e.Mode = layer.Symlink, "c", 0o777
				case 3:
					e = layer.Entry{Path: p, Type: layer.Whiteout}
				case 4, 5, 6:
					if depth == 3 {
						continue
					}
					if e.Type = layer.Dir; r.IntN(4) > 0 { // else only implied
						toc.Entries = append(toc.Entries, e)
					}
					if r.IntN(4) == 0 {
						toc.Entries = append(toc.Entries, layer.Entry{Path: p, Type: layer.Opaque})
					}
					fill(p, depth+1)
					continue
				case 7:
					for _, f := range toc.Entries {
						if f.Type == layer.Regular && r.IntN(2) == 0 {
							e = f
							e.Path, e.Type, e.Link, e.Size, e.Digest = p, layer.HardLink, f.Path, 0, ""
							break
						}
					}
					if e.Type == 0 {
						continue
					}
				default:
					continue
				}
				toc.Entries = append(toc.Entries, e)
			}
		}
		fill("", 0)
		tocs = append(tocs, toc)
	}
	return tocs
}

func texts(_ context.Context, _ int, e *layer.Entry) (io.ReadCloser, error) {
	for i := range 3 {
		if text := fmt.Sprint("text", i); digest.FromString(text) == e.Digest {
			return io.NopCloser(strings.NewReader(text)), nil
		}
	}
	return nil, fmt.Errorf("%s: no such content", e.Path)
}

// show lists a tree with all that a layer can say of a file, hard links by the
// first name of their group.
func show(t *testing.T, v tree.View) string {
	t.Helper()
	var b strings.Builder
	first := map[string]string{}
	err := tree.Walk(v, ".", func(e *layer.Entry) error {
		link := e.Link
		if e.Type == layer.Regular {
			group := e.Link
			if group == "" {
				group = e.Path
			}
			if first[group] == "" {
				first[group] = e.Path
			}
			link = first[group]
		}
		fmt.Fprintf(&b, "%s %c %o %d:%d %d %d %s %s\n", e.Path, e.Type, e.Mode, e.UID, e.GID, e.Size, e.ModTime.Unix(), link, e.Digest)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestMerge: wherever a stack is cut, the merged upper layers over the lower
// ones show the same tree, hard links, times of directories and all.
func TestMerge(t *testing.T) {
	for seed := range uint64(800) {
		tocs := random(rand.New(rand.NewPCG(seed, 1)))
		view := tree.New(tocs, texts)
		want := show(t, view)
		for from := range tocs {
			w := layer.NewWriter(io.Discard)
			err := merge(t.Context(), w, tocs[from:], tree.New(tocs[:from], texts), view)
			if err != nil {
				if errors.Is(err, oci.ErrInvalid) && strings.Contains(want, " 1 ") {
					continue // a hard link to nothing is refused, not made up
				}
				t.Fatalf("seed %d from %d: %v", seed, from, err)
			}
			toc, err := w.Close()
			if err != nil {
				t.Fatalf("seed %d from %d: %v", seed, from, err)
			}
			merged := tree.New(append(append([]*layer.TOC(nil), tocs[:from]...), toc), texts)
			if got := show(t, merged); got != want {
				t.Fatalf("seed %d, layers from %d on merged: got\n%swant\n%s", seed, from, got, want)
			}
		}
	}
}
