package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// Needed says who needs some content: what is lost with it, and where it may
// be had again.
type Needed struct {
	Names   []ref.Ref    // tags of the images, or their repositories' digests
	Images  []oci.Digest // IDs of images that have no name
	Records []Record     // without values: build cache, containers
	Sources []ref.Ref    // repositories that may have it
}

// above is the query of all that does not work without ?1: its forms' and
// layers' manifests and their indexes.
const above = `WITH RECURSIVE up(d) AS (SELECT ?1 UNION SELECT e.parent FROM up JOIN edge e ON e.child = up.d AND e.kind IN (1, 2, 4)) `

// WhoNeeds looks up what d is part of.
func (s *Store) WhoNeeds(ctx context.Context, d oci.Digest) (*Needed, error) {
	n := &Needed{}
	err := s.read(ctx, func(t *tx) error {
		refs := func(into *[]ref.Ref, query string) error {
			return t.each(func(scan func(...any) error) error {
				var repo, tag string
				if err := scan(&repo, &tag); err != nil {
					return err
				}
				r := repository(repo)
				if checkDigest(oci.Digest(tag)) == nil {
					r = r.WithDigest(oci.Digest(tag))
				} else if tag != "" {
					r = r.WithTag(tag)
				}
				*into = append(*into, r)
				return nil
			}, above+query, d)
		}
		if err := refs(&n.Names, `SELECT repo, tag FROM tag WHERE digest IN (SELECT d FROM up)
			UNION SELECT repo, digest FROM repodigest r WHERE digest IN (SELECT d FROM up)
				AND digest NOT IN (SELECT digest FROM tag t WHERE t.repo = r.repo) ORDER BY repo, tag`); err != nil {
			return err
		}
		if err := refs(&n.Sources, `SELECT repo, '' FROM origin WHERE digest = ?1
			UNION SELECT repo, '' FROM repodigest WHERE digest IN (SELECT d FROM up)`); err != nil {
			return err
		}
		var err error
		n.Images, err = t.digests(above+`SELECT DISTINCT image FROM manifest WHERE digest IN (SELECT d FROM up) AND image <> ''
			AND digest NOT IN (SELECT digest FROM tag UNION SELECT digest FROM repodigest) AND digest NOT IN (SELECT child FROM edge WHERE kind = 2)`, d)
		if err != nil {
			return err
		}
		return t.each(func(scan func(...any) error) error {
			var r Record
			err := scan(&r.Bucket, &r.Key)
			n.Records = append(n.Records, r)
			return err
		}, above+"SELECT DISTINCT bucket, key FROM record_hold WHERE digest IN (SELECT d FROM up) ORDER BY bucket, key", d)
	})
	return n, err
}

// Drop forgets the damaged blob or tree that p found, if it is damaged still.
// It returns what to put in its place; other tells that there is another form
// of it, so that nothing has to be.
func (s *Store) Drop(ctx context.Context, p Problem) (d oci.Descriptor, other bool, err error) {
	d, err = s.describeLost(ctx, p.Digest)
	if err != nil && !errors.Is(err, oci.ErrNotFound) {
		return d, false, err
	}
	switch p.Kind {
	case BadBlob:
		if s.checkBlob(d, true) != nil {
			if err := s.dropBlob(ctx, p.Digest); err != nil {
				return d, false, err
			}
			if err := os.Remove(s.blobPath(p.Digest)); err != nil && !errors.Is(err, os.ErrNotExist) {
				return d, false, s.failed(s.blobPath(p.Digest), err)
			}
		}
	case BadTree:
		if err := s.dropTree(ctx, p.Digest); err != nil {
			return d, false, err
		}
		s.forgetTOCs([]oci.Digest{p.Digest})
	}
	var f form
	err = s.read(ctx, func(t *tx) (err error) {
		f, err = s.find(t, p.Digest)
		return err
	})
	return d, f.kind != formNone, err
}

// Forget drops the rows of content that is not there and that nothing needs.
func (s *Store) Forget(ctx context.Context, d oci.Digest) error {
	return s.write(ctx, func(t *tx) error { return t.bury([]oci.Digest{d}) })
}

// describeLost is the descriptor of content whose bytes need not be there: by
// its own row, or by a manifest that names it.
func (s *Store) describeLost(ctx context.Context, digest oci.Digest) (oci.Descriptor, error) {
	d := oci.Descriptor{Digest: digest}
	var parents []oci.Digest
	err := s.read(ctx, func(t *tx) error {
		for _, query := range []string{"SELECT mediatype, size FROM manifest WHERE digest = ?", "SELECT mediatype, size FROM blob WHERE digest = ?"} {
			err := t.QueryRow(query, digest).Scan(&d.MediaType, &d.Size)
			if err == nil && d.MediaType != "" || err != nil && !errors.Is(err, sql.ErrNoRows) {
				return err
			}
		}
		var err error
		parents, err = t.digests(`SELECT parent FROM edge WHERE child = ?1 AND kind IN (1, 2)
			UNION SELECT e.parent FROM packed p JOIN edge e ON e.child = p.digest AND e.kind = 1 WHERE p.diffid = ?1`, digest)
		return err
	})
	if err != nil || d.MediaType != "" {
		return d, err
	}
	for _, p := range parents {
		body, err := os.ReadFile(s.blobPath(p))
		if err != nil {
			continue
		}
		var m struct {
			Config    oci.Descriptor   `json:"config"`
			Layers    []oci.Descriptor `json:"layers"`
			Manifests []oci.Descriptor `json:"manifests"`
		}
		if json.Unmarshal(body, &m) != nil {
			continue
		}
		all := append(append(m.Manifests, m.Layers...), m.Config)
		if i := slices.IndexFunc(all, func(c oci.Descriptor) bool { return c.Digest == digest }); i >= 0 {
			return all[i], nil
		}
	}
	if d.Size > 0 {
		return d, nil
	}
	return d, fmt.Errorf("%s: nothing says what it is: %w", digest, oci.ErrNotFound)
}

// IsDamaged tells whether the store has a file for d whose bytes are not d's.
func (s *Store) IsDamaged(d oci.Digest) bool {
	if checkDigest(d) != nil {
		return false
	}
	f, err := os.Open(s.blobPath(d))
	if err != nil {
		return false
	}
	defer f.Close()
	fi, err := f.Stat()
	return err == nil && digestOf(f, oci.Descriptor{Digest: d, Size: fi.Size()}) != nil
}
