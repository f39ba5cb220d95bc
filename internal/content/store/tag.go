package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// tagLogLength bounds the log of one tag.
const tagLogLength = 100

// repository gives back the ref of a canonical repository name.
func repository(name string) ref.Ref {
	domain, path, _ := strings.Cut(name, "/")
	return ref.Ref{Domain: domain, Path: path}
}

// Tag implements content.Sink, and logs what the tag pointed at before. r with
// a digest records that r's repository knows that digest (docker's RepoDigests).
// A tag alone does not: it says nothing of the registry, whatever came from there.
func (s *Store) Tag(ctx context.Context, r ref.Ref, d oci.Descriptor) error {
	if err := checkDigest(d.Digest); err != nil {
		return err
	}
	if r.Domain == "" || r.Path == "" {
		return fmt.Errorf("tag %s as an image without a name: %w", d.Digest, oci.ErrInvalid)
	}
	if r.Digest != "" && r.Digest != d.Digest {
		return fmt.Errorf("tag %s: it points at %s: %w", r.Familiar(), d.Digest, oci.ErrInvalid)
	}
	repo, knows := r.Repository(), r.Digest != "" || r.Tag == ""
	// The same image built or pulled again is the common case: nothing to write.
	same := false
	err := s.ask(ctx, func(t *tx) (err error) {
		if r.Tag != "" {
			same, err = t.exists("SELECT 1 FROM tag WHERE repo = ? AND tag = ? AND digest = ?", repo, r.Tag, d.Digest)
			if err != nil || !same {
				return err
			}
		}
		same = !knows
		if knows {
			same, err = t.exists("SELECT 1 FROM repodigest WHERE repo = ? AND digest = ?", repo, d.Digest)
		}
		return err
	})
	if err != nil || same {
		return err
	}
	return s.writeSynced(ctx, func(t *tx) error {
		f, err := s.find(t, d.Digest)
		if err != nil {
			return err
		}
		if f.kind != formBlob {
			return notFound("tag %s: %s", r.Familiar(), d.Digest)
		}
		if _, err := t.Exec("UPDATE manifest SET named = 1 WHERE digest = ?", d.Digest); err != nil {
			return err
		}
		if knows {
			err = t.knowDigest(repo, d.Digest, true)
		}
		if err != nil || r.Tag == "" {
			return err
		}
		return t.point(repo, r.Tag, d.Digest)
	})
}

// point moves a tag, or with an empty digest removes it, and logs that.
func (t *tx) point(repo, tag string, d oci.Digest) error {
	now := time.Now().UnixNano()
	var old string
	err := t.QueryRow("SELECT digest FROM tag WHERE repo = ? AND tag = ?", repo, tag).Scan(&old)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	if old == string(d) {
		return nil
	}
	if d == "" {
		_, err = t.Exec("DELETE FROM tag WHERE repo = ? AND tag = ?", repo, tag)
	} else {
		_, err = t.Exec("INSERT OR REPLACE INTO tag(repo, tag, digest, at) VALUES(?,?,?,?)", repo, tag, d, now)
	}
	if err != nil {
		return err
	}
	t.noteTag(repo, tag, d, now)
	if err := t.change(changeTag, repo, tag, oci.Digest(old), d); err != nil {
		return err
	}
	if _, err := t.Exec("INSERT INTO taglog(repo, tag, digest, at, op) VALUES(?,?,?,?,?)", repo, tag, d, now, t.op.id); err != nil {
		return err
	}
	_, err = t.Exec(`DELETE FROM taglog WHERE repo = ? AND tag = ? AND n <=
		(SELECT n FROM taglog WHERE repo = ? AND tag = ? ORDER BY n DESC LIMIT 1 OFFSET ?)`, repo, tag, repo, tag, tagLogLength)
	return err
}

// Untag removes r's tag (or r's repository digest) and returns what it pointed
// at; oci.ErrNotFound if there is none. The content stays until Collect.
func (s *Store) Untag(ctx context.Context, r ref.Ref) (oci.Descriptor, error) {
	r = r.WithDefaultTag()
	repo := r.Repository()
	var d oci.Descriptor
	err := s.writeSynced(ctx, func(t *tx) error {
		var digest string
		var err error
		if r.Tag != "" {
			err = t.QueryRow("SELECT digest FROM tag WHERE repo = ? AND tag = ?", repo, r.Tag).Scan(&digest)
		} else {
			err = t.QueryRow("SELECT digest FROM repodigest WHERE repo = ? AND digest = ?", repo, r.Digest).Scan(&digest)
		}
		if errors.Is(err, sql.ErrNoRows) || err == nil && r.Digest != "" && string(r.Digest) != digest {
			return notFound("%s", r.Familiar())
		}
		if err != nil {
			return err
		}
		d.Digest = oci.Digest(digest)
		f, err := s.find(t, d.Digest)
		if err != nil {
			return err
		}
		d.MediaType, d.Size = f.mediaType, f.size
		if r.Tag != "" {
			return t.point(repo, r.Tag, "")
		}
		return t.knowDigest(repo, r.Digest, false)
	})
	if err != nil {
		return oci.Descriptor{}, err
	}
	return d, nil
}

// Tags implements content.TagLister. It fails with oci.ErrNotFound where
// nothing is known of the repository.
func (s *Store) Tags(ctx context.Context, r ref.Ref) ([]string, error) {
	tags := []string{}
	err := s.read(ctx, func(t *tx) error {
		err := t.each(func(scan func(...any) error) error {
			var tag string
			err := scan(&tag)
			tags = append(tags, tag)
			return err
		}, "SELECT tag FROM tag WHERE repo = ? ORDER BY tag", r.Repository())
		if err != nil || len(tags) > 0 {
			return err
		}
		known, err := t.exists("SELECT 1 FROM repodigest WHERE repo = ?", r.Repository())
		if err == nil && !known {
			err = notFound("repository %s", r.FamiliarName())
		}
		return err
	})
	return tags, err
}

// Repositories lists the repositories that have a tag, as refs without tag,
// sorted by their canonical names.
func (s *Store) Repositories(ctx context.Context) ([]ref.Ref, error) {
	var all []ref.Ref
	err := s.read(ctx, func(t *tx) error {
		return t.each(func(scan func(...any) error) error {
			var repo string
			err := scan(&repo)
			all = append(all, repository(repo))
			return err
		}, "SELECT DISTINCT repo FROM tag ORDER BY repo")
	})
	return all, err
}

// TagChange is one line of a tag's log; Digest is empty where it was removed.
type TagChange struct {
	Ref       ref.Ref
	Digest    oci.Digest
	ID        oci.Digest // of the image, "" of an index and where it is not in the store any more
	At        time.Time
	Operation int64 // 0 where it was done before operations were written down
	Command   string
	State     ContentState
}

// ContentState tells whether what a name pointed at can be had.
type ContentState string

const (
	Present ContentState = "present"
	Waiting ContentState = "removed" // Undo brings it back
	Lost    ContentState = "lost"
)

// TagLog returns where r's tag has pointed, newest first: the last hundred
// changes.
func (s *Store) TagLog(ctx context.Context, r ref.Ref) ([]TagChange, error) {
	r = r.WithDefaultTag()
	var all []TagChange
	err := s.read(ctx, func(t *tx) error {
		return t.each(func(scan func(...any) error) error {
			c := TagChange{Ref: repository(r.Repository()).WithTag(r.Tag)}
			var d, id, state string
			var at int64
			err := scan(&d, &at, &c.Operation, &c.Command, &id, &state)
			c.Digest, c.At, c.ID, c.State = oci.Digest(d), time.Unix(0, at), oci.Digest(id), ContentState(state)
			all = append(all, c)
			return err
		}, `SELECT l.digest, l.at, l.op, coalesce(o.command, ''), coalesce(m.image, ''),
				CASE WHEN l.digest = '' THEN '' WHEN m.digest IS NULL THEN ? WHEN m.gone THEN ? ELSE ? END
			FROM taglog l LEFT JOIN operation o ON o.id = l.op LEFT JOIN manifest m ON m.digest = l.digest
			WHERE l.repo = ? AND l.tag = ? ORDER BY l.n DESC`, Lost, Waiting, Present, r.Repository(), r.Tag)
	})
	return all, err
}

// Origins implements content.OriginLister.
func (s *Store) Origins(ctx context.Context, d oci.Descriptor) ([]ref.Ref, error) {
	var all []ref.Ref
	err := s.read(ctx, func(t *tx) error {
		return t.each(func(scan func(...any) error) error {
			var repo string
			err := scan(&repo)
			all = append(all, repository(repo))
			return err
		}, "SELECT repo FROM origin WHERE digest = ? ORDER BY repo", d.Digest)
	})
	return all, err
}

// RecordOrigin implements content.OriginRecorder.
func (s *Store) RecordOrigin(ctx context.Context, r ref.Ref, d oci.Descriptor) error {
	if r.Path == "" || s.readOnly != "" {
		return nil
	}
	known := false
	err := s.read(ctx, func(t *tx) (err error) {
		known, err = t.exists("SELECT 1 FROM origin WHERE digest = ? AND repo = ?", d.Digest, r.Repository())
		return err
	})
	if err != nil || known {
		return err
	}
	return s.write(ctx, func(t *tx) error {
		_, err := t.Exec("INSERT OR IGNORE INTO origin(digest, repo) VALUES(?,?)", d.Digest, r.Repository())
		return err
	})
}
