package layer

import (
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"io"
	"sync"

	"github.com/strake-project/strake/internal/oci"
)

const (
	chunkSize = 256 << 10 // a multiple of tar's block, so a header never straddles two chunks
	ringSize  = 8
)

// chunk is a buffer on its way through the ring. refs counts who still reads
// it: the two workers and, while it lasts, the reader or writer.
type chunk struct {
	b    []byte
	n    int
	refs int
	segs []segment
}

// segment is a piece of a file's content in a chunk.
type segment struct {
	from, to int
	entry    int // whose content it is
	last     bool
}

type contentDigest struct {
	entry  int
	digest oci.Digest
}

// digester hashes a stream, and the contents of the files in it, beside the
// goroutine that reads or writes it, so that neither costs wall time while
// another core is free, and small files no hand-over each. Its goroutines live
// only while there is something to hash: an abandoned Writer leaks nothing.
type digester struct {
	stream   hash.Hash
	size     int64
	content  hash.Hash
	contents []contentDigest

	mu      sync.Mutex
	changed sync.Cond // a queue became empty, or a chunk free
	queues  [2]queue
	free    []*chunk
	made    int
}

// The two queues.
const (
	toStream = iota
	toContents
)

type queue struct {
	chunks  []*chunk
	running bool
}

func newDigester() *digester {
	d := &digester{stream: sha256.New(), content: sha256.New()}
	d.changed.L = &d.mu
	return d
}

// get returns an empty chunk; it waits while all of them are in the queues.
func (d *digester) get() *chunk {
	d.mu.Lock()
	defer d.mu.Unlock()
	for {
		if k := len(d.free); k > 0 {
			c := d.free[k-1]
			d.free = d.free[:k-1]
			c.n, c.refs, c.segs = 0, 1, c.segs[:0]
			return c
		}
		if d.made < ringSize {
			d.made++
			return &chunk{b: make([]byte, chunkSize), refs: 1}
		}
		d.changed.Wait()
	}
}

// put hands c to be hashed, as a piece of the stream or for the contents that
// its segments say. The caller may go on reading it until it calls release.
func (d *digester) put(c *chunk, which int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if which == toStream {
		d.size += int64(c.n)
	} else if len(c.segs) == 0 {
		return
	}
	c.refs++
	q := &d.queues[which]
	q.chunks = append(q.chunks, c)
	if !q.running {
		q.running = true
		go d.run(which)
	}
}

func (d *digester) run(which int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	q := &d.queues[which]
	for len(q.chunks) > 0 {
		c := q.chunks[0]
		q.chunks = q.chunks[:copy(q.chunks, q.chunks[1:])]
		d.mu.Unlock()
		if which == toStream {
			d.stream.Write(c.b[:c.n])
		} else {
			d.hashContents(c)
		}
		d.mu.Lock()
		d.drop(c)
	}
	q.running = false
	d.changed.Broadcast()
}

func (d *digester) hashContents(c *chunk) {
	for _, s := range c.segs {
		d.content.Write(c.b[s.from:s.to])
		if s.last {
			d.contents = append(d.contents, contentDigest{s.entry, hexDigest(d.content)})
			d.content.Reset()
		}
	}
}

func (d *digester) release(c *chunk) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.drop(c)
}

func (d *digester) drop(c *chunk) {
	if c.refs--; c.refs == 0 {
		d.free = append(d.free, c)
		d.changed.Broadcast()
	}
}

// finish waits for what is queued, hashes the last chunk, if there is one,
// sets the digests of entries and returns digest and size of the stream.
func (d *digester) finish(last *chunk, entries []Entry) (oci.Digest, int64) {
	d.mu.Lock()
	for d.queues[toStream].running || d.queues[toContents].running {
		d.changed.Wait()
	}
	d.mu.Unlock()
	if last != nil {
		d.size += int64(last.n)
		d.stream.Write(last.b[:last.n])
		d.hashContents(last)
	}
	for _, c := range d.contents {
		entries[c.entry].Digest = c.digest
	}
	return hexDigest(d.stream), d.size
}

// hexDigest is the digest that h, a SHA-256, stands at, in one allocation.
func hexDigest(h hash.Hash) oci.Digest {
	const prefix = "sha256:"
	var sum [sha256.Size]byte
	var text [len(prefix) + 2*sha256.Size]byte
	copy(text[:], prefix)
	hex.Encode(text[len(prefix):], h.Sum(sum[:0]))
	return oci.Digest(text[:])
}

// hashedReader reads r in chunks, each of which is hashed while its bytes are
// used.
type hashedReader struct {
	r   io.Reader
	d   *digester
	cur *chunk
	pos int   // in cur
	off int64 // of the next byte that Read returns, in the stream
	err error
	// entry, if not negative, is whose content is being read.
	entry int
}

func newHashedReader(r io.Reader) *hashedReader {
	return &hashedReader{r: r, d: newDigester(), entry: -1}
}

func (h *hashedReader) fill() error {
	if h.cur != nil && h.pos < h.cur.n {
		return nil
	}
	if h.cur != nil {
		h.d.put(h.cur, toContents)
		h.d.release(h.cur)
		h.cur = nil
	}
	if h.err != nil {
		return h.err
	}
	c := h.d.get()
	// One read is not enough: a decompressor may hand out 32 KiB at a time,
	// and short chunks would make the hand-over to the digester dear.
	for c.n < len(c.b) && h.err == nil {
		var n int
		n, h.err = h.r.Read(c.b[c.n:])
		c.n += n
	}
	h.cur, h.pos = c, 0
	if c.n == 0 {
		h.cur = nil
		return h.err
	}
	h.d.put(c, toStream)
	return nil
}

func (h *hashedReader) Read(p []byte) (int, error) {
	if err := h.fill(); err != nil {
		return 0, err
	}
	n := copy(p, h.cur.b[h.pos:h.cur.n])
	if h.entry >= 0 && n > 0 {
		h.cur.segs = append(h.cur.segs, segment{from: h.pos, to: h.pos + n, entry: h.entry})
	}
	h.pos += n
	h.off += int64(n)
	return n, nil
}

// contentEnd says that the entry's content, not empty, was read to its end.
func (h *hashedReader) contentEnd() {
	// What was read last came from the current chunk: a new one is filled only
	// when there is more to read.
	h.cur.segs[len(h.cur.segs)-1].last = true
	h.entry = -1
}

// drain reads and hashes what is left, to EOF.
func (h *hashedReader) drain() error {
	for {
		if err := h.fill(); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		h.off += int64(h.cur.n - h.pos)
		h.pos = h.cur.n
	}
}
