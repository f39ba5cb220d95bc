package cli

import (
	"fmt"
	"strings"

	"github.com/moby/buildkit/exporter/containerimage/exptypes"
)

// annotation reads annotation[-TYPE][[PLATFORM]].KEY.
func (o *buildOutput) annotation(k, v string) (bool, error) {
	a, ok, err := exptypes.ParseAnnotationKey(k)
	if !ok || err != nil {
		return ok, err
	}
	set := func(m *map[string]string) {
		if *m == nil {
			*m = map[string]string{}
		}
		(*m)[a.Key] = v
	}
	platform := func(m *map[string]map[string]string) {
		if *m == nil {
			*m = map[string]map[string]string{}
		}
		one := (*m)[a.PlatformString()]
		set(&one)
		(*m)[a.PlatformString()] = one
	}
	switch to := &o.form.Annotations; a.Type {
	case exptypes.AnnotationIndex:
		set(&to.Index)
	case exptypes.AnnotationIndexDescriptor:
		set(&to.IndexDescriptor)
	case exptypes.AnnotationManifestDescriptor:
		platform(&to.ManifestDescriptor)
	default:
		platform(&to.Manifest)
	}
	return true, nil
}

// annotate gives o the annotations of --annotation.
func (f *outputFlags) annotate(o *buildOutput) error {
	for _, text := range f.annotations {
		kv, v, ok := strings.Cut(text, "=")
		if !ok {
			return fmt.Errorf("invalid annotation %q, expected key=value", text)
		}
		types, key, ok := strings.Cut(kv, ":")
		if !ok {
			types, key = "", kv
		}
		if !o.isImage() {
			continue
		}
		for _, t := range strings.Split(types, ",") {
			name := "annotation"
			switch at, _, _ := strings.Cut(t, "["); at {
			case "":
			case exptypes.AnnotationIndex, exptypes.AnnotationIndexDescriptor, exptypes.AnnotationManifest, exptypes.AnnotationManifestDescriptor:
				name += "-" + t
			default:
				return fmt.Errorf("unknown annotation type %q", at)
			}
			if strings.HasPrefix(t, "[") {
				name += t
			}
			known, err := o.annotation(name+"."+key, v)
			if err != nil {
				return err
			}
			o.attr[name+"."+key] = v // what a daemon is told
			if !known {
				return fmt.Errorf("invalid annotation type %q", t)
			}
		}
	}
	return nil
}
