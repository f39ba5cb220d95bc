package cli

import (
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/strake-project/strake/internal/build"
	"github.com/strake-project/strake/internal/build/frontend"
	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/image/sbom"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/tree"
)

// attestFlags ask for attestations. There are none unless they do: an image's
// digest depends on what it is made of alone.
type attestFlags struct {
	attests          []string
	provenance, sbom string
}

func (f *attestFlags) add(fs *pflag.FlagSet) {
	fs.StringArrayVar(&f.attests, "attest", nil, `Attestation parameters ("type=sbom", "type=provenance,mode=max")`)
	fs.StringVar(&f.provenance, "provenance", "", `Shorthand for "--attest=type=provenance" ("true", "mode=min|max[,version=v0.2]")`)
	fs.StringVar(&f.sbom, "sbom", "", `Shorthand for "--attest=type=sbom"`)
}

// attestation is what one kind was asked for with.
type attestation struct {
	attr       map[string]string
	inlineOnly bool
}

// parse returns the attestations by type, those that are disabled left out.
func (f *attestFlags) parse() (map[string]attestation, error) {
	list := slices.Clone(f.attests)
	for _, short := range [][2]string{{"provenance", f.provenance}, {"sbom", f.sbom}} {
		kind, v := short[0], short[1]
		if v == "" {
			continue
		}
		if on, err := strconv.ParseBool(v); err == nil {
			v = "disabled=" + strconv.FormatBool(!on)
		}
		list = append(list, "type="+kind+","+v)
	}
	out := map[string]attestation{}
	for _, text := range list {
		fields, err := splitAttrs("attestation", text, "invalid value %s")
		if err != nil {
			return nil, err
		}
		at := attestation{attr: map[string]string{}}
		for _, f := range fields {
			if _, twice := at.attr[f.key]; twice {
				return nil, fmt.Errorf("duplicate attestation field %s", f.key)
			}
			at.attr[f.key] = f.value
		}
		kind := at.attr["type"]
		switch kind {
		case "":
			return nil, fmt.Errorf("attestation type not specified")
		case "provenance", "sbom":
		default:
			return nil, fmt.Errorf("unsupported attestation type %q: provenance and sbom are known", kind)
		}
		off := false
		for key, to := range map[string]*bool{"disabled": &off, "inline-only": &at.inlineOnly} {
			if v, ok := at.attr[key]; ok {
				if err := setBool(to, key, v); err != nil {
					return nil, err
				}
			}
		}
		if err := at.check(kind); err != nil {
			return nil, err
		}
		if off {
			delete(out, kind)
		} else {
			out[kind] = at
		}
	}
	return out, nil
}

// check refuses what is not known.
func (at *attestation) check(kind string) error {
	for _, k := range slices.Sorted(maps.Keys(at.attr)) {
		v := at.attr[k]
		switch {
		case k == "type" || k == "disabled" || k == "inline-only":
		case kind == "sbom" && k == "generator":
			return fmt.Errorf("sbom generator %q is not supported: strake writes the SBOM itself, from the databases of dpkg and apk; leave generator away", v)
		case kind == "provenance" && k == "mode":
			if v != "min" && v != "max" {
				return fmt.Errorf("invalid mode %q", v)
			}
		case kind == "provenance" && (k == "version" || k == "slsa-version"):
			if v != "v1" && v != "v0.2" {
				return fmt.Errorf("invalid provenance SLSA version: %s", v)
			}
		case kind == "provenance" && k == "builder-id":
		case kind == "provenance" && k == "reproducible":
			if _, err := strconv.ParseBool(v); err != nil {
				return fmt.Errorf("failed to parse reproducible flag: %w", err)
			}
		default:
			return fmt.Errorf("attestation type=%s has no option %q", kind, k)
		}
	}
	return nil
}

// attest gives o the attestations that it is to have.
func (f *attestFlags) attest(o *buildOutput, all map[string]attestation, opts map[string]string, locals []string) {
	at := &build.Attest{Config: o.artifactSet && !o.ociArtifact, Names: o.names}
	if p, ok := all["provenance"]; ok && (o.attestationInline || !p.inlineOnly) {
		reproducible, _ := strconv.ParseBool(p.attr["reproducible"])
		version := p.attr["version"]
		if version == "" {
			version = p.attr["slsa-version"]
		}
		at.Provenance = &build.Provenance{
			Max: p.attr["mode"] == "max", Version: version, BuilderID: p.attr["builder-id"], Reproducible: reproducible,
			Options: opts, Locals: locals, Dockerfile: frontend.Version(),
		}
	}
	if s, ok := all["sbom"]; ok && (o.attestationInline || !s.inlineOnly) {
		at.SBOM = sbom.SPDX
	}
	if at.Provenance == nil && at.SBOM == nil || o.kind == outNone {
		return
	}
	o.form.Attest = at
	// What is attested must not be packed differently on its way to a registry.
	if !o.form.Pack {
		o.form.Pack, o.form.Packing = true, content.Gzip
	}
}

// attestationFiles are the attestations of an output that is no image.
func (x *exporting) attestationFiles(ctx context.Context, o *buildOutput, img build.Image, view tree.View, several bool) (map[string][]byte, error) {
	if o.form.Attest == nil {
		return nil, nil
	}
	files := map[string]oci.Digest{}
	if err := tree.Walk(view, ".", func(e *layer.Entry) error {
		if e.Type != layer.Regular {
			return nil
		}
		d, err := view.Digest(ctx, e.Path)
		files[e.Path] = d
		return err
	}); err != nil {
		return nil, err
	}
	all, err := x.engine.Statements(ctx, img, o.form.Attest, files)
	if err != nil {
		return nil, err
	}
	out := map[string][]byte{}
	for name, body := range all {
		if several {
			ext := path.Ext(name)
			name = strings.TrimSuffix(name, ext) + "." + platformDir(img.Platform) + ext
		}
		out[path.Base(o.attestationPrefix+name)] = body
	}
	return out, nil
}
