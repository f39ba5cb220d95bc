// Package output writes a finished file system out of the store: into a
// directory of the user's or as a tar. It reads through a view of the layers;
// no tree has to be mounted.
//
// What it writes to was not made by strake and may change under its hands, and
// the names and links it writes come from an image: every step goes through a
// directory that is held open, and no symlink is ever followed.
package output

import (
	"context"
	"io/fs"
	"time"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/tree"
)

// Part is one platform's file system and where it goes.
type Part struct {
	// Dir is a directory to put it in, a single name, or "" for the top.
	Dir  string
	View tree.View
	// Time, where it is set, is the time of every file.
	Time *time.Time
	// Extra are files that come on top, by path.
	Extra map[string][]byte
}

// item is an entry as it is to be written.
type item struct {
	layer.Entry
	from string // its path in the view
	body []byte // of an extra file, instead
}

// item is what is to be written of e; firsts knows the files that came before.
func (p *Part) item(e *layer.Entry, firsts tree.FirstNames) item {
	it := item{Entry: *e, from: e.Path}
	if p.Time != nil {
		it.ModTime = *p.Time
	}
	firsts.Relink(&it.Entry, e.Path)
	return it
}

// dangling refuses a hard link whose file no layer has.
func dangling(e *layer.Entry) error {
	return &fs.PathError{Op: "export", Path: "/" + e.Path, Err: oci.ErrInvalid}
}

// checkContext makes long loops end with ctx.
func checkContext(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}
