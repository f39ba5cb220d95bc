package cli

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/strake-project/strake/internal/build"
	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/oci/ref"
)

// outputFlags say where a build's result goes.
type outputFlags struct {
	outputs, annotations []string
	push, load, squash   bool
	loadSet              func() bool // --load was given
}

func (f *outputFlags) add(fs *pflag.FlagSet) {
	fs.StringArrayVarP(&f.outputs, "output", "o", nil, `Output destination ("DIR", "-", "type=TYPE[,dest=…][,name=…][,push=true]…" where TYPE is image, registry, docker, oci, tar, local or cacheonly)`)
	fs.BoolVar(&f.push, "push", false, `Shorthand for "--output=type=registry", beside the store`)
	fs.BoolVar(&f.load, "load", true, `Keep the image in the store; "--load=false" with another output does not`)
	fs.BoolVar(&f.squash, "squash", false, "Squash newly built layers into a single new layer")
	fs.StringArrayVar(&f.annotations, "annotation", nil, `Add annotation to the image ("[PART[PLATFORM]:]key=value" where PART is manifest, index, manifest-descriptor or index-descriptor)`)
	f.loadSet = func() bool { return fs.Changed("load") }
}

// The kinds of output. registry is image with push=true.
const (
	outImage  = "image"
	outDocker = "docker"
	outOCI    = "oci"
	outTar    = "tar"
	outLocal  = "local"
	outNone   = "cacheonly"
)

// buildOutput is one place that the result goes to.
type buildOutput struct {
	kind string
	dest string // a file or directory; "-" is standard output
	attr map[string]string

	names                                       []ref.Ref
	form                                        build.Form
	push, pushByDigest, insecure                bool
	store, unpack, canonical, danglingOnly      bool
	mustKeep                                    bool // it was asked for, not only the usual
	tar                                         bool // of an OCI layout
	dangling                                    ref.Ref
	epoch                                       *time.Time
	split                                       *bool
	attestationPrefix                           string
	attestationInline, ociArtifact, artifactSet bool
}

// isImage tells whether the output is an image and not a file system.
func (o *buildOutput) isImage() bool {
	return o.kind == outImage || o.kind == outDocker || o.kind == outOCI
}

// keeps tells whether the image stays in the store.
func (o *buildOutput) keeps() bool {
	return o.store && (o.kind == outImage || o.kind == outDocker && o.dest == "")
}

// parse makes the list of outputs, in buildx's words where something is wrong.
// names are those of -t.
func (f *outputFlags) parse(names []ref.Ref, terminal bool) ([]*buildOutput, error) {
	var list []*buildOutput
	for _, text := range f.outputs {
		if text == "" {
			continue
		}
		o, err := splitOutput(text)
		if err != nil {
			return nil, err
		}
		list = append(list, o)
	}
	noLoad := f.loadSet() && !f.load
	if noLoad && len(list) == 0 && !f.push {
		return nil, errors.New(`--load=false needs another output: use --push, or --output=type=cacheonly to keep nothing but the cache`)
	}
	list = f.shorthands(list, noLoad)
	if !slices.ContainsFunc(list, (*buildOutput).isImage) {
		switch {
		case f.squash:
			return nil, fmt.Errorf("--squash has no meaning for output type=%s", list[0].kind)
		case len(f.annotations) > 0:
			return nil, fmt.Errorf("--annotation has no meaning for output type=%s", list[0].kind)
		}
	}
	stdout := false
	for _, o := range list {
		if err := o.finish(f, names); err != nil {
			return nil, err
		}
		if noLoad {
			o.store = false
		}
		o.mustKeep = o.mustKeep && o.store || f.loadSet() && f.load
		if err := o.checkDest(terminal); err != nil {
			return nil, err
		}
		if stdout && o.dest == "-" {
			return nil, errors.New("multiple outputs to stdout are not supported")
		}
		stdout = stdout || o.dest == "-"
	}
	return list, nil
}

// shorthands adds what --push, --load and no flag at all stand for.
func (f *outputFlags) shorthands(list []*buildOutput, noLoad bool) []*buildOutput {
	if len(list) == 0 {
		return []*buildOutput{{kind: outImage, attr: map[string]string{"push": strconv.FormatBool(f.push)}}}
	}
	if f.push {
		pushed := false
		for _, o := range list {
			if o.kind == outImage {
				o.attr["push"], pushed = "true", true
			}
		}
		if !pushed {
			list = append(list, &buildOutput{kind: outImage, attr: map[string]string{"push": "true"}})
		}
	}
	if f.loadSet() && !noLoad && !slices.ContainsFunc(list, func(o *buildOutput) bool { return o.kind == outDocker && o.dest == "" }) {
		list = append(list, &buildOutput{kind: outDocker, attr: map[string]string{}})
	}
	return list
}

// splitOutput reads the value of --output.
func splitOutput(text string) (*buildOutput, error) {
	o := &buildOutput{attr: map[string]string{}}
	if text != "" && !strings.ContainsAny(text, ",\"\n") && !strings.HasPrefix(text, "type=") {
		o.kind, o.dest = outLocal, text
		if text == "-" {
			o.kind = outTar
		}
		return o, nil
	}
	list, err := splitAttrs("output", text, "invalid value %s")
	if err != nil {
		return nil, err
	}
	for _, at := range list {
		switch at.key {
		case "type":
			o.kind = at.value
		case "dest":
			o.dest = at.value
		default:
			o.attr[at.key] = at.value
		}
	}
	switch o.kind {
	case "":
		return nil, errors.New("type is required for output")
	case "registry":
		o.kind = outImage
		if _, ok := o.attr["push"]; !ok {
			o.attr["push"] = "true"
		}
	case "moby": // docker's own name for its store
		o.kind = outImage
	case outImage, outDocker, outOCI, outTar, outLocal, outNone:
	default:
		return nil, fmt.Errorf("exporter %q could not be found: image, registry, docker, oci, tar, local and cacheonly are known", o.kind)
	}
	return o, nil
}

// finish reads the attributes: each is honoured or refused.
func (o *buildOutput) finish(f *outputFlags, names []ref.Ref) error {
	o.names, o.store, o.tar = names, true, true
	o.attestationInline = o.kind == outImage
	// SOURCE_DATE_EPOCH alone has to give the same digest twice, so files' times
	// follow it unless rewrite-timestamp=false says otherwise.
	o.form.Rewrite = true
	o.form.Squash = f.squash
	// An archive is to be sent, an image in the store to be run from.
	if o.kind == outOCI || o.kind == outDocker && o.dest != "" {
		o.form.Pack, o.form.Packing = true, content.Gzip
	}
	if err := f.annotate(o); err != nil {
		return err
	}
	for _, k := range slices.Sorted(maps.Keys(o.attr)) {
		ok, err := o.attribute(k, o.attr[k])
		if err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("output type=%s has no option %q", o.kind, k)
		}
	}
	if !o.isImage() {
		return nil
	}
	if o.push && len(o.names) == 0 {
		return errors.New("tag is needed when pushing to registry")
	}
	if o.form.DockerTypes && o.form.Pack && o.form.Packing == content.Zstd {
		return errors.New(`exporter option "compression=zstd" conflicts with "oci-mediatypes=false"`)
	}
	return nil
}

// attribute sets one; false is one that this kind does not have.
func (o *buildOutput) attribute(k, v string) (bool, error) {
	files := o.kind == outLocal || o.kind == outTar
	switch {
	case k == "source-date-epoch" && o.kind != outNone:
		sec, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			return true, fmt.Errorf("invalid SOURCE_DATE_EPOCH: %s", v)
		}
		t := time.Unix(sec, 0).UTC()
		o.epoch = &t
	case files && k == "attestation-prefix":
		o.attestationPrefix = v
	case files && k == "platform-split":
		b, err := strconv.ParseBool(v)
		if err != nil {
			return true, fmt.Errorf("non-bool value for %s: %s", k, v)
		}
		if o.kind == outLocal {
			o.split = &b
		} else if !b {
			return true, fmt.Errorf("platform-split=false is not supported for output type=%s", o.kind)
		}
	case o.kind == outLocal && k == "mode":
		if v != "" && v != "copy" {
			return true, fmt.Errorf("mode=%s is not supported for output type=local: only copy is, which leaves other files where they are", v)
		}
	case o.isImage():
		if ok, err := o.layers(k, v); ok || err != nil {
			return ok, err
		}
		if ok, err := o.annotation(k, v); ok || err != nil {
			return ok, err
		}
		return o.imageAttribute(k, v)
	default:
		return false, nil
	}
	return true, nil
}

// layers sets how layers are written.
func (o *buildOutput) layers(k, v string) (bool, error) {
	flag := func(to *bool) (bool, error) { return true, setBool(to, k, v) }
	switch k {
	case "compression":
		switch v {
		case "uncompressed":
			o.form.Pack, o.form.Packing = true, content.Uncompressed
		case "gzip", "zstd":
			o.form.Pack, o.form.Packing = true, content.Compression(v)
		case "estargz", "nydus":
			return true, fmt.Errorf("compression=%s is not supported: gzip, zstd and uncompressed are", v)
		default:
			return true, fmt.Errorf("unsupported layer compression type: %s", v)
		}
	case "compression-level":
		n, err := strconv.Atoi(v)
		if err != nil {
			return true, fmt.Errorf("non-int value %s specified for %s", v, k)
		}
		o.form.Level = &n
		if !o.form.Pack {
			o.form.Pack, o.form.Packing = true, content.Gzip
		}
	case "force-compression":
		if !o.form.Pack {
			o.form.Pack, o.form.Packing = true, content.Gzip
		}
		return flag(&o.form.Force)
	case "oci-mediatypes":
		oci := false
		if err := setBool(&oci, k, v); err != nil {
			return true, err
		}
		o.form.DockerTypes = !oci
	case "rewrite-timestamp":
		return flag(&o.form.Rewrite)
	case "prefer-nondist-layers":
		var b bool
		if err := setBool(&b, k, v); err != nil {
			return true, err
		}
		if b {
			return true, errors.New("prefer-nondist-layers=true is not supported: strake has no such layers")
		}
	default:
		return false, nil
	}
	return true, nil
}

// imageAttribute sets what else an image's output has.
func (o *buildOutput) imageAttribute(k, v string) (bool, error) {
	flag := func(to *bool) (bool, error) { return true, setBool(to, k, v) }
	switch k {
	case "name":
		names, err := buildNames([]string{v})
		if o.attr["push-by-digest"] == "true" {
			var r ref.Ref
			if r, err = ref.Parse(v); err == nil && r.Tag != "" {
				err = fmt.Errorf("can't push tagged ref %s by digest", r.Familiar())
			}
			names = []ref.Ref{r}
		}
		o.names = names
		return true, err
	case "attestation-inline":
		return flag(&o.attestationInline)
	case "oci-artifact":
		o.artifactSet = true
		return flag(&o.ociArtifact)
	case "tar":
		if o.kind == outImage {
			return false, nil
		}
		return flag(&o.tar)
	}
	if o.kind != outImage {
		return false, nil
	}
	switch k {
	case "push":
		return flag(&o.push)
	case "push-by-digest":
		return flag(&o.pushByDigest)
	case "registry.insecure":
		return flag(&o.insecure)
	case "store":
		ok, err := flag(&o.store)
		o.mustKeep = o.mustKeep || o.store
		return ok, err
	case "unpack":
		ok, err := flag(&o.unpack)
		o.mustKeep = o.mustKeep || o.unpack
		return ok, err
	case "name-canonical":
		return flag(&o.canonical)
	case "danging-name-empty-only": // sic, in BuildKit
		return flag(&o.danglingOnly)
	case "dangling-name-prefix":
		r, err := ref.Parse(v)
		o.dangling = r
		return true, err
	}
	return false, nil
}

func setBool(to *bool, k, v string) error {
	if v == "" {
		*to = true
		return nil
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		return fmt.Errorf("non-bool value specified for %s: %w", k, err)
	}
	*to = b
	return nil
}

// checkDest refuses a destination that cannot be written, before the build.
func (o *buildOutput) checkDest(terminal bool) error {
	dir := o.kind == outLocal || (o.kind == outOCI || o.kind == outDocker) && !o.tar
	file := o.kind == outTar || (o.kind == outOCI || o.kind == outDocker) && o.tar
	switch {
	case dir:
		if o.dest == "" {
			return fmt.Errorf("dest is required for %s exporter", o.kind)
		}
		if o.dest == "-" {
			return fmt.Errorf("dest cannot be stdout for %s exporter", o.kind)
		}
		fi, err := os.Stat(o.dest)
		if err != nil && !os.IsNotExist(err) {
			return fmt.Errorf("invalid destination directory: %s: %w", o.dest, err)
		}
		if err == nil && !fi.IsDir() {
			return fmt.Errorf("destination directory %s is a file", o.dest)
		}
		if err := checkWritableDir(o.dest); err != nil {
			return fmt.Errorf("invalid destination directory: %w", err)
		}
	case file:
		if o.dest == "" && o.kind != outDocker {
			o.dest = "-"
		}
		if o.dest == "-" {
			if terminal {
				return fmt.Errorf("dest file is required for %s exporter. refusing to write to console", o.kind)
			}
			return nil
		}
		if o.dest == "" {
			return nil
		}
		fi, err := os.Stat(o.dest)
		if err != nil && !os.IsNotExist(err) {
			return fmt.Errorf("invalid destination file: %s: %w", o.dest, err)
		}
		if err == nil && fi.IsDir() {
			return fmt.Errorf("destination file %s is a directory", o.dest)
		}
		if err := validOutput(o.dest); err != nil {
			return err
		}
		if err := checkWritable(o.dest); err != nil {
			return fmt.Errorf("invalid destination file: %w", err)
		}
	case o.dest != "":
		return fmt.Errorf("dest is not supported for output type=%s", o.kind)
	}
	return nil
}
