package store

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/strake-project/strake/internal/oci"
	"github.com/strake-project/strake/internal/oci/ref"
)

// The journal of names is a second copy of what has a name, in a file of lines:
// what cannot be read off the blobs when the database is lost. A line is
//
//	UNIXNANO REPOSITORY:TAG DIGEST    the tag points at that; "-" removed it
//	UNIXNANO REPOSITORY@DIGEST +      the repository knows the digest; "-" forgot it
//
// It is written under the database's write lock, before the commit: it may say
// what then did not happen, and is never behind. Nothing reads it but Rebuild.
// It is not synced and no failure of it fails anything.
const namesFile = "names"

// maxNames is when the journal is written anew, from the database: past this
// and twice what it was then. Its first line says that length.
const maxNames = 64 << 10

func (t *tx) noteTag(repo, tag string, d oci.Digest, at int64) {
	t.names = fmt.Appendf(t.names, "%d %s:%s %s\n", at, repo, tag, orDash(string(d)))
}

func (t *tx) noteDigest(repo string, d oci.Digest, known bool) {
	sign := "-"
	if known {
		sign = "+"
	}
	t.names = fmt.Appendf(t.names, "%d %s@%s %s\n", time.Now().UnixNano(), repo, d, sign)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// noteNames appends what t changes to the journal.
func (s *Store) noteNames(t *tx) {
	if len(t.names) == 0 {
		return
	}
	f, err := os.OpenFile(s.path(namesFile), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		s.log.Warn("store: journal of names", "err", err)
		return
	}
	defer f.Close()
	fi, err := f.Stat()
	if err == nil && (fi.Size() == 0 || fi.Size() > maxNames && fi.Size() > maxNames+2*namesBase(f)) {
		err = s.rewriteNames(t)
	} else if err == nil {
		_, err = f.Write(t.names)
	}
	if err != nil {
		s.log.Warn("store: journal of names", "err", err)
	}
}

// namesBase is the length the journal had when it was last written anew.
func namesBase(f *os.File) int64 {
	head := make([]byte, 32)
	n, _ := f.ReadAt(head, 0)
	line, _, _ := bytes.Cut(head[:n], []byte("\n"))
	base, _ := strconv.ParseInt(strings.TrimPrefix(string(line), "# "), 10, 64)
	return base
}

// rewriteNames writes the journal from the database as t leaves it. A store
// older than the journal gets it so.
func (s *Store) rewriteNames(t *tx) error {
	all := &tx{}
	err := t.each(func(scan func(...any) error) error {
		var repo, tag, digest string
		var at int64
		err := scan(&repo, &tag, &digest, &at)
		all.noteTag(repo, tag, oci.Digest(digest), at)
		return err
	}, "SELECT repo, tag, digest, at FROM tag")
	if err != nil {
		return err
	}
	err = t.each(func(scan func(...any) error) error {
		var repo, digest string
		err := scan(&repo, &digest)
		all.noteDigest(repo, oci.Digest(digest), true)
		return err
	}, "SELECT repo, digest FROM repodigest")
	if err != nil {
		return err
	}
	text := fmt.Appendf(nil, "# %d\n", len(all.names))
	return writeSmall(s.path(namesFile), append(text, all.names...))
}

// nameEvent is a line of the journal, of the database's log of tags, or of its
// table of tags.
type nameEvent struct {
	repo, tag string     // tag is "" of a repository's digest
	digest    oci.Digest // "" where the tag was removed
	at        int64
	forgotten bool // of a repository's digest
}

// readNames reads the journal; lines that are damaged are left out.
func (s *Store) readNames() []nameEvent {
	f, err := os.Open(s.path(namesFile))
	if err != nil {
		return nil
	}
	defer f.Close()
	var all []nameEvent
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if e, ok := parseName(lines.Text()); ok {
			all = append(all, e)
		}
	}
	return all
}

func parseName(line string) (e nameEvent, ok bool) {
	part := strings.Fields(line)
	if len(part) != 3 {
		return e, false
	}
	var err error
	if e.at, err = strconv.ParseInt(part[0], 10, 64); err != nil {
		return e, false
	}
	if repo, digest, found := strings.Cut(part[1], "@"); found {
		e.repo, e.digest, e.forgotten = repo, oci.Digest(digest), part[2] == "-"
		return e, e.valid()
	}
	i := strings.LastIndexByte(part[1], ':')
	if i < 0 || i == len(part[1])-1 {
		return e, false
	}
	e.repo, e.tag = part[1][:i], part[1][i+1:]
	if part[2] != "-" {
		e.digest = oci.Digest(part[2])
	}
	return e, e.valid()
}

// AllTags lists every tag, sorted: what a shell completes.
func (s *Store) AllTags(ctx context.Context) ([]ref.Ref, error) {
	var all []ref.Ref
	err := s.read(ctx, func(t *tx) error {
		return t.each(func(scan func(...any) error) error {
			var repo, tag string
			err := scan(&repo, &tag)
			all = append(all, repository(repo).WithTag(tag))
			return err
		}, "SELECT repo, tag FROM tag ORDER BY repo, tag")
	})
	return all, err
}
