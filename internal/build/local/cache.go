package local

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"sync"
	"sync/atomic"

	"github.com/google/renameio/v2"
	"github.com/opencontainers/go-digest"
	"github.com/zeebo/xxh3"

	"github.com/strake-project/strake/internal/oci"
)

// A cache file is a header and records of equal width, sorted by device and
// inode: it is used as it was read, without being parsed. The path is not part
// of a record: a file's identity has the inode's change time, which the kernel
// alone sets, so it stands for the content wherever it lies.
//
//	header: magic (8), xxh3 of all that follows (8), number of records (8)
//	record: dev, ino, size, mtime, ctime (8 each), SHA-256 (32), flags (8)
const (
	cacheMagic   = "strkctx1"
	headerSize   = 24
	recordSize   = 80
	flagCapable  = 1
	maxCacheSize = 1 << 30
	// maxRecords is where records of files that may be long gone are dropped.
	maxRecords = 500_000
)

type record []byte

func (r record) id() identity {
	return identity{
		binary.LittleEndian.Uint64(r), binary.LittleEndian.Uint64(r[8:]),
		int64(binary.LittleEndian.Uint64(r[16:])), int64(binary.LittleEndian.Uint64(r[24:])),
		int64(binary.LittleEndian.Uint64(r[32:])),
	}
}

func (r record) digest() oci.Digest {
	return digest.NewDigestFromEncoded(digest.SHA256, hex.EncodeToString(r[40:72]))
}

func (r record) capable() bool { return r[72]&flagCapable != 0 }

// cache knows the digests of files by their identity.
type cache struct {
	file string // "" keeps nothing
	old  []byte // records of the file as it was
	hits atomic.Int64

	mu    sync.Mutex
	fresh map[inode]record
	saved int // how many of fresh the file has
}

type inode struct{ dev, ino uint64 }

func newCache() *cache { return &cache{fresh: map[inode]record{}} }

// loadCache reads the cache of the directory path. One that is missing,
// damaged or of another version is empty: it will be replaced.
func loadCache(dir, path string) *cache {
	c := newCache()
	sum := xxh3.HashString128(path).Bytes()
	c.file = filepath.Join(dir, hex.EncodeToString(sum[:]))
	b, err := os.ReadFile(c.file)
	if err != nil || len(b) < headerSize || len(b) > maxCacheSize || !bytes.HasPrefix(b, []byte(cacheMagic)) ||
		binary.LittleEndian.Uint64(b[8:]) != xxh3.Hash(b[16:]) ||
		binary.LittleEndian.Uint64(b[16:]) != uint64(len(b)-headerSize)/recordSize ||
		(len(b)-headerSize)%recordSize != 0 {
		return c
	}
	c.old = b[headerSize:]
	return c
}

// find returns the record of what id was when it was hashed.
func (c *cache) find(id identity) (record, bool) {
	n := len(c.old) / recordSize
	i := sort.Search(n, func(i int) bool {
		r := c.old[i*recordSize:]
		dev, ino := binary.LittleEndian.Uint64(r), binary.LittleEndian.Uint64(r[8:])
		return dev > id.dev || dev == id.dev && ino >= id.ino
	})
	if i == n {
		return nil, false
	}
	r := record(c.old[i*recordSize : (i+1)*recordSize])
	if r.id() != id {
		return nil, false
	}
	c.hits.Add(1)
	return r, true
}

func (c *cache) add(id identity, d oci.Digest, capable bool) {
	r := make(record, 40, recordSize)
	binary.LittleEndian.PutUint64(r, id.dev)
	binary.LittleEndian.PutUint64(r[8:], id.ino)
	binary.LittleEndian.PutUint64(r[16:], uint64(id.size))
	binary.LittleEndian.PutUint64(r[24:], uint64(id.mtime))
	binary.LittleEndian.PutUint64(r[32:], uint64(id.ctime))
	raw, err := hex.DecodeString(d.Encoded())
	if err != nil || len(raw) != 32 {
		return
	}
	r = append(r, raw...)
	r = r[:recordSize]
	if capable {
		r[72] = flagCapable
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fresh[inode{id.dev, id.ino}] = r
}

// save writes the old records and the fresh ones aside and renames them into
// place. Of two builds at once the last one wins.
func (c *cache) save() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.file == "" || len(c.fresh) == c.saved {
		return nil
	}
	old := c.old // never assigned to: find reads it without the lock
	if n := int64(len(old) / recordSize); n > maxRecords && n > 10*c.hits.Load() {
		old = nil // mostly of files that are gone
	}
	all := make([]record, 0, len(old)/recordSize+len(c.fresh))
	for i := 0; i < len(old); i += recordSize {
		r := record(old[i : i+recordSize])
		id := r.id()
		if _, ok := c.fresh[inode{id.dev, id.ino}]; !ok {
			all = append(all, r)
		}
	}
	for _, r := range c.fresh {
		all = append(all, r)
	}
	sort.Slice(all, func(i, j int) bool {
		a, b := all[i].id(), all[j].id()
		return a.dev < b.dev || a.dev == b.dev && a.ino < b.ino
	})
	b := make([]byte, headerSize, headerSize+len(all)*recordSize)
	copy(b, cacheMagic)
	binary.LittleEndian.PutUint64(b[16:], uint64(len(all)))
	for _, r := range all {
		b = append(b, r...)
	}
	binary.LittleEndian.PutUint64(b[8:], xxh3.Hash(b[16:]))
	if err := os.MkdirAll(filepath.Dir(c.file), 0o700); err != nil {
		return fmt.Errorf("context cache: %w", err)
	}
	if err := renameio.WriteFile(c.file, b, 0o600); err != nil {
		return fmt.Errorf("context cache: %w", err)
	}
	// What is looked up in old at this moment stays as it is; fresh is kept, to
	// be written again with what comes.
	c.saved = len(c.fresh)
	return nil
}
