package build

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/content/store"
	"github.com/strake-project/strake/internal/oci"
)

// CacheRecord is one thing that the build cache keeps.
type CacheRecord struct {
	ID          string
	Type        string // BuildKit's: "regular", "exec.cachemount"
	Description string
	Created     time.Time
	Used        time.Time
	Size        int64 // true disk bytes that no image and no older record has
	InUse       bool  // a running process has it
	Shared      bool  // its layers are an image's too

	record store.Record
	dir    string // of a cache mount
	// reach is what stays because of this record, with its disk bytes, and not
	// because of an image.
	reach map[oci.Digest]int64
}

// Cache lists the build cache, the least recently used first. images are what
// the images of disk reach.
func Cache(ctx context.Context, s *store.Store, disk *store.Disk, images map[oci.Digest]bool) ([]CacheRecord, error) {
	steps, err := s.Records(ctx, bucketSteps)
	if err != nil {
		return nil, err
	}
	leased, err := s.Leased()
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(steps, func(a, b store.Record) int { return a.Created.Compare(b.Created) })
	charged := map[oci.Digest]bool{}
	var list []CacheRecord
	for _, r := range steps {
		c := CacheRecord{ID: oci.Digest(r.Key).Encoded(), Type: "regular", Created: r.Created, Used: r.Used, record: r, Shared: len(r.Holds) > 0}
		var res result
		if json.Unmarshal(r.Value, &res) == nil {
			c.Description = res.Name
			for _, o := range res.Outputs {
				// Others have the layers below it too.
				if n := len(o.Layers); n > 0 && leased[o.Layers[n-1].DiffID] {
					c.InUse = true
				}
			}
		}
		reached := map[oci.Digest]bool{}
		disk.Reach(reached, r.Holds...)
		c.reach = map[oci.Digest]int64{}
		for d := range reached {
			if images[d] {
				continue
			}
			c.reach[d] = disk.Bytes[d]
			if !charged[d] {
				charged[d] = true
				c.Size += disk.Bytes[d]
			}
		}
		for _, d := range r.Holds {
			c.Shared = c.Shared && images[d]
		}
		list = append(list, c)
	}
	mounts, err := cacheMounts(s)
	list = append(list, mounts...)
	slices.SortStableFunc(list, func(a, b CacheRecord) int { return a.Used.Compare(b.Used) })
	return list, err
}

// Evict chooses from list what has to go for the cache to take no more than
// keep says of its true bytes: the least recently used first, and only what may
// go. Layers that several steps share go with the last of them.
func Evict(list []CacheRecord, may func(*CacheRecord) bool, keep func(total int64) int64) []CacheRecord {
	users := map[oci.Digest]int{}
	var total int64
	for i := range list {
		c := &list[i]
		if c.dir != "" {
			total += c.Size
		}
		for d, n := range c.reach {
			if users[d]++; users[d] == 1 {
				total += n
			}
		}
	}
	most := keep(total)
	order := make([]*CacheRecord, len(list))
	for i := range list {
		order[i] = &list[i]
	}
	// A step is in use as long as those that are built on it, and goes after them.
	used := lastUses(list)
	slices.SortStableFunc(order, func(a, b *CacheRecord) int {
		return cmp.Or(used(a).Compare(used(b)), len(b.record.Holds)-len(a.record.Holds))
	})
	var gone []CacheRecord
	for _, c := range order {
		if most > 0 && total <= most {
			break
		}
		if c.InUse || !may(c) {
			continue
		}
		gone = append(gone, *c)
		if c.dir != "" {
			total -= c.Size
		}
		for d, n := range c.reach {
			if users[d]--; users[d] == 0 {
				total -= n
			}
		}
	}
	return gone
}

// lastUses returns when a record, or one that has all of its layers, was used
// last: the least of its layers' last uses is that of the topmost one.
func lastUses(list []CacheRecord) func(*CacheRecord) time.Time {
	layers := map[oci.Digest]time.Time{}
	for i := range list {
		for _, d := range list[i].record.Holds {
			if list[i].Used.After(layers[d]) {
				layers[d] = list[i].Used
			}
		}
	}
	return func(c *CacheRecord) time.Time {
		var last time.Time
		for _, d := range c.record.Holds {
			if t := layers[d]; last.IsZero() || t.Before(last) {
				last = t
			}
		}
		if last.IsZero() {
			last = c.Used
		}
		return last
	}
}

// cacheMounts lists what is below ROOT/caches and was filled.
func cacheMounts(s *store.Store) ([]CacheRecord, error) {
	data, err := filepath.Glob(filepath.Join(s.Root(), "caches", "*", "*", "data"))
	if err != nil {
		return nil, err
	}
	var list []CacheRecord
	for _, d := range data {
		dir := filepath.Dir(d)
		base := filepath.Dir(dir)
		id, err := os.ReadFile(filepath.Join(base, "id"))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		c := CacheRecord{ID: string(digestOf("cachemount", filepath.Base(base), filepath.Base(dir)).Encoded()), Type: "exec.cachemount",
			Description: "cached mount " + filepath.Clean(string(id)), Size: store.Usage(d), dir: dir}
		if fi, err := os.Stat(filepath.Join(dir, "lock")); err == nil {
			c.Created = fi.ModTime()
		}
		if fi, err := os.Stat(filepath.Join(base, "id")); err == nil {
			c.Used = fi.ModTime() // each build writes it
		}
		lock, err := lockUnused(dir)
		if err != nil {
			return nil, err
		}
		c.InUse = lock == nil
		if lock != nil {
			lock.Close()
		}
		list = append(list, c)
	}
	return list, nil
}

// lockUnused locks a cache mount, or returns nil where a build has it.
func lockUnused(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, nil
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return f, nil
}

// PruneCache removes those of list that are not in use, and returns them with
// the bytes that are free then. A dry run only tells.
func PruneCache(ctx context.Context, s *store.Store, list []CacheRecord, dry bool) (gone []CacheRecord, bytes int64, err error) {
	p := store.Prune{Dry: dry}
	byKey := map[string]CacheRecord{}
	for _, c := range list {
		if c.dir == "" {
			p.Records = append(p.Records, c.record)
			byKey[c.record.Key] = c
			continue
		}
		n, err := emptyCache(c.dir, dry)
		if err != nil {
			return gone, bytes, err
		}
		if n >= 0 && !dry {
			if err := s.DeleteRecord(ctx, bucketMounts, c.dir); err != nil {
				return gone, bytes, err
			}
		}
		if n >= 0 {
			gone = append(gone, c)
			bytes += n
		}
	}
	serving, err := servingRecords(ctx, s, list)
	if err != nil {
		return gone, bytes, err
	}
	p.Records = append(p.Records, serving...)
	if len(p.Records) == 0 {
		return gone, bytes, nil
	}
	done, err := s.Prune(ctx, p)
	if err != nil {
		return gone, bytes, err
	}
	for _, r := range done.Records {
		if c, ok := byKey[r.Key]; ok && r.Bucket == bucketSteps {
			gone = append(gone, c)
		}
	}
	return gone, bytes + done.Bytes, nil
}

// PlanCache tells what PruneCache would let go of list: the records, and the
// bytes of the cache mounts, for a plan that has more in it.
func PlanCache(ctx context.Context, s *store.Store, list []CacheRecord) (records []store.Record, mounts int64, err error) {
	for _, c := range list {
		if c.dir == "" {
			records = append(records, c.record)
			continue
		}
		n, err := emptyCache(c.dir, true)
		if err != nil {
			return nil, 0, err
		}
		mounts += max(n, 0)
	}
	serving, err := servingRecords(ctx, s, list)
	return append(records, serving...), mounts, err
}

// servingRecords are those that go with list: what was remembered of layers
// serves the steps that are left.
func servingRecords(ctx context.Context, s *store.Store, list []CacheRecord) ([]store.Record, error) {
	if len(list) == 0 {
		return nil, nil
	}
	selected, err := s.Records(ctx, bucketSelected)
	if err != nil {
		return nil, err
	}
	known, err := s.Records(ctx, bucketKnown)
	if err != nil {
		return nil, err
	}
	latest := slices.MaxFunc(list, func(a, b CacheRecord) int { return a.Used.Compare(b.Used) }).Used
	old := slices.DeleteFunc(append(selected, known...), func(r store.Record) bool { return r.Used.After(latest) })
	stale, err := staleTraces(ctx, s, time.Now())
	return append(old, stale...), err
}

// emptyCache deletes a cache mount's content and returns its bytes, or -1 where
// it is in use. The directory and its lock stay: a build may be waiting for it.
func emptyCache(dir string, dry bool) (int64, error) {
	lock, err := lockUnused(dir)
	if lock == nil {
		return -1, err
	}
	defer lock.Close()
	n := store.Usage(filepath.Join(dir, "data"))
	left, err := filepath.Glob(filepath.Join(dir, "new-*")) // of builds that were killed
	if err != nil {
		return 0, err
	}
	for _, l := range left {
		n += store.Usage(l)
	}
	if dry {
		return n, nil
	}
	// Aside first: half of a cache is never mounted.
	aside := filepath.Join(dir, "new-deleted")
	if err := os.RemoveAll(aside); err != nil {
		return 0, err
	}
	if err := os.Rename(filepath.Join(dir, "data"), aside); err != nil && !errors.Is(err, os.ErrNotExist) {
		return 0, err
	}
	for _, l := range append(left, aside) {
		if err := os.RemoveAll(l); err != nil {
			return 0, err
		}
	}
	return n, nil
}
