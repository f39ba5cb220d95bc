package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/client"
	"github.com/spf13/pflag"

	"github.com/strake-project/strake/internal/build"
	"github.com/strake-project/strake/internal/content"
	"github.com/strake-project/strake/internal/content/archive"
	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// cacheFlags are build's flags about caches outside of the store.
type cacheFlags struct {
	from, to []string
	limit    string
}

func (f *cacheFlags) add(fs *pflag.FlagSet) {
	fs.StringArrayVar(&f.from, "cache-from", nil, `External cache sources ("user/app:cache", "type=registry,ref=…", "type=local,src=path/to/dir")`)
	fs.StringArrayVar(&f.to, "cache-to", nil, `Cache export destinations ("type=registry,ref=…[,mode=max]", "type=local,dest=path/to/dir", "type=inline"; mounts=true takes the cache mounts along)`)
	fs.StringVar(&f.limit, "cache-limit", "", `How much disk the build cache may take after the build ("20GB", "none"; default is STRAKE_CACHE_LIMIT or what BuildKit has)`)
}

// cacheEnds are the caches that a build reads and writes.
type cacheEnds struct {
	from    []build.CacheSource
	to      []build.CacheExport
	closers []io.Closer
}

func (c *cacheEnds) close() {
	for _, l := range c.closers {
		l.Close()
	}
}

// caches opens what --cache-from and --cache-to name, unless a daemon does.
// buildArgs may ask for an inline cache, as docker's BUILDKIT_INLINE_CACHE does.
func (a *App) caches(f *cacheFlags, buildArgs []string, elsewhere bool) (ends *cacheEnds, err error) {
	ends = &cacheEnds{}
	if elsewhere {
		return ends, nil
	}
	defer func() {
		if err != nil {
			ends.close()
		}
	}()
	for _, spec := range f.from {
		e, err := parseCacheEntry(spec, "cache-from")
		if err != nil {
			return ends, err
		}
		if err := a.cacheFrom(ends, e); err != nil {
			return ends, err
		}
	}
	to := f.to
	if slices.ContainsFunc(buildArgs, func(arg string) bool {
		on, _ := strconv.ParseBool(strings.TrimPrefix(arg, "BUILDKIT_INLINE_CACHE="))
		return on && strings.HasPrefix(arg, "BUILDKIT_INLINE_CACHE=")
	}) {
		to = append(to[:len(to):len(to)], "type=inline")
	}
	for _, spec := range to {
		e, err := parseCacheEntry(spec, "cache-to")
		if err != nil {
			return ends, err
		}
		if err := a.cacheTo(ends, e); err != nil {
			return ends, err
		}
	}
	return ends, nil
}

// cacheEntry is one --cache-from or --cache-to.
type cacheEntry struct {
	kind  string
	attrs map[string]string
}

// splitCacheEntry reads "type=…,key=value…" or a bare image name.
func splitCacheEntry(spec string) (*cacheEntry, error) {
	e := &cacheEntry{attrs: map[string]string{}}
	if spec != "" && !strings.ContainsAny(spec, `=,"`) {
		e.kind, e.attrs["ref"] = "registry", spec
		return e, nil
	}
	list, err := splitAttrs("cache", spec, "invalid value %s")
	if err != nil {
		return nil, err
	}
	for _, at := range list {
		if at.key == "type" {
			e.kind = at.value
			continue
		}
		e.attrs[at.key] = at.value
	}
	if e.kind == "" {
		return nil, fmt.Errorf("type required form> %q", spec) // buildx's words
	}
	return e, nil
}

// cacheKeys are the attributes that an entry of that kind has.
func cacheKeys(flag, kind string) []string {
	written := []string{"mode", "compression", "force-compression", "oci-mediatypes", "image-manifest", "ignore-error", "mounts"}
	switch flag + " " + kind {
	case "cache-from registry":
		return []string{"ref", "mounts"}
	case "cache-from local":
		return []string{"src", "digest", "tag", "mounts"}
	case "cache-to registry":
		return append(written, "ref")
	case "cache-to local":
		return append(written, "dest", "tag")
	case "cache-to inline":
		return []string{"mode"}
	}
	return nil
}

// parseCacheEntry reads an entry of a kind and with attributes that this build
// honours.
func parseCacheEntry(spec, flag string) (*cacheEntry, error) {
	e, err := splitCacheEntry(spec)
	if err != nil {
		return nil, err
	}
	switch e.kind {
	case "registry", "local":
	case "inline":
		if flag == "cache-from" {
			return nil, errors.New("an inline cache is imported by its image's name: --cache-from NAME")
		}
	case "gha", "s3", "azblob":
		return nil, fmt.Errorf("--%s type=%s is not supported: use type=registry or type=local", flag, e.kind)
	default:
		return nil, fmt.Errorf("unknown cache type %q for --%s: registry, local and inline are known", e.kind, flag)
	}
	known := cacheKeys(flag, e.kind)
	for _, k := range slices.Sorted(maps.Keys(e.attrs)) {
		if !slices.Contains(known, k) {
			return nil, fmt.Errorf("--%s: %q says nothing to a cache of type=%s: %s are known", flag, k, e.kind, strings.Join(known, ", "))
		}
	}
	return e, nil
}

// forDaemon are the caches that a BuildKit daemon reads and writes, in whatever
// it knows.
func (f *cacheFlags) forDaemon() (from, to []client.CacheOptionsEntry, err error) {
	parse := func(specs []string) (list []client.CacheOptionsEntry, err error) {
		for _, spec := range specs {
			e, err := splitCacheEntry(spec)
			if err != nil {
				return nil, err
			}
			list = append(list, client.CacheOptionsEntry{Type: e.kind, Attrs: e.attrs})
		}
		return list, nil
	}
	if from, err = parse(f.from); err == nil {
		to, err = parse(f.to)
	}
	return from, to, err
}

func (e *cacheEntry) boolean(key string, fallback bool) (bool, error) {
	v, ok := e.attrs[key]
	if !ok {
		return fallback, nil
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		return false, fmt.Errorf("failed to parse %s: %q is neither true nor false", key, v)
	}
	return b, nil
}

func (e *cacheEntry) registry() (ref.Ref, error) {
	if e.attrs["ref"] == "" {
		return ref.Ref{}, errors.New("ref is required for a cache of type=registry")
	}
	r, err := ref.Parse(e.attrs["ref"])
	if err != nil {
		return r, fmt.Errorf("cache reference %q: %w", e.attrs["ref"], err)
	}
	return r.WithDefaultTag(), nil
}

func (a *App) cacheFrom(ends *cacheEnds, e *cacheEntry) error {
	mounts, err := e.boolean("mounts", true)
	if err != nil {
		return err
	}
	if e.kind == "registry" {
		r, err := e.registry()
		if err != nil {
			return err
		}
		ends.from = append(ends.from, build.CacheSource{Name: e.attrs["ref"], Source: a.Remote().Repository(r), Ref: r, NoMounts: !mounts})
		return nil
	}
	dir := e.attrs["src"]
	if dir == "" {
		return errors.New("src is required for a cache of type=local")
	}
	r := ref.Ref{Tag: "latest", Digest: oci.Digest(e.attrs["digest"])}
	if t := e.attrs["tag"]; t != "" {
		r.Tag = t
	}
	if r.Digest != "" && r.Digest.Validate() != nil {
		return fmt.Errorf("cache digest %q is none", r.Digest)
	}
	l, err := archive.ReadLayout(dir)
	if errors.Is(err, fs.ErrNotExist) || isNotFound(err) {
		// As in buildx: the first build of all has no cache yet.
		fmt.Fprintf(a.Err, "WARNING: local cache import at %s not found due to err: %v\n", dir, err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("cache %s: %w", dir, err)
	}
	ends.closers = append(ends.closers, l)
	ends.from = append(ends.from, build.CacheSource{Name: "local:" + dir, Source: l, Ref: r, NoMounts: !mounts})
	return nil
}

func (a *App) cacheTo(ends *cacheEnds, e *cacheEntry) (err error) {
	to := build.CacheExport{Compression: content.Gzip}
	if e.kind == "inline" {
		if m := e.attrs["mode"]; m != "" && m != "min" {
			return fmt.Errorf("an inline cache has mode=min only, not mode=%s", m)
		}
		ends.to = append(ends.to, build.CacheExport{Inline: true})
		return nil
	}
	switch e.attrs["mode"] {
	case "", "min":
	case "max":
		to.Max = true
	default:
		return fmt.Errorf("unknown cache mode %q: min and max are known", e.attrs["mode"])
	}
	switch c := e.attrs["compression"]; c {
	case "", "gzip", "zstd":
		if c == "zstd" {
			to.Compression = content.Zstd
		}
	case "uncompressed":
		to.Compression = content.Uncompressed
	default:
		return fmt.Errorf("cache compression %q is not supported: gzip, zstd and uncompressed are", c)
	}
	// What is written is always OCI's, one manifest, and packed as asked.
	for _, k := range []string{"oci-mediatypes", "image-manifest"} {
		if on, err := e.boolean(k, true); err != nil {
			return err
		} else if !on {
			return fmt.Errorf("%s=false is not supported: a cache is an OCI image manifest", k)
		}
	}
	if on, err := e.boolean("force-compression", false); err != nil {
		return err
	} else if on {
		return errors.New("force-compression=true is not supported: what is packed already stays as it is")
	}
	if to.IgnoreErrors, err = e.boolean("ignore-error", false); err != nil {
		return err
	}
	if to.Mounts, err = e.boolean("mounts", false); err != nil {
		return err
	}
	if e.kind == "registry" {
		r, err := e.registry()
		if err != nil {
			return err
		}
		if r.Digest != "" {
			return fmt.Errorf("cache reference %q names a digest: a cache is written to a tag", e.attrs["ref"])
		}
		to.Name, to.Sink, to.Ref = "registry", a.Remote().Repository(r), r
		ends.to = append(ends.to, to)
		return nil
	}
	if e.attrs["dest"] == "" {
		return errors.New("dest is required for a cache of type=local")
	}
	l, err := archive.OpenLayout(e.attrs["dest"])
	if err != nil {
		return fmt.Errorf("cache %s: %w", e.attrs["dest"], err)
	}
	ends.closers = append(ends.closers, l)
	to.Name, to.Sink, to.Ref = "client directory", l, ref.Ref{Path: "cache", Tag: "latest"}
	if t := e.attrs["tag"]; t != "" {
		to.Ref.Tag = t
	}
	ends.to = append(ends.to, to)
	return nil
}
