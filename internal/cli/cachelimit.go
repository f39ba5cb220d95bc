package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/docker/go-units"

	"github.com/strake-project/strake/internal/build"
	"github.com/strake-project/strake/internal/content/store"
)

// cacheLimit is how much disk the build cache may take: --cache-limit,
// STRAKE_CACHE_LIMIT, docker's builder.gc settings in the store's daemon.json,
// or BuildKit's default for this disk.
func cacheLimit(s *store.Store, flag string) (build.CacheLimit, error) {
	for _, v := range []struct{ name, value string }{{"--cache-limit", flag}, {"STRAKE_CACHE_LIMIT", os.Getenv("STRAKE_CACHE_LIMIT")}} {
		if v.value == "" {
			continue
		}
		if v.value == "none" {
			return build.CacheLimit{}, nil
		}
		n, err := units.RAMInBytes(v.value)
		if err != nil || n <= 0 {
			return build.CacheLimit{}, fmt.Errorf(`%s: %q is no size such as "20GB", nor "none"`, v.name, v.value)
		}
		return build.CacheLimit{Reserved: n}, nil
	}
	size, _, err := build.DiskSpace(s)
	if err != nil {
		return build.CacheLimit{}, err
	}
	limit := build.DefaultCacheLimit(size)
	path := filepath.Join(s.Root(), "daemon.json")
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return limit, nil
	}
	if err == nil {
		limit, err = daemonLimit(b, limit)
	}
	if err != nil {
		return limit, fmt.Errorf("%s: %w", path, err)
	}
	return limit, nil
}

// daemonLimit reads builder.gc of a daemon.json. Of the file nothing else means
// anything here.
func daemonLimit(b []byte, fallback build.CacheLimit) (build.CacheLimit, error) {
	var conf struct {
		Builder struct {
			GC struct {
				Enabled  *bool           `json:"enabled"`
				Keep     string          `json:"defaultKeepStorage"`
				Reserved string          `json:"defaultReservedSpace"`
				Max      string          `json:"defaultMaxUsedSpace"`
				MinFree  string          `json:"defaultMinFreeSpace"`
				Policy   json.RawMessage `json:"policy"`
			} `json:"gc"`
		} `json:"builder"`
	}
	if err := json.Unmarshal(b, &conf); err != nil {
		return fallback, err
	}
	gc := conf.Builder.GC
	if gc.Enabled != nil && !*gc.Enabled {
		return build.CacheLimit{}, nil
	}
	if gc.Policy != nil {
		return fallback, errors.New("builder.gc.policy is not supported: use defaultReservedSpace, defaultMaxUsedSpace and defaultMinFreeSpace")
	}
	var limit build.CacheLimit
	set := false
	for _, f := range []struct {
		value string
		into  *int64
	}{{gc.Keep, &limit.Reserved}, {gc.Reserved, &limit.Reserved}, {gc.Max, &limit.Max}, {gc.MinFree, &limit.MinFree}} {
		if f.value == "" {
			continue
		}
		n, err := units.RAMInBytes(f.value)
		if err != nil {
			return fallback, fmt.Errorf("builder.gc: %w", err)
		}
		*f.into, set = n, true
	}
	if !set {
		return fallback, nil
	}
	return limit, nil
}

// limitCache keeps the build cache to its limit after a build, also after one
// that failed: its steps are kept. That it fails does not make the build fail,
// and who interrupts a build does not wait for it.
func (a *App) limitCache(ctx context.Context, engine *build.Engine, limit build.CacheLimit) {
	if ctx.Err() != nil {
		return
	}
	n, err := engine.Limit(ctx, limit)
	switch {
	case err != nil:
		a.log.Warn("build cache: limit", "err", err)
	case n > 0:
		a.log.Info("build cache: over its limit", "freed", n)
	}
}
