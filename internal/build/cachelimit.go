package build

import (
	"context"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
)

// CacheLimit says how much disk the build cache may take, in BuildKit's terms;
// what is 0 says nothing.
type CacheLimit struct {
	Reserved int64 // this much is always kept
	Max      int64 // more than this is never kept
	MinFree  int64 // the disk keeps so much free, down to Reserved
}

// DefaultCacheLimit is BuildKit's: at most 80 % of the disk and 100 GB; and
// where less than 20 % of the disk are free, what of it is above 10 % of the
// disk, or 10 GB, goes.
func DefaultCacheLimit(disk int64) CacheLimit {
	return CacheLimit{
		Reserved: min(disk/10, 10e9),
		Max:      min(disk/10*8, 100e9),
		MinFree:  disk / 5,
	}
}

// Keep is how much of total may stay, with free bytes on the disk; 0 is none.
func (l CacheLimit) Keep(total, free int64) int64 {
	if l == (CacheLimit{}) {
		return 0
	}
	keep := l.Max
	if missing := l.MinFree - free; missing > 0 && (keep == 0 || total-missing < keep) {
		keep = max(total-missing, 1)
	} else if keep == 0 && l.MinFree > 0 {
		keep = max(total, 1)
	}
	return max(keep, l.Reserved)
}

// DiskSpace is the size of the store's disk and what is free there.
func DiskSpace(s *store.Store) (size, free int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.Root(), &st); err != nil {
		return 0, 0, err
	}
	return int64(st.Blocks) * st.Bsize, int64(st.Bavail) * st.Bsize, nil
}

// bucketMounts holds the size of each cache mount after the build that used it
// last.
const bucketMounts = "build.mounts"

// bucketLimit holds the estimate at which the cache was last found to be within
// its limit after all.
const bucketLimit = "build.limit"

// Limit makes the build cache keep to l, after a build, and returns the bytes
// that it freed. A build that added nothing to the cache asks nothing; one that
// did costs a query over the layers that steps hold. Only where that says that
// there may be too much is the disk looked at. What other builds use stays.
func (e *Engine) Limit(ctx context.Context, l CacheLimit) (int64, error) {
	if !e.added.Load() || l == (CacheLimit{}) {
		return 0, nil
	}
	s := e.opt.Store
	e.mu.Lock()
	used := e.usedMounts
	e.usedMounts = nil
	e.mu.Unlock()
	for dir := range used {
		n := store.Usage(filepath.Join(dir, "data"))
		if err := s.PutRecord(ctx, store.Record{Bucket: bucketMounts, Key: dir, Value: []byte(strconv.FormatInt(n, 10))}); err != nil {
			return 0, err
		}
	}
	estimate, err := estimateCache(ctx, s)
	if err != nil {
		return 0, err
	}
	_, free, err := DiskSpace(s)
	if err != nil || estimate <= l.Keep(estimate, free) {
		return 0, err
	}
	// The estimate knows nothing of what images share: do not look again before
	// it has grown.
	if r, err := s.GetRecord(ctx, bucketLimit, "estimate"); err == nil {
		if n, _ := strconv.ParseInt(string(r.Value), 10, 64); estimate <= n+n/20 && l.MinFree <= free {
			return 0, nil
		}
	}
	freed, err := enforceLimit(ctx, s, l)
	if err != nil {
		return freed, err
	}
	if estimate, err = estimateCache(ctx, s); err != nil {
		return freed, err
	}
	return freed, s.PutRecord(ctx, store.Record{Bucket: bucketLimit, Key: "estimate", Value: []byte(strconv.FormatInt(estimate, 10))})
}

// estimateCache adds up what the layers of steps and the cache mounts take.
func estimateCache(ctx context.Context, s *store.Store) (int64, error) {
	estimate, err := s.HeldBytes(ctx, bucketSteps)
	if err != nil {
		return 0, err
	}
	mounts, err := s.Records(ctx, bucketMounts)
	if err != nil {
		return 0, err
	}
	for _, m := range mounts {
		if n, err := strconv.ParseInt(string(m.Value), 10, 64); err == nil { // else another version's: it is found on the disk
			estimate += n
		}
	}
	return estimate, nil
}

// enforceLimit removes what is above the limit, the least recently used first.
func enforceLimit(ctx context.Context, s *store.Store, l CacheLimit) (int64, error) {
	images, err := s.Images(ctx)
	if err != nil {
		return 0, err
	}
	disk, err := s.Disk(ctx)
	if err != nil {
		return 0, err
	}
	reached := map[oci.Digest]bool{}
	for _, img := range images {
		disk.Reach(reached, img.Target.Digest, img.Manifest.Digest)
	}
	list, err := Cache(ctx, s, disk, reached)
	if err != nil {
		return 0, err
	}
	_, free, err := DiskSpace(s)
	if err != nil {
		return 0, err
	}
	// What costs no bytes is worth keeping: it is gone only with what it holds.
	gone := Evict(list, func(*CacheRecord) bool { return true }, func(total int64) int64 { return l.Keep(total, free) })
	if len(gone) == 0 {
		return 0, nil
	}
	_, freed, err := PruneCache(ctx, s, gone, false)
	return freed, err
}

// changed notes that the build gave the cache something.
func (e *Engine) changed(mount string) {
	e.added.Store(true)
	if mount == "" {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.usedMounts == nil {
		e.usedMounts = map[string]bool{}
	}
	e.usedMounts[mount] = true
}
