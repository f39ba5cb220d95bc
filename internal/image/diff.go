package image

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
	"github.com/strake-project/strake/internal/oci/tree"
)

// Difference is what has to change to make one image of another. Kinds are
// "A" added, "C" changed, "D" deleted.
type Difference struct {
	A, B     Side
	Files    []FileChange
	Config   []ConfigChange
	Packages []PackageChange
}

// Side is one of the two images.
type Side struct {
	Name   string
	Digest oci.Digest // of the manifest
	Size   int64      // as docker counts it
}

// FileChange is a file that differs. Of a directory that is new or gone
// Files counts what is below it and the sizes are their sums.
type FileChange struct {
	Kind    string
	Path    string
	Dir     bool `json:",omitempty"`
	Files   int  `json:",omitempty"`
	OldSize int64
	NewSize int64
	// What differs, of a changed file: type, content, mode, owner, link, xattrs,
	// device, time (with times).
	What []string `json:",omitempty"`
}

// ConfigChange is a field of the config that differs; of lists and maps, one
// element.
type ConfigChange struct {
	Kind     string
	Field    string
	Old, New string
}

// PackageChange is a package that was installed, removed, or has another
// version.
type PackageChange struct {
	Kind          string
	Manager, Name string
	Old, New      string
}

// Empty tells whether the images are the same.
func (d *Difference) Empty() bool { return len(d.Files)+len(d.Config)+len(d.Packages) == 0 }

// Diff compares a and b. Files that differ only in their time are the same,
// unless times is true: a rebuild gives every file another.
func Diff(ctx context.Context, a, b *Image, times bool) (*Difference, error) {
	for _, im := range []*Image{a, b} {
		if err := im.Complete(ctx); err != nil {
			return nil, err
		}
	}
	d := &Difference{
		A: Side{Digest: a.Manifest.Digest, Size: a.Size()}, B: Side{Digest: b.Manifest.Digest, Size: b.Size()},
		Files: []FileChange{}, Config: []ConfigChange{}, Packages: []PackageChange{},
	}
	changes, err := tree.Diff(a.Tree, b.Tree)
	if err != nil {
		return nil, err
	}
	for i := 0; i < len(changes); i++ {
		c := &changes[i]
		f := FileChange{Kind: string(c.Kind), Path: "/" + c.Path, OldSize: sizeOf(c.Old), NewSize: sizeOf(c.New)}
		if c.Path == "." {
			f.Path = "/"
		}
		switch {
		case c.Kind == 'C':
			f.What = what(c.Old, c.New)
			if !times {
				f.What = slices.DeleteFunc(f.What, func(w string) bool { return w == "time" })
			}
			if len(f.What) == 0 {
				continue
			}
			f.Dir = c.New.Type == layer.Dir
		case c.Kind == 'D' && c.Old.Type == layer.Dir:
			f.Dir = true
			if f.Files, f.OldSize, err = below(ctx, a.Tree, c.Path); err != nil {
				return nil, err
			}
		case c.Kind == 'A' && c.New.Type == layer.Dir:
			// Diff lists all that is in it, directly after it.
			f.Dir = true
			if f.Files, f.NewSize, err = below(ctx, b.Tree, c.Path); err != nil {
				return nil, err
			}
			inside := c.Path + "/"
			for i+1 < len(changes) && len(changes[i+1].Path) > len(inside) && changes[i+1].Path[:len(inside)] == inside {
				i++
			}
		}
		d.Files = append(d.Files, f)
	}
	// Reading a database may cost decompressing a layer up to it.
	if slices.ContainsFunc(changes, ofDatabase) {
		if d.Packages, err = diffPackages(ctx, a, b); err != nil {
			return nil, err
		}
	}
	d.Config = diffConfig(a, b)
	return d, ctx.Err()
}

// ofDatabase tells whether a change concerns a package database: it, something
// in it, or a directory above that is new, gone or a link.
func ofDatabase(c tree.Change) bool {
	return slices.ContainsFunc(databases(), func(db string) bool {
		return c.Path == db || strings.HasPrefix(c.Path, db+"/") || strings.HasPrefix(db, c.Path+"/")
	})
}

func sizeOf(e *layer.Entry) int64 {
	if e == nil {
		return 0
	}
	return e.Size
}

// below counts what is in a directory and sums its files.
func below(ctx context.Context, v tree.View, p string) (n int, size int64, err error) {
	err = tree.Walk(v, p, func(e *layer.Entry) error {
		if e.Path != p {
			n++
			size += e.Size
		}
		return ctx.Err()
	})
	return n, size, err
}

// what says how two entries differ.
func what(a, b *layer.Entry) []string {
	if a.Type != b.Type {
		return []string{"type"}
	}
	var out []string
	add := func(differs bool, name string) {
		if differs {
			out = append(out, name)
		}
	}
	add(a.Type == layer.Regular && (a.Size != b.Size || a.Digest != b.Digest), "content")
	add(a.Type == layer.Symlink && a.Link != b.Link, "link")
	add(a.DevMajor != b.DevMajor || a.DevMinor != b.DevMinor, "device")
	add(a.Mode != b.Mode, "mode")
	add(a.UID != b.UID || a.GID != b.GID, "owner")
	add(!maps.Equal(a.Xattrs, b.Xattrs), "xattrs")
	add(a.Type != layer.Dir && !a.ModTime.Equal(b.ModTime), "time")
	return out
}

func diffPackages(ctx context.Context, a, b *Image) ([]PackageChange, error) {
	type key struct{ manager, name string }
	versions := func(im *Image) (map[key]string, error) {
		list, err := Packages(ctx, im.Tree)
		all := map[key]string{}
		for _, p := range list {
			k := key{p.Manager, p.Name}
			if all[k] != "" && all[k] != p.Version { // multiarch: its own line
				k.name += ":" + p.Arch
			}
			all[k] = p.Version
		}
		return all, err
	}
	olds, err := versions(a)
	if err != nil {
		return nil, err
	}
	news, err := versions(b)
	if err != nil {
		return nil, err
	}
	out := []PackageChange{}
	for k, v := range olds {
		if n, ok := news[k]; !ok {
			out = append(out, PackageChange{"D", k.manager, k.name, v, ""})
		} else if n != v {
			out = append(out, PackageChange{"C", k.manager, k.name, v, n})
		}
	}
	for k, v := range news {
		if _, ok := olds[k]; !ok {
			out = append(out, PackageChange{"A", k.manager, k.name, "", v})
		}
	}
	slices.SortFunc(out, func(x, y PackageChange) int {
		return cmp.Or(cmp.Compare(x.Name, y.Name), cmp.Compare(x.Manager, y.Manager), cmp.Compare(x.Kind, y.Kind))
	})
	return out, nil
}

// diffConfig compares what decides how a container runs, element by element:
// platform and all of the config's object "config", known to strake or not.
func diffConfig(a, b *Image) []ConfigChange {
	olds, news := configFields(a.rawConfig), configFields(b.rawConfig)
	out := []ConfigChange{}
	for k, v := range olds {
		if n, ok := news[k]; !ok {
			out = append(out, ConfigChange{"D", k, v, ""})
		} else if n != v {
			out = append(out, ConfigChange{"C", k, v, n})
		}
	}
	for k, v := range news {
		if _, ok := olds[k]; !ok {
			out = append(out, ConfigChange{"A", k, "", v})
		}
	}
	slices.SortFunc(out, func(x, y ConfigChange) int { return cmp.Compare(x.Field, y.Field) })
	return out
}

// configFields flattens a config: "Env.PATH", "Labels.a", "Cmd", "os".
func configFields(raw []byte) map[string]string {
	var all struct {
		Config map[string]json.RawMessage `json:"config"`
	}
	var top map[string]json.RawMessage
	// It was parsed when the image was opened; what does not fit is left out.
	_ = json.Unmarshal(raw, &all)
	_ = json.Unmarshal(raw, &top)
	out := map[string]string{}
	put := func(name string, v json.RawMessage) {
		if s := text(v); s != "" {
			out[name] = s
		}
	}
	for _, k := range []string{"os", "architecture", "variant", "os.version", "author"} {
		put(k, top[k])
	}
	for k, v := range all.Config {
		var object map[string]json.RawMessage
		var list []string
		switch {
		case k == "Env" && json.Unmarshal(v, &list) == nil:
			for _, e := range list {
				name, value := cutEnv(e)
				out["Env."+name] = value
			}
		case (k == "Labels" || k == "ExposedPorts" || k == "Volumes") && json.Unmarshal(v, &object) == nil:
			for name, value := range object {
				out[k+"."+name] = text(value)
			}
		default:
			put(k, v)
		}
	}
	return out
}

// text is a value for people: a string as it is, nothing for what is empty.
func text(v json.RawMessage) string {
	var s string
	if json.Unmarshal(v, &s) == nil {
		return s
	}
	switch string(v) {
	case "", "null", "[]", "{}", "false", "0":
		return ""
	}
	return fmt.Sprintf("%s", v)
}

func cutEnv(e string) (name, value string) {
	name, value, _ = strings.Cut(e, "=")
	return name, value
}
