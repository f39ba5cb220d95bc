package build

import (
	"context"
	"path/filepath"
	"strings"
	"time"

	"github.com/strake-project/strake/internal/build/local"
)

// loadLocal reads of a directory what copies will ask for, and reports the
// bytes: what docker calls transferring.
func (s *step) loadLocal(ctx context.Context, name string, d *local.Dir) error {
	st := Status{Vertex: s.v.Digest, ID: "transferring " + name + ":", Started: time.Now()}
	first := st
	s.Emit(Event{Status: &first})
	done := make(chan error, 1)
	var size int64
	go func() {
		var err error
		size, err = d.Load(ctx)
		done <- err
	}()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			if err != nil {
				return err
			}
			now := time.Now()
			st.Current, st.Completed = d.Loaded(), &now
			if name == "dockerfile" {
				st.Current = size // it is read whole, whether its digest is known or not
			}
			s.Emit(Event{Status: &st})
			return nil
		case <-tick.C:
			now := st
			now.Current = d.Loaded()
			s.Emit(Event{Status: &now})
		}
	}
}

// storeIn is a pattern that excludes the store where it lies inside the
// directory dir: nobody wants it in an image, and it changes while it is read.
func (e *Engine) storeIn(dir string) []string {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil
	}
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	root, err := filepath.EvalSymlinks(e.opt.Store.Root())
	if err != nil {
		return nil
	}
	rel, err := filepath.Rel(dir, root)
	if err != nil || rel == "." || rel == ".." || strings.HasPrefix(rel, "../") {
		return nil
	}
	return []string{strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`, "!", `\!`).Replace(rel)}
}
