package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/layer"
)

// Rebuilt says what Rebuild found.
type Rebuilt struct {
	Blobs, Manifests, Layers int
	Names                    int    // tags and repositories' digests
	Records                  int    // of the build cache and of containers
	Salvaged                 bool   // the damaged database could be read, all of it
	Kept                     string // where it lies now, or ""
}

// rebuiltBoot marks what Rebuild found in place of a boot: no process ever
// wrote in it, so everything is verified before its first use.
const rebuiltBoot = "rebuilt"

// damagedName is where a damaged database is kept, next to the new one.
const damagedName = "strake.db.damaged"

// Rebuild makes the database of the store at root again: from the blobs and
// trees on disk, what can still be read of the old database, and the journal
// of names. The old one is kept aside. It fails with oci.ErrConflict while
// another process works on the store, and changes nothing unless it succeeds.
func Rebuild(ctx context.Context, root string, opt Options) (*Rebuilt, error) {
	s, err := newStore(root, opt)
	if err != nil {
		return nil, err
	}
	lock, err := s.aloneOn()
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	fresh := s.path("strake.db.new")
	clear := func() {
		for _, suffix := range []string{"", "-wal", "-shm"} {
			os.Remove(fresh + suffix)
		}
	}
	clear()
	defer clear()
	if err := makeDatabase(fresh); err != nil {
		return nil, s.failed(s.root, err)
	}
	old := s.salvage(ctx, fresh)
	s.db = connect(fresh, "mode=rw")
	done := &Rebuilt{Salvaged: old.whole, Records: len(old.records)}
	err = s.write(ctx, func(t *tx) error { return s.refill(ctx, t, old, done) })
	if cerr := s.db.Close(); err == nil { // the last one to close puts the log into the file
		err = cerr
	}
	if err != nil {
		return nil, err
	}
	return done, s.swap(fresh, done)
}

// aloneOn locks the store against those who make its database, and makes sure
// that nobody is at work.
func (s *Store) aloneOn() (*os.File, error) {
	if err := s.makeDirs(); err != nil {
		return nil, s.failed(s.root, err)
	}
	dir, err := os.Open(s.root)
	if err != nil {
		return nil, s.failed(s.root, err)
	}
	if err := flock(dir, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		dir.Close()
		return nil, fmt.Errorf("store %s: another strake is making its database: %w", s.root, oci.ErrConflict)
	}
	names, err := os.ReadDir(s.path("leases"))
	for _, n := range names {
		live, f := s.alive(n.Name())
		if f != nil {
			f.Close()
		}
		if live {
			dir.Close()
			return nil, fmt.Errorf("store %s: another strake is at work on it; let it end first: %w", s.root, oci.ErrConflict)
		}
	}
	if err != nil {
		dir.Close()
		return nil, s.failed(s.root, err)
	}
	return dir, nil
}

// swap puts the new database in the place of the old one.
func (s *Store) swap(fresh string, done *Rebuilt) error {
	path, kept := s.path("strake.db"), s.path(damagedName)
	for _, suffix := range []string{"-shm", "-wal", ""} {
		if suffix == "" {
			if _, err := os.Lstat(path); err == nil {
				done.Kept = kept
			}
		}
		err := os.Rename(path+suffix, kept+suffix)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return s.failed(path, err)
		}
	}
	if err := os.Rename(fresh, path); err != nil {
		return s.failed(path, err)
	}
	return syncDir(s.root)
}

// refill writes all that was found into the new database.
func (s *Store) refill(ctx context.Context, t *tx, old *salvaged, done *Rebuilt) error {
	blobs, err := s.listBlobs()
	if err != nil {
		return err
	}
	var manifests []oci.Descriptor
	for d := range blobs {
		if err := ctx.Err(); err != nil {
			return err
		}
		m, ok, err := s.refillBlob(t, d, old.mediaTypes[d])
		if err != nil {
			return err
		}
		if ok {
			done.Blobs++
		}
		if m.MediaType != "" {
			manifests = append(manifests, m)
		}
	}
	done.Manifests = len(manifests)
	for _, m := range manifests {
		if err := s.refillManifest(t, m); err != nil {
			return err
		}
	}
	if done.Layers, err = s.refillLayers(ctx, t); err != nil {
		return err
	}
	if done.Names, err = t.refillNames(old.names); err != nil {
		return err
	}
	return t.refillRest(old)
}

// refillBlob makes the row of a file below blobs, and returns what manifest or
// index it is, if it is one.
func (s *Store) refillBlob(t *tx, d oci.Digest, mediaType string) (m oci.Descriptor, ok bool, err error) {
	f, err := os.Open(s.blobPath(d))
	if err != nil {
		return m, false, s.failed(s.blobPath(d), err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil || !fi.Mode().IsRegular() {
		return m, false, err
	}
	desc := oci.Descriptor{MediaType: mediaType, Digest: d, Size: fi.Size()}
	first := make([]byte, 1)
	if n, _ := f.ReadAt(first, 0); n == 1 && first[0] == '{' && fi.Size() <= oci.MaxManifestSize {
		if body, err := oci.ReadAll(f, desc); err == nil {
			if kind := manifestKind(body, mediaType); kind != "" {
				desc.MediaType, m = kind, desc
				m.MediaType = kind
			}
		}
	}
	return m, true, t.insertBlob(desc, plainSize(f, fi.Size()), rebuiltBoot)
}

// manifestKind is the media type of a manifest or index, by what it says
// itself, what the old database said, or what it has; "" of other content.
func manifestKind(body []byte, known string) string {
	var probe struct {
		MediaType string          `json:"mediaType"`
		Manifests json.RawMessage `json:"manifests"`
		Layers    json.RawMessage `json:"layers"`
		Config    struct {
			Digest oci.Digest `json:"digest"`
		} `json:"config"`
	}
	if json.Unmarshal(body, &probe) != nil {
		return ""
	}
	kind := probe.MediaType
	switch {
	case kind != "":
	case oci.IsManifest(known) || oci.IsIndex(known):
		kind = known
	case probe.Manifests != nil:
		kind = oci.MediaTypeIndex
	case probe.Layers != nil && probe.Config.Digest != "":
		kind = oci.MediaTypeManifest
	}
	if !oci.IsManifest(kind) && !oci.IsIndex(kind) {
		return ""
	}
	if _, _, err := parseManifest(kind, body); err != nil {
		return ""
	}
	return kind
}

func (s *Store) refillManifest(t *tx, d oci.Descriptor) error {
	body, err := os.ReadFile(s.blobPath(d.Digest))
	if err != nil {
		return err
	}
	m, children, err := parseManifest(d.MediaType, body)
	if err != nil {
		return err
	}
	for _, c := range children {
		if _, err := t.Exec("UPDATE blob SET mediatype = ? WHERE digest = ? AND mediatype = ''", c.MediaType, c.Digest); err != nil {
			return err
		}
	}
	return s.learn(t, d, m, children)
}

// refillLayers makes the rows of the directories below layers.
func (s *Store) refillLayers(ctx context.Context, t *tx) (int, error) {
	found, err := s.listLayers()
	if err != nil {
		return 0, err
	}
	n := 0
	for d, names := range found {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		if toc := s.loadTOC(d); toc != nil {
			if err := t.knowLayer(toc); err != nil {
				return n, err
			}
		}
		for _, name := range names {
			if name != "tree" {
				continue
			}
			kind := treeForeign
			toc, err := layer.Pack(ctx, io.Discard, filepath.Join(s.layerPath(d), "tree"))
			switch {
			case ctx.Err() != nil:
				return n, ctx.Err()
			case err == nil && toc.DiffID == d:
				kind = treeCanonical
				if err := errors.Join(s.writeTOC(toc), t.knowLayer(toc)); err != nil {
					return n, err
				}
			case s.loadTOC(d) == nil:
				continue // nothing tells what it should be; Collect takes it away
			}
			if _, err := t.Exec("UPDATE layer SET tree = ?, boot = ? WHERE diffid = ?", kind, rebuiltBoot, d); err != nil {
				return n, err
			}
			n++
		}
	}
	return n, nil
}

// refillNames writes each name as its newest event says, and the log of tags.
func (t *tx) refillNames(events []nameEvent) (int, error) {
	newest := map[string]nameEvent{}
	for _, e := range agreed(events) {
		if e.tag != "" {
			if _, err := t.Exec("INSERT INTO taglog(repo, tag, digest, at) VALUES(?,?,?,?)", e.repo, e.tag, e.digest, e.at); err != nil {
				return 0, err
			}
		}
		newest[e.name()] = e
	}
	n := 0
	for _, e := range newest {
		var err error
		switch {
		case e.forgotten || e.digest == "":
			continue
		case e.tag == "":
			_, err = t.Exec("INSERT OR IGNORE INTO repodigest(repo, digest) VALUES(?,?)", e.repo, e.digest)
		default:
			_, err = t.Exec("INSERT OR REPLACE INTO tag(repo, tag, digest, at) VALUES(?,?,?,?)", e.repo, e.tag, e.digest, e.at)
		}
		if err != nil {
			return n, err
		}
		n++
		if _, err := t.Exec("UPDATE manifest SET named = 1 WHERE digest = ?", e.digest); err != nil {
			return n, err
		}
	}
	return n, nil
}

// name is what the event is about.
func (e nameEvent) name() string {
	if e.tag == "" {
		return e.repo + "@" + string(e.digest)
	}
	return e.repo + ":" + e.tag
}

// agreed leaves one event for each name and time, in the order of time: the one
// that most of them say, since table, log and journal each have a copy.
func agreed(events []nameEvent) []nameEvent {
	votes := map[nameEvent]int{}
	for _, e := range events {
		votes[e]++
	}
	type moment struct {
		name string
		at   int64
	}
	var order []moment
	best := map[moment]nameEvent{}
	for _, e := range events {
		m := moment{e.name(), e.at}
		had, ok := best[m]
		if !ok {
			order = append(order, m)
		}
		if !ok || votes[e] > votes[had] {
			best[m] = e
		}
	}
	out := make([]nameEvent, len(order))
	for i, m := range order {
		out[i] = best[m]
	}
	return out
}

// refillRest writes origins and records. What was built stays an image also
// where its record is lost: an image without a name.
func (t *tx) refillRest(old *salvaged) error {
	for _, o := range old.origins {
		if _, err := t.Exec("INSERT OR IGNORE INTO origin(digest, repo) VALUES(?,?)", o[0], o[1]); err != nil {
			return err
		}
	}
	for _, r := range old.records {
		if _, err := t.Exec("INSERT OR REPLACE INTO record(bucket, key, value, created, used) VALUES(?,?,?,?,?)",
			r.Bucket, r.Key, r.Value, r.Created.UnixNano(), r.Used.UnixNano()); err != nil {
			return err
		}
	}
	for _, h := range old.holds {
		if _, err := t.Exec(`INSERT OR IGNORE INTO record_hold(digest, bucket, key)
			SELECT ?1, ?2, ?3 WHERE EXISTS(SELECT 1 FROM record WHERE bucket = ?2 AND key = ?3)`, h[0], h[1], h[2]); err != nil {
			return err
		}
	}
	for d, at := range old.added {
		if _, err := t.Exec("UPDATE manifest SET added = ? WHERE digest = ?", at, d); err != nil {
			return err
		}
	}
	return t.refillLog(&old.remembered)
}

// valid refuses what a damaged line or row may hold.
func (e nameEvent) valid() bool {
	if e.repo == "" || !strings.Contains(e.repo, "/") {
		return false
	}
	r := repository(e.repo)
	if e.tag != "" {
		r = r.WithTag(e.tag)
	}
	if !validRef(r) {
		return false
	}
	return e.digest == "" && e.tag != "" || e.digest != "" && checkDigest(e.digest) == nil
}
