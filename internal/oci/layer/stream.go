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
// it: the digester and, while it lasts, the reader or writer.
type chunk struct {
	b    []byte
	n    int
	refs int
}

// digester hashes a stream beside the goroutine that reads or writes it, so
// that the SHA-256 of the stream costs no wall time while another core is
// free. Its goroutine lives only while there is something to hash: an
// abandoned Writer leaks nothing.
type digester struct {
	h    hash.Hash
	size int64

	mu      sync.Mutex
	changed sync.Cond // the queue became empty, or a chunk free
	queue   []*chunk
	free    []*chunk
	made    int
	running bool
}

func newDigester() *digester {
	d := &digester{h: sha256.New()}
	d.changed.L = &d.mu
	return d
}

// get returns an empty chunk; it waits while all of them are in the queue.
func (d *digester) get() *chunk {
	d.mu.Lock()
	defer d.mu.Unlock()
	for {
		if k := len(d.free); k > 0 {
			c := d.free[k-1]
			d.free = d.free[:k-1]
			c.n = 0
			return c
		}
		if d.made < ringSize {
			d.made++
			return &chunk{b: make([]byte, chunkSize)}
		}
		d.changed.Wait()
	}
}

// put hands c's bytes to be hashed. The caller may go on reading them until
// it calls release.
func (d *digester) put(c *chunk) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c.refs = 2
	d.size += int64(c.n)
	d.queue = append(d.queue, c)
	if !d.running {
		d.running = true
		go d.run()
	}
}

func (d *digester) run() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(d.queue) > 0 {
		c := d.queue[0]
		d.queue = d.queue[:copy(d.queue, d.queue[1:])]
		d.mu.Unlock()
		d.h.Write(c.b[:c.n])
		d.mu.Lock()
		d.drop(c)
	}
	d.running = false
	d.changed.Broadcast()
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

// sum waits for what is queued, hashes rest and returns digest and size of
// all. The digester is done then.
func (d *digester) sum(rest []byte) (oci.Digest, int64) {
	d.mu.Lock()
	for d.running {
		d.changed.Wait()
	}
	d.mu.Unlock()
	d.h.Write(rest)
	return hexDigest(d.h), d.size + int64(len(rest))
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
}

func newHashedReader(r io.Reader) *hashedReader {
	return &hashedReader{r: r, d: newDigester()}
}

func (h *hashedReader) fill() error {
	if h.cur != nil && h.pos < h.cur.n {
		return nil
	}
	if h.cur != nil {
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
	h.d.put(c)
	return nil
}

func (h *hashedReader) Read(p []byte) (int, error) {
	if err := h.fill(); err != nil {
		return 0, err
	}
	n := copy(p, h.cur.b[h.pos:h.cur.n])
	h.pos += n
	h.off += int64(n)
	return n, nil
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
