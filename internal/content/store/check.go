package store

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/strake-project/strake/internal/oci"
)

// Problem is one thing that is wrong with a store.
type Problem struct {
	Kind   ProblemKind
	Digest oci.Digest // of the content concerned, if any
	Text   string
}

// ProblemKind says what has to be mended.
type ProblemKind int

// The kinds of problem.
const (
	BadDatabase ProblemKind = iota // rows that contradict each other: Rebuild
	BadBlob                        // a blob's file is damaged or missing
	BadTree                        // a layer's tree is damaged or missing
	Missing                        // content that an image needs is not there
)

func (p Problem) String() string {
	if p.Digest == "" {
		return p.Text
	}
	return string(p.Digest) + ": " + p.Text
}

// Examine compares the database with the disk and with itself, and reports what
// is wrong; it repairs nothing. With deep given, all content is read and its
// digest checked, and every tree is compared with its layer; progress, which may
// be nil, is told how many bytes of how many were read. Files without a
// row are no problem: they are leftovers, which Collect sweeps.
func (s *Store) Examine(ctx context.Context, deep bool, progress func(done, of int64)) ([]Problem, error) {
	var problems []Problem
	report := func(kind ProblemKind, d oci.Digest, format string, args ...any) {
		problems = append(problems, Problem{kind, d, fmt.Sprintf(format, args...)})
	}
	var blobs []oci.Descriptor
	var trees []treeRow
	pragma := "PRAGMA quick_check"
	if deep {
		pragma = "PRAGMA integrity_check" // compares every index with its table
	}
	err := s.read(ctx, func(t *tx) error {
		err := t.each(func(scan func(...any) error) error {
			var ok string
			err := scan(&ok)
			if err == nil && ok != "ok" {
				report(BadDatabase, "", "strake.db: %s", strings.ReplaceAll(ok, "\n", "; "))
			}
			return err
		}, pragma)
		if err != nil {
			return err
		}
		if err := s.checkGraph(t, report); err != nil {
			return err
		}
		err = t.each(func(scan func(...any) error) error {
			var digest string
			var b oci.Descriptor
			err := scan(&digest, &b.Size)
			b.Digest = oci.Digest(digest)
			blobs = append(blobs, b)
			return err
		}, "SELECT digest, size FROM blob")
		if err != nil {
			return err
		}
		return t.each(func(scan func(...any) error) error {
			var digest string
			var r treeRow
			err := scan(&digest, &r.kind)
			r.diffID = oci.Digest(digest)
			trees = append(trees, r)
			return err
		}, "SELECT diffid, tree FROM layer WHERE tree <> 0")
	})
	if err != nil {
		return nil, err
	}
	var read, all int64
	for _, b := range blobs {
		all += b.Size
		if checkDigest(b.Digest) != nil {
			report(BadDatabase, "", "%q is no digest of a blob", b.Digest)
		}
	}
	for _, r := range trees {
		if checkDigest(r.diffID) != nil {
			report(BadDatabase, "", "%q is no digest of a layer", r.diffID)
		}
	}
	for _, b := range blobs {
		if read += b.Size; progress != nil {
			progress(read, all)
		}
		if err := ctx.Err(); err != nil {
			return problems, err
		}
		if err := s.checkBlob(b, deep); err != nil && s.still(ctx, "SELECT 1 FROM blob WHERE digest = ?", b.Digest) {
			report(BadBlob, b.Digest, "%v", err)
		}
	}
	for _, r := range trees {
		if err := s.checkTree(ctx, r, deep); err != nil && s.still(ctx, "SELECT 1 FROM layer WHERE tree <> 0 AND diffid = ?", r.diffID) {
			report(BadTree, r.diffID, "%v", err)
		}
	}
	return problems, ctx.Err()
}

type treeRow struct {
	diffID oci.Digest
	kind   int
}

// still tells whether the row is there after its file was looked at: another
// process may have collected both.
func (s *Store) still(ctx context.Context, query string, d oci.Digest) (there bool) {
	err := s.read(ctx, func(t *tx) (err error) {
		there, err = t.exists(query, d)
		return err
	})
	return err == nil && there
}

// Every change of a tag is written twice, in its row and in its log: where they
// differ, one of them was damaged.
const (
	tagsNotLogged = `SELECT digest FROM tag t WHERE digest IS NOT
		(SELECT digest FROM taglog l WHERE l.repo = t.repo AND l.tag = t.tag ORDER BY n DESC LIMIT 1)`
	logsNotTagged = `SELECT digest FROM taglog l WHERE digest <> ''
		AND n = (SELECT max(n) FROM taglog m WHERE m.repo = l.repo AND m.tag = l.tag)
		AND NOT EXISTS(SELECT 1 FROM tag t WHERE t.repo = l.repo AND t.tag = l.tag)`
)

// What keeps content is written twice as well, in a table and in its index: a
// bit that changed in one is a row that the other does not have. PRAGMA
// integrity_check compares all that, and takes ten times as long. The + keeps
// the inner search from using the same index.
var notIndexed = [...]string{
	`SELECT child FROM edge i INDEXED BY edge_child WHERE NOT EXISTS(SELECT 1 FROM edge e NOT INDEXED
		WHERE e.parent = i.parent AND e.child = i.child AND e.kind = i.kind)`,
	`SELECT digest FROM packed i INDEXED BY packed_digest WHERE NOT EXISTS(SELECT 1 FROM packed p NOT INDEXED
		WHERE p.diffid = i.diffid AND +p.digest = i.digest)`,
	`SELECT digest FROM record_hold i INDEXED BY record_hold_key WHERE NOT EXISTS(SELECT 1 FROM record_hold r NOT INDEXED
		WHERE r.digest = i.digest AND r.bucket = i.bucket AND +r.key = i.key)`,
}

// trust fails with a DamagedError where the database cannot be asked what is
// not needed: its pages are damaged, a tag or a row that keeps something is not
// what was written, or a root of the graph is not there. It is for what removes
// more than it was told by name, and costs a look at each page, tag and edge.
func (s *Store) trust(t *tx) error {
	var said string
	if err := t.QueryRow("PRAGMA quick_check(1)").Scan(&said); err != nil {
		return err
	}
	if said != "ok" {
		return &DamagedError{Root: s.root, What: fmt.Sprintf("is damaged (%s)", strings.ReplaceAll(said, "\n", "; "))}
	}
	for _, query := range append(notIndexed[:],
		tagsNotLogged, logsNotTagged,
		"SELECT DISTINCT child FROM edge WHERE kind IN (1, 2) AND parent NOT IN (SELECT digest FROM manifest)",
		"SELECT digest FROM tag WHERE digest IN (SELECT digest FROM blob) AND digest NOT IN (SELECT digest FROM manifest WHERE gone = 0)",
	) {
		wrong, err := t.digests(query + " LIMIT 1")
		if err != nil {
			return err
		}
		if len(wrong) > 0 {
			return &DamagedError{Root: s.root, What: fmt.Sprintf("contradicts itself about %s, so nothing is removed", wrong[0])}
		}
	}
	return nil
}

// checkGraph looks for rows that name what they cannot do without.
func (s *Store) checkGraph(t *tx, report func(ProblemKind, oci.Digest, string, ...any)) error {
	for _, c := range []struct {
		kind        ProblemKind
		text, query string
	}{
		{Missing, "is tagged and missing", "SELECT digest FROM tag WHERE digest NOT IN (SELECT digest FROM blob)"},
		{Missing, "is the digest of a repository and missing", "SELECT digest FROM repodigest WHERE digest NOT IN (SELECT digest FROM blob)"},
		{Missing, "is a manifest whose bytes are missing", "SELECT digest FROM manifest WHERE digest NOT IN (SELECT digest FROM blob)"},
		{BadDatabase, "is where a tag points that its log does not know", tagsNotLogged},
		{BadDatabase, "is where a tag's log ends that is no more", logsNotTagged},
		{BadDatabase, "is tagged, and no row says what it is", `SELECT digest FROM tag WHERE digest IN (SELECT digest FROM blob)
			AND digest NOT IN (SELECT digest FROM manifest)`},
		{BadDatabase, "is a manifest without its facts", `SELECT digest FROM manifest WHERE config <> '' AND image NOT IN (SELECT id FROM image)
			AND config IN (SELECT digest FROM blob)`},
		{Missing, "belongs to an image that has a name, and no form of it is left", `WITH RECURSIVE live(d) AS (
				SELECT digest FROM tag UNION SELECT digest FROM repodigest
				UNION SELECT child FROM edge e JOIN live ON parent = d WHERE e.kind <> 2 OR child IN (SELECT digest FROM blob))
			SELECT e.child FROM edge e WHERE e.kind = 1 AND e.parent IN (SELECT d FROM live)
				AND e.child NOT IN (SELECT digest FROM blob)
				AND e.child NOT IN (SELECT diffid FROM layer WHERE tree = 2)
				AND e.child NOT IN (SELECT diffid FROM packed p JOIN blob b ON b.digest = p.digest)`},
		{BadDatabase, "names parents that are gone", `SELECT DISTINCT child FROM edge WHERE kind IN (1, 2) AND parent NOT IN (SELECT digest FROM manifest)`},
	} {
		found, err := t.digests(c.query)
		if err != nil {
			return err
		}
		for _, d := range found {
			kind, text := c.kind, c.text
			if kind == Missing && s.lies(d) {
				kind, text = BadDatabase, text+", but its file is there"
			}
			report(kind, d, "%s", text)
		}
	}
	for _, query := range notIndexed {
		found, err := t.digests(query)
		if err != nil {
			return err
		}
		for _, d := range found {
			report(BadDatabase, "", "strake.db: a row about %q was changed", d)
		}
	}
	return nil
}

// lies tells whether there is a file for d.
func (s *Store) lies(d oci.Digest) bool {
	for _, path := range []string{s.blobPath(d), filepath.Join(s.layerPath(d), "tree")} {
		if _, err := os.Lstat(path); err == nil {
			return true
		}
	}
	return false
}

func (s *Store) checkBlob(b oci.Descriptor, deep bool) error {
	f, err := os.Open(s.blobPath(b.Digest))
	if err != nil {
		return err
	}
	defer f.Close()
	if deep {
		return digestOf(f, b)
	}
	fi, err := f.Stat()
	if err == nil && fi.Size() != b.Size {
		err = &oci.SizeError{Digest: b.Digest, Want: b.Size, Got: fi.Size()}
	}
	return err
}

func (s *Store) checkTree(ctx context.Context, r treeRow, deep bool) error {
	tree := filepath.Join(s.layerPath(r.diffID), "tree")
	if _, err := os.Lstat(tree); err != nil || !deep {
		return err
	}
	same, err := s.treeIntact(ctx, r.diffID, r.kind)
	if err == nil && !same {
		err = fmt.Errorf("its tree %s was changed", tree)
	}
	return err
}
