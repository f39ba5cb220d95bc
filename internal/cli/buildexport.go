package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/platforms"

	"github.com/strake-project/strake/internal/build"
	"github.com/strake-project/strake/internal/build/frontend"
	"github.com/strake-project/strake/internal/build/output"
	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/content/archive"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// exporting sends a build's result to its outputs.
type exporting struct {
	*App
	engine *build.Engine
	res    *frontend.Result
	// image is what the last output of an image made, nil where none was.
	image   *build.Assembly
	names   []ref.Ref
	skipped []string
}

// buildOutputs sends res to every output, one after another.
func (a *App) buildOutputs(ctx context.Context, engine *build.Engine, res *frontend.Result, outs []*buildOutput) (*exporting, error) {
	x := &exporting{App: a, engine: engine, res: res}
	for _, o := range outs {
		var err error
		switch o.kind {
		case outNone:
		case outLocal, outTar:
			err = x.files(ctx, o)
		default:
			err = x.images(ctx, o)
		}
		if err != nil {
			return nil, err
		}
	}
	return x, nil
}

// results are the images with what o says of them.
func (x *exporting) results(o *buildOutput) []build.Image {
	images := append([]build.Image(nil), x.res.Images...)
	for i := range images {
		if o.epoch != nil {
			images[i].Epoch = o.epoch
		}
	}
	return images
}

func (x *exporting) images(ctx context.Context, o *buildOutput) error {
	title := "exporting to image"
	if !o.keeps() && o.kind != outImage {
		title = "exporting to " + o.kind + " image format"
		if o.kind == outDocker && len(x.res.Images) > 1 {
			return errors.New("docker exporter does not currently support exporting manifest lists")
		}
	}
	form := o.form
	form.Index = form.Index || x.res.Index
	return x.engine.Work(title, func(w *build.Work) error {
		asm, err := x.assemble(ctx, w, o, form)
		if err != nil {
			return err
		}
		x.image, x.names = asm, o.names
		switch {
		case o.kind == outImage || o.dest == "":
			if err := x.keep(ctx, w, asm, o); err != nil {
				return err
			}
			if o.push {
				return x.push(ctx, w, asm, o)
			}
			return nil
		case !o.tar:
			return w.Do("writing layout", func() error { return x.layout(ctx, asm, o) })
		}
		return w.Do("sending tarball", func() error {
			return x.stream(o.dest, func(to io.Writer) error { return x.archive(ctx, to, asm, o) })
		})
	})
}

// assemble puts the image together. What is pushed, and nobody asked to keep,
// does not come here for it: layers that are in a registry stay there, and the
// image is not kept. A name that the store has must not go on meaning an older
// image, so then they come.
func (x *exporting) assemble(ctx context.Context, w *build.Work, o *buildOutput, form build.Form) (*build.Assembly, error) {
	form.Leave = o.kind == outImage && o.push && !o.mustKeep
	if form.Leave && o.keeps() {
		for _, n := range o.names {
			_, err := x.engine.Store().Resolve(ctx, n)
			if err != nil && !isNotFound(err) {
				return nil, err
			}
			form.Leave = form.Leave && err != nil
		}
	}
	return x.engine.Assemble(ctx, w, x.results(o), form)
}

// keep puts an image into the store, under the names that o gives it.
func (x *exporting) keep(ctx context.Context, w *build.Work, asm *build.Assembly, o *buildOutput) error {
	if !o.keeps() {
		return nil
	}
	if n := asm.Left(); n > 0 {
		o.store = false
		return w.Do(fmt.Sprintf("not kept here: %d of its layers are in a registry only (--load keeps it)", n), func() error { return nil })
	}
	var names []ref.Ref
	if !o.pushByDigest {
		names = append(names, o.names...)
	}
	if o.canonical {
		for _, n := range o.names {
			names = append(names, n.WithDigest(asm.Target.Digest))
		}
	}
	if o.dangling.Path != "" && (!o.danglingOnly || len(o.names) == 0) {
		names = append(names, o.dangling.WithDigest(asm.Target.Digest))
	}
	if err := x.engine.Keep(ctx, w, asm, names); err != nil || !o.unpack {
		return err
	}
	return w.Do("unpacking", func() error {
		for _, img := range x.res.Images {
			for _, id := range img.Snapshot.DiffIDs() {
				if _, err := x.engine.Store().Tree(ctx, id); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// push sends an image to each of its names' registries, from where it is: it
// need not be in the store.
func (x *exporting) push(ctx context.Context, w *build.Work, asm *build.Assembly, o *buildOutput) error {
	for _, n := range o.names {
		to := n
		if o.pushByDigest {
			to.Tag = ""
		}
		repo := x.registries(n, o.insecure).Repository(to)
		var got oci.Descriptor
		if err := w.Do("pushing layers", func() (err error) {
			got, err = content.Copy(ctx, repo, to, asm, to, content.CopyOptions{Compression: content.Gzip})
			return err
		}); err != nil {
			return fmt.Errorf("failed to push %s: %w", strings.TrimSuffix(n.String(), ":"), err)
		}
		if err := w.Do(fmt.Sprintf("pushing manifest for %s@%s", to, got.Digest), func() error { return nil }); err != nil {
			return err
		}
		// The registry may have the image under another digest, its layers packed:
		// that is the one to report.
		x.image = asm.As(got)
		if !o.keeps() {
			continue
		}
		if err := rememberPushed(ctx, x.engine.Store(), repo, to, got); err != nil {
			return err
		}
	}
	return nil
}

// archive writes an image as docker-save archive or OCI layout to a stream.
func (x *exporting) archive(ctx context.Context, to io.Writer, asm *build.Assembly, o *buildOutput) error {
	w := archive.NewWriter(to)
	if o.kind == outOCI {
		w = archive.NewLayoutWriter(to)
	}
	if err := copyNamed(ctx, w, asm, o.names); err != nil {
		return err
	}
	return w.Close()
}

// layout adds an image to the OCI layout in a directory.
func (x *exporting) layout(ctx context.Context, asm *build.Assembly, o *buildOutput) error {
	l, err := archive.OpenLayout(o.dest)
	if err != nil {
		return err
	}
	defer l.Close()
	return copyNamed(ctx, l, asm, o.names)
}

// copyNamed copies an image once for each of its names, or without one.
func copyNamed(ctx context.Context, to content.Sink, asm *build.Assembly, names []ref.Ref) error {
	if len(names) == 0 {
		names = []ref.Ref{{}}
	}
	for _, n := range names {
		if _, err := content.Copy(ctx, to, n, asm, n, content.CopyOptions{}); err != nil {
			return err
		}
	}
	return nil
}

// stream writes to a file, which appears whole or not at all, or for "-" to
// standard output.
func (a *App) stream(dest string, write func(io.Writer) error) error {
	if dest == "-" {
		return a.toStdout(write)
	}
	return writeFile(dest, 0o666, write)
}

// files writes the file systems of the images.
func (x *exporting) files(ctx context.Context, o *buildOutput) error {
	split := x.res.Index
	if o.split != nil {
		split = *o.split
	}
	var parts []output.Part
	for _, img := range x.results(o) {
		view, err := x.engine.Whole(ctx, img.Snapshot)
		if err != nil {
			return err
		}
		p := output.Part{View: view, Time: img.Epoch}
		if split {
			p.Dir = platformDir(img.Platform)
		}
		if p.Extra, err = x.attestationFiles(ctx, o, img, view, x.res.Index && !split); err != nil {
			return err
		}
		parts = append(parts, p)
	}
	if o.kind == outTar {
		return x.engine.Work("exporting to client tarball", func(w *build.Work) error {
			return w.Do("sending tarball", func() error {
				return x.stream(o.dest, func(to io.Writer) error { return output.Tar(ctx, to, parts) })
			})
		})
	}
	return x.engine.Work("exporting to client directory", func(w *build.Work) error {
		return w.Do("copying files", func() error {
			skipped, err := output.Dir(ctx, o.dest, parts)
			x.skipped = append(x.skipped, skipped...)
			return err
		})
	})
}

// platformDir is the name of a platform's directory: linux_arm64.
func platformDir(p oci.Platform) string {
	return strings.NewReplacer("/", "_", `\`, "_", ":", "_").Replace(platforms.FormatAll(p))
}

// made is what --iidfile and --metadata-file tell of; nil where there was no
// image.
func (x *exporting) made() *build.Exported {
	if x.image == nil {
		return nil
	}
	return &x.image.Exported
}
