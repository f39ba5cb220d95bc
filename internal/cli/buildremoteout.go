package cli

import (
	"errors"
	"io"
	"maps"
	"strings"

	"github.com/moby/buildkit/client"

	"github.com/strake-project/strake/internal/build/remote"
)

// remoteFiles are the files that a daemon's outputs come into. Each is whole or
// not there: that all has come, only the end of the build tells.
type remoteFiles []*remoteFile

type remoteFile struct {
	app  *App
	dest string
	pipe *io.PipeWriter
	done chan error
}

// open starts the file; the daemon writes to it.
func (f *remoteFile) open(map[string]string) (io.WriteCloser, error) {
	r, w := io.Pipe()
	f.pipe, f.done = w, make(chan error, 1)
	go func() {
		err := f.app.stream(f.dest, func(to io.Writer) error {
			_, err := io.Copy(to, r)
			return err
		})
		r.CloseWithError(err)
		f.done <- err
	}()
	return struct {
		io.Writer
		io.Closer
	}{w, io.NopCloser(nil)}, nil
}

// close ends the files after a build that ended with err, and returns that or
// what went wrong in writing them. Called again it does nothing.
func (fs remoteFiles) close(err error) error {
	for _, f := range fs {
		if f.pipe == nil {
			continue
		}
		f.pipe.CloseWithError(err) // nil is the end of the file
		f.pipe = nil
		if last := <-f.done; err == nil {
			err = last
		}
	}
	return err
}

// remoteOutputs are the outputs in the words of BuildKit's exporters, which
// have the same options. What a daemon pushes comes into the store too only
// where --load asks for it.
func (a *App) remoteOutputs(o *remote.Options, f *buildFlags, outs []*buildOutput) (remoteFiles, error) {
	if f.squash {
		return nil, errors.New("--squash is for builds on this machine: BuildKit has no such thing")
	}
	var files remoteFiles
	for _, out := range outs {
		e := client.ExportEntry{Type: out.kind, Attrs: maps.Clone(out.attr)}
		names := make([]string, len(out.names))
		for i, n := range out.names {
			names[i] = n.String()
		}
		if len(names) > 0 && out.kind != outLocal && out.kind != outTar {
			e.Attrs["name"] = strings.Join(names, ",")
		}
		switch {
		case out.kind == outNone:
			continue
		case out.kind == outImage && out.push:
			o.Names = out.names
			o.Exports = append(o.Exports, e)
			if !f.loadSet() || !f.load {
				continue
			}
			fallthrough
		case out.kind == outImage, out.kind == outDocker && out.dest == "":
			if o.Load = o.Load || out.store; out.store {
				o.Names, o.Attrs = out.names, loadAttrs(out.attr)
			}
			continue
		case out.kind == outLocal, !out.tar:
			e.OutputDir = out.dest
		default:
			file := &remoteFile{app: a, dest: out.dest}
			files = append(files, file)
			e.Output = file.open
		}
		o.Exports = append(o.Exports, e)
	}
	return files, nil
}

// loadAttrs are those options of an image's output that the image itself shows.
func loadAttrs(attr map[string]string) map[string]string {
	out := map[string]string{}
	for k, v := range attr {
		switch k {
		case "push", "push-by-digest", "registry.insecure", "store", "unpack", "name", "name-canonical", "dangling-name-prefix", "danging-name-empty-only", "tar":
		default:
			out[k] = v
		}
	}
	return out
}
